"""A run that was cut short and resumed is the uninterrupted run, bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from cases.stored_runs import CrashError, files, gaussian, run, stopping_after
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import ppl_fe as fe
from ppl_fe.files import safetensors_io
from ppl_fe.inference.record import recorder as draws_module
from ppl_fe.inference.record import zarr_store as store_module
from ppl_fe.inference.record.zarr_folder import append_draws
from ppl_fe.inference.record.zarr_store import Store
from ppl_fe.inference.run import warm_up
from ppl_fe.inference.schedules import Cyclical, Polynomial
from ppl_fe.inference.step import random_stream as streams
from ppl_fe.inference.step.chains import Chains

# The automatic settings have little time here; what they come to does not matter.
pytestmark = pytest.mark.filterwarnings("ignore:warmup_steps=:RuntimeWarning")

N, WARMUP, SAMPLES, THINNING = 24, 12, 10, 2
X = torch.randn(N, 2, generator=torch.Generator().manual_seed(3))
Y = X @ torch.tensor([1.0, -0.5]) + 0.3


def model(x: Tensor, y: Tensor, size: int | None = 6) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    sd = pyro.sample("sd", dist.LogNormal(0.0, 0.3))
    with pyro.plate("data", N, subsample_size=size):
        inputs, targets = pyro.subsample(x, event_dim=1), pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(inputs @ w, 0.5 + sd), obs=targets)


def on_batches(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    sd = pyro.sample("sd", dist.LogNormal(0.0, 0.3))
    with pyro.plate("data", N, subsample_size=len(y)):
        pyro.sample("y", dist.Normal(x @ w, 0.5 + sd), obs=y)


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=6, shuffle=True)


def sample(kernel: fe.Kernel | fe.MALT, *data: Any, **changed: Any) -> xr.DataTree:
    options: dict[str, Any] = {
        "num_samples": SAMPLES,
        "warmup_steps": WARMUP,
        "thinning": THINNING,
        "num_chains": 2,
        "seed": 7,
        "compile": "eager",
        "progress_bar": False,
    }
    return fe.sample(kernel, *(data or (X, Y)), **{**options, **changed})


Case = Callable[..., xr.DataTree]


def case(kind: type[fe.Kernel] = fe.SGLD, **settings: Any) -> Case:
    return lambda **changed: sample(kind(model, **settings), **changed)


FIXED: dict[str, Any] = {"step_size": 0.01}
CYCLES = Cyclical(0.02, num_steps=200, num_cycles=20, exploration=0.3)
CASES: dict[str, Case] = {
    # What measures its curvature calls the gradient often: traced is faster.
    **{
        f"{kind.__name__} auto": partial(case(kind), compile="traced")
        for kind in (fe.SGLD, fe.PSGLD, fe.BAOAB)
    },
    "PSGLD": case(fe.PSGLD, **FIXED),
    **{kind.__name__: case(kind, friction=0.5, **FIXED) for kind in (fe.SGHMC, fe.SGNHT, fe.BAOAB)},
    "MALT": lambda **changed: sample(fe.MALT(model), **{"compile": "traced", **changed}),
    "dense metric": case(fe.BAOAB, metric="dense", friction=0.5, **FIXED),
    "control variates": case(gradient="control_variate", **FIXED),
    "epochs": case(minibatches="epoch", **FIXED),
    "epochs of micro-batches": case(minibatches="epoch", micro_batches=2, **FIXED),
    "full data": case(gradient="full_data", **FIXED),
    "loader": lambda **changed: sample(fe.SGLD(on_batches, **FIXED), loader(), **changed),
    "polynomial": case(step_size=Polynomial(0.02, offset=20.0)),
    "cycles": case(step_size=CYCLES),
    "sequential": partial(case(**FIXED), chain_method="sequential"),
    "no thinning": partial(case(**FIXED), thinning=1),
    "no warm-up": partial(case(), warmup_steps=0),
}


@cache
def whole_of(name: str) -> xr.DataTree:
    """The uninterrupted run of a case."""
    return CASES[name]()


# What they keep, others of `make test` keep, too: a sampler with the same kind of state, the
# same kind of schedule or of minibatches.
LIKE_OTHERS = {
    *("PSGLD auto", "BAOAB auto", "PSGLD", "SGHMC", "BAOAB"),
    *("epochs", "polynomial", "full data", "no thinning", "no warm-up"),
    *("loader", "cycles"),  # which are interrupted twice below
}


def named(
    *names: str, thorough: Collection[str] = LIKE_OTHERS, slow: Collection[str] = ()
) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=pytest.mark.slow)
            if name in slow
            else pytest.param(name, marks=pytest.mark.thorough)
            if name in thorough
            else name
            for name in names
        ],
    )


@pytest.fixture(autouse=True)
def _blocks_of_four_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws_module, "BLOCK_VALUES", 4 * 2 * 3)
    monkeypatch.setattr(streams, "MAX_BLOCK_STEPS", 5)  # of noise and minibatches


def cut(run: Case, steps: int, **changed: Any) -> xr.DataTree:
    """The run with what Ctrl-C raises in place of its step of this number."""
    warns = pytest.warns(RuntimeWarning, match="resume=True goes on with them")
    with stopping_after(steps), warns:
        return run(**changed)


def assert_same(one: xr.DataTree, other: xr.DataTree) -> None:
    assert set(one.children) == set(other.children) >= {"posterior", "sample_stats", "moments"}
    for group in one.children:
        first, second = one[group].to_dataset().drop_attrs(), other[group].to_dataset().drop_attrs()
        xr.testing.assert_identical(first, second)
        assert {k: v.dtype for k, v in first.items()} == {k: v.dtype for k, v in second.items()}
    clocks = ("sampling_time", "seconds")
    attrs = [{k: v for k, v in tree.attrs.items() if k not in clocks} for tree in (one, other)]
    # As text, in which NaN equals NaN.
    assert {k: repr(v) for k, v in attrs[0].items()} == {k: repr(v) for k, v in attrs[1].items()}


def assert_complete(path: Path, returned: xr.DataTree, whole: xr.DataTree) -> None:
    assert_same(returned, whole)
    assert_same(xr.open_datatree(path, engine="zarr").load(), whole)
    assert list(path.parent.iterdir()) == [path]


@named(*CASES)
def test_a_resumed_run_is_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    run, path = CASES[name], tmp_path / "run.zarr"
    whole = whole_of(name)
    # They differ, but for a trajectory that was rejected.
    assert len(set(whole.posterior["w"].values.ravel().tolist())) >= 2 * (2 * SAMPLES - 1)
    warmup, thinning = (int(whole.attrs[key]) for key in ("warmup_steps", "thinning"))
    part = cut(run, warmup + 7 * thinning + thinning // 2, save_to=path)
    drawn = part.posterior.sizes["draw"]
    # The resume file stands at draw 4: draws are made again (exploration takes steps, too).
    assert drawn == 7 or name == "cycles"
    xr.testing.assert_identical(
        part["posterior"].to_dataset().drop_attrs(),
        whole["posterior"].to_dataset().drop_attrs().isel(draw=slice(drawn)),
    )
    assert_complete(path, run(save_to=path, resume=True), whole)


@named("SGLD auto", "PSGLD auto", "loader", "cycles", thorough=("SGLD auto",), slow=("PSGLD auto",))
def test_interrupted_within_the_first_block_and_twice(name: str, tmp_path: Path) -> None:
    run, path = CASES[name], tmp_path / "run.zarr"
    cut(run, WARMUP + 5, save_to=path)  # cycles: after two draws and a half
    cut(run, 13, save_to=path, resume=True)
    assert_complete(path, run(save_to=path, resume=True), whole_of(name))


def test_interrupted_before_the_first_commit_nothing_is_kept(tmp_path: Path) -> None:
    run, path = CASES["BAOAB"], tmp_path / "run.zarr"
    with stopping_after(WARMUP - 1), pytest.raises(KeyboardInterrupt):
        run(save_to=path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match=r"no run .*run\.zarr, or .* commit; leave resume"):
        run(save_to=path, resume=True)
    assert_complete(path, run(save_to=path), whole_of("BAOAB"))


def until(**changed: Any) -> xr.DataTree:
    """A run of two rounds of warm-up at least, as its slowest direction takes longer to forget."""
    data = (X * torch.tensor([1.0, 0.02]), Y)
    lengths = {"num_samples": 20, "warmup_steps": 20, "thinning": 1, "target_ess": 15}
    kernel = fe.BAOAB(model, metric="identity")
    return sample(kernel, *data, **lengths, max_steps=600, compile="traced", **changed)


def local(**changed: Any) -> xr.DataTree:
    """Chains that start spread out about a centre."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_samples": SAMPLES, "warmup_steps": WARMUP, "thinning": 1}
    options["num_chains"] = 2
    network, labels = fe.FlatNetwork(torch.nn.Linear(2, 2)), (Y > 0).long()
    options |= {"batch_size": 6, "compile": "traced", "progress_bar": False}
    return fe.estimate_free_energy(network, (X, labels), **{**options, **changed}).draws


# The run, and after how many steps of each call it is stopped.
IN_WARM_UP: dict[str, tuple[Case, tuple[int, ...]]] = {
    "SGLD auto": (CASES["SGLD auto"], (5, 6)),
    "a fixed step": (CASES["BAOAB"], (7,)),
    "dense metric": (partial(CASES["dense metric"], warmup_steps=40), (17, 20)),
    "control variates": (CASES["control variates"], (8,)),
    "loader": (CASES["loader"], (9,)),
    "cycles": (CASES["cycles"], (6,)),
    "PSGLD auto": (CASES["PSGLD auto"], (5,)),
    "MALT": (partial(CASES["MALT"], warmup_steps=120), (30, 70)),  # windows of 25 and 65
    "about a centre": (local, (5,)),
    "several rounds": (until, (15, 30, 40)),
}


@pytest.mark.filterwarnings("ignore:not an answer yet:RuntimeWarning")
@named(
    *IN_WARM_UP,
    thorough=("MALT", "several rounds", "about a centre"),
    slow=("SGLD auto", "PSGLD auto", "control variates", "loader", "cycles"),
)
def test_a_warm_up_that_was_stopped_goes_on_from_what_is_kept(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, stops = IN_WARM_UP[name]
    path, whole = tmp_path / "run.zarr", run()
    monkeypatch.setattr(warm_up, "CHECK_EVERY", 2)  # commits after every second step
    kept = [b""]
    for number, stop in enumerate(stops):
        with stopping_after(stop), pytest.raises(KeyboardInterrupt, match="goes on with it"):
            run(save_to=path, resume=number > 0)
        assert [file.name for file in tmp_path.iterdir()] == ["run.zarr.resume"]
        kept.append((tmp_path / "run.zarr.resume").read_bytes())
        assert kept[-1] != kept[-2]  # it has gone on
    assert_complete(path, run(save_to=path, resume=True), whole)


@named("BAOAB", "SGLD auto", "polynomial", "sequential", thorough=CASES.keys() - {"BAOAB"})
def test_a_complete_run_is_read_and_nothing_drawn(name: str, tmp_path: Path) -> None:
    run, path = CASES[name], tmp_path / "run.zarr"
    whole = run(save_to=path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chains, "advance", None)
        again = run(save_to=path, resume=True)
    assert_complete(path, again, whole)
    assert again.attrs["sampling_time"] == whole.attrs["sampling_time"]


def test_a_complete_run_of_another_call_is_refused(tmp_path: Path) -> None:
    run, path = CASES["BAOAB"], tmp_path / "run.zarr"
    whole = run(save_to=path)
    with pytest.raises(ValueError, match=r"was begun with {'seed': 7}, not with {'seed': 8}; rep"):
        run(save_to=path, resume=True, seed=8)
    with pytest.raises(ValueError, match=r"'num_samples': 10.*, not with .*'num_samples': 20"):
        run(save_to=path, resume=True, num_samples=20)
    with pytest.raises(ValueError, match=r"'friction': 0\.5"):
        sample(fe.BAOAB(model, friction=0.4, **FIXED), save_to=path, resume=True)
    assert_complete(path, whole, whole_of("BAOAB"))


def test_what_cannot_be_resumed() -> None:
    with pytest.raises(
        ValueError, match="resume=True goes on with the run at save_to; give save_to"
    ):
        CASES["BAOAB"](resume=True)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(draws_module, "BLOCK_VALUES", 4 * 2 * 2)  # four draws of two chains in 2-D
    return tmp_path / "run.zarr"


@pytest.fixture(scope="module")
def nine_draws(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unfinished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draws_module, "BLOCK_VALUES", 4 * 2 * 2)
        patch.setattr(streams, "MAX_BLOCK_STEPS", 5)
        with stopping_after(3 + 9), pytest.warns(RuntimeWarning, match="9 of 12 draws"):
            run(folder / "run.zarr")
    return folder


@pytest.fixture
def unfinished(path: Path, nine_draws: Path) -> Path:
    """A run stopped after nine of its twelve draws; the resume file stands at the eighth."""
    shutil.copytree(nine_draws, path.parent, dirs_exist_ok=True)
    return path


@cache
def uninterrupted() -> xr.DataTree:
    whole: xr.DataTree = run(None)
    return whole


def assert_goes_on(path: Path) -> None:
    """Resumed, the run is the uninterrupted one, in memory and on disk."""
    whole, resumed = uninterrupted(), run(path, resume=True)
    for tree in (resumed, xr.open_datatree(path, engine="zarr").load()):
        assert set(tree.children) == set(whole.children)
        for group in whole.children:
            xr.testing.assert_identical(
                tree[group].to_dataset().drop_attrs(), whole[group].to_dataset().drop_attrs()
            )


SGLD = fe.SGLD(gaussian, step_size=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: run(p, resume=True, seed=1), "{'seed': 0}, not with {'seed': 1}"),
        (lambda p: run(p, resume=True, num_samples=13), "{'num_samples': 12}, not .* 13}"),
        (lambda p: run(p, resume=True, warmup_steps=4), "{'warmup_steps': 3}, not .* 4}"),
        (lambda p: run(p, resume=True, thinning=2), "{'thinning': 1}, not .* 2}"),
        (lambda p: run(p, resume=True, num_chains=3), "{'num_chains': 2}, not .* 3}"),
        (lambda p: run(p, SGLD, 3, resume=True), r"{'x': \[2\]}}, not .*{'x': \[3\]}}"),
        (lambda p: run(p, SGLD, 2, "y", resume=True), r"{'x': \[2\]}}, not .*{'y': \[2\]}}"),
        (lambda p: run(p, fe.SGLD(gaussian, step_size=0.2), resume=True), "0.1}, not .* 0.2}"),
        (lambda p: run(p, fe.PSGLD(gaussian, step_size=0.1), resume=True), "'SGLD'.*'PSGLD'"),
        (lambda p: run(p, resume=True, compile="traced"), "'eager'}, not .*'traced'}"),
        (lambda p: run(p, resume=True, chain_method="sequential"), "'vectorized'.*'sequential'"),
    ],
)
def test_another_call_is_refused_and_the_difference_named(
    change: Callable[[Path], Any], message: str, unfinished: Path
) -> None:
    before = files(unfinished.parent)
    with pytest.raises(ValueError, match=rf"resume=True: .*run\.zarr was begun with.*{message}"):
        change(unfinished)
    assert files(unfinished.parent) == before  # and so it may still be resumed


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def without_facts(file: Path) -> None:
    save_file(load_file(file), file)


@pytest.mark.parametrize(
    "damage",
    [
        cut_short,
        without_facts,
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"\xff" * 4096),
    ],
)
def test_a_damaged_resume_file_is_one_clear_error(
    damage: Callable[[Path], Any], unfinished: Path
) -> None:
    damage(unfinished.with_name("run.zarr.resume"))
    before = files(unfinished.parent)
    with pytest.raises(ValueError, match=r"run\.zarr\.resume is (damaged|no).* begin a new run"):
        run(unfinished, resume=True)
    assert files(unfinished.parent) == before
    assert xr.open_datatree(unfinished, engine="zarr").posterior.sizes["draw"] == 9


def test_a_folder_with_fewer_draws_than_the_resume_file_tells_is_refused(unfinished: Path) -> None:
    with closing(Store(unfinished, resume=True)) as store:
        store.cut(5)
    before = files(unfinished.parent)
    with pytest.raises(ValueError, match=r"x holds 5 draws, but run\.zarr\.resume .* draw 8"):
        run(unfinished, resume=True)
    assert files(unfinished.parent) == before


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_crash_between_the_draws_and_the_resume_file(
    number: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember, calls = Store.remember, 0

    def crashing(self: Store, *what: Any) -> None:
        nonlocal calls
        if calls == number:  # the first call comes before any draw
            raise CrashError
        calls += 1
        remember(self, *what)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "remember", crashing)
        with pytest.raises(CrashError):
            run(path)
    held = xr.open_datatree(path, engine="zarr", consolidated=False).posterior.sizes["draw"]
    assert held == 4 * number
    assert_goes_on(path)


@pytest.mark.parametrize(
    "number", [0, 7, *(pytest.param(k, marks=pytest.mark.thorough) for k in (1, 3, 8, 12))]
)
def test_a_crash_within_an_append(number: int, path: Path) -> None:
    append, calls = append_draws, 0

    def crashing(group: Any, arrays: Mapping[str, Any], labels: Any) -> None:
        nonlocal calls
        for name, values in arrays.items():
            calls += 1
            if calls > number:
                raise CrashError
            append(group, {name: values}, labels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "append_draws", crashing)
        with pytest.raises(CrashError):
            run(path)
    assert_goes_on(path)


def test_the_resume_file_is_written_aside(unfinished: Path) -> None:
    """A crash in the middle of writing leaves the last resume file whole."""

    def crashing(tensors: Any, file: Path, metadata: Any) -> None:
        Path(file).write_bytes(b"half")
        raise CrashError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors_io, "_write", crashing)
        with pytest.raises(CrashError):
            run(unfinished, resume=True)
    assert_goes_on(unfinished)


def test_a_run_that_lost_a_chain_cannot_be_resumed_and_does_not_offer_it(path: Path) -> None:
    start = {"x": torch.tensor([[0.0, 0.0], [torch.inf, 0.0]])}
    with (
        stopping_after(8),
        pytest.warns(RuntimeWarning, match="left out: chain 1"),
        pytest.warns(RuntimeWarning, match="5 of 12 draws were kept$"),
    ):
        part = run(path, initial_params=start)
    assert part.posterior.chain.values.tolist() == [0]
    with pytest.raises(FileNotFoundError, match=r"lost a chain, .* opens its draws$"):
        run(path, resume=True, initial_params=start)


def test_a_crash_while_the_run_is_finished_leaves_it_to_be_gone_on_with(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "abandon", lambda self: (_ for _ in ()).throw(CrashError()))
        with pytest.raises(CrashError):
            run(path)
    assert_goes_on(path)
