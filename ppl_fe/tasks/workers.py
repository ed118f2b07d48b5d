"""Tasks sent to an executor: taken as they come, tried again where one fails, ended by Ctrl-C."""

from __future__ import annotations

import pickle
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass
from math import inf
from typing import Any, Generic, NamedTuple, TypeVar

from tqdm.auto import tqdm

from ppl_fe.diverged import DivergedError
from ppl_fe.tasks.in_worker import in_worker

MOST_TRIES = 2
# What comes again with equal seeds and inputs; anything else may be the fault of a machine.
CERTAIN = (ValueError, TypeError, DivergedError)
ASKED_EVERY = 0.5  # seconds, of futures that cannot be waited for

Key = TypeVar("Key", bound=Hashable)


class Done(NamedTuple, Generic[Key]):
    """A task that is over.

    key: the task. found: what its function returned, or why there is nothing. tries: how many it
    took. before: why the try before the last one failed; None where there was none.
    """

    key: Key
    found: Any
    tries: int
    before: Exception | None


@dataclass
class _Try(Generic[Key]):
    """A try of a task: which one, whether others must not run meanwhile, and what came before."""

    key: Key
    number: int = 1
    alone: bool = False
    before: Exception | None = None


class Workers:
    """An executor that tasks are sent to.

    Args:
        executor: any `concurrent.futures.Executor`, or what has its `submit`.
        renew: makes another one where a death has broken the last; None (default) for an executor
            of the user, whose pool stays broken.
        most: tasks that it has at once, all by default. Where a pool breaks those are suspects.

    Attributes:
        executor: that is used now.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> with ThreadPoolExecutor(2) as pool:
        ...     done = list(Workers(pool).run(divmod, {"a": (7, 2)}, lambda key: (7, 2)))
        >>> done[0].found
        (3, 1)
    """

    def __init__(
        self,
        executor: Executor,
        renew: Callable[[], Executor] | None = None,
        most: int | None = None,
    ) -> None:
        self.executor, self._renew, self._most = executor, renew, most or inf

    def run(
        self,
        function: Callable[..., Any],
        keys: Iterable[Key],
        record_of: Callable[[Key], tuple[Any, ...]],
        *,
        unit: str = "task",
        progress: bool = False,
    ) -> Iterator[Done[Key]]:
        """Send tasks out, and give each as it is over.

        A task whose worker dies, or that fails by other than its numbers, is tried once more; where
        a worker's death takes other tasks along, all of those are, each by itself.

        Args:
            function: importable by its name; each task is a call of it.
            keys: the tasks.
            record_of: gives the arguments of one's next try: small, and picklable.
            unit: what the bar counts.
            progress: show a bar. Default False.

        Raises:
            KeyboardInterrupt: Ctrl-C, here or at a worker; what has not begun is cancelled.
        """
        waiting = deque(_Try(key) for key in keys)
        sent: dict[Any, _Try[Key]] = {}
        try:
            with tqdm(total=len(waiting), disable=not progress, unit=unit, leave=False) as bar:
                while waiting or sent:
                    over = self._send(function, waiting, sent, record_of)
                    over += [] if over else self._wait(sent)
                    for one, found in over:
                        again = self._next(one, found)
                        if again is not None:
                            (waiting.appendleft if again.alone else waiting.append)(again)
                            continue
                        bar.update()
                        if isinstance(found, BrokenExecutor):
                            found = self._death()
                        yield Done(one.key, found, one.number, one.before)
        finally:
            for future in sent:
                future.cancel()

    def _send(
        self,
        function: Callable[..., Any],
        waiting: deque[_Try[Key]],
        sent: dict[Any, _Try[Key]],
        record_of: Callable[[Key], tuple[Any, ...]],
    ) -> list[tuple[_Try[Key], Any]]:
        """Send what may be under way now; give what the executor refuses."""
        while waiting and len(sent) < self._most:
            if sent and (waiting[0].alone or any(one.alone for one in sent.values())):
                break
            one = waiting.popleft()
            try:
                future = self.executor.submit(in_worker, function, record_of(one.key))
            except Exception as error:
                return [(one, error)]
            sent[future] = one
        return []

    def _wait(self, sent: dict[Any, _Try[Key]]) -> list[tuple[_Try[Key], Any]]:
        """Wait until some are over, and take them out.

        Raises:
            KeyboardInterrupt: a worker's own, after all that are over beside it were given.
        """
        futures = list(sent)
        if all(isinstance(future, Future) for future in futures):
            over = wait(futures, return_when=FIRST_COMPLETED).done
        else:
            while not (over := {future for future in futures if future.done()}):
                time.sleep(ASKED_EVERY)
        done, found = list[Any](), list[Any]()
        for future in futures:
            if future in over:
                try:
                    found.append(_found(future))
                except KeyboardInterrupt:
                    continue  # it is over the next time, too
                done.append(future)
        if not done:
            raise KeyboardInterrupt
        if any(isinstance(error, BrokenExecutor) for error in found) and self._renew is not None:
            # Those that were under way end with it, each in its own time.
            found += [_found(future) for future in futures if future not in done]
            done += [future for future in futures if future not in done]
            self.executor = self._renew()
        return [(sent.pop(future), one) for future, one in zip(done, found, strict=True)]

    def _death(self) -> ChildProcessError:
        """Say what a worker's death means for a task that is not tried again."""
        if self._renew is None:
            return ChildProcessError(
                "a worker of the executor died, and such a pool takes no more tasks; n_jobs= makes "
                "one that recovers, and Dask runs a dead worker's tasks elsewhere"
            )
        return ChildProcessError(
            "its worker died, the second time with no other task beside it; the system kills a "
            "process where memory runs out: see its log"
        )

    def _next(self, one: _Try[Key], found: Any) -> _Try[Key] | None:
        """Give the next try of a task that has failed, if there is to be one."""
        if not isinstance(found, Exception) or isinstance(found, CERTAIN):
            return None
        broken = isinstance(found, BrokenExecutor)
        if one.number >= MOST_TRIES or (broken and self._renew is None):
            return None
        return _Try(one.key, one.number + 1, broken, found)


def _found(future: Any) -> Any:
    """Give what a future that is over holds: a result or an error.

    Raises:
        KeyboardInterrupt: the worker's own.
    """
    try:
        return pickle.loads(future.result())
    except Exception as error:
        return error
