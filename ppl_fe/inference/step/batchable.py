"""Find how a program can be run: batched over chains, or one chain after another."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ppl_fe.inference.program.density import Density, Indices, Tensors
from ppl_fe.inference.program.each_chain import Way
from ppl_fe.inference.step.compile import refuse_leaving_torch

WRITES_IN_PLACE = "would mutate a captured Tensor"
DATA_DEPENDENT = ("data-dependent control flow", ".item()")


def batchable(density: Density, position: Tensor) -> Density:
    """Return the density, or a copy that runs chain after chain if `vmap` refuses the program.

    A program whose control flow depends on latent values (an `if` or `.item()` on a tensor) takes
    another path in every chain, so it can be neither batched nor traced to one graph. A program
    that no function of `torch.func` takes is differentiated by plain autograd, untraced: such
    programs may go through other libraries, whose results a graph would take for constants. Unless
    there is one chain, or the density already runs chain after chain, a warning has the reason.

    Args:
        density: of the program.
        position: (C, D), where to try it.

    Raises:
        ValueError: the program goes through NumPy or Python numbers, or writes to tensors that it
            did not make.
    """
    batch = _first_batch(density, len(position))
    refused = _refusal(density.run_as(Way()), position, batch)
    if refused is None:
        return density
    reason = str(refused).splitlines()[0]
    depends = any(sign in reason for sign in DATA_DEPENDENT)
    way = Way(vectorized=False, traceable=not depends)
    if _refusal(density.run_as(way), position, batch) is not None:
        way = Way(vectorized=False, functional=False, traceable=False)
        without = _refusal(density.run_as(way), position, batch)
        if without is not None:
            raise without
    if density.way.vectorized and len(position) > 1:  # otherwise it is as asked for
        if depends:
            of = "the minibatch" if _reads_minibatch(density, position, batch) else "latent sites"
            reason = f"its control flow depends on the values of {of}"
        elif not reason.startswith("vmap:"):
            reason = f"torch.func: {reason}"
        notes = getattr(refused, "__notes__", ())
        branches = depends and not notes  # in the program's own lines, where they can be changed
        warnings.warn(
            f"the model cannot be vectorised over chains: {', '.join([reason, *notes])}. Running "
            f"chains one after another{'' if way.traceable else ', uncompiled'}; "
            f"{'use torch.where in place of `if`, or ' if branches else ''}"
            "pass chain_method='sequential' to silence this",
            RuntimeWarning,
            stacklevel=2,
        )
    return density.run_as(way)


def _first_batch(density: Density, num_chains: int) -> tuple[Indices, Tensors]:
    """Make an index set for each plate that subsamples, (C, B), and the data as chains get them."""
    indices = tuple(
        torch.zeros(num_chains, plate.subsample_size, dtype=torch.long, device=density.device)
        for plate in density.subsamples
    )
    tensors = tuple(
        tensor[None].expand(num_chains, *tensor.shape) if density.data_per_chain else tensor
        for tensor in density.tensors
    )
    return indices, tensors


def _refusal(
    density: Density, position: Tensor, batch: tuple[Indices, Tensors]
) -> RuntimeError | None:
    """Try the density's way; return torch's error where it does not take the program.

    Raises:
        ValueError: as `batchable`.
    """
    indices, tensors = batch
    try:
        with torch.no_grad():
            density.batched_gradient(density, position, indices, density.chain_values, tensors)
    except RuntimeError as error:
        refuse_leaving_torch(error)
        if WRITES_IN_PLACE in str(error):
            reason = str(error).splitlines()[0]
            raise ValueError(
                "the program writes in place to a tensor that it did not make, as BatchNorm in "
                "training mode does to its running statistics: put the module into evaluation mode "
                f"by module.eval() ({reason})"
            ) from error
        return error
    return None


def _reads_minibatch(density: Density, position: Tensor, batch: tuple[Indices, Tensors]) -> bool:
    """Return whether a program that does not batch does so for chains of one minibatch."""
    indices, tensors = batch
    own = tuple(subset[0] for subset in indices)
    data = tuple(tensor[0] for tensor in tensors) if density.data_per_chain else tensors
    together = density.run_as(Way())
    try:
        with torch.no_grad():
            together.over_chains(
                lambda point, values: together(point, own, values, data),
                position,
                density.chain_values,
                in_dims=(0, 0),
            )
    except RuntimeError:
        return False
    return True
