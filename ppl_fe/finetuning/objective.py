"""The function that fine-tuning minimises: a batch's mean negative log-likelihood."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ppl_fe.data.sources import LoaderData, TensorData, as_data, check_labels
from ppl_fe.inference.program.trace import run_program
from ppl_fe.models.likelihoods import Likelihood, categorical, find_likelihood, observe
from ppl_fe.networks.check_forward import try_inputs
from ppl_fe.networks.functional_copy import logits_of
from ppl_fe.ranks import ranks, summed

Batch = tuple[Any, Tensor]
NOT_TRAINED_BATCHES = 4  # without gradients, this many times the rows fit into the same memory


class Objective:
    """L_B(w) = −(1/B) Σ_{i in B} log p(y_i | x_i, w), of a module that holds w.

    Args:
        likelihood: "categorical", "normal", "next_token" or a function of (output, targets).
        device: the device that batches are moved to.
        autocast: None by default; torch.bfloat16 runs the module's matrix products in that
            precision, as `FlatNetwork(autocast=...)` does; the likelihood is computed in float32
            all the same.

    Example:
        >>> module = nn.Linear(1, 2)
        >>> _ = nn.init.zeros_(module.weight), nn.init.zeros_(module.bias)
        >>> objective = Objective("categorical", torch.device("cpu"))
        >>> loss, _ = objective(module, (torch.ones(3, 1), torch.tensor([0, 1, 1])))
        >>> round(loss.item(), 4)                                                 # log 2
        0.6931
    """

    def __init__(
        self,
        likelihood: str | Likelihood,
        device: torch.device,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.likelihood, self.device = find_likelihood(likelihood), device
        self.autocast = autocast

    @property
    def in_full_precision(self) -> Objective:
        """Give the same without autocast: differences of gradients are mostly rounding with it."""
        return Objective(self.likelihood, self.device)

    def __call__(self, module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute the batch's loss, a scalar in nats a datum, and the module's output.

        Raises:
            ValueError: a label that the output has no class for; a log-density of any shape but
                (B,).
        """
        inputs, targets = pytree.tree_map(lambda tensor: tensor.to(self.device), batch)
        output = self._output(module, inputs)
        if self.likelihood is categorical:
            check_labels(targets, output.shape[-1])
        run = run_program(lambda: observe(self.likelihood, output, targets), {}, {})
        for name, site in run.pointwise.items():
            if site.log_prob.shape != (len(targets),):
                raise ValueError(
                    f"the likelihood's site {name!r} has a log-density of shape "
                    f"{tuple(site.log_prob.shape)}, from an output of shape "
                    f"{tuple(output.shape)} and targets of shape {tuple(targets.shape)}, where one "
                    f"number a datum is wanted, ({len(targets)},): take the last axis off a column "
                    "as in targets[:, 0], or make it part of an event with .to_event(1)"
                )
        return -run.log_likelihood / len(targets), output

    def _output(self, module: nn.Module, inputs: Any) -> Tensor:
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            output = module(**inputs) if isinstance(inputs, Mapping) else module(inputs)
        found: Tensor = logits_of(output)
        return found.float() if found.dtype == self.autocast else found

    def check(self, module: nn.Module, source: TensorData | LoaderData, what: str = "data") -> None:
        """Refuse data that the network fails on, and a likelihood that gives nothing to train.

        Args:
            module: the network, some of whose parameters require gradients.
            source: the data, whose first rows are tried.
            what: the argument that gave the data, for the messages; "data" by default.

        Raises:
            ValueError: inputs of another dtype or shape; targets that the likelihood fails on; a
                latent site, no observed one, or a loss without any trained parameter.
        """
        batch = next(one_pass(source, 1))
        inputs = pytree.tree_map(lambda tensor: tensor.to(self.device), batch[0])
        dtype = next(module.parameters()).dtype
        output = try_inputs(partial(self._output, module), inputs, dtype, what)
        try:
            loss, _ = self(module, batch)
        except KeyError as error:
            raise ValueError(
                f"the likelihood has a latent site {error}; fine-tuning maximises over the "
                "network's weights alone, so give it a value"
            ) from error
        except RuntimeError as error:
            targets = batch[1]
            raise ValueError(
                f"{what}: the likelihood fails on an output of {output.dtype}, shape "
                f"{tuple(output.shape)}, and targets of {targets.dtype}, shape "
                f"{tuple(targets.shape)}; targets.to({output.dtype}) may help ({error})"
            ) from error
        if not loss.requires_grad:
            raise ValueError(
                "the loss does not depend on any trained parameter: the likelihood makes no "
                "observed site (pyro.sample(..., obs=targets)), or the trained layers are not used"
            )

    def refuse_one_class(self, source: TensorData | LoaderData) -> None:
        """Refuse targets in memory that are all one class of the categorical likelihood.

        Raises:
            ValueError: all targets are of one class.
        """
        if self.likelihood is not categorical or isinstance(source, LoaderData):
            return
        classes: Tensor = torch.unique(source.targets)
        if len(classes) == 1:
            raise ValueError(
                f"targets hold one class only, {classes.item()}: there is nothing to learn; check "
                "the data and their order"
            )

    def evaluate(
        self,
        module: nn.Module,
        batches: Iterable[Batch],
        kept: list[tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[float, float]:
        """Average the loss and, for the categorical likelihood, the accuracy (else NaN).

        Several ranks take the batches in turn, but all of them where outputs are kept.

        Args:
            module: the network.
            batches: a pass over the data.
            kept: gets output and targets of each batch, on the CPU; None (default) keeps none.

        Example:
            >>> module = nn.Linear(1, 2)
            >>> _ = nn.init.zeros_(module.weight)
            >>> _ = module.bias.data.copy_(torch.tensor([0.0, 1.0]))
            >>> rows = (torch.ones(4, 1), torch.tensor([0, 1, 1, 1]))
            >>> Objective("categorical", torch.device("cpu")).evaluate(module, [rows])[1]
            0.75
        """
        loss, right, count = 0.0, 0.0, 0
        several, own = ranks() if kept is None else (1, 0)
        with torch.no_grad():
            for batch in islice(batches, own, None, several):
                part, output = self(module, batch)
                targets = batch[1].to(output.device)
                loss, count = loss + part.item() * len(targets), count + len(targets)
                if kept is not None:
                    kept.append((output.cpu(), targets.cpu()))
                if self.likelihood is categorical:
                    right += int((output.argmax(-1) == targets).sum())
        if several > 1:
            own_sums = torch.tensor([loss, right, count], dtype=torch.float64, device=self.device)
            loss, right, count = summed(own_sums).tolist()
        accuracy = right / count if self.likelihood is categorical else float("nan")
        return loss / count, accuracy


def data_and_batch(
    data: Any, batch_size: int | None, default: int
) -> tuple[TensorData | LoaderData, int]:
    """Check data in any usual form, and find the batch size B.

    Args:
        data: (inputs, targets), a mapping, a Dataset or a DataLoader, of N examples.
        batch_size: the B that was asked for; None for all the data.
        default: the caller's default. A loader brings its own B, and any other is refused unless
            it is this one.

    Returns:
        The checked data, and B, at most N.

    Raises:
        TypeError: as by `as_data`.
        ValueError: as by `as_data`.

    Example:
        >>> rows = (torch.zeros(40, 1), torch.zeros(40))
        >>> [data_and_batch(rows, size, 32)[1] for size in (32, 64, None)]
        [32, 40, 40]
    """
    source = as_data(data, batch_size=None if batch_size == default else batch_size)
    if isinstance(source, LoaderData):
        return source, source.batch_size
    return source, min(batch_size or source.num_data, source.num_data)


class Counted(Iterator[Batch]):
    """Batches without end, and how many of them were taken.

    Args:
        batches: without those taken before.
        taken: those, 0 by default.

    Attributes:
        taken: batches so far.
    """

    def __init__(self, batches: Iterator[Batch], taken: int = 0) -> None:
        self._batches, self.taken = batches, taken

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self.taken += 1
        return batch


def shuffled(
    source: TensorData | LoaderData, batch_size: int, seed: int, taken: int = 0
) -> Counted:
    """Give batches of B rows without end; each pass is a new permutation.

    What does not fill a batch is left out of that pass. The global random state is untouched.

    Args:
        source: the data.
        batch_size: B.
        seed: of the permutations.
        taken: batches to leave out at the beginning, as one needs who goes on after them. Default
            0. A loader reads them all the same.

    Example:
        >>> source = TensorData(torch.arange(5.0), torch.arange(5), 5)
        >>> batches = shuffled(source, 2, seed=0)
        >>> len({int(y) for _ in range(2) for y in next(batches)[1]}), batches.taken
        (4, 2)
    """
    if isinstance(source, LoaderData):
        return Counted(islice(source.replicas(1, seed)[0], taken, None), taken)
    return Counted(_permuted(source, batch_size, seed, taken), taken)


def _permuted(source: TensorData, batch_size: int, seed: int, left_out: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    per_pass = source.num_data // batch_size
    for _ in range(left_out // per_pass):
        torch.randperm(source.num_data, generator=generator)
    first = left_out % per_pass
    while True:
        order = torch.randperm(source.num_data, generator=generator)
        for rows in torch.split(order[: per_pass * batch_size], batch_size)[first:]:
            yield _rows(source, rows)
        first = 0


def one_pass(source: TensorData | LoaderData, batch_size: int) -> Iterator[Batch]:
    """Yield every row once, in order, in batches as large as suit an evaluation.

    Example:
        >>> source = TensorData(torch.arange(5.0), torch.arange(5), 5)
        >>> [len(y) for _, y in one_pass(source, 1)]
        [4, 1]
    """
    if isinstance(source, LoaderData):
        yield from source.one_pass()
        return
    for rows in torch.split(torch.arange(source.num_data), NOT_TRAINED_BATCHES * batch_size):
        yield _rows(source, rows)


def divided(source: TensorData | LoaderData, batch_size: int, seed: int) -> Iterator[Batch]:
    """Yield every row once in batches of B; the order is random, but a loader's own is kept.

    The last batch may be smaller. The global random state is untouched.

    Example:
        >>> source = TensorData(torch.arange(5.0), torch.arange(5), 5)
        >>> sorted(int(y) for _, batch in divided(source, 2, seed=0) for y in batch)
        [0, 1, 2, 3, 4]
    """
    if isinstance(source, LoaderData):
        yield from source.one_pass()
        return
    generator = torch.Generator().manual_seed(seed)
    for rows in torch.split(torch.randperm(source.num_data, generator=generator), batch_size):
        yield _rows(source, rows)


def picked_rows(batch: Batch, count: int) -> Batch:
    """Give some rows of a batch, at equal distances, its first and last among them.

    Example:
        >>> picked_rows((torch.arange(5.0), torch.arange(5)), 3)[1]
        tensor([0, 2, 4])
    """
    length = len(batch[1])
    count = min(count, length)
    rows = torch.arange(count) * (length - 1) // max(1, count - 1)
    picked: Batch = pytree.tree_map(lambda tensor: tensor[rows.to(tensor.device)], batch)
    return picked


def _rows(source: TensorData, rows: Tensor) -> Batch:
    batch: Batch = pytree.tree_map(
        lambda tensor: tensor[rows.to(tensor.device)], (source.inputs, source.targets)
    )
    return batch


def non_finite_layer(module: nn.Module, objective: Objective, batches: Iterable[Batch]) -> str:
    """Say in words where the first batch without a finite loss goes wrong.

    Example:
        >>> module = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        >>> _ = nn.init.constant_(module[1].weight, float("nan"))
        >>> objective = Objective("normal", torch.device("cpu"))
        >>> non_finite_layer(module, objective, [(torch.ones(1, 1), torch.ones(1))])
        "first in the output of layer '1'"
    """
    found: list[str] = []

    def look(name: str, output: Any) -> None:
        leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
        if not all(bool(leaf.isfinite().all()) for leaf in leaves):
            found.append(name)

    handles = [
        layer.register_forward_hook(lambda _, __, output, name=name: look(name, output))
        for name, layer in module.named_modules()
    ]
    try:
        with torch.no_grad():
            for batch in batches:
                found.clear()
                loss, _ = objective(module, batch)
                if not loss.isfinite():
                    break
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        return "in the likelihood alone"
    return f"first in the output of {f'layer {found[0]!r}' if found[0] else 'the network'}"
