"""Arguments of public calls: misspelt names, and numbers out of range, before any work is done."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches
from math import isfinite
from numbers import Integral
from typing import NoReturn, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
T = TypeVar("T")

VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

# What other libraries of this field call these arguments.
OTHER_WORDS = {
    "beta": "inverse_temperature",
    "burn_in": "warmup_steps",
    "chains": "num_chains",
    "draws": "num_samples",
    "epsilon": "step_size",
    "gamma": "localization",
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


def forwards_arguments(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Make a function that hands keywords on to a program refuse those that neither has.

    Args:
        function: one with a parameter `model`, the program or a kernel with it as `.program`, and
            with `**kwargs` for the program.

    Returns:
        The function, with the same signature.

    Raises:
        TypeError: by the function returned, before anything else is done.

    Example:
        >>> @forwards_arguments
        ... def predict(model, *args, seed=0, **kwargs):
        ...     return model(*args, **kwargs)
        >>> predict(lambda x, size=1: x, 3.0, sed=1)
        Traceback (most recent call last):
        TypeError: predict() has no argument 'sed'; did you mean seed?
    """
    parameters = inspect.signature(function).parameters
    known = {name for name, one in parameters.items() if one.kind not in VARIABLE}
    place = [*parameters].index("model")

    @functools.wraps(function)
    def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        foreign = kwargs.keys() - known
        if foreign:
            model = kwargs.get("model", args[place] if len(args) > place else None)
            refuse_foreign(function.__name__, getattr(model, "program", model), foreign, known)
        return function(*args, **kwargs)

    return checked


def refuse_foreign(
    called: str, program: object, given: Collection[str], known: Collection[str]
) -> None:
    """Refuse keywords that a program does not have, where a function hands them on to it.

    Args:
        called: the public function that was called.
        program: what it hands them on to; one without a signature takes what it takes.
        given: the keywords that the function itself does not have.
        known: those that it has.

    Raises:
        TypeError: as it says.
    """
    own: set[str] = set()
    if callable(program):
        try:
            parameters = inspect.signature(program).parameters.values()
        except (TypeError, ValueError):  # written in C, say
            return
        if any(one.kind is one.VAR_KEYWORD for one in parameters):
            return
        own = {one.name for one in parameters if one.kind is not one.POSITIONAL_ONLY}
    if not set(given) <= own:
        refuse_unknown(called, set(given) - own, {*known} | own)


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


def given(**arguments: T | None) -> dict[str, T]:
    """Keep the arguments that were given, which None stands for the lack of.

    Example:
        >>> given(num_samples=100, thinning=None)
        {'num_samples': 100}
    """
    return {name: value for name, value in arguments.items() if value is not None}


def near_argument(name: str, known: Collection[str]) -> str:
    """Find the argument that a name stands for, in other libraries or misspelt; "" for none.

    Example:
        >>> near_argument("burn_in", ["warmup_steps"]), near_argument("sed", ["seed"])
        ('warmup_steps', 'seed')
    """
    other = OTHER_WORDS.get(name, "")
    return other if other in known else next(iter(get_close_matches(name, known, n=1)), "")


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


def require_batch_size(value: object) -> None:
    """Refuse anything but a positive integer, or None for all the data.

    Raises:
        ValueError: as it says.

    Example:
        >>> require_batch_size("all")
        Traceback (most recent call last):
        ValueError: batch_size must be a positive integer or None for all the data, got 'all'
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(
            f"batch_size must be a positive integer or None for all the data, got {value!r}"
        )
