"""Old names, kept for one release under a `DeprecationWarning`.

To drop them with the next release, remove what this file defines and what is built from it.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def renamed_arguments(
    **new_names: str,
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Make a function take old names of its arguments, too.

    Args:
        **new_names: old name = new name.

    Returns:
        A decorator. The function it gives passes an old name on as the new one and warns.

    Raises:
        TypeError: by the function returned, where both names of an argument are given.

    Example:
        >>> @renamed_arguments(head="features")
        ... def rank(*, features: str = "last") -> str:
        ...     return features
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", DeprecationWarning)
        ...     rank(head="first")
        'first'
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @functools.wraps(function)
        def renamed(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            for old in new_names.keys() & kwargs.keys():
                new = new_names[old]
                if new in kwargs:
                    raise TypeError(f"{function.__name__}() got {new} and its old name {old}")
                warn_of_old_name(f"{function.__name__}({old}=)", f"{new}=")
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return renamed

    return decorate


def old_names(
    module: str, moved: Mapping[str, str], otherwise: Callable[[str], Any] | None = None
) -> Callable[[str], Any]:
    """Make a module's `__getattr__`, by which old names of it are still found.

    Args:
        module: the module that had them.
        moved: old name -> "module:name", where the object is now. Looked up when it is asked for,
            so that a floor of the house need not import the one above it.
        otherwise: finds the module's other names that are looked up when asked for; by default
            there are none.

    Returns:
        A function of a name, which warns and gives the object.

    Raises:
        AttributeError: by the function returned, for any other name.

    Example:
        >>> find = old_names("ppl_fe", {"square_root": "math:sqrt"})
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", DeprecationWarning)
        ...     find("square_root")(4.0)
        2.0
    """

    def find(name: str) -> Any:
        if name not in moved:
            if otherwise is not None:
                return otherwise(name)
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, _, new = moved[name].partition(":")
        warn_of_old_name(f"{module}.{name}", f"{home}.{new}")
        return getattr(importlib.import_module(home), new)

    return find


def warn_of_old_name(old: str, new: str) -> None:
    """Warn of an old name at the line that called the function which calls this one.

    Args:
        old: what was written.
        new: what to write in its place.
    """
    message = f"{old} is called {new} now; the old name goes with the next release"
    warnings.warn(message, DeprecationWarning, stacklevel=3)
