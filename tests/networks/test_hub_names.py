"""Files from the Hugging Face hub: base names, old constants, experts, adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ppl_fe.networks.checkpoints import read_checkpoint
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.networks.hub_names import is_rebuilt
from ppl_fe.networks.matching import CheckpointError


class Language(nn.Module):
    """A body with its tied head, as of a causal language model."""

    def __init__(self) -> None:
        super().__init__()
        words = nn.Embedding(7, 3)
        self.transformer = nn.ModuleDict({"wte": words, "h": nn.Sequential(nn.Linear(3, 3))})
        self.lm_head = nn.Linear(3, 7, bias=False)
        self.lm_head.weight = words.weight


def state() -> dict[str, Tensor]:
    torch.manual_seed(5)
    return Language().state_dict()


@pytest.mark.parametrize("outer", ["", "module.", "_orig_mod."])
def test_the_base_models_names_are_put_below_the_child_that_holds_it(outer: str) -> None:
    whole = state()
    base = {
        outer + name.removeprefix("transformer."): value
        for name, value in whole.items()
        if not name.startswith("lm_head")
    }
    network = FlatNetwork(Language())
    assert torch.equal(network.with_state(base).anchor, network.with_state(whole).anchor)


def test_a_base_that_lacks_a_tensor_is_refused_with_its_name() -> None:
    base = {
        name.removeprefix("transformer."): value
        for name, value in state().items()
        if not name.startswith("lm_head") and name != "transformer.h.0.bias"
    }
    with pytest.raises(CheckpointError, match=r"missing from it \(1\): transformer.h.0.bias$"):
        FlatNetwork(Language()).with_state(base)


CONSTANTS = {
    "transformer.h.0.attn.bias": torch.ones(1, 1, 5, 5, dtype=torch.bool).tril(),
    "transformer.h.0.attn.masked_bias": torch.tensor(-1e9),
    "bert.embeddings.position_ids": torch.arange(6)[None],
    "model.layers.0.self_attn.rotary_emb.inv_freq": 1e4 ** -(torch.arange(0, 8, 2) / 8),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_that_the_module_builds_are_left_out(name: str) -> None:
    network = FlatNetwork(Language())
    found = network.with_state({**state(), name: CONSTANTS[name]})
    assert torch.equal(found.anchor, network.with_state(state()).anchor)
    trained = torch.randn(CONSTANTS[name].shape)
    assert not is_rebuilt(name, trained)
    with pytest.raises(CheckpointError, match=r"unexpected in it \(1\)"):
        network.with_state({**state(), name: trained})


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Module()
        self.mlp.experts = nn.Module()
        self.mlp.experts.gate_up_proj = nn.Parameter(torch.zeros(2, 3, 4))


def test_experts_stored_one_by_one_say_what_to_do() -> None:
    stored = {f"mlp.experts.{k}.w1.weight": torch.zeros(3, 4) for k in range(2)}
    with pytest.raises(CheckpointError, match=r"stored one by one .* by from_pretrained"):
        FlatNetwork(Experts()).with_state(stored)


def test_an_adapter_alone_says_what_to_do(tmp_path: Path) -> None:
    lora = {"base_model.model.h.0.lora_A.weight": torch.zeros(2, 3)}
    with pytest.raises(CheckpointError, match="merge_and_unload"):
        FlatNetwork(Language()).with_state(lora)
    save_file(lora, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds an adapter alone.*merge_and_unload"):
        read_checkpoint(tmp_path)


def test_a_state_dict_one_level_down_is_found() -> None:
    inner = state()
    assert read_checkpoint({"net": inner, "epoch": 3}).keys() == inner.keys()
    with pytest.raises(CheckpointError, match="several dictionaries of tensors: 'net', 'ema'"):
        read_checkpoint({"net": inner, "ema": inner})


def test_dictionaries_nested_without_end_are_refused(tmp_path: Path) -> None:
    endless: dict[str, object] = {}
    endless["state_dict"] = endless
    with pytest.raises(CheckpointError, match="nests dictionaries without end"):
        read_checkpoint(endless)
    deep = '{"weight_map": ' + "[" * 100_000 + "]" * 100_000 + "}"
    (tmp_path / "model.safetensors.index.json").write_text(deep)
    with pytest.raises(CheckpointError, match="is no index of shards"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["sparse_coo", "meta"])
def test_tensors_without_plain_values_are_named(kind: str) -> None:
    given = state()
    name = "transformer.h.0.weight"
    given[name] = given[name].to_sparse() if kind == "sparse_coo" else given[name].to("meta")
    with pytest.raises(CheckpointError, match=f"no plain array of values .*{name} is {kind}"):
        FlatNetwork(Language()).with_state(given)
