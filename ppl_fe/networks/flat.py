"""A torch module as a pure function of one parameter vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from ppl_fe.arguments import did_you_mean, named_arguments
from ppl_fe.models.localized import require_precision
from ppl_fe.networks.fresh_weights import fresh_weights, warn_of_fresh_weights
from ppl_fe.networks.functional_copy import functional_copy, has_fused_layers, logits_of
from ppl_fe.networks.half_precision import warn_if_slow
from ppl_fe.networks.matching import SHOWN, listed, match_state
from ppl_fe.networks.parameter_names import Parameters, chosen_names
from ppl_fe.settings_table import settings_table


class FlatNetwork:
    """A network f(w, x) with all its chosen parameters in one vector w of shape (D,).

    The module is copied and the copy put into evaluation mode, so dropout is off, the statistics
    of normalisation layers stay fixed and the caller's module is never changed. The function is
    pure: ``torch.func.vmap`` over (C, D) gives C networks at once, ``torch.func.grad`` their
    gradients, and the tracer of ``torch.compile`` can follow it. A tied weight takes its
    place in the vector once, under its first name.

    Args:
        module: any ``torch.nn.Module``.
        parameters: which parameters make up the vector; all of them by default. Names of parameters
            (any of a tied weight's) or of modules, patterns of names such as "*.attention.*", one
            of these or several; "linear", the weights of plain linear layers, as adapters of peft
            hold; or a predicate of a name. The others stay at the module's values.
        autocast: None by default. torch.bfloat16 runs the network's matrix products in that
            precision by `torch.autocast`; vector, outputs and gradients keep their own. On a
            processor a product is timed once in both, and a slower one warned of.

    Attributes:
        anchor: (D,) the module's own values, detached, in the order of ``named_parameters()``.
        names: the chosen parameters' names, in that order.
        shapes: their shapes.
        slices: name -> its slice of the vector.
        num_parameters: D.
        module: the copy in evaluation mode; for reading only.
        dtype, device: those of the vector.
        fresh: names of the module's parameters that `from_pretrained` of transformers (5 or later)
            made up, because its checkpoint had none: a head, in most cases.

    Raises:
        ValueError: no parameters, unknown names, or chosen parameters that are not real floating
            point, not of one dtype and device, without values yet, or not finite.
        TypeError: ``module`` is no module or wrapped for data parallelism, or ``parameters`` holds
            something else than names.

    Example:
        >>> network = FlatNetwork(nn.Linear(2, 1))
        >>> network.names, network.slices["bias"]
        (('weight', 'bias'), slice(2, 3, None))
        >>> network(torch.tensor([1.0, 2.0, 0.5]), torch.tensor([[1.0, 1.0]]))
        tensor([[3.5000]])
        >>> vectors = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 1.0]])
        >>> torch.func.vmap(network, in_dims=(0, None))(vectors, torch.ones(1, 2)).shape
        torch.Size([2, 1, 1])
    """

    @named_arguments
    def __init__(
        self,
        module: nn.Module,
        parameters: Parameters = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise TypeError(f"module is wrapped in {type(module).__name__}; pass module.module")
        self.module, self.fresh = functional_copy(module), fresh_weights(module)
        every = dict(self.module.named_parameters())
        if not every:
            raise ValueError(f"module {type(module).__name__} has no parameters")
        chosen = chosen_names(self.module, parameters)
        tensors = {name: tensor for name, tensor in every.items() if name in chosen}
        _check_tensors(self.module, tensors)
        self.module.requires_grad_(False).zero_grad(set_to_none=True)
        some = next(iter(tensors.values()))
        self.dtype, self.device, self.autocast = some.dtype, some.device, autocast
        if autocast is not None and some.device.type == "cpu":
            warn_if_slow(autocast)
        self.names = tuple(tensors)
        self.shapes = tuple(tensor.shape for tensor in tensors.values())
        self.slices: dict[str, slice] = {}
        start = 0
        for name, tensor in tensors.items():
            self.slices[name] = slice(start, start + tensor.numel())
            start += tensor.numel()
        if start == 0:
            raise ValueError(f"the chosen parameters hold no values: {listed(self.names)}")
        self.num_parameters = start
        self._sizes = [shape.numel() for shape in self.shapes]
        self._has_fused_layers = has_fused_layers(self.module)
        self.anchor = self.flatten(tensors)

    def __call__(self, vector: Tensor, *inputs: Any) -> Any:
        """Give the network's output f(w, x).

        Args:
            vector: (D,) the parameters; under ``torch.func.vmap`` batched to (C, D).
            *inputs: the module's inputs. A single mapping is passed by keyword (Hugging Face).

        Returns:
            The module's output; of an output with ``logits`` (Hugging Face), the logits.

        Raises:
            ValueError: the vector's shape is not (D,).

        Example:
            >>> network = FlatNetwork(nn.Linear(1, 1))
            >>> network(torch.tensor([2.0, 1.0]), {"input": torch.ones(1, 1)})
            tensor([[3.]])
        """
        views = self.unflatten(vector)
        named = dict(inputs[0]) if len(inputs) == 1 and isinstance(inputs[0], Mapping) else None

        def call(views: dict[str, Tensor]) -> Any:
            return logits_of(
                functional_call(self.module, views, inputs if named is None else (), named)
            )

        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            if not self._has_fused_layers:
                output = call(views)
            else:  # in the parts that they are differentiated as, without oneDNN's own kernels
                with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
                    output = torch.func.vjp(call, views)[0]
        return output if self.autocast is None else output.to(self.dtype)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Split a vector (D,) into its tensors: name -> view, nothing copied.

        Raises:
            ValueError: the vector's shape is not (D,).

        Example:
            >>> network = FlatNetwork(nn.Linear(2, 1))
            >>> network.unflatten(torch.tensor([1.0, 2.0, 3.0]))["weight"]
            tensor([[1., 2.]])
        """
        if vector.shape != (self.num_parameters,):
            raise ValueError(
                f"vector must have shape ({self.num_parameters},), got {tuple(vector.shape)}; "
                "for several vectors at once use torch.func.vmap"
            )
        # One split rather than a slice each: its gradient is one concatenation, not a sum of
        # zero-padded copies.
        parts = torch.split(vector, self._sizes)
        return {
            name: part.view(shape)
            for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }

    def flatten(self, mapping: Mapping[str, Tensor]) -> Tensor:
        """Join tensors into a new vector (D,) in the network's dtype and on its device.

        Args:
            mapping: exactly the names of ``names``, in any order, with their shapes.

        Raises:
            ValueError: names missing or unexpected, or shapes that differ; all in one message.

        Example:
            >>> network = FlatNetwork(nn.Linear(2, 1))
            >>> network.flatten({"bias": torch.zeros(1), "weight": torch.ones(1, 2)})
            tensor([1., 1., 0.])
        """
        wrong = [f"{name} is missing" for name in self.names if name not in mapping]
        wrong += [f"{name} is unexpected" for name in mapping if name not in self.slices]
        wrong += [
            f"{name} is {tuple(mapping[name].shape)}, expected {tuple(shape)}"
            for name, shape in zip(self.names, self.shapes, strict=True)
            if name in mapping and mapping[name].shape != shape
        ]
        if wrong:
            raise ValueError(f"mapping does not fit {self!r}: {listed(wrong)}")
        pieces = [mapping[name].reshape(-1) for name in self.names]
        return torch.cat([piece.to(self.device, self.dtype) for piece in pieces])

    def with_state(self, state_dict: Mapping[str, Tensor], head: Sequence[str] = ()) -> FlatNetwork:
        """Give the network of another checkpoint: its parameters and its buffers.

        Args:
            state_dict: name -> tensor, as for ``load_checkpoint``: every parameter and every
                persistent buffer; a prefix common to all names is taken off.
            head: names of a fresh head's tensors, which stay as they are in this network.

        Returns:
            A new network with the same choice of parameters, whose anchor is the checkpoint.

        Raises:
            CheckpointError: names, shapes or values do not fit.

        Example:
            >>> network = FlatNetwork(nn.Linear(2, 1), parameters=["bias"])
            >>> state = {"weight": torch.ones(1, 2), "bias": torch.full((1,), 5.0)}
            >>> network.with_state(state).anchor
            tensor([5.])
        """
        matched = match_state(self.module, state_dict, head=head)
        other = FlatNetwork(self.module, self.names, self.autocast)
        tensors = dict(other.module.named_parameters()) | dict(other.module.named_buffers())
        for name, entry in matched.items():
            tensors[name].copy_(entry)
        other.anchor = other.flatten({name: tensors[name] for name in other.names})
        return other

    def head_names(self, head: str | Sequence[str] | None) -> tuple[str, ...]:
        """List the names of a fresh head's parameters: those equal to ``head`` or below it.

        Args:
            head: a dotted prefix, as ``"classifier"``, or several; None for a network without a
                fresh head.

        Raises:
            ValueError: no parameter of the vector is called so, or all are.

        Example:
            >>> network = FlatNetwork(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)))
            >>> network.head_names("1")
            ('1.weight', '1.bias')
        """
        found = [
            self._below(prefix) for prefix in ([head] if isinstance(head, str) else head or ())
        ]
        names = tuple(name for name in self.names if any(name in below for below in found))
        if names and len(names) == len(self.names):
            raise ValueError(f"head={head!r} names every parameter; nothing pretrained is left")
        return names

    def checked_head(self, head: str | Sequence[str] | None) -> tuple[str, ...]:
        """List the names of the head as `head_names` does, and warn of fresh weights outside it."""
        names = self.head_names(head)
        warn_of_fresh_weights(self.fresh, [n for n, _ in self.module.named_parameters()], names)
        return names

    def _below(self, head: str) -> list[str]:
        names = [name for name in self.names if name == head or name.startswith(f"{head}.")]
        if not names:
            parts, few = self._parts(), len(self.names) <= SHOWN
            shown = listed(self.names if few else parts)
            instead = did_you_mean(head, parts) or f"there are: {shown}"
            raise ValueError(f"head={head!r} names no parameter; {instead}")
        return names

    def _parts(self) -> list[str]:
        """List what a head may be, from the outermost modules to single tensors."""
        paths = [name.split(".") for name in self.names]
        depths = range(1, max(map(len, paths)) + 1)
        return list(dict.fromkeys(".".join(path[:depth]) for depth in depths for path in paths))

    def __repr__(self) -> str:
        values, tensors = self._counts()
        kind = f"{str(self.dtype).removeprefix('torch.')}, {self.device}"
        name = type(self.module).__name__
        return f"FlatNetwork({name}, {values} parameters in {tensors} tensors, {kind})"

    def _repr_html_(self) -> str:
        values, tensors = self._counts()
        rows = [
            ("module", type(self.module).__name__),
            ("parameters", values),
            ("tensors", tensors),
            ("dtype", self.dtype),
            ("device", self.device),
            *([("autocast", self.autocast)] if self.autocast else []),
        ]
        return settings_table("FlatNetwork", rows)

    def _counts(self) -> tuple[str, str]:
        """Count the vector's values and its tensors, of how many where some stay fixed."""
        every = [tensor.numel() for tensor in self.module.parameters()]
        values, tensors = str(self.num_parameters), str(len(self.names))
        if len(self.names) < len(every):
            values, tensors = f"{values} of {sum(every)}", f"{tensors} of {len(every)}"
        return values, tensors


def require_network(network: object) -> None:
    """Refuse anything but a `FlatNetwork` of single or double precision, and say what to give.

    Raises:
        TypeError: no `FlatNetwork`.
        ValueError: one whose vector is in half precision.
    """
    if not isinstance(network, FlatNetwork):
        raise TypeError(
            f"network must be a fe.FlatNetwork, got {type(network).__name__}; "
            "wrap the module: fe.FlatNetwork(module)"
        )
    require_precision(network.dtype)


def _check_tensors(module: nn.Module, chosen: Mapping[str, Tensor]) -> None:
    """Refuse tensors that do not fit in one vector of finite floating-point numbers.

    Raises:
        ValueError: what is wrong, and in which tensors.
    """
    everything = dict(module.named_parameters()) | dict(module.named_buffers())
    empty = [name for name, tensor in everything.items() if is_lazy(tensor) or tensor.is_meta]
    if empty:
        raise ValueError(
            f"tensors without values yet (lazy or meta): {listed(empty)}; "
            "materialise them, for lazy modules by one forward pass, before FlatNetwork"
        )
    other = [f"{n} ({t.dtype})" for n, t in chosen.items() if not t.is_floating_point()]
    if other:
        raise ValueError(
            f"parameters that are not real floating point: {listed(other)}; "
            "leave them out by `parameters`"
        )
    kinds: dict[str, list[str]] = {}
    for name, tensor in chosen.items():
        kinds.setdefault(f"{tensor.dtype} on {tensor.device}", []).append(name)
    if len(kinds) > 1:
        groups = "; ".join(f"{kind}: {listed(names)}" for kind, names in kinds.items())
        raise ValueError(
            f"parameters differ in dtype or device, one vector needs one: {groups}; module.float() "
            "and module.to(device) give them one"
        )
    bad = [name for name, tensor in module.named_parameters() if not torch.isfinite(tensor).all()]
    # Infinity is legitimate in a buffer, an attention mask for one; NaN never is.
    bad += [name for name, tensor in module.named_buffers() if torch.isnan(tensor).any()]
    if bad:
        raise ValueError(f"weights or buffers with NaN or infinite values: {listed(bad)}")
