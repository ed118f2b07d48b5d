"""Work for other processes and machines, by any `concurrent.futures.Executor`.

workers.py    tasks sent out, tried again, taken as they come
in_worker.py  what a worker does with one
n_jobs.py     so many processes of this machine
folder.py     what all tasks share, written once
"""
