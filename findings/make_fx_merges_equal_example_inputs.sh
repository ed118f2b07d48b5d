#!/usr/bin/env bash
# make_fx (torch 2.13.0) traces by the identity of its example tensors: of two arguments that are one
# tensor in the example it keeps only the last, and the graph ignores the other for good.
# Who passes one zero tensor for a sampler's position and its momentum gets a gradient taken at the momentum.
#
# Expected: f(a, b) = 2a + b, traced by make_fx(f)(z, z), gives 2a + b for other a and b; or an error.
# Seen:     3b, without a word. With a clone of z as the second example it is right.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/trace.py" <<'PYTHON'
import torch
from torch.fx.experimental.proxy_tensor import make_fx


def f(a, b):
    return 2 * a + b


zero = torch.zeros(1)
for name, example in (("one tensor twice", (zero, zero)), ("two tensors", (zero, zero.clone()))):
    graph = make_fx(f)(*example)
    print(f"{name}: f(1, 5) = {graph(torch.ones(1), torch.full((1,), 5.0)).item():g}")
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
found=$("$folder/venv/bin/python" "$folder/trace.py")
echo "expected: f(1, 5) = 7 from either graph"
echo "seen:     $(echo "$found" | paste -sd ';' -)"
[ "$found" = "$(printf 'one tensor twice: f(1, 5) = 15\ntwo tensors: f(1, 5) = 7')" ] || { echo changed; exit 1; }
echo "as described"
