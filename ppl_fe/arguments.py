"""Arguments of public calls: misspelt names, and numbers out of range, before any work is done."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches
from math import isfinite
from typing import NoReturn, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# What other libraries of this field call these arguments.
OTHER_WORDS = {
    "burn_in": "warmup_steps",
    "chains": "num_chains",
    "draws": "num_samples",
    "lr": "learning_rate",
    "num_burnin_steps": "warmup_steps",
    "num_draws": "num_samples",
    "num_warmup": "warmup_steps",
    "progressbar": "progress_bar",
    "random_seed": "seed",
    "rng_key": "seed",
    "tune": "warmup_steps",
    "warmup": "warmup_steps",
}


def named_arguments(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Make a function refuse keywords that it does not have with the nearest name it has.

    Args:
        function: one without `**kwargs`, the `__init__` of a class, which is then named by it, or
            a class whose `__init__` is made by `dataclass`.

    Returns:
        The function or class, with the same signature.

    Raises:
        TypeError: by the function returned, before anything else is done.

    Example:
        >>> @named_arguments
        ... def draw(*, num_samples: int = 1000) -> int:
        ...     return num_samples
        >>> draw(num_sample=3)
        Traceback (most recent call last):
        TypeError: draw() has no argument 'num_sample'; did you mean num_samples?
    """
    if isinstance(function, type):
        function.__init__ = named_arguments(function.__init__)  # type: ignore[misc]
        return function
    known = set(inspect.signature(function).parameters)
    called = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if not kwargs.keys() <= known:
            refuse_unknown(called, kwargs.keys() - known, known - {"self"})
        return function(*args, **kwargs)

    return checked


def refuse_unknown(called: str, unknown: Iterable[str], known: Collection[str]) -> NoReturn:
    """Raise for keywords that a function does not have, naming what it has in their place.

    Args:
        called: the public function or class that was called.
        unknown: the keywords, one at least.
        known: the names of its arguments.

    Raises:
        TypeError: always.

    Example:
        >>> refuse_unknown("sample", ["tune"], ["warmup_steps", "seed"])
        Traceback (most recent call last):
        TypeError: sample() has no argument 'tune'; it is called warmup_steps here
    """
    clauses = []
    for name in sorted(unknown):
        near = get_close_matches(name, known, n=1)
        if OTHER_WORDS.get(name) in known:
            clauses.append(f"{name!r}; it is called {OTHER_WORDS[name]} here")
        elif near:
            clauses.append(f"{name!r}; did you mean {near[0]}?")
        else:
            clauses.append(f"{name!r}; it takes {', '.join(sorted(known))}")
    raise TypeError(f"{called}() has no argument {'; nor '.join(clauses)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Ask for the nearest of the known names to a misspelt one; "" where none is near.

    Example:
        >>> did_you_mean("clasifier", ["embedding", "classifier"]), did_you_mean("x", ["bias"])
        ("did you mean 'classifier'?", '')
    """
    near = get_close_matches(name, dict.fromkeys(known), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def require_positive(name: str, value: object) -> None:
    """Refuse anything but a positive, finite number.

    Raises:
        TypeError: no number.
        ValueError: zero, negative or not finite.

    Example:
        >>> require_positive("step_size", -1.0)
        Traceback (most recent call last):
        ValueError: step_size must be a positive number, got -1.0
    """
    if isinstance(value, bool) or not isinstance(value, float | int):
        raise TypeError(f"{name} must be a positive number, got {value!r}")
    if not (isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, got {value}")


def require_integer(name: str, value: object, least: int) -> None:
    """Refuse anything but an integer of at least `least`.

    Raises:
        ValueError: as it says.

    Example:
        >>> require_integer("num_steps", 0, 1)
        Traceback (most recent call last):
        ValueError: num_steps must be an integer of at least 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
