"""The cheap criteria that the free energy has to beat.

Each is read off one checkpoint and the pretraining data, and for each a lower value is claimed to
mean a better transfer: the geometric complexity and the degree of neural collapse of the features,
which are whatever enters the head. The training and validation losses, the simplest of all, come
with the ranking itself.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from ppl_fe.networks.check_forward import try_inputs
from ppl_fe.networks.flat import FlatNetwork

Data = tuple[Tensor, Tensor]


def head_name(network: FlatNetwork) -> str:
    """Name of the last linear layer in the order of ``module.named_modules()``.

    Args:
        network: the network to look into.

    Returns:
        The dotted name of the submodule.

    Raises:
        ValueError: if the network has no linear submodule.

    Example:
        >>> from torch import nn
        >>> head_name(FlatNetwork(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))))
        '2'
    """
    named = network.module.named_modules()
    linear: list[str] = [
        name for name, module in named if name and isinstance(module, torch.nn.Linear)
    ]
    if not linear:
        raise ValueError("network has no linear submodule; name its last layer with head=")
    return linear[-1]


def features(network: FlatNetwork, vector: Tensor, inputs: Tensor, head: str) -> Tensor:
    """What enters the head, flattened to one row an example.

    Args:
        network: the network; it must call the module named ``head`` with one positional tensor.
        vector: the weights, (D,).
        inputs: (B, ...).
        head: name of the submodule whose input is wanted.

    Returns:
        (B, F), differentiable in ``vector`` and ``inputs``, and usable under ``vmap``.

    Raises:
        ValueError: if there is no such submodule or the forward pass does not reach it.

    Example:
        >>> from torch import nn
        >>> network = FlatNetwork(nn.Sequential(nn.Flatten(), nn.Linear(2, 3)))
        >>> features(network, network.anchor, torch.tensor([[[1.0], [2.0]]]), "1")
        tensor([[1., 2.]])
    """
    modules = dict(network.module.named_modules())
    if not head or head not in modules:
        raise ValueError(f"head={head!r} is no submodule; there are {sorted(modules)[1:]}")
    entered: list[Tensor] = []
    hook = modules[head].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    try:
        network(vector, inputs)
    finally:
        hook.remove()
    if not entered:
        raise ValueError(f"head={head!r} is not called in the forward pass; name another layer")
    return entered[-1].flatten(1)


def geometric_complexity(
    network: FlatNetwork, vector: Tensor, inputs: Tensor, head: str, *, chunk_size: int = 64
) -> float:
    """Mean over the data of the squared Frobenius norm of ∂features/∂x.

    (1/N) Σ_i ‖∂f(x_i)/∂x‖²_F (Dherin et al. 2022), taken of the features f as in the comparison of
    Munn & Wei (2025). Exact: one backward pass for each feature, vectorised over a chunk of data.

    Args:
        network: the network; each example must be treated alone, which evaluation mode ensures.
        vector: the weights, (D,).
        inputs: (N, ...), floating.
        head: name of the submodule whose input are the features.
        chunk_size: examples at once; a chunk holds chunk_size · F · (size of one input) numbers,
            64 · 512 · 3072 for a small residual network on 32 × 32 colour images.

    Returns:
        The mean, in units of features² / input².

    Raises:
        ValueError: if the inputs are integers, which have no derivative.

    Example:
        >>> from torch import nn
        >>> network = FlatNetwork(nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 2)))
        >>> weights = torch.cat([torch.tensor([3.0, 4.0, 0.0]), torch.zeros(4)])
        >>> geometric_complexity(network, weights, torch.zeros(5, 2), "1")
        25.0
    """
    if not inputs.is_floating_point():
        raise ValueError(f"inputs are {inputs.dtype}; only floating inputs have a Jacobian")

    def one(x: Tensor) -> Tensor:
        return features(network, vector, x.unsqueeze(0), head).squeeze(0)

    total = 0.0
    for x in torch.split(inputs, chunk_size):
        total += vmap(jacrev(one))(x).detach().double().square().sum().item()
    return total / len(inputs)


def neural_collapse(features: Tensor, targets: Tensor) -> float:
    """Class-distance normalised variance (Galanti, György & Hutter 2022), mean over class pairs.

    For two classes V = (Var_i + Var_j) / (2 ‖μ_i − μ_j‖²), with Var the mean squared distance to
    the class mean μ; 0 when every class has collapsed to a point.

    Args:
        features: (N, F).
        targets: integer classes, (N,).

    Returns:
        The mean of V over the pairs of classes present; infinite if two classes with spread share
        a mean.

    Raises:
        ValueError: if the targets are no integers of shape (N,) or hold a single class.

    Example:
        >>> x = torch.tensor([[-1.0], [1.0], [9.0], [11.0]])
        >>> neural_collapse(x, torch.tensor([0, 0, 1, 1]))
        0.01
    """
    if targets.is_floating_point() or targets.shape != (len(features),):
        raise ValueError(
            f"targets are {targets.dtype} of shape {tuple(targets.shape)}; "
            f"neural collapse needs integer classes of shape ({len(features)},)"
        )
    classes = sorted(set(targets.tolist()))
    if len(classes) < 2:
        raise ValueError(f"targets hold {len(classes)} class; neural collapse compares two or more")
    members = [features.detach()[targets == c].double() for c in classes]
    means = torch.stack([x.mean(0) for x in members])
    variances = torch.stack([(x - x.mean(0)).square().sum(1).mean() for x in members])
    i, j = torch.triu_indices(len(classes), len(classes), offset=1)
    distances = (means[i] - means[j]).square().sum(1)
    return ((variances[i] + variances[j]) / (2 * distances)).mean().item()


def baselines(network: FlatNetwork, data: Data, *, head: str | None = None) -> dict[str, float]:
    """The features' criteria of one checkpoint (the network's anchor), for a row of the ranking.

    Args:
        network: the network.
        data: the pretraining inputs (N, ...) and targets (N, ...).
        head: the module whose input are the features; by default the last linear layer.

    Returns:
        ``geometric_complexity`` where inputs are floating; ``neural_collapse`` where targets are
        integer classes.

    Raises:
        ValueError: as the functions above.

    Example:
        >>> from torch import nn
        >>> network = FlatNetwork(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
        >>> data = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 5.0]]), torch.tensor([0, 0, 1])
        >>> sorted(baselines(network, data))
        ['geometric_complexity', 'neural_collapse']
    """
    head = head_name(network) if head is None else head
    inputs, targets = data
    values = {}
    with torch.no_grad():
        try_inputs(partial(network, network.anchor), inputs[:1], network.dtype)
    if inputs.is_floating_point():
        values["geometric_complexity"] = geometric_complexity(network, network.anchor, inputs, head)
    if not targets.is_floating_point() and targets.ndim == 1:
        with torch.no_grad():
            chunks = [features(network, network.anchor, x, head) for x in torch.split(inputs, 1024)]
        values["neural_collapse"] = neural_collapse(torch.cat(chunks), targets)
    return values
