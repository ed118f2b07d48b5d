"""What fine-tuning changed, saved apart, and put onto the same pretrained weights and no others.

A delta holds the new values themselves, not differences, so that applying it gives the fine-tuned
network to the last bit. It is bound to its base by a hash of every tensor outside the head.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from ppl_fe.arguments import named_arguments
from ppl_fe.files.digest import digest
from ppl_fe.networks.delta_format import Delta, DeltaError, read_delta, write_delta
from ppl_fe.networks.hashes import base_tensors
from ppl_fe.networks.matching import listed

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
def apply_delta(module: nn.Module, path: str | os.PathLike[str]) -> AppliedDelta:
    """Put a delta onto the pretrained module it was made from, in place.

    The result equals the fine-tuned network to the last bit. Several deltas of one base are
    switched by ``applied.remove()`` before the next is applied.

    Args:
        module: the pretrained network; its head, if the delta brings one, may hold anything.
        path: a file of `save_delta`.

    Returns:
        What takes the delta off again.

    Raises:
        FileNotFoundError: there is no such file.
        DeltaError: a damaged file, another architecture, other weights. The module is then as it
            was: everything is checked before anything is written.
    """
    delta = read_delta(path)
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
    return AppliedDelta(module, delta)


class AppliedDelta:
    """A delta that is on a module; made by `apply_delta`.

    It keeps what was replaced, as many values as the delta has, so that deltas can be switched
    without the checkpoint.
    """

    def __init__(self, module: nn.Module, delta: Delta) -> None:
        self._module = type(module).__name__
        named = dict(module.named_parameters())
        new: list[Replacement] = [(named[name], at, values) for name, at, values in delta.parts()]
        new += [(named[name], None, tensor) for name, tensor in delta.whole.items()]
        self._new: list[Replacement] = [
            (tensor, None if at is None else at.to(tensor.device), values.to(tensor.device))
            for tensor, at, values in new
        ]
        self._old: list[Replacement] = [(t, at, _read(t, at)) for t, at, _ in self._new]
        written = 0
        try:
            for replacement in self._new:
                _write([replacement])
                written += 1
        except BaseException:  # a tensor that cannot be written
            _write(self._old[:written])
            raise

    def __repr__(self) -> str:
        entries = sum(values.numel() for _, at, values in self._new if at is not None)
        whole = sum(at is None for _, at, _ in self._new)
        return f"AppliedDelta({entries:,} entries, {whole} whole tensors, of {self._module})"

    def remove(self) -> None:
        """Put the values back that the delta replaced, head included, bit for bit.

        Raises:
            RuntimeError: the module no longer holds the delta's values: it was removed before, or
                the weights have changed since.
        """
        if not _holds(self._new):
            raise RuntimeError(
                "the module does not hold this delta's values: it was removed already, or the "
                "weights have changed since; load the pretrained checkpoint again"
            )
        _write(self._old)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Take the delta off for the time of a block: ``with applied.disabled(): ...``.

        The module is the pretrained one within, and the fine-tuned one again after it, bit for bit.

        Raises:
            RuntimeError: the delta is not on the module, or the weights that it replaces were
                changed within the block: they are then left as they are.
        """
        self.remove()
        try:
            yield
        finally:
            changed = not _holds(self._old)
            if not changed:
                _write(self._new)
        if changed:
            raise RuntimeError(
                "the module's weights were changed within the block of disabled(), so that the "
                "delta was not put on again; load the pretrained checkpoint, and apply it anew"
            )


def _holds(values: Sequence[Replacement]) -> bool:
    """Return whether tensors have these values."""
    return all(torch.equal(_read(tensor, at), own) for tensor, at, own in values)


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
