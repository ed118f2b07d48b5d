"""What is kept of a run.

recorder.py          draws as a DataTree; of large sites a subset and projections
running_moments.py   running moments of every coordinate
split_statistics.py  split R-hat and ESS from them
zarr_store.py        the draws on disk, and how to resume
netcdf.py            draws in one file
"""
