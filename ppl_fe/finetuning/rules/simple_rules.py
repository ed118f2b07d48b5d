"""Which parameters to update, by rules that need no posterior: baselines for `select_parameters`.

Each gives a score (D,), larger first, of a pretrained network and a task.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_fe.data.sources import LoaderData, TensorData
from ppl_fe.finetuning.flat_weights import WorkingCopy
from ppl_fe.finetuning.objective import Objective, shuffled
from ppl_fe.finetuning.train.training import finetune
from ppl_fe.models.likelihoods import Likelihood
from ppl_fe.networks.flat import FlatNetwork


def gradient_squared(
    network: FlatNetwork,
    objective: Objective,
    source: TensorData | LoaderData,
    batch_size: int,
    seed: int = 0,
) -> Tensor:
    """Σ_B (∂L_B/∂w_i)² at the anchor, over the minibatches of one pass through the data (D,).

    SAM of Fu et al. (2023, On the effectiveness of parameter-efficient fine-tuning, AAAI) chooses
    the weights whose first step lowers a second-order approximation of the loss most, those of the
    largest squared gradient. Minibatches of B rows, in a random order: B = N squares the gradient
    of all the data, B = 1 sums squares over examples (the empirical Fisher information).

    Raises:
        DivergedError: the loss or a gradient is not finite; says where.

    Example:
        >>> network = FlatNetwork(torch.nn.Linear(1, 1))
        >>> with torch.no_grad():
        ...     _ = network.anchor.copy_(torch.tensor([1.0, 0.0]))
        >>> source = TensorData(torch.tensor([[2.0], [0.0]]), torch.zeros(2), 2)
        >>> gradient_squared(network, Objective("normal", network.device), source, 1)
        tensor([16.,  4.])
    """
    working = WorkingCopy(network, objective)
    working.objective.check(working.module, source)
    score, batches = torch.zeros_like(working.weights), shuffled(source, batch_size, seed)
    for _ in range(source.num_data // batch_size):
        working.differentiate(next(batches))[1].add_squares_to(score)
    return score


def movement(
    network: FlatNetwork,
    source: TensorData | LoaderData,
    likelihood: str | Likelihood,
    *,
    head: str | None,
    num_steps: int,
    learning_rate: float | None,
    batch_size: int,
    seed: int,
    progress_bar: bool,
) -> Tensor:
    """|w_i − anchor_i| after plain fine-tuning of every weight by `finetune(method="full")` (D,).

    Raises:
        DivergedError: fine-tuning diverged.
    """
    tuned = finetune(
        network,
        source,
        likelihood=likelihood,
        method="full",
        head=head,
        num_steps=num_steps,
        learning_rate=learning_rate,
        batch_size=None if isinstance(source, LoaderData) else batch_size,
        seed=seed,
        progress_bar=progress_bar,
    )
    return (tuned.weights - network.anchor).abs()


def magnitude(network: FlatNetwork) -> Tensor:
    """|anchor_i| (D,): the largest pretrained weights.

    Example:
        >>> network = FlatNetwork(torch.nn.Linear(1, 1))
        >>> bool((magnitude(network) == network.anchor.abs()).all())
        True
    """
    return network.anchor.abs()


def biases(network: FlatNetwork) -> Tensor:
    """1 for entries of tensors called bias and 0 for the others (D,): BitFit, Zaken et al. (2022).

    Raises:
        ValueError: no tensor is called so.

    Example:
        >>> biases(FlatNetwork(torch.nn.Linear(2, 1)))
        tensor([0., 0., 1.])
    """
    score = torch.zeros_like(network.anchor)
    for name, where in network.slices.items():
        if name.rpartition(".")[2] == "bias":
            score[where] = 1
    if not score.any():
        raise ValueError("method='bias_only': no parameter of the network is called bias")
    return score


def random(network: FlatNetwork, seed: int) -> Tensor:
    """Uniform on (0, 1), (D,): the rule that any other has to beat.

    Example:
        >>> random(FlatNetwork(torch.nn.Linear(2, 1)), seed=0).shape
        torch.Size([3])
    """
    generator = torch.Generator(network.device).manual_seed(seed)
    return torch.rand(network.anchor.shape, generator=generator, device=network.device)
