"""The export to peft: its own reader gives the fine-tuned network back, or the export refuses."""

from __future__ import annotations

import json
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from cases.bert import DATA, HEAD, INPUTS, bert, selected
from cases.tuning import LABELS, X, tune
from torch import Tensor, nn

from ppl_fe.finetuning.train.peft_export import save_adapter
from ppl_fe.networks.flat import FlatNetwork

# Imported by the tests themselves: others that are collected need not wait the seconds it takes.
pytestmark = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.body = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(self.norm(x)))
        return out


def net() -> Net:
    torch.manual_seed(84)
    return Net().eval()


def mask_of(*counts: tuple[str, int]) -> Tensor:
    network = FlatNetwork(net())
    mask = torch.zeros(network.num_parameters, dtype=torch.bool)
    for name, count in counts:
        where = network.slices[name]
        chosen = torch.randperm(where.stop - where.start)[:count] + where.start
        mask[chosen] = True
    return mask


# 20 places a rank in the first layer and 24 in the second, so that 30 entries need r = 2.
@pytest.mark.parametrize(("first", "second", "rank"), [(3, 7, 1), (20, 24, 1), (30, 5, 2)])
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_peft_reads_the_fine_tuned_network(
    first: int, second: int, rank: int, tmp_path: Path
) -> None:
    from peft import PeftModel

    mask = mask_of(("body.0.weight", first), ("body.2.weight", second))
    tuned = tune(FlatNetwork(net()), mask=mask, head="head")
    save_adapter(tuned, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == rank
    other = net()
    nn.init.zeros_(other.head.weight)
    loaded: Any = PeftModel.from_pretrained(other, tmp_path / "adapter")
    network = FlatNetwork(net())
    with torch.no_grad():
        expected = network(tuned.weights, X)
        for found in (loaded(X), loaded.merge_and_unload()(X)):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (expected - network(network.anchor, X)).abs().max() > 0.1


@pytest.mark.parametrize("head", [None, "head"])
def test_peft_reads_adapters_of_low_rank(head: str | None, tmp_path: Path) -> None:
    from peft import PeftModel

    tuned = tune(FlatNetwork(net()), method="lora", head=head, lora_rank=3)
    assert sorted(tuned.adapters) == ["body.0", "body.2"] + ([] if head else ["head"])
    save_adapter(tuned, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 3, 6)
    other = net()
    if head:
        nn.init.zeros_(other.head.weight)
    loaded: Any = PeftModel.from_pretrained(other, tmp_path)
    with torch.no_grad():
        expected = tuned.predict(X)
        for found in (loaded(X), loaded.merge_and_unload()(X)):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (expected - net()(X)).abs().max() > 0.1


# Which peft 0.21 still reads under transformers 5.24.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("kind", ["shira", "lora"])
def test_peft_reads_adapters_of_a_transformer(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    network = FlatNetwork(bert())
    call: dict[str, Any] = {"method": "lora"}
    if kind == "shira":
        call = {"mask": selected(network, parameters="linear").mask}
    tuned = tune(network, DATA, head=HEAD, **call)
    save_adapter(tuned, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == kind.upper()
    base = bert().eval()
    nn.init.zeros_(base.get_parameter("classifier.weight"))
    loaded: Any = PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        expected = tuned.predict(INPUTS)
        for found in (loaded(**INPUTS), loaded.merge_and_unload()(**INPUTS)):
            torch.testing.assert_close(found.logits, expected, rtol=0, atol=1e-6)
        assert (expected - bert().eval()(**INPUTS).logits).abs().max() > 0.01
        assert torch.equal(tuned.module()(**INPUTS).logits, expected)


def pretrained(folder: Path, **more: Any) -> Any:
    """Read a tiny DistilBERT from a folder: one without a head, if it is not there yet."""
    import transformers

    if not folder.exists():
        config = transformers.DistilBertConfig(
            vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=20
        )
        transformers.DistilBertModel(config).save_pretrained(folder)
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder, **more)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("head", [["pre_classifier", "classifier"], None], ids=["head", "no head"])
@pytest.mark.parametrize("kind", ["shira", "lora"])
def test_peft_finds_the_base_by_itself(
    kind: str, head: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peft

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    reader = peft.AutoPeftModelForSequenceClassification if head else peft.AutoPeftModel
    more: dict[str, Any] = {"num_labels": 3}
    base = pretrained(tmp_path / "base", **more)
    if not head:  # a base that is whole: its last layers are adapted like the others
        base.save_pretrained(tmp_path / "whole")
        base, more = pretrained(tmp_path / "whole"), {}
    network = FlatNetwork(base)
    call: dict[str, Any] = {"method": "lora"}
    if kind == "shira":
        call = {"mask": selected(network, parameters="linear", head=head).mask}
    tuned = tune(network, DATA, head=head, **call)
    save_adapter(tuned, tmp_path / "adapter")
    expected = tuned.predict(INPUTS)
    for merged in (False, True):
        loaded: Any = reader.from_pretrained(tmp_path / "adapter", **more).eval()
        loaded = loaded.merge_and_unload() if merged else loaded
        with torch.no_grad():
            found = loaded(**INPUTS).logits
        size = max(1.0, float(expected.abs().max()))  # of a rounding error
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * size)
    assert (expected - base.eval()(**INPUTS).logits).abs().max() > 0.01


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
def test_transformers_alone_takes_no_sparse_adapter_for_another(tmp_path: Path) -> None:
    import transformers

    network = FlatNetwork(pretrained(tmp_path / "base", num_labels=3))
    head = ["pre_classifier", "classifier"]
    mask = selected(network, parameters="linear", head=head).mask
    save_adapter(tune(network, DATA, head=head, mask=mask), tmp_path / "adapter")
    kind = transformers.AutoModelForSequenceClassification
    loaded = kind.from_pretrained(tmp_path / "adapter", num_labels=3)
    with pytest.raises(KeyError):  # it does not read where the entries are
        loaded(**INPUTS)


REFUSED: list[tuple[Tensor, str | None, str]] = [
    (mask_of(("norm.weight", 2), ("body.0.weight", 2)), None, r"entries are trained in: norm\.w"),
    (mask_of(("body.0.bias", 1)), None, r"trained in: body\.0\.bias"),
    (mask_of(("body.0.weight", 64)), None, r"r=4.* 80 entries of body\.0\.weight \(16, 4\)"),
]


@pytest.mark.parametrize(("mask", "head", "message"), REFUSED, ids=["norm", "bias", "dense"])
def test_what_shira_cannot_hold_is_refused(
    mask: Tensor, head: str | None, message: str, tmp_path: Path
) -> None:
    tuned = tune(FlatNetwork(net()), mask=mask, head=head)
    with pytest.raises(ValueError, match=message):
        save_adapter(tuned, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_a_head_of_two_layers_one_called_as_the_other_ends(tmp_path: Path) -> None:
    from peft import PeftModel

    def layers() -> nn.Module:
        parts = {"body": nn.Linear(4, 8), "pre_classifier": nn.Linear(8, 8)}
        return nn.Sequential(OrderedDict(parts, classifier=nn.Linear(8, 2)))

    torch.manual_seed(85)
    base = layers()
    network = FlatNetwork(base)
    mask = torch.zeros(network.num_parameters, dtype=torch.bool)
    mask[:5] = True
    tuned = tune(network, (X, LABELS), mask=mask, head=["pre_classifier", "classifier"])
    save_adapter(tuned, tmp_path)
    loaded: Any = PeftModel.from_pretrained(base, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(X), tuned.predict(X), rtol=0, atol=1e-6)


def test_a_head_that_peft_would_mistake_is_refused(tmp_path: Path) -> None:
    layers = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8)), nn.Linear(8, 2))
    network = FlatNetwork(layers)
    mask = torch.zeros(network.num_parameters, dtype=torch.bool)
    mask[0] = True
    tuned = tune(network, (X, LABELS), mask=mask, head="1")
    with pytest.raises(ValueError, match=r"peft would take 0\.1 for the head 1"):
        save_adapter(tuned, tmp_path)
    only = tune(network, (X, LABELS), method="head", head="1")
    with pytest.raises(ValueError, match="no adapter to write"):
        save_adapter(only, tmp_path)
