"""Tasks at any executor: taken as they come, tried again, told apart from dead workers, ended."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from ppl_fe.tasks import workers as engine
from ppl_fe.tasks.n_jobs import check_engine, opened_workers
from ppl_fe.tasks.workers import Done, Workers

FIRST = os.getpid()


def forked(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, multiprocessing.get_context("fork"))


def square(number: int) -> int:
    return number**2


def failing_at_first(number: int, marker: Path, error: Exception) -> int:
    if marker.exists():
        return number
    marker.touch()
    raise error


def failing(error: BaseException) -> None:
    raise error


def dying(number: int, deadly: int, first: int) -> int:
    assert os.getpid() != first
    if number == deadly:
        os._exit(1)
    return number


def threads() -> int:
    return torch.get_num_threads()


def run(workers: Workers, function: Callable[..., Any], records: dict[Any, Any]) -> dict[Any, Any]:
    done: list[Done[Any]] = list(workers.run(function, records, records.__getitem__))
    assert len(done) == len(records)
    return {one.key: one for one in done}


def test_every_task_is_done_once() -> None:
    with ThreadPoolExecutor(3) as pool:
        found = run(Workers(pool), square, {k: (k,) for k in range(20)})
    assert {k: one.found for k, one in found.items()} == {k: k**2 for k in range(20)}
    assert {one.tries for one in found.values()} == {1}


def test_what_fails_is_tried_again_by_a_new_record(tmp_path: Path) -> None:
    made = []

    def record_of(key: int) -> tuple[Any, ...]:
        made.append(key)
        return key, tmp_path / str(key), RuntimeError("no memory")

    with ThreadPoolExecutor(1) as pool:
        found = list(Workers(pool).run(failing_at_first, [1, 2], record_of))
    assert {(one.key, one.found, one.tries) for one in found} == {(1, 1, 2), (2, 2, 2)}
    assert sorted(made) == [1, 1, 2, 2]
    assert str(found[0].before) == "no memory"


@pytest.mark.parametrize(("error", "tries"), [(OSError("gone"), 2), (ValueError("γ"), 1)])
def test_what_fails_for_good_is_its_own_error(error: Exception, tries: int) -> None:
    with ThreadPoolExecutor(2) as pool:
        found = run(Workers(pool), failing, {"bad": (error,)})["bad"]
    assert (type(found.found), found.tries) == (type(error), tries)


def test_a_dead_worker_s_tasks_are_run_again_each_by_itself() -> None:
    pools = [forked(2)]

    def renewed() -> Executor:
        pools.append(forked(2))
        return pools[-1]

    workers = Workers(pools[0], renewed, most=2)
    found = run(workers, dying, {k: (k, 1, FIRST) for k in range(6)})
    for pool in pools:
        pool.shutdown()
    dead = found.pop(1)
    assert {k: one.found for k, one in found.items()} == {k: k for k in found}
    assert dead.tries == 2
    assert "its worker died, the second time with no other task beside it" in str(dead.found)
    assert sum(one.tries > 1 for one in found.values()) <= 1  # who was under way with it
    assert len(pools) == 3


def test_a_pool_of_the_user_that_broke_says_so() -> None:
    with forked(1) as pool:
        found = run(Workers(pool), dying, {k: (k, 0, FIRST) for k in range(3)})
    for one in found.values():
        assert isinstance(one.found, ChildProcessError)
        assert "such a pool takes no more tasks; n_jobs= makes one that recovers" in str(one.found)


def test_ctrl_c_cancels_what_has_not_begun() -> None:
    begun: list[int] = []

    class Counting(ThreadPoolExecutor):
        def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            def counted() -> Any:
                begun.append(1)
                return function(*args)

            return super().submit(counted)

    with Counting(1) as pool, pytest.raises(KeyboardInterrupt):
        list(Workers(pool).run(failing, range(50), lambda key: (KeyboardInterrupt(),)))
    assert len(begun) < 50


def square_or_stop(number: int) -> int:
    if number == 1:
        raise KeyboardInterrupt
    return number**2


def test_what_is_over_beside_a_worker_s_ctrl_c_is_given_first() -> None:
    class AtOnce(Executor):
        """All that is sent is over when it is looked at."""

        def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            try:
                future.set_result(function(*args))
            except BaseException as error:
                future.set_exception(error)
            return future

    coming = Workers(AtOnce()).run(square_or_stop, range(3), lambda key: (key,))
    assert [next(coming).found, next(coming).found] == [0, 4]
    with pytest.raises(KeyboardInterrupt):
        next(coming)


def test_futures_that_only_say_when_they_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "ASKED_EVERY", 0.01)

    class Job:
        """As submitit's."""

        def __init__(self, future: Future[Any]) -> None:
            self.done, self.result, self.cancel = future.done, future.result, future.cancel

    class Scheduler:
        def __init__(self, pool: Executor) -> None:
            self.pool = pool

        def submit(self, *call: Any) -> Job:
            return Job(self.pool.submit(*call))

    with ThreadPoolExecutor(1) as pool:
        scheduler: Any = Scheduler(pool)
        found = run(Workers(scheduler), square, {k: (k,) for k in range(3)})
    assert [found[k].found for k in range(3)] == [0, 1, 4]


def test_tasks_have_one_thread_of_torch_and_one_process_one_task() -> None:
    before, most, now = torch.get_num_threads(), [0], [0]

    class Counting:
        def __reduce__(self) -> Any:  # called while the result is pickled, in the task
            now[0] += 1
            most[0] = max(most[0], now[0])
            threading.Event().wait(0.02)
            now[0] -= 1
            return (int, (torch.get_num_threads(),))

    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(3) as pool:
            found = run(Workers(pool), list, {k: ([Counting()],) for k in range(4)})
    finally:
        torch.set_num_threads(before)
    assert [one.found for one in found.values()] == [[1]] * 4
    assert most == [1]


def test_who_runs_them_is_given_once_and_rightly() -> None:
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ValueError, match="executor and n_jobs are both given"):
            check_engine(pool, 2)
        check_engine(pool, None)
    wrong: Any = "dask"
    with pytest.raises(TypeError, match=r"executor must be a concurrent\.futures\.Exec.*got str"):
        check_engine(wrong, None)
    with pytest.raises(TypeError, match=r"n_jobs must be an integer, got 1\.5"):
        check_engine(None, 1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_jobs must not be 0"):
        check_engine(None, 0)
    with opened_workers(None, None) as workers:
        assert workers is None


def test_one_job_is_this_process() -> None:
    with opened_workers(None, 1) as workers:
        assert workers is not None
        found = run(workers, os.getpid, {0: (), 1: ()})
        assert {one.found for one in found.values()} == {FIRST}
        assert run(workers, failing, {0: (OSError("gone"),)})[0].tries == 2


@pytest.mark.thorough  # its processes import torch anew
def test_n_jobs_counts_as_joblib_does_and_its_processes_outlive_a_death() -> None:
    with opened_workers(None, -1) as workers:
        assert workers is not None
        found = run(workers, dying, {k: (k, 1, FIRST) for k in range(4)})
        assert {k for k, one in found.items() if isinstance(one.found, Exception)} == {1}
        assert run(workers, threads, {0: ()})[0].found == 1
        workers.executor.shutdown(kill_workers=True)  # type: ignore[call-arg]
