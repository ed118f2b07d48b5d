#!/usr/bin/env bash
# safetensors' save_file writes to a file of a random name beside the one that was asked for, ".tmp"
# and six letters, and renames it at the end. A process that is killed in between leaves that file,
# as large as it had become; the next save takes another name, and nothing removes it. A caller that
# writes to "x.partial" and clears that away after a crash does not find it.
#
# Expected: a process that is killed in save_file(tensors, "x.partial") leaves x.partial, or nothing.
# Seen:     safetensors 0.8.0: it leaves ".tmp" and six letters, and no x.partial.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.3.5
cat > "$folder/killed.py" <<'PYTHON'
import os
import re
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

folder = Path(sys.argv[1])
print(f"safetensors {version('safetensors')}")
for attempt in range(20):  # until the kill falls between the beginning and the end
    target = folder / str(attempt)
    target.mkdir()
    child = os.fork()
    if child == 0:
        save_file({"x": np.zeros(10**8, np.float32)}, target / "x.partial")
        os._exit(0)
    while not list(target.iterdir()):
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        names = [re.sub(r"^\.tmp\w{6}$", ".tmp and six letters", file.name) for file in target.iterdir()]
        print("left:", *names)
        break
PYTHON
found=$("$folder/venv/bin/python" "$folder/killed.py" "$folder")
echo "expected: x.partial, or nothing"
echo "seen:     $(echo "$found" | paste -sd ';' -)"
[ "$(echo "$found" | tail -n 1)" = "left: .tmp and six letters" ] || { echo "changed"; exit 1; }
echo "as described"
