#!/usr/bin/env bash
# Since 1.8 h5netcdf has no dependency that reads or writes HDF5: h5py became the extra [h5py].
# An installation that was complete with `pip install h5netcdf` before writes no file after an update.
#
# Expected: xarray's engine="h5netcdf" writes a data set once h5netcdf is installed.
# Seen:     ImportError that names h5py; with h5netcdf 1.7.3 the same lines write the file.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/write.py" <<'PYTHON'
from importlib.metadata import version
import xarray as xr

print("h5netcdf", version("h5netcdf"), "with xarray", version("xarray"), end=": ")
try:
    xr.Dataset({"loss": ("draw", [1.0, 2.0])}).to_netcdf("draws.nc", engine="h5netcdf")
    print("written")
except ImportError as error:
    print("ImportError:", error)
PYTHON

seen() { # seen VERSION -> the line that the script prints under this h5netcdf
    python3 -m venv "$folder/$1"
    "$folder/$1/bin/pip" install --quiet --disable-pip-version-check \
        "h5netcdf==$1" "xarray==2025.6.1" "numpy==2.3.5" "pandas==2.3.3"
    (cd "$folder" && "$folder/$1/bin/python" write.py)
}

before=$(seen 1.7.3)
after=$(seen 1.8.2)
echo "expected: h5netcdf writes a data set, whichever version"
echo "seen:     $before"
echo "seen:     $after"
case $before in *": written") ;; *) echo "changed: 1.7.3 does not write"; exit 1 ;; esac
case $after in *"ImportError: "*"h5py"*) ;; *) echo "changed: 1.8.2 writes"; exit 1 ;; esac
echo "as described"
