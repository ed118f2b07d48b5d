"""Checkpoints: every usual form is read, everything else is refused with one clear error."""

from __future__ import annotations

import errno
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases.checkpoints import as_shards, expected, module, prefixed, state
from safetensors.torch import save_file
from torch import Tensor, nn

from ppl_fe.networks.checkpoints import load_checkpoint, read_checkpoint
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.networks.matching import CheckpointError

LEGACY = {"_use_new_zipfile_serialization": False}


def saved(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def safe(content: dict[str, Tensor], path: Path) -> Path:
    save_file(content, path)
    return path


FORMS: dict[str, Callable[[Path], Any]] = {
    "mapping": lambda folder: state(),
    "wrapped mapping": lambda folder: {"model": state(), "epoch": 3},
    "safetensors": lambda folder: safe(state(), folder / "a.safetensors"),
    "safetensors under another suffix": lambda folder: safe(state(), folder / "a.pt"),
    "pt": lambda folder: saved(state(), folder / "a.pt"),
    "pt under another suffix": lambda folder: saved(state(), folder / "a.safetensors"),
    "legacy pth": lambda folder: saved(state(), folder / "a.pth", **LEGACY),
    "state_dict": lambda folder: saved({"state_dict": state(), "epoch": 3}, folder / "a.ckpt"),
    "model_state_dict": lambda folder: saved(
        {"model_state_dict": state(), "optimizer": {"state": {0: torch.ones(1)}}}, folder / "a.pt"
    ),
    "module": lambda folder: saved({"module": state()}, folder / "a.bin"),
    "nested": lambda folder: {"model": {"state_dict": state()}},
    "wrapper key without tensors": lambda folder: {"model": {"depth": 2}, **state()},
    "Lightning model.": lambda folder: saved(
        {"state_dict": prefixed("model.", state()), "pytorch-lightning_version": "2"},
        folder / "a.ckpt",
    ),
    "Lightning net.": lambda folder: saved({"state_dict": prefixed("net.", state())}, folder / "a"),
    "DataParallel": lambda folder: saved(prefixed("module.", state()), folder / "a.pt"),
    "compiled": lambda folder: saved(prefixed("_orig_mod.", state()), folder / "a.pt"),
    "both prefixes": lambda folder: saved(prefixed("module._orig_mod.", state()), folder / "a.pt"),
    "compiled parts": lambda folder: {k.replace(".", "._orig_mod."): v for k, v in state().items()},
    "parameters and scalars": lambda folder: saved({**state(), "epoch": 3}, folder / "a.pt"),
    "folder of safetensors": lambda folder: safe(state(), folder / "model.safetensors").parent,
    "folder of shards": lambda folder: as_shards(folder, save_file, "model"),
    "folder of a bin": lambda folder: saved(state(), folder / "pytorch_model.bin").parent,
    "folder of bin shards": lambda folder: as_shards(folder, torch.save, "pytorch_model"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_vector(form: str, tmp_path: Path) -> None:
    given = FORMS[form](tmp_path)
    network = FlatNetwork(module())
    anchor = network.anchor.clone()
    vector = load_checkpoint(given, network)
    assert torch.equal(vector, expected())
    assert torch.equal(network.anchor, anchor)
    assert torch.equal(network.with_state(read_checkpoint(given)).anchor, expected())
    if isinstance(given, Path):
        assert torch.equal(load_checkpoint(str(given), network), expected())


def test_read_keeps_names_and_does_not_copy_a_mapping() -> None:
    weight = nn.Parameter(torch.ones(2))
    tensors = read_checkpoint({"module.weight": weight, "epoch": 3})
    assert list(tensors) == ["module.weight"]
    assert tensors["module.weight"].data_ptr() == weight.data_ptr()
    assert not tensors["module.weight"].requires_grad


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle 2", "pickle 4", "bin in a folder"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(how: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "pytorch_model.bin"
    content = {"weight": torch.ones(1), "more": Malicious(marker)}
    if how.startswith("pickle"):
        path.write_bytes(pickle.dumps({"more": Malicious(marker)}, protocol=int(how[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how != "legacy")
    given = tmp_path if how == "bin in a folder" else path
    with pytest.raises(CheckpointError, match=r"refused because .* run code.*safetensors"):
        read_checkpoint(given)
    assert not marker.exists()
    # The threat is true: an unsafe reader runs it.
    torch.load(path, weights_only=False) if "pickle" not in how else pickle.loads(path.read_bytes())
    assert marker.exists()


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run code.*save module.state_dict\(\)"):
        read_checkpoint(saved(module(), tmp_path / "a.pt"))


def test_a_changed_weight_of_torch_save_is_noticed(tmp_path: Path) -> None:
    """torch itself reads it as another weight, and a tensor marked as a folder as anything."""
    path = saved({"weight": torch.full((4,), 1.25)}, tmp_path / "a.pt")
    whole, numbers = path.read_bytes(), torch.full((4,), 1.25).numpy().tobytes()
    place = whole.index(numbers) + 2
    path.write_bytes(whole[:place] + b"\x20" + whole[place + 1 :])
    assert torch.load(path, weights_only=True)["weight"][0] != 1.25
    with pytest.raises(CheckpointError, match=r"a\.pt cannot be read, .*Bad CRC-32 for file"):
        read_checkpoint(path)
    name = whole.rindex(b"a/data/0")  # in the table at the file's end, after 46 bytes about it
    path.write_bytes(whole[: name - 8] + b"\x10" + whole[name - 7 :])
    with pytest.raises(CheckpointError, match=r"'a/data/0' is marked as a folder"):
        read_checkpoint(path)


def test_files_that_torch_saved_without_sums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(state(), tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(load_checkpoint(path, FlatNetwork(module())), expected())


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = {
        "safetensors": safe(state(), tmp_path / "a.safetensors").read_bytes(),
        "torch": saved(state(), tmp_path / "a.pt").read_bytes(),
        "pickle": saved(state(), tmp_path / "b.pt", **LEGACY).read_bytes(),
    }
    path = tmp_path / "cut"
    for kind, content in whole.items():
        for length in (20, len(content) // 2, len(content) - 10):
            path.write_bytes(content[:length])
            with pytest.raises(
                CheckpointError, match=rf"cut .*truncated .*{kind}|truncated {kind}"
            ):
                read_checkpoint(path)
        path.write_bytes(content[:4])
        with pytest.raises(CheckpointError, match=r"truncated|no checkpoint"):
            read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello, this is a text file", "is no checkpoint"),
        (b'{"weights": [1, 2, 3]}', "is no checkpoint"),
        (b"01234567{ no header", "is no checkpoint"),
        (b"PK\x03\x04 another archive", "zip file of another kind"),
        (pickle.dumps({"a": 1}, protocol=2), "torch.save did not write it"),
        (pickle.dumps({"a": 1}, protocol=4), "or of a pickle protocol without a safe reader"),
    ],
)
def test_files_that_are_no_checkpoint_are_refused(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


def test_a_zip_of_another_pickle_protocol_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="pickle protocol without a safe reader"):
        read_checkpoint(saved(state(), tmp_path / "a.pt", pickle_protocol=4))


def test_content_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no tensors, only: 'epoch', 'state_dict'"):
        read_checkpoint(saved({"epoch": 3, "state_dict": {"a": 1}}, tmp_path / "a.pt"))
    with pytest.raises(CheckpointError, match="only: nothing at all"):
        read_checkpoint({})
    with pytest.raises(CheckpointError, match="holds a list, no dictionary"):
        read_checkpoint(saved([torch.ones(1)], tmp_path / "b.pt"))


def test_missing_paths_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*absent\.pt"):
        read_checkpoint(tmp_path / "absent.pt")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds no weights: none of model.safetensors"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("absolute", [False, True])
def test_an_index_cannot_lead_out_of_its_folder(absolute: bool, tmp_path: Path) -> None:
    outside = safe(state(), tmp_path / "outside.safetensors")
    folder = tmp_path / "inside"
    folder.mkdir()
    shard = str(outside) if absolute else "../outside.safetensors"
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(state(), shard)}))
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        read_checkpoint(folder)


def test_broken_indices_are_refused(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    for text in ("{", "[]", "{}", '{"weight_map": 3}'):
        index.write_text(text)
        with pytest.raises(CheckpointError, match="is no index of shards"):
            read_checkpoint(tmp_path)
    index.write_text('{"weight_map": {}}')
    with pytest.raises(CheckpointError, match="names no tensors"):
        read_checkpoint(tmp_path)
    index.write_text('{"weight_map": {"weight": "a.safetensors"}}')
    with pytest.raises(CheckpointError, match=r"a\.safetensors, which the folder lacks"):
        read_checkpoint(tmp_path)
    safe({"bias": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks tensors that .*: weight"):
        read_checkpoint(tmp_path)


def test_shards_may_be_links_as_in_the_hugging_face_cache(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    as_shards(blobs, save_file, "model")
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert torch.equal(load_checkpoint(snapshot, FlatNetwork(module())), expected())


@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (errno.EIO, OSError, "Input/output error"),
        (errno.EINVAL, CheckpointError, r"a\.pt cannot be read, .*begins before the file does"),
    ],
)
def test_an_error_of_the_disk_is_no_damage_but_a_place_before_the_file_is(
    number: int, error: type[Exception], message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = saved(state(), tmp_path / "a.pt")

    def broken(self: zipfile.ZipFile, *_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(zipfile.ZipFile, "open", broken)
    with pytest.raises(error, match=message):
        read_checkpoint(path)
