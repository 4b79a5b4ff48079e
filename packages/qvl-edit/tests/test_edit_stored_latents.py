"""Latents that are stored: training from them is training from pictures, to the bit; those of others are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edit_rows import row, task
from safetensors.torch import load_file

from qvl_core.errors import BadInput, QVLError
from qvl_core.recipe.load import load
from qvl_core.run import RunFolder, read_records
from qvl_core.training.store import Store
from qvl_edit import encode as encoding
from qvl_edit import slots, train
from qvl_edit.extract import extract
from qvl_edit.latents import Vae
from qvl_edit.recipe import RECIPE, EditRecipe

SIZES = {"patches": ("pictures.size=42",), "vae": ("pictures.size=64", "pictures.vl_size=56")}
DATA = {"patches": "several", "vae": "square"}  # sides through Qwen-Image's autoencoder are multiples of 32


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    task(folder / "several" / "a", (0, 1, 1, 2))
    task(folder / "several" / "b", (1, 2))
    write(folder / "square" / "a", (64, 64), 0, 1, 2)
    write(folder / "square" / "b", (64, 64), 1)
    return folder


def write(folder: Path, size: tuple[int, int], *counts: int) -> Path:
    """A task of rows with so many sources, of pictures of one size."""
    folder.mkdir(parents=True)
    rows = [row(folder, "r" * (at + 1), [size] * many, size, instruction=f"{at}") for at, many in enumerate(counts)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return folder / "rows.jsonl"


@pytest.fixture
def recipe(data: Path, checkpoint: Callable[..., Path]) -> Callable[..., EditRecipe]:
    def make(out: Path, *changes: str, coder: str = "patches", latents: bool = True) -> EditRecipe:
        meta = data / DATA[coder]
        lists = f"data={{train: {meta}, validation: {meta / 'b' / 'rows.jsonl'}, workers: 0}}"
        given = [lists, f"model.name={checkpoint('edit-plus', coder)}", "train.steps=3", "batch.size=4", "log.every=1"]
        given += [f"stored.embeddings={out / 'embeddings'}", "batch.micro=2", *SIZES[coder]]
        given += [f"stored.latents={out / 'latents'}"] if latents else []
        return load(RECIPE, "tiny", [*given, *changes], "qvl_edit")

    return make


def outcome(run: Path) -> tuple[list[Any], dict[str, torch.Tensor]]:
    curve = [(one.get("loss"), one.get("validation_loss")) for one in RunFolder(run).read_metrics()]
    return curve, load_file(run / "final" / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("coder", ["patches", "vae"])
def test_training_from_the_folder_is_training_from_pictures_to_the_bit(
    coder: str, recipe: Callable[..., EditRecipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(recipe(tmp_path, coder=coder))
    train(recipe(tmp_path, coder=coder, latents=False), tmp_path / "online")
    monkeypatch.setattr(slots, "numbers", None)  # to read a picture would fail
    train(recipe(tmp_path, coder=coder), tmp_path / "stored")
    (curve, weights), (same, others) = outcome(tmp_path / "online"), outcome(tmp_path / "stored")
    assert curve == same
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_what_is_there_is_not_encoded_again(
    recipe: Callable[..., EditRecipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "WINDOW", 2)
    encoded: list[int] = []
    raw = Vae.raw
    monkeypatch.setattr(Vae, "raw", lambda self, pixels: encoded.append(len(pixels)) or raw(self, pixels))
    extract(recipe(tmp_path))
    store = Store(tmp_path / "latents", "").again()
    assert encoded == [1] * len(store)  # pictures by themselves, equal ones once
    extract(recipe(tmp_path))
    assert len(encoded) == len(store)
    shard = store._file(store.shards()[0])
    whole = shard.read_bytes()
    shard.unlink()
    extract(recipe(tmp_path))
    assert shard.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "said"), [("pictures.size=96", "size"), ("train.precision=bf16", "dtype"), ("model", "autoencoder")]
)
def test_a_folder_of_another_origin_is_refused(
    recipe: Callable[..., EditRecipe], tmp_path: Path, checkpoint: Callable[..., Path], change: str, said: str
) -> None:
    extract(recipe(tmp_path / "one", coder="vae"))
    changes = [f"model.name={checkpoint('edit-plus', 'patches')}"] if change == "model" else [change]
    other = [f"stored.embeddings={tmp_path / 'two'}"]
    with pytest.raises(BadInput, match=rf"was made with {said} .*; name another folder in stored.latents"):
        extract(recipe(tmp_path / "one", *changes, *other, coder="vae"))
    with pytest.raises(BadInput, match=rf"was made with {said} .*; name another folder in stored.latents, or write"):
        train(recipe(tmp_path / "one", *changes, *other, coder="vae"), tmp_path / "run")


def test_pictures_that_are_not_there_are_said(recipe: Callable[..., EditRecipe], data: Path, tmp_path: Path) -> None:
    extract(recipe(tmp_path))
    more = f"data={{train: {write(tmp_path / 'more', (56, 56), 1, 1)}, workers: 0}}"
    extract(recipe(tmp_path, more, latents=False))
    with pytest.raises(BadInput, match=r"pixels is not in stored.latents .*; add it with `qvl-edit extract`"):
        train(recipe(tmp_path, more), tmp_path / "run")


def test_what_was_left_out_of_latents_is_listed_and_counted(
    recipe: Callable[..., EditRecipe], tmp_path: Path, capsys: Any
) -> None:
    file = write(tmp_path / "bad", (56, 56), 1, 1)
    (file.parent / "rr-1.png").unlink()
    lists = f"data={{train: {file}, workers: 0, max_bad: 1}}"
    extract(recipe(tmp_path, lists))
    assert "holds the latents of 2 pictures, 1 samples are left out" in capsys.readouterr().out
    (left,) = read_records(tmp_path / "latents" / "left_out.jsonl")
    assert left["reason"] == "media_missing"


def test_a_cut_shard_is_noticed(recipe: Callable[..., EditRecipe], tmp_path: Path) -> None:
    extract(recipe(tmp_path))
    (shard,) = (tmp_path / "latents" / "shards").iterdir()
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(QVLError, match=r"is damaged .*; remove it and .* and run the command that wrote it again"):
        train(recipe(tmp_path), tmp_path / "run")


def test_the_folder_says_what_it_holds(recipe: Callable[..., EditRecipe], tmp_path: Path, capsys: Any) -> None:
    extract(recipe(tmp_path))
    assert (
        "holds the latents of 8 pictures, 0 samples are left out; train with stored.latents=" in capsys.readouterr().out
    )
    head = json.loads((tmp_path / "latents" / "store.json").read_text(encoding="utf-8"))
    assert head["about"]["size"] == [42**2, 42**2, 4]
    assert head["about"]["dtype"] == "float32"
