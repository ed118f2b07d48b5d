"""Select parameters of small networks by every rule, and train them in every way."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import ppl_fe as fe
from drawn import Case
from drawn.networks import DATA, HELD_OUT, either, module, network, planted
from drawn.sampling import loader

HEAD = "2"
CHAINS: dict[str, Any] = {"num_samples": 20, "warmup_steps": 50, "thinning": 2, "seed": 5}
VECTORS = ("score", "mask", "scale_mean", "scale_sd", "r_hat", "mcse", "probability_in_top")


def smooth_lasso(anchor: Tensor) -> Tensor:
    """Stand for a prior of one's own."""
    w: Tensor = pyro.sample("w", dist.Logistic(anchor, 0.15).to_event(1))
    return w


def vectors(found: fe.Selection) -> dict[str, Any]:
    """Take a selection's numbers."""
    kept = {name: getattr(found, name) for name in VECTORS}
    step = found.settings.get("step_size")
    return {**kept, "step_size": step if isinstance(step, float) else None, "knees": found.knees}


def counted_once(options: dict[str, Any], num_data: int) -> dict[str, Any]:
    """Let the data of BayesTune count once, N̂ = n, unless the case says what else."""
    if options.get("method", "bayestune") in ("bayestune", "collapsed"):
        return {"data_size": float(num_data), **options}
    return options


def select(**changed: Any) -> Any:
    """Select weights of the linear network."""
    found, data = planted()
    options = {"likelihood": "normal", "sparsity": 0.1, **CHAINS, **changed}
    options = counted_once(options, len(data[1]))
    return vectors(fe.select_parameters(found, data, progress_bar=False, **options))


def select_classifier(data: Any = DATA, **changed: Any) -> Any:
    """Select weights of the classifier, its head left out."""
    options = counted_once({"sparsity": 0.2, "head": HEAD, **CHAINS, **changed}, len(DATA[1]))
    return vectors(fe.select_parameters(network(), data, progress_bar=False, **options))


def saved_selection() -> Any:
    """Select, save and load again."""
    found = network()
    how: dict[str, Any] = {"sparsity": 0.2, "head": HEAD, "progress_bar": False, **CHAINS}
    made = fe.select_parameters(found, DATA, **counted_once(how, len(DATA[1])))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "selection.safetensors"
        made.save(path)
        return {"loaded": vectors(fe.load_selection(path, found)), "file": load_file(path)}


def some_mask() -> Tensor:
    """Choose four entries."""
    mask = torch.zeros(network().num_parameters, dtype=torch.bool)
    mask[[0, 3, 11, 22]] = True
    return mask


class ByKeyword(nn.Module):
    """Take the inputs by keyword, as the networks of Hugging Face do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = module()

    def forward(self, features: Tensor) -> Tensor:
        """Run the classifier."""
        output: Tensor = self.inner(features)
        return output


def tune(data: Any = DATA, made: Callable[[], nn.Module] = module, **changed: Any) -> Any:
    """Tune the classifier, save what changed, and put it onto the pretrained one."""
    options: dict[str, Any] = {"num_steps": 20, "learning_rate": 0.05, "progress_bar": False}
    if changed.get("method", "mask") == "mask":
        options["mask"] = some_mask()
    tuned = fe.finetune(fe.FlatNetwork(made()), data, **{**options, **changed})
    given = made()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "delta.safetensors"
        fe.save_delta(tuned, path)
        applied = fe.apply_delta(given, path)
        on = {name: tensor.clone() for name, tensor in given.state_dict().items()}
        applied.remove()
        file = load_file(path)
    return {
        "weights": either(tuned, "weights", "vector"),
        "history": tuned.history,
        "mask": tuned.mask,
        "step": tuned.step,
        "head": tuned.head,
        "file": file,
        "on": on,
        "off": given.state_dict(),
    }


CASES: dict[str, Case] = {
    **{
        f"select_{name}": partial(select, method=name)
        for name in ("bayestune", "collapsed", "paper", "gradient_squared", "movement",
                     "magnitude", "bias_only", "random")
    },
    "select_layer": partial(select_classifier, groups="layer"),
    "select_row": partial(select_classifier, groups="row"),
    "select_count_top": partial(select, count_top=True),
    "select_count_top_collapsed": partial(select, count_top=True, method="collapsed"),
    "select_hyperparameters": partial(
        select, prior=partial(fe.models.laplace_gamma, alpha=0.5, beta=10.0), data_size=1e3
    ),
    "select_horseshoe": partial(select, prior=fe.models.horseshoe),
    "select_own_prior": partial(select, prior=smooth_lasso, batch_size=20),
    "select_knee": partial(select, method="gradient_squared", sparsity="knee"),
    "select_threshold": partial(select, method="magnitude", threshold=0.1),
    "select_head": select_classifier,
    "select_paper_head": partial(select_classifier, method="paper"),
    "select_movement_head": partial(select_classifier, method="movement", num_steps=20),
    "select_full_batch": partial(select_classifier, batch_size=None, method="collapsed"),
    "select_one_chain": partial(select_classifier, num_chains=1, step_size=1e-4),
    "select_loader": lambda: select_classifier(loader(*DATA)),
    "select_saved": saved_selection,
    "tune_mask": tune,
    "tune_mask_head": partial(tune, head=HEAD),
    "tune_full": partial(tune, method="full", head=HEAD, weight_decay=0.3),
    "tune_head": partial(tune, method="head", head=HEAD),
    "tune_lora": partial(tune, method="lora", head=HEAD, lora_rank=2),
    "tune_validation": partial(
        tune, method="full", validation=HELD_OUT, num_steps=200, evaluate_every=10, patience=3
    ),
    "tune_sgd": partial(tune, optimizer="sgd", schedule="constant", batch_size=None),
    "tune_epochs": partial(tune, num_steps=None, num_epochs=4, batch_size=8),
    "tune_keyword": partial(tune, {"features": DATA[0], "labels": DATA[1]}, ByKeyword),
    "tune_loader": lambda: tune(loader(*DATA)),
}  # fmt: skip
