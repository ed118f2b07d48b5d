"""`parameters=`: which parameters may be chosen at all, in selecting and in fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases.selection import select
from cases.tuning import LABELS, X
from torch import Tensor, nn

import ppl_fe as fe
from ppl_fe.finetuning.rules.shorthands import RULE_NAMES
from ppl_fe.networks.parameter_names import linear_weights


class Net(nn.Module):
    """Linear layers, a norm between them, an attention whose weights no layer is called for."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 6, bias=False)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(self.embed(x))[:, None]
        logits: Tensor = self.head(self.out(rows + self.attention(rows, rows, rows)[0])[:, 0])
        return logits


def network() -> fe.FlatNetwork:
    torch.manual_seed(31)
    return fe.FlatNetwork(Net())


def covered(network: fe.FlatNetwork, mask: Tensor) -> set[str]:
    return {name for name, where in network.slices.items() if mask[where].any()}


def test_the_weights_that_adapters_can_hold() -> None:
    assert linear_weights(Net()) == ["embed.weight", "out.weight", "head.weight"]
    assert linear_weights(nn.TransformerEncoderLayer(4, 2)) == []
    tied = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 3)})
    tied["b"].weight = tied["a"].weight
    assert linear_weights(tied) == ["c.weight"]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("linear", ["embed.weight", "out.weight"]),
        ("embed.bias", ["embed.bias"]),
        ("attention", ["attention.in_proj_weight", "attention.in_proj_bias"]),
        (["embed", "*.out_proj.*"], ["embed.weight", "attention.out_proj.weight"]),
        (lambda name: name.endswith("bias"), ["embed.bias", "norm.bias", "attention.in_proj_bias"]),
    ],
)
def test_only_what_may_be_chosen_is_ranked(parameters: Any, expected: list[str]) -> None:
    net = network()
    found = select(
        net, (X, LABELS), rule="magnitude", parameters=parameters, head="head", sparsity=0.5
    )
    ranked = ~found.score.isnan()
    assert covered(net, ranked) >= set(expected)
    assert not covered(net, ranked) & {"head.weight", "head.bias"}
    assert (found.mask & ~ranked).sum() == 0
    count = round(0.5 * int(ranked.sum()))
    assert found.num_selected == count
    assert found.sparsity == pytest.approx(count / int(ranked.sum()))
    # the largest of those alone
    least = net.anchor.abs()[found.mask].min()
    assert not (net.anchor.abs()[ranked & ~found.mask] > least).any()


COMPILED = ("bayestune", "collapsed")  # whose steps take ten seconds to compile


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(name, marks=[pytest.mark.thorough] if name in COMPILED else [])
        for name in RULE_NAMES
        if name != "bias_only"
    ],
)
def test_every_rule_ranks_the_part_as_a_network_of_its_own(rule: str) -> None:
    whole = network()
    own = ["embed.weight", "out.weight", "head.weight", "head.bias"]
    alone = fe.FlatNetwork(whole.module, own)
    call: dict[str, Any] = {"rule": rule, "head": "head", "num_steps": 5, "num_chains": 1}
    found = select(whole, (X, LABELS), parameters="linear", **call)
    expected = select(alone, (X, LABELS), **call)
    for name in own[:2]:
        here, there = whole.slices[name], alone.slices[name]
        assert torch.equal(found.score[here], expected.score[there])
        assert torch.equal(found.mask[here], expected.mask[there])
    assert covered(whole, found.mask) <= {"embed.weight", "out.weight"}
    assert found.notes == expected.notes


@pytest.mark.parametrize(
    "rule", ["released_code", pytest.param("bayestune", marks=pytest.mark.thorough)]
)
def test_all_parameters_are_the_default(rule: str) -> None:
    net = network()
    plain, every = (
        select(net, (X, LABELS), rule=rule, head="head", num_chains=1, **more)
        for more in ({}, {"parameters": "*"})
    )
    assert torch.equal(plain.mask, every.mask)
    assert torch.equal(plain.score.nan_to_num(-1), every.score.nan_to_num(-1))


def test_weights_that_may_not_be_chosen_stay_where_the_vector_has_them() -> None:
    net = network()
    with torch.no_grad():
        net.anchor[net.slices["embed.bias"]] = 5.0  # which the module itself does not know of
    found = select(net, (X, LABELS), rule="gradient", parameters="out.weight", head="head")
    expected = select(net, (X, LABELS), rule="gradient", head="head")
    where = net.slices["out.weight"]
    torch.testing.assert_close(found.score[where], expected.score[where])


def test_a_selection_among_some_is_kept_whole(tmp_path: Path) -> None:
    net = network()
    found = select(net, (X, LABELS), rule="magnitude", parameters="linear", head="head")
    found.save(tmp_path / "a")
    read = fe.load_selection(tmp_path / "a", net)
    assert torch.equal(read.mask, found.mask)
    assert read.settings["parameters"] == "linear"
    assert (
        repr(read)
        == repr(found)
        == "Selection(rule='magnitude', 8 of 80 parameters of 'linear', 10 %)"
    )
    assert len(read.ranked) == 80


REFUSED: list[tuple[Any, type[Exception], str]] = [
    ("embbed", ValueError, r"parameters: 'embbed' matches none; did you mean 'embed'\?"),
    (["embed", "norm.wieght"], ValueError, r"'norm\.wieght' matches none; .* 'norm\.weight'\?"),
    ("out_proj", ValueError, r"'\*out_proj\*' would match 2, attention\.out_proj\.weight"),
    ("*.kernel", ValueError, r"'\*\.kernel' matches none; there are: embed\.weight"),
    ("head", ValueError, r"parameters='head' chooses nothing .* outside the head"),
    ([3], TypeError, "names, patterns or a predicate, got 3"),
    (lambda name: False, ValueError, "parameters chooses none of: embed"),
]


@pytest.mark.parametrize(("parameters", "kind", "message"), REFUSED)
def test_names_that_match_nothing_are_refused(
    parameters: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        select(network(), (X, LABELS), rule="random", parameters=parameters, head="head")


def test_no_bias_among_those_that_may_be_chosen() -> None:
    with pytest.raises(ValueError, match="outside the head that may be chosen is called bias"):
        select(network(), (X, LABELS), rule="bias_only", parameters="linear", head="head")


def test_a_module_without_linear_layers() -> None:
    with pytest.raises(ValueError, match=r"'linear': the module has no weight of a plain nn\.Lin"):
        fe.FlatNetwork(nn.Conv1d(1, 1, 1), "linear")


def tune(**options: Any) -> fe.FinetuneResult:
    given: dict[str, Any] = {"num_steps": 3, "head": "head", "progress_bar": False, **options}
    return fe.finetune(network(), (X, LABELS), **given)


def moved(tuned: fe.FinetuneResult) -> set[str]:
    return covered(tuned.network, tuned.weights != tuned.network.anchor)


def test_fine_tuning_some_tensors_whole() -> None:
    tuned = tune(method="full", parameters=["norm", "out.weight"])
    assert moved(tuned) == {"norm.weight", "norm.bias", "out.weight", "head.weight", "head.bias"}


def test_adapters_of_some_layers() -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    tuned = tune(method="lora", parameters="out")
    assert list(tuned.adapters) == ["out"]
    assert moved(tuned) == {"out.weight", "head.weight", "head.bias"}
    with pytest.raises(ValueError, match=r"parameters='norm' holds no weight of an nn\.Linear"):
        tune(method="lora", parameters="norm")


@pytest.mark.parametrize("more", [{"mask": torch.ones(10)}, {"method": "head"}])
def test_a_mask_says_itself_what_it_holds(more: Any) -> None:
    with pytest.raises(ValueError, match=r"parameters='out' is of the methods 'full' and 'lora'"):
        tune(parameters="out", **more)
    with pytest.raises(ValueError, match=r"'ot' matches none; did you mean 'out'\?"):
        tune(parameters="ot", method="full")
