"""What is kept of a run.

recorder.py          draws as a DataTree; of large sites a subset and projections
data_groups.py       the data beside them
batch_sums.py        sums over half a chain, of which running moments are made
running_moments.py   running moments of every coordinate, chains side by side
split_statistics.py  split R-hat and ESS from such sums
zarr_folder.py       a folder of zarr that grows with the draws
zarr_store.py        the draws on disk, and how a run is resumed
seal.py              whether a folder is still as its run left it
netcdf.py            draws in one file
"""
