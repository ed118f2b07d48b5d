"""What fine-tuning changed, saved apart, and put onto the same pretrained weights and no others.

A delta holds the new values themselves, not differences, so that applying it gives the fine-tuned
network to the last bit. It is bound to its base by a hash of every tensor outside the head.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ppl_fe.arguments import did_you_mean, named_arguments
from ppl_fe.files.digest import digest
from ppl_fe.networks.delta_format import Delta, DeltaError, read_delta, write_delta
from ppl_fe.networks.hashes import base_tensors
from ppl_fe.networks.matching import listed

CHANGED = (
    "the module does not hold this delta's values: it was removed already, or the weights have "
    "changed since; load the pretrained checkpoint again"
)
Replacement = tuple[nn.Parameter, Tensor | None, Tensor]  # tensor, positions (None: all), values


class HasDelta(Protocol):
    """What `save_delta` takes: the result of fine-tuning."""

    @property
    def delta(self) -> Delta: ...


@named_arguments
def save_delta(tuned: HasDelta, path: str | os.PathLike[str]) -> None:
    """Write what fine-tuning changed as one safetensors file.

    About 6 bytes a trained entry in single precision, the head's tensors whole, and the names and
    shapes of the base. The file is written aside and renamed, so that an interrupted write leaves
    the old one.

    Args:
        tuned: the result of `finetune`.
        path: the file, replaced if it exists.

    Example:
        >>> import tempfile
        >>> base, values = {"weight": torch.zeros(1, 2)}, torch.tensor([5.0])
        >>> class Tuned:
        ...     delta = Delta(
        ...         digest(base), {"weight": (1, 2)}, ("weight",), torch.tensor([1]), values, {})
        >>> module = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.zeros_(module.weight)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_delta(Tuned(), f"{folder}/task.safetensors")
        ...     applied = apply_delta(module, f"{folder}/task.safetensors")
        >>> module.weight.tolist()
        [[0.0, 5.0]]
        >>> applied
        AppliedDelta(1 entries, 0 whole tensors, of Linear)
        >>> applied.remove()
        >>> module.weight.tolist()
        [[0.0, 0.0]]
    """
    write_delta(tuned.delta, path)


@named_arguments
def apply_delta(
    module: nn.Module,
    path: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
) -> AppliedDelta:
    """Put a delta onto the pretrained module it was made from, in place; or one of several.

    The result equals the fine-tuned network to the last bit. Of several deltas of one base, given
    by name, the first is put on, and ``applied.use("another")`` switches:

        applied = fe.apply_delta(module, {"news": "news.safetensors", "mail": "mail.safetensors"})
        applied.use("mail")
        with applied.disabled():
            ...                                                     # the pretrained module
        applied.remove()

    Args:
        module: the pretrained network; its head, if a delta brings one, may hold anything.
        path: a file of `save_delta`; or name -> file, of one base.

    Returns:
        What switches deltas and takes them off again.

    Raises:
        FileNotFoundError: there is no such file.
        DeltaError: a damaged file, another architecture, other weights. The module is then as it
            was: everything is checked before anything is written.
        ValueError: no file.
    """
    paths = dict(path) if isinstance(path, Mapping) else {Path(path).stem: path}
    if not paths:
        raise ValueError("path names no delta: give a file, or name -> file")
    return AppliedDelta(module, {name: _fitting(module, own) for name, own in paths.items()})


def _fitting(module: nn.Module, path: str | os.PathLike[str]) -> Delta:
    """Read the delta of a module as it is.

    Raises:
        DeltaError: it belongs to another one.
    """
    delta = read_delta(path)
    made, own = _dtypes(delta), {tensor.dtype for tensor in module.parameters()}
    if len(made) == len(own) == 1 and made != own:
        (theirs,), (mine,) = made, own
        raise DeltaError(
            f"{path} was made on weights in {theirs}, the module's are in {mine}: convert them as "
            f"before that fine-tuning, module.to({theirs})"
        )
    wrong = _misfits(module, delta)
    if wrong:
        raise DeltaError(f"{path} belongs to another architecture: {listed(wrong)}")
    if digest(base_tensors(module, delta.head)) != delta.base_hash:
        raise DeltaError(
            f"{path} belongs to other weights than the module's (or to another dtype): load the "
            "pretrained checkpoint it was made from, and remove() any delta applied before"
        )
    other = _of_another_dtype(module, delta)
    if other:
        raise DeltaError(f"{path} is damaged: {listed(other)}")
    return delta


class AppliedDelta:
    """Deltas of a module, one of which is on; made by `apply_delta`.

    It keeps what each replaces, as many values as the delta has, so that deltas can be switched
    without the checkpoint.

    Attributes:
        active: the name of the delta that is on; None when all are off.

    Example:
        >>> module = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(module.weight)
        >>> def of(value: float) -> Delta:
        ...     values = {"weight": torch.full((1, 1), value)}
        ...     return Delta("", {"weight": (1, 1)}, (), torch.tensor([]), torch.tensor([]), values)
        >>> applied = AppliedDelta(module, {"news": of(1.0), "mail": of(2.0)})
        >>> applied.use("mail")
        >>> applied.names, applied.active, module.weight.item()
        (('news', 'mail'), 'mail', 2.0)
        >>> applied.remove()
        >>> module.weight.item()
        0.0
    """

    def __init__(self, module: nn.Module, deltas: Mapping[str, Delta]) -> None:
        self._module = type(module).__name__
        self._new = {name: _replacements(module, delta) for name, delta in deltas.items()}
        self._old: dict[str, list[Replacement]] = {
            name: [(tensor, at, _read(tensor, at)) for tensor, at, _ in new]
            for name, new in self._new.items()
        }
        self.active: str | None = None
        self.use(next(iter(deltas)))

    @property
    def names(self) -> tuple[str, ...]:
        """List the deltas: the names they were given, or the stem of the one file."""
        return tuple(self._new)

    def __repr__(self) -> str:
        if len(self._new) == 1:
            (new,) = self._new.values()
            entries = sum(values.numel() for _, at, values in new if at is not None)
            whole = sum(at is None for _, at, _ in new)
            what = f"{entries:,} entries, {whole} whole tensors"
        else:
            what = ", ".join(f"{name!r}{' on' * (name == self.active)}" for name in self._new)
        return f"AppliedDelta({what or 'none left'}, of {self._module})"

    def use(self, name: str) -> None:
        """Switch to one of the deltas, bit for bit.

        Args:
            name: one of `names`.

        Raises:
            ValueError: there is no delta of that name.
            RuntimeError: the weights have changed since the last switch; they are left as they are.
        """
        self._require(name)
        self._take_off()
        new, old = self._new[name], self._old[name]
        if not _holds(old):
            raise RuntimeError(CHANGED)
        for written, replacement in enumerate(new):
            try:
                _write([replacement])
            except BaseException:  # a tensor that cannot be written
                _write(old[:written])
                raise
        self.active = name

    def remove(self, name: str | None = None) -> None:
        """Put the values back that a delta replaced, head included, bit for bit, and forget it.

        Args:
            name: the one to forget; all of them by default. One that is off leaves the module as
                it is.

        Raises:
            ValueError: there is no delta of that name.
            RuntimeError: the module no longer holds the delta's values: it was removed before, or
                the weights have changed since.
        """
        if name is not None:
            self._require(name)
        if not self._new:
            raise RuntimeError(CHANGED)
        if name is None or name == self.active:
            self._take_off()
        for one in self.names if name is None else (name,):
            del self._new[one], self._old[one]

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Take the delta off for the time of a block: ``with applied.disabled(): ...``.

        The module is the pretrained one within, and the fine-tuned one again after it, bit for bit.

        Raises:
            RuntimeError: no delta is on the module, or the weights that it replaces were changed
                within the block: they are then left as they are.
        """
        name = self.active
        if name is None:
            raise RuntimeError(CHANGED)
        self._take_off()
        try:
            yield
        finally:
            old = self._old.get(name)
            changed = self.active is not None or old is None or not _holds(old)
            if not changed:
                self.use(name)
        if changed:
            raise RuntimeError(
                "the module's weights were changed within the block of disabled(), so that the "
                "delta was not put on again; load the pretrained checkpoint, and apply it anew"
            )

    def _require(self, name: str) -> None:
        """Refuse a name that no delta has, and give the nearest one."""
        if name not in self._new:
            others = f"there are: {listed(self.names) or 'none left'}"
            near = did_you_mean(name, self._new) or others
            raise ValueError(f"no delta is called {name!r}; {near}")

    def _take_off(self) -> None:
        """Put the values back that the delta which is on replaced, if one is."""
        if self.active is None:
            return
        if not _holds(self._new[self.active]):
            raise RuntimeError(CHANGED)
        _write(self._old[self.active])
        self.active = None


def _replacements(module: nn.Module, delta: Delta) -> list[Replacement]:
    """Pair a delta's values with the module's tensors, on their devices."""
    named = dict(module.named_parameters())
    new: list[Replacement] = [(named[name], at, values) for name, at, values in delta.parts()]
    new += [(named[name], None, tensor) for name, tensor in delta.whole.items()]
    return [
        (tensor, None if at is None else at.to(tensor.device), values.to(tensor.device))
        for tensor, at, values in new
    ]


def _holds(values: Sequence[Replacement]) -> bool:
    """Return whether tensors have these values, bit for bit: a fresh head may hold NaN."""
    return all(torch.equal(_bits(_read(tensor, at)), _bits(own)) for tensor, at, own in values)


def _bits(values: Tensor) -> Tensor:
    return values.reshape(-1).view(torch.uint8)


def _misfits(module: nn.Module, delta: Delta) -> list[str]:
    """List the names, shapes and head's dtypes that differ; the base's dtypes are in its hash."""
    named = dict(module.named_parameters())
    own = {name: tuple(t.shape) for name, t in base_tensors(module, delta.head).items()}
    wrong = [f"{name} is missing" for name in delta.shapes if name not in own]
    wrong += [f"{name} is unexpected" for name in own if name not in delta.shapes]
    wrong += [
        f"{name} is {own[name]}, the delta has {shape}"
        for name, shape in delta.shapes.items()
        if name in own and own[name] != shape
    ]
    for name in delta.head:
        new = delta.whole[name]
        if name not in named:
            wrong.append(f"the head's {name} is missing")
        elif (named[name].shape, named[name].dtype) != (new.shape, new.dtype):
            mine, theirs = (f"{t.dtype} {tuple(t.shape)}" for t in (named[name], new))
            wrong.append(f"the head's {name} is {mine}, the delta has {theirs}")
    return wrong


def _dtypes(delta: Delta) -> set[torch.dtype]:
    """List the dtypes of a delta's values."""
    parts = [delta.values] if len(delta.values) else []
    return {tensor.dtype for tensor in [*parts, *delta.whole.values()]}


def _of_another_dtype(module: nn.Module, delta: Delta) -> list[str]:
    """Base tensors that the delta's values cannot be written to, in words."""
    named = dict(module.named_parameters())
    written = [(name, values) for name, _, values in delta.parts() if len(values)]
    return [
        f"{name} is {named[name].dtype if name in named else 'no parameter'}, its values are of "
        f"{values.dtype}"
        for name, values in [*written, *delta.whole.items()]
        if name not in named or named[name].dtype != values.dtype
    ]


def _read(tensor: Tensor, at: Tensor | None) -> Tensor:
    return tensor.detach().clone() if at is None else torch.take(tensor.detach(), at)


def _write(values: Sequence[Replacement]) -> None:
    with torch.no_grad():
        for tensor, at, new in values:
            tensor.copy_(new) if at is None else tensor.put_(at, new)
