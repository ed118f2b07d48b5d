"""Find programs that cannot be batched over chains, to run them one chain after another."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ppl_fe.inference.program.density import Density
from ppl_fe.inference.step.compile import refuse_leaving_torch

WRITES_IN_PLACE = "would mutate a captured Tensor"
DATA_DEPENDENT = ("data-dependent control flow", ".item()")


def batchable(density: Density, position: Tensor) -> Density:
    """Return the density, or a copy that runs chain after chain if `vmap` refuses the program.

    A program whose control flow depends on latent values (an `if` or `.item()` on a tensor) takes
    another path in every chain, so it can be neither batched nor traced to one graph. Unless the
    density already runs chain after chain, a warning has the reason.

    Args:
        density: of the program.
        position: (C, D), where to try it.

    Raises:
        ValueError: the program goes through NumPy or Python numbers, or writes to tensors that it
            did not make.
    """
    indices = tuple(
        torch.zeros(len(position), plate.subsample_size, dtype=torch.long, device=density.device)
        for plate in density.subsamples
    )
    tensors = tuple(
        tensor[None].expand(len(position), *tensor.shape) if density.data_per_chain else tensor
        for tensor in density.tensors
    )
    try:
        with torch.no_grad():
            vectorized = density.run_as(vectorized=True)
            vectorized.batched_gradient(
                vectorized, position, indices, density.chain_values, tensors
            )
    except RuntimeError as error:
        refuse_leaving_torch(error)
        reason = str(error).splitlines()[0]
        if WRITES_IN_PLACE in reason:
            raise ValueError(
                "the program writes in place to a tensor that it did not make, as BatchNorm in "
                "training mode does to its running statistics: put the module into evaluation mode "
                f"by module.eval() ({reason})"
            ) from error
        if not reason.startswith("vmap:"):
            raise
        depends = any(sign in reason for sign in DATA_DEPENDENT)
        if not density.vectorized:  # as asked for
            return density.run_as(vectorized=False, traceable=not depends)
        if depends:
            reason = "its control flow depends on the values of latent sites"
        warnings.warn(
            f"the model cannot be vectorised over chains: {reason}. Running chains one after "
            f"another{', uncompiled' if depends else ''}; use torch.where in place of `if`, "
            "or pass chain_method='sequential' to silence this",
            RuntimeWarning,
            stacklevel=2,
        )
        return density.run_as(vectorized=False, traceable=not depends)
    return density
