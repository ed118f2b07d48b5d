"""Low-rank adapters: trained, merged, of the stated rank; refused where they would not count."""

from __future__ import annotations

import builtins
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from cases.tuning import HEAD, LABELS, N, X, head_mask, module, network, tune
from torch import nn

from ppl_fe.networks.deltas import apply_delta, save_delta
from ppl_fe.networks.flat import FlatNetwork

# Imported by the tests themselves: others that are collected need not wait the seconds it takes.
pytestmark = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")


def test_merged_adapters_change_the_wrapped_weights_by_a_matrix_of_their_rank(
    tmp_path: Path,
) -> None:
    net = network()
    tuned = tune(method="lora", head=HEAD, lora_rank=2, validation=(X, LABELS), num_steps=60)
    weight = torch.zeros_like(tuned.mask)
    weight[net.slices["0.weight"]] = True
    assert torch.equal(tuned.mask, weight)
    frozen = ~(weight | head_mask())
    assert torch.equal(tuned.weights[frozen], net.anchor[frozen])
    change = net.unflatten(tuned.weights - net.anchor)["0.weight"]
    values = torch.linalg.svdvals(change)
    assert values[1] > 1e-3
    assert values[2] < 1e-6
    # What was trained is what came out: the loss seen in training is the merged network's.
    with torch.no_grad():
        loss = nn.functional.cross_entropy(net(tuned.weights, X), LABELS).item()
    looks = tuned.history.set_index("step")["validation_loss"]
    assert looks[tuned.step] == pytest.approx(loss, rel=1e-5)
    assert loss < 0.8 * looks[0]
    save_delta(tuned, tmp_path / "a")
    given = module()
    apply_delta(given, tmp_path / "a")
    assert torch.equal(FlatNetwork(given).anchor, tuned.weights)


def test_equal_seeds_give_equal_adapters_and_the_global_state_stays() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = tune(method="lora", seed=1, batch_size=N)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.weights, tune(method="lora", seed=1, batch_size=N).weights)
    assert not torch.equal(first.weights, tune(method="lora", seed=2, batch_size=N).weights)


REFUSED: list[tuple[nn.Module, dict[str, Any], str]] = [
    (nn.Sequential(nn.Identity(), nn.Bilinear(4, 4, 2)), {}, "has no nn.Linear among its layers"),
    (nn.Linear(4, 2), {}, "has no nn.Linear among its layers"),
    (nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), {"head": "1.weight"}, "has no nn.Linear"),
    (
        nn.Sequential(nn.TransformerEncoderLayer(4, 2, 4, batch_first=True), nn.Linear(4, 2)),
        {},
        "0 read their linear layers' weights without calling them",
    ),
    (module(), {"lora_rank": 0}, "lora_rank must be at least 1, got 0"),
]


@pytest.mark.parametrize(("net", "options", "message"), REFUSED, ids=lambda v: str(v)[:30])
def test_modules_that_cannot_be_wrapped_are_refused(
    net: nn.Module, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tune(FlatNetwork(net), method="lora", **options)


def test_without_peft_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "peft":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="needs peft: pip install peft"):
        tune(method="lora")
