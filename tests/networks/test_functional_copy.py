"""Modules that torch copies, batches or names in ways of their own."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ppl_fe as fe
from ppl_fe.networks.functional_copy import functional_copy

X = torch.randn(12, 5, 3, generator=torch.Generator().manual_seed(3))
LABELS = torch.arange(12) % 2
QUICK: dict[str, Any] = {
    "localization": 100.0, "batch_size": None, "num_samples": 4, "warmup_steps": 2,
    "num_chains": 2, "compile": "eager", "progress_bar": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _old_hooks_allowed() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*weight_norm", FutureWarning)
        warnings.filterwarnings("ignore", ".*batching rule for aten::_weight_norm", UserWarning)
        warnings.filterwarnings("ignore", ".*batching rule for aten::_scaled_dot", UserWarning)
        warnings.filterwarnings("ignore", ".*torch.jit.script_method", DeprecationWarning)
        yield


def linear() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(15, 2))


def old_weight_norm() -> nn.Module:
    module = linear()
    torch.nn.utils.weight_norm(module[1])
    return module


def old_spectral_norm() -> nn.Module:
    module = linear()
    torch.nn.utils.spectral_norm(module[1])
    return module.eval()


def compiled_inside() -> nn.Module:
    module = linear()
    return nn.Sequential(module[0], compiled(module[1]))


def compiled(module: nn.Module) -> nn.Module:
    wrapped: Any = torch.compile(module)
    assert isinstance(wrapped, nn.Module)
    return wrapped


def compiled_in_place() -> nn.Module:
    module = linear()
    module.compile()
    return module


MODULES: dict[str, Callable[[], nn.Module]] = {
    "old weight_norm": old_weight_norm,
    "old spectral_norm": old_spectral_norm,
    "compiled": lambda: compiled(linear()),
    "compiled inside": compiled_inside,
    "compiled in place": compiled_in_place,
}


@pytest.mark.parametrize("kind", MODULES)
def test_such_a_module_is_the_function_it_was(kind: str) -> None:
    module = MODULES[kind]()
    before = copy.deepcopy(module.state_dict())
    network = fe.FlatNetwork(module)
    with torch.no_grad():
        plain = module(X)
    torch.testing.assert_close(network(network.anchor, X), plain)
    both = torch.func.vmap(network, in_dims=(0, None))(network.anchor.expand(2, -1), X)
    torch.testing.assert_close(both, plain.expand(2, -1, -1))
    assert not any("_orig_mod" in name for name in network.names)
    again = network.with_state(module.state_dict())  # a copy of the copy, which has been called
    assert torch.equal(again.anchor, network.anchor)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


class Recurrent(nn.Module):
    def __init__(self, layer: Callable[..., nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.body, self.head = layer(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.body(x)[0][:, -1])
        return answer


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_batched(layer: Callable[..., nn.Module]) -> None:
    module = Recurrent(layer)
    network = fe.FlatNetwork(module)
    vectors = torch.stack([network.anchor, 0.5 * network.anchor])
    with torch.no_grad():
        batched = torch.func.vmap(network, in_dims=(0, None))(vectors, X)
    torch.testing.assert_close(batched[0], module(X))
    half = network.with_state({k: 0.5 * v for k, v in module.state_dict().items()})
    torch.testing.assert_close(batched[1], half.module(X))


def test_a_recurrent_network_is_ranked() -> None:
    module = Recurrent(nn.LSTM)
    table = fe.rank_checkpoints({"only": module.state_dict()}, module, (X, LABELS), **QUICK)
    assert table.loc["only", "error"] == ""
    assert table["wbic"].item() > 0


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.embedding, self.head = nn.Embedding(9, 8), nn.Linear(8, 2)
        self.layers = nn.TransformerEncoder(layer, 1)

    def forward(self, tokens: Tensor, pad: Tensor) -> Tensor:
        hidden = self.layers(self.embedding(tokens), src_key_padding_mask=pad)
        answer: Tensor = self.head(hidden[:, 0])
        return answer


def test_a_padding_mask_does_not_make_nested_tensors() -> None:
    tokens = torch.randint(1, 9, (12, 6), generator=torch.Generator().manual_seed(5))
    pad = torch.zeros(12, 6, dtype=torch.bool)
    pad[:5, 4:] = True
    module = Encoder().eval()
    network = fe.FlatNetwork(module)
    plain = module(tokens, pad)
    with torch.no_grad():
        batched = torch.func.vmap(network, in_dims=(0, None))(
            network.anchor[None], {"tokens": tokens, "pad": pad}
        )
    torch.testing.assert_close(batched[0], plain, atol=1e-5, rtol=1e-4)
    found = fe.estimate_free_energy(network, ({"tokens": tokens, "pad": pad}, LABELS), **QUICK)
    assert found.wbic > 0


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor


class Answering(nn.Module):
    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind, self.layer = kind, linear()

    def forward(self, x: Tensor) -> Any:
        return self.kind(logits=self.layer(x), hidden=x)


@pytest.mark.parametrize("kind", [dict, Output])
def test_an_output_with_logits_is_taken_by_them(kind: type) -> None:
    module = Answering(kind)
    network = fe.FlatNetwork(module)
    assert torch.equal(network(network.anchor, X), linear()(X))
    options: dict[str, Any] = {"method": "full", "num_steps": 3, "progress_bar": False}
    tuned = fe.finetune(network, (X, LABELS), **options)
    alone = fe.finetune(fe.FlatNetwork(module.layer), (X, LABELS), **options)
    assert torch.equal(tuned.weights, alone.weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused_wherever_something_would_have_to_move(
    dtype: torch.dtype,
) -> None:
    module = linear().to(dtype)
    network, data = fe.FlatNetwork(module), (X.to(dtype), LABELS)
    calls: list[Callable[[], object]] = [
        lambda: fe.finetune(network, data),
        lambda: fe.select_parameters(network, data),
        lambda: fe.estimate_free_energy(network, data),
        lambda: fe.integrate_free_energy(network, data),
        lambda: fe.rank_checkpoints({"a": module.state_dict()}, module, data),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"network is in .*float16.*module\.float\(\)"):
            call()


def test_what_a_module_computed_and_keeps_is_copied_without_its_graph() -> None:
    module: Any = linear()
    module.shift = module[1].bias * 2  # no leaf: torch's deepcopy refuses it
    copied: Any = functional_copy(module)
    assert torch.equal(copied.shift, module.shift.detach())
    assert not copied.shift.requires_grad
    assert copied.shift.data_ptr() != module.shift.data_ptr()


def test_a_module_compiled_in_place_is_copied_uncompiled() -> None:
    module: Any = linear()
    module.compile(backend="eager")
    copied: Any = functional_copy(module)
    assert copied._compiled_call_impl is None
    assert module._compiled_call_impl is not None
    torch.testing.assert_close(copied(X), linear()(X))
