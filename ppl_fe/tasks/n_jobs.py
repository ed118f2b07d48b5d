"""`n_jobs=`: so many processes of this machine, as joblib and scikit-learn count them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

from ppl_fe.tasks.in_worker import end_with_parent
from ppl_fe.tasks.workers import Workers


class InThisProcess(Executor):
    """Does a task at once, where it is submitted: no other process, and the same numbers."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Give a future that is over."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def check_engine(executor: Executor | None, n_jobs: int | None) -> None:
    """Refuse what is no executor, no number of processes, and both at once.

    Args:
        executor: of the user; None for none.
        n_jobs: None for none.

    Raises:
        TypeError: something without `submit`; no integer.
        ValueError: both; zero.

    Example:
        >>> check_engine(None, 0)
        Traceback (most recent call last):
        ValueError: n_jobs must not be 0: give a number of processes, or -1 for one a core
    """
    if executor is not None and n_jobs is not None:
        raise ValueError(
            "executor and n_jobs are both given; n_jobs makes an executor of its own: leave one out"
        )
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise TypeError(
            "executor must be a concurrent.futures.Executor, such as ProcessPoolExecutor(4) or "
            f"dask's client.get_executor(), got {type(executor).__name__}"
        )
    if n_jobs is None:
        return
    if isinstance(n_jobs, bool) or not isinstance(n_jobs, int):
        raise TypeError(f"n_jobs must be an integer, got {n_jobs!r}")
    if n_jobs == 0:
        raise ValueError("n_jobs must not be 0: give a number of processes, or -1 for one a core")


@contextmanager
def opened_workers(executor: Executor | None, n_jobs: int | None) -> Iterator[Workers | None]:
    """Give the workers that a call asks for as long as the block lasts; None for this process.

    Args:
        executor: of the user, who closes it; None for none.
        n_jobs: processes: −1 for one a core, −2 for one less, and so on; they stay a while for the
            next call, and end with this process. 1 for tasks in this one; None for no tasks.
    """
    check_engine(executor, n_jobs)
    if executor is not None:
        yield Workers(executor)
        return
    if n_jobs is None:
        yield None
        return
    if n_jobs == 1:
        yield Workers(InThisProcess(), most=1)
        return
    from loky import cpu_count, get_reusable_executor  # where it is needed and no sooner

    count = n_jobs if n_jobs > 0 else max(1, cpu_count() + 1 + n_jobs)

    def make() -> Executor:
        made: Executor = get_reusable_executor(
            max_workers=count, initializer=end_with_parent, initargs=(os.getpid(),)
        )
        return made

    workers = Workers(make(), make, count)
    try:
        yield workers
    except BaseException:
        workers.executor.shutdown(wait=False, kill_workers=True)  # type: ignore[call-arg]
        raise
