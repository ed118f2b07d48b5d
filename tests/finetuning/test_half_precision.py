"""Checkpoints in bfloat16, as `from_pretrained` of transformers gives them: right, or refused."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from cases.bert import DATA, HEAD, INPUTS, bert, selected
from torch import nn

import ppl_fe as fe

# Imported by the tests themselves: others that are collected need not wait the seconds it takes.
pytestmark = pytest.mark.skipif(
    find_spec("transformers") is None, reason="transformers is not installed"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as they come from the hub: in bfloat16, and its configuration says so."""
    path = tmp_path_factory.mktemp("bfloat16")
    bert().bfloat16().save_pretrained(path)  # type: ignore[operator]
    return path


def loaded(folder: Path, **options: Any) -> nn.Module:
    import transformers

    module: nn.Module = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, **options
    )
    return module


SHORT: dict[str, Any] = {"num_samples": 4, "warmup_steps": 4, "progress_bar": False}
CALLS: dict[str, Any] = {
    "selecting": lambda net: selected(net),
    "fine-tuning": lambda net: fe.finetune(net, DATA, method="head", head=HEAD),
    "estimating": lambda net: fe.estimate_free_energy(net, DATA, **SHORT),
    "integrating": lambda net: fe.integrate_free_energy(net, DATA, **SHORT),
    "ranking": lambda net: fe.rank_checkpoints({"a": bert().state_dict()}, net.module, DATA),
    "sampling": lambda net: fe.models.local_posterior(net),
}


@pytest.mark.parametrize("kind", CALLS)
def test_half_precision_is_refused_with_what_to_write(kind: str, folder: Path) -> None:
    network = fe.FlatNetwork(loaded(folder, dtype="auto"))
    assert network.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"is in torch\.bfloat16.* module\.float\(\) or from_p"):
        CALLS[kind](network)


@pytest.mark.parametrize("how", ["float", "dtype"])
def test_converted_it_is_fine_tuned_and_the_delta_says_of_what(
    how: str, folder: Path, tmp_path: Path
) -> None:
    def converted() -> nn.Module:
        if how == "float":
            return loaded(folder).float()
        return loaded(folder, dtype=torch.float32)

    network = fe.FlatNetwork(converted())
    selection = selected(network, rule="gradient")
    tuned = fe.finetune(
        network, DATA, mask=selection.mask, head=HEAD, num_steps=5, progress_bar=False
    )
    moved = tuned.weights[selection.mask] != network.anchor[selection.mask]
    assert moved.float().mean() > 0.9  # steps of 1e-3, that bfloat16 would mostly round away
    tuned.save(tmp_path / "task")
    module = converted().eval()
    fe.apply_delta(module, tmp_path / "task")
    with torch.no_grad():
        assert torch.equal(module(**INPUTS).logits, tuned.predict(INPUTS))
    with pytest.raises(
        fe.DeltaError, match=r"made on weights in torch\.float32, .* module\.to\(torch\.float32\)"
    ):
        fe.apply_delta(loaded(folder, dtype="auto"), tmp_path / "task")


def test_checkpoints_in_half_precision_are_read_as_the_module_is(folder: Path) -> None:
    network = fe.FlatNetwork(bert())
    read = fe.load_checkpoint(folder, network)
    assert read.dtype == torch.float32
    assert torch.equal(read, network.anchor.bfloat16().float())


def test_a_module_of_two_precisions_is_told_how_to_have_one(folder: Path) -> None:
    module = loaded(folder, dtype="auto")
    module.get_submodule(HEAD).float()
    with pytest.raises(ValueError, match=r"differ in dtype .* module\.float\(\)"):
        fe.FlatNetwork(module)
