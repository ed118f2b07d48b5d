#!/usr/bin/env bash
# arviz-plots 0.8.0 puts its styles into matplotlib.style.core, which matplotlib 3.11 no longer has.
# Its extra [matplotlib] sets no upper limit, so that a fresh installation on Python 3.11 takes both.
#
# Expected: `import arviz_plots` with any matplotlib that its requirements accept.
# Seen:     AttributeError: module 'matplotlib.style' has no attribute 'core'; 3.10 works.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/import.py" <<'PYTHON'
from importlib.metadata import version

print("arviz-plots", version("arviz-plots"), "with matplotlib", version("matplotlib"), end=": ")
try:
    import arviz_plots

    print("imported")
except AttributeError as error:
    print("AttributeError:", error)
PYTHON

seen() { # seen VERSION -> the line that the script prints under this matplotlib
    python3 -m venv "$folder/$1"
    "$folder/$1/bin/pip" install --quiet --disable-pip-version-check \
        "arviz-plots[matplotlib]==0.8.0" "arviz-base==0.8.2" "arviz-stats[xarray]==0.8.0" \
        "matplotlib==$1"
    "$folder/$1/bin/python" "$folder/import.py"
}

older=$(seen 3.10.9)
newer=$(seen 3.11.0)
echo "expected: arviz-plots can be imported with every matplotlib that it accepts"
echo "seen:     $older"
echo "seen:     $newer"
case $older in *": imported") ;; *) echo "changed: 3.10.9 does not work"; exit 1 ;; esac
case $newer in *"'matplotlib.style' has no attribute 'core'") ;; *) echo "changed: 3.11.0 works"; exit 1 ;; esac
echo "as described"
