"""Take arrays and data frames for tensors where a program needs them; name what else to change.

Arrays and data frames are no tensors, float64 data do not multiply float32 weights, and some
distributions need floats where labels are integers. Whether that is why a run failed is not
guessed from the error's message: the trial is run again with the arguments changed. Arrays become
tensors of whatever type the program runs on; a tensor is never cast.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, combinations, islice
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_fe.inference.program.data_frames import Columns
from ppl_fe.inference.program.program_call import ProgramCall, argument_name
from ppl_fe.inference.program.trial import TrialRunError, trial_run

OF_DATA = (ValueError, IndexError, RuntimeError)  # errors that the data may have caused
MOST_TRIALS = 32  # runs with some of the tensors in another dtype


def refuse_non_finite(call: ProgramCall) -> None:
    """Refuse NaN and infinity among a program's tensors.

    Raises:
        ValueError: the argument or column, and how many values.
    """
    for name, tensor in zip(call.variables, call.tensors, strict=True):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise ValueError(
                f"{name}, of shape {tuple(tensor.shape)}, holds {count} NaN or infinite values; "
                "remove or impute them first"
            )


def is_array(value: object) -> bool:
    """Return whether a value is an array or a data frame, and no tensor.

    Example:
        >>> is_array(np.ones(2)), is_array(torch.ones(2)), is_array([1.0, 1.0])
        (True, False, False)
    """
    return hasattr(value, "__array__") and not isinstance(value, Tensor | np.generic)


def called(
    model: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
) -> ProgramCall:
    """Make the call of a program, its arrays and data frames as tensors where it needs them.

    Floats become the type of its sites, whole numbers int64, or floats where it runs on those
    alone. A data frame becomes a matrix, or `Columns` where its columns are read.

    Args:
        model: the program.
        args: its positional arguments.
        kwargs: its keyword arguments.
        more: further keywords. Default none.

    Raises:
        ValueError: an array holds NaN or infinity.
    """
    call = ProgramCall(model, args, kwargs)
    if not any(map(is_array, call.leaves)):
        return call
    given = dict(more or {})
    try:
        with warnings.catch_warnings(action="ignore"):  # of pandas and torch; the next run warns
            trial_run(lambda: call(call.tensors, given), call.tensors, gradient=True)
    except TrialRunError as failed:
        leaves, structure = pytree.tree_flatten((tuple(args), dict(kwargs)))
        as_tensors = [
            _by_column(leaf, failed.dtype) or _as_tensor(leaf, failed.dtype) for leaf in leaves
        ]
        refuse_non_finite(ProgramCall(model, *pytree.tree_unflatten(as_tensors, structure)))
        run = _runner(partial(model, **given), structure)
        changed = _changed(failed, run, leaves)
        pairs = zip(leaves, changed, strict=True)
        if not any(new is not old and isinstance(old, Tensor) for old, new in pairs):
            return ProgramCall(model, *pytree.tree_unflatten(changed, structure))
    except ValueError:  # it ran
        pass
    return call


def raise_explained(
    failed: TrialRunError,
    program: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> NoReturn:
    """Raise for a failed trial run, and name the arguments to change where that would help.

    Args:
        failed: the error of `trial_run`.
        program: the one that failed.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Raises:
        ValueError: always, except that a program's own error is raised where no change of the
            arguments would help and data do not cause errors of its kind.
    """
    error = failed.error
    what = "the model failed on a trial run with the data given"
    advice = _advice(failed, program, args, kwargs)
    if advice:  # the shapes that Pyro met until then do not matter any more
        own = " ".join(str(error).partition("Trace Shapes:")[0].split())
        raise ValueError(f"{what}: {'; '.join(advice)} ({type(error).__name__}: {own})") from error
    if "Multiple sample sites named" in str(error):
        what += "; a plate and a site, or two sites, of one name: give each its own"
    if isinstance(error, OF_DATA):
        raise ValueError(f"{what}: {error}") from error
    raise error from error.__cause__


def _advice(
    failed: TrialRunError,
    program: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> list[str]:
    """Write a clause for each argument that has to change for the program to run."""
    paths, structure = pytree.tree_flatten_with_path((tuple(args), dict(kwargs)))
    names = [argument_name(path) for path, _ in paths]
    given = [leaf.detach() if isinstance(leaf, Tensor) else leaf for _, leaf in paths]

    run = _runner(program, structure)
    changed = zip(names, given, _changed(failed, run, given), strict=True)
    advice = [
        _clause(name, old, new, failed.dtype)
        for name, old, new in changed
        if new is not old and isinstance(old, Tensor)  # arrays are taken as they are
    ]
    texts = [name for name, leaf in zip(names, given, strict=True) if _is_frame_of_text(leaf)]
    return advice or [
        f"{name} is of pandas and holds more than numbers; give codes in place of text, by "
        "frame[column].astype('category'), or a tensor of the columns of numbers: "
        f"torch.tensor(frame[columns].values, dtype={failed.dtype})"
        for name in texts
    ]


def _runner(program: Callable[..., Any], structure: Any) -> Callable[[list[Any]], Exception | None]:
    """Make what runs a program with other leaves of its arguments, and gives its error."""

    def run(leaves: list[Any]) -> Exception | None:
        tensors = [leaf for leaf in pytree.tree_leaves(leaves) if isinstance(leaf, Tensor)]
        args, kwargs = pytree.tree_unflatten(leaves, structure)
        try:
            with warnings.catch_warnings(action="ignore"):
                trial_run(lambda: program(*args, **kwargs), tensors, gradient=True)
        except TrialRunError as again:
            return again.error
        except ValueError:  # it ran
            return None
        return None

    return run


def _changed(
    failed: TrialRunError, run: Callable[[list[Any]], Exception | None], given: list[Any]
) -> list[Any]:
    """Change as few leaves as possible for the program to run; return `given` if none helps."""
    leaves = [_as_tensor(leaf, failed.dtype) for leaf in given]
    arrays = [k for k, leaf in enumerate(leaves) if leaf is not given[k]]
    still = run(leaves) if arrays else failed.error
    if still is not None:
        by_column = [
            _by_column(leaf, failed.dtype) or new for leaf, new in zip(given, leaves, strict=True)
        ]
        others = chain(
            [by_column],
            islice(_in_dtype(leaves, failed.dtype), MOST_TRIALS),
            islice(_in_dtype(leaves, torch.int64), MOST_TRIALS),
            _columns_in_dtype(by_column, failed.dtype),
        )
        found = next((other for other in others if run(other) is None), None)
        if found is None and any(isinstance(new, Columns) and new.was_read for new in by_column):
            return by_column  # whose error is the program's
        if found is None:  # with tensors another error may come: both need a change
            return leaves if str(still) != str(failed.error) else given
        leaves = found
    for k in arrays:  # the program may take some of them as they are
        without = [*leaves[:k], given[k], *leaves[k + 1 :]]
        leaves = without if run(without) is None else leaves
    return leaves


def _columns_in_dtype(by_column: list[Any], dtype: torch.dtype) -> Iterator[list[Any]]:
    """Yield the arguments with columns of whole numbers as floats: few of them, or all but few.

    A column of labels wants that, or those of a design; one that chooses a group must stay.
    """
    if not any(isinstance(held, Columns) for held in by_column):
        return
    leaves, structure = pytree.tree_flatten(by_column)
    for most_first in (False, True):
        for other in islice(_in_dtype(leaves, dtype, most_first), MOST_TRIALS):
            yield pytree.tree_unflatten(other, structure)


def _in_dtype(
    leaves: list[Any], dtype: torch.dtype, most_first: bool = False
) -> Iterator[list[Any]]:
    """Yield the leaves with some of the tensors in another dtype, fewest changes or most first."""
    others = [isinstance(leaf, Tensor) and _has_exact(leaf, dtype) for leaf in leaves]
    places = [k for k, other in enumerate(others) if other]
    counts = range(1, len(places) + 1)
    for count in reversed(counts) if most_first else counts:
        for chosen in combinations(places, count):
            yield [leaf.to(dtype) if k in chosen else leaf for k, leaf in enumerate(leaves)]


def _has_exact(leaf: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a tensor is of another dtype, and of whole numbers if that is an integer."""
    return leaf.dtype != dtype and (dtype.is_floating_point or bool((leaf == leaf.long()).all()))


def _by_column(value: Any, dtype: torch.dtype) -> Columns | None:
    """Take a data frame by its columns, for programs that read those; None for all else."""
    if type(value).__name__ != "DataFrame" or not is_array(value):
        return None
    made = {str(name): _as_tensor(column, dtype) for name, column in value.items()}
    numbers = {name: column for name, column in made.items() if isinstance(column, Tensor)}
    return Columns(numbers, made.keys() - numbers.keys())


def _as_tensor(value: Any, dtype: torch.dtype) -> Any:
    """Make a tensor of an array or data frame of numbers, floats in this dtype; leave all else.

    Example:
        >>> _as_tensor(np.array([0.5]), torch.float32), _as_tensor(np.array([1]), torch.float32)
        (tensor([0.5000]), tensor([1]))
        >>> _as_tensor("a name", torch.float32)
        'a name'
    """
    if not is_array(value):
        return value
    array = _codes(value)
    kind = array.dtype.kind
    if kind in "iub":
        return torch.tensor(array.astype(bool if kind == "b" else np.int64))
    try:  # of columns of several types pandas makes an array of objects
        return torch.tensor(array.astype(float), dtype=dtype) if kind in "fO" else value
    except (ValueError, TypeError):
        return value


def _codes(value: Any) -> np.ndarray[Any, Any]:
    """Make an array of a column, of a category of text its codes, and NaN of what is missing."""
    held = getattr(value, "cat", None)
    if held is None or held.categories.dtype.kind in "biufcM":
        return np.asarray(value)
    codes = np.asarray(held.codes, dtype=np.int64)
    return codes if (codes >= 0).all() else np.where(codes < 0, np.nan, codes)


def _is_frame_of_text(value: Any) -> bool:
    pandas = type(value).__module__.partition(".")[0] == "pandas"
    return pandas and is_array(value) and _as_tensor(value, torch.float32) is value


def _clause(name: str, given: Any, wanted: Any, dtype: torch.dtype) -> str:
    if wanted.dtype == torch.int64:
        return (
            f"{name} is a tensor of {given.dtype}, the model needs torch.int64; give tensor.long()"
        )
    if given.is_floating_point():
        return (
            f"{name} is a tensor of {given.dtype}, the model's sites are of {dtype}; give "
            f"tensor.to({dtype}), or write the model in {given.dtype}"
        )
    return f"{name} is a tensor of {given.dtype}, the model needs floats; give tensor.to({dtype})"
