"""`qvl-edit edit`: a trained model's own prediction draws, from every place where it lies; the command goes on."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edit_rows import row
from edit_runs import KINDS
from editing_verbs import qvl_edit
from PIL import Image
from safetensors.torch import load_file, save_file

from qvl_core.errors import BadInput
from qvl_data.drawing.files import how_drawn
from qvl_edit import EditPipeline
from qvl_edit.edit import state_of
from qvl_edit.sampling import Sampling
from qvl_edit.trained import find_trained, open_trained

FEW = ("--steps", 2)


def source(seed: int = 0, size: tuple[int, int] = (48, 48)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(values)


def latents(model: "Path | str", like: "Path | None" = None, **options: Any) -> torch.Tensor:
    """What a model draws last; with the sizes and settings of the run `like`."""
    found: list[torch.Tensor] = []
    pipeline = EditPipeline.from_pretrained(model, **options)
    if like is not None:
        other = EditPipeline.from_pretrained(like)
        pipeline.sampling, pipeline.geometry = other.sampling, other.geometry
    pipeline("make it red", source(), seed=3, on_step=lambda number, after: found.append(after))
    return found[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_final_and_checkpoint_draw_the_same_and_what_was_trained(kind: str, runs: dict[str, Path]) -> None:
    run = runs[kind]
    final = latents(run)
    torch.testing.assert_close(latents(run / "final"), final, rtol=0, atol=0)
    torch.testing.assert_close(latents(max((run / "checkpoints").iterdir())), final, rtol=0, atol=1e-4)
    assert EditPipeline.from_pretrained(run).sampling == Sampling(guidance=2, steps=3, negative="bad")
    assert EditPipeline.from_pretrained(run / "base").sampling == Sampling()
    assert (final - latents(run / "base", like=run)).abs().max() > 1e-3


def test_a_run_without_an_end_draws_by_its_newest_checkpoint_and_moves_as_a_whole(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(runs["lora"], moved)
    torch.testing.assert_close(latents(moved), latents(runs["lora"]), rtol=0, atol=0)
    shutil.rmtree(moved / "final")
    torch.testing.assert_close(latents(moved), latents(runs["lora"]), rtol=0, atol=1e-4)
    shutil.rmtree(moved / "base")
    with pytest.raises(BadInput, match=r"is used with .*base, and there is no such folder"):
        latents(moved)


def test_adapters_are_put_upon_a_model(runs: dict[str, Path], tmp_path: Path) -> None:
    run = runs["lora"]
    for lora in (run / "final", run / "final" / "pytorch_lora_weights.safetensors"):
        upon = latents(run / "base", like=run, lora=[lora])
        torch.testing.assert_close(upon, latents(run), rtol=0, atol=1e-6)
    for lora, said in (("none", "there is no such file"), (tmp_path / "odd.safetensors", "cannot be put upon")):
        (tmp_path / "odd.safetensors").write_bytes(b"no")
        with pytest.raises(BadInput, match=said):
            EditPipeline.from_pretrained(runs["lora"] / "base", lora=[lora])


def test_adapters_that_have_no_place_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    """The library leaves out what it does not know."""
    weights = load_file(runs["lora"] / "final" / "pytorch_lora_weights.safetensors")
    spelled = {
        "prefix": {key.removeprefix("transformer."): value for key, value in weights.items()},
        "block": {key.replace("_blocks.0.", "_blocks.7."): value for key, value in weights.items()},
    }
    for name, wrong in spelled.items():
        save_file(wrong, tmp_path / f"{name}.safetensors")
        for model in (runs["lora"], runs["lora"] / "base"):
            with pytest.raises(BadInput, match="no place in this transformer; name adapters of the same model"):
                open_trained(find_trained(model), torch.float32, [tmp_path / f"{name}.safetensors"])


def test_one_picture_of_the_command_line(runs: dict[str, Path], tmp_path: Path) -> None:
    for number in range(2):
        source(number).save(tmp_path / f"{number}.png")
    shown = ("--image", tmp_path / "0.png", "--image", tmp_path / "1.png")
    done = qvl_edit("edit", runs["lora"], *shown, "--prompt", "Merge: 七!", *FEW, "--out", tmp_path / "out")
    assert (done.code, done.err) == (0, "")
    file = tmp_path / "out" / "Merge-七-seed0.png"
    assert done.out.split() == [str(file)]
    how = how_drawn(file)
    assert {key: how[key] for key in ("prompt", "seed", "guidance", "steps", "negative", "shift")} == {
        "prompt": "Merge: 七!",
        "seed": 0,
        "guidance": 2.0,
        "steps": 2,
        "negative": "bad",
        "shift": None,
    }
    assert how["images"] == [str(tmp_path / "0.png"), str(tmp_path / "1.png")]
    listed = [json.loads(line) for line in (tmp_path / "out" / "drawn.jsonl").read_text("utf-8").splitlines()]
    assert listed == [{"file": file.name, **how}]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """The document's three rows: one source, two, none; and a plain prompt."""
    made = [
        row(tmp_path, "sky", [(48, 80)], (48, 80), instruction="Change the sky to sunset.", instruction_cn="日落"),
        row(tmp_path, "two", [(48, 48), (80, 48)], (48, 48), instruction="Merge the two characters into one scene."),
        row(tmp_path, "cat", [], (48, 48), instruction="A cat sitting on a windowsill."),
        {"prompt": "make it red", "image": "sky-0.png"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in made), encoding="utf-8")
    return file


def test_a_file_goes_on_where_it_was_killed_and_batches_change_nothing(
    runs: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    command = ("edit", runs["full"], "--prompts", rows, *FEW, "--num-images", 2, "--out")
    done = qvl_edit(*command, tmp_path / "whole")
    assert (done.code, done.err) == (0, "")
    files = [Path(line) for line in done.out.split()]
    assert len(files) == 8
    assert len((tmp_path / "whole" / "drawn.jsonl").read_text("utf-8").splitlines()) == 8
    times = {file: file.stat().st_mtime_ns for file in files}
    before = files[2].read_bytes()
    files[2].unlink()
    assert qvl_edit(*command, tmp_path / "whole").code == 0
    assert [file for file in files if file.stat().st_mtime_ns != times[file]] == [files[2]]
    assert files[2].read_bytes() == before
    assert qvl_edit(*command, tmp_path / "single", "--batch", 1).code == 0
    for file in files:
        one, other = (np.asarray(Image.open(folder / file.name), int) for folder in (file.parent, tmp_path / "single"))
        assert np.abs(one - other).max() <= 1


@pytest.fixture
def model(checkpoint: Any, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(checkpoint("edit-plus", "vae"), tmp_path / "model"))
    (folder / "edit.json").write_text(json.dumps({"base": str(folder), "pictures": {"size": 64, "vl_size": 56}}))
    return folder


def scale(folder: Path) -> None:
    """Other weights, in files of the same names and sizes."""
    for file in folder.glob("*.safetensors"):
        save_file({name: value * 1.25 for name, value in load_file(file).items()}, file, {"format": "pt"})


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_another_source_or_model_is_drawn_anew(model: Path, tmp_path: Path) -> None:
    """Whatever changes a picture: it lies beside the old one, and the same command again draws nothing."""
    out = tmp_path / "out"
    changes = {
        "nothing": lambda: None,
        "source": lambda: source(1).save(tmp_path / "a.png"),
        "transformer": lambda: scale(model / "transformer"),
        "text encoder": lambda: scale(model / "text_encoder"),
        "autoencoder": lambda: scale(model / "vae"),
        "levels": lambda: replace(model / "scheduler" / "scheduler_config.json", '"max_shift": ', '"max_shift": 1'),
        "sizes": lambda: replace(model / "edit.json", "64", "96"),
    }
    source(0).save(tmp_path / "a.png")
    command = ("edit", model, "--image", tmp_path / "a.png", "--prompt", "x", "--steps", 3, "--out", out)
    seen: list[bytes] = []
    for name, change in changes.items():
        change()
        for _ in range(2):
            done = qvl_edit(*command)
            assert (done.code, done.err) == (0, ""), name
            assert len(list(out.glob("*.png"))) == len(seen) + 1, name
        drawn = Image.open(done.out.strip()).tobytes()
        assert drawn not in seen, name
        seen.append(drawn)


def test_a_checkpoint_that_is_tuned_otherwise_is_another_model(runs: dict[str, Path], tmp_path: Path) -> None:
    """The same weights of adapters, scaled otherwise."""
    run = Path(shutil.copytree(runs["lora"], tmp_path / "run"))
    saved = max((run / "checkpoints").iterdir())
    before, drawn = state_of(find_trained(saved)), latents(saved)
    replace(run / "recipe.yaml", "alpha: 8", "alpha: 80")
    assert (latents(saved) - drawn).abs().max() > 1e-4
    assert state_of(find_trained(saved)) != before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--prompt: is empty"),
        (["--prompt", "x", "--image", "none.png"], "none.png: there is no such picture"),
        (["--prompt", "x", "--image", "torn.png"], "torn.png"),
        (["--prompts", "none.jsonl"], "none.jsonl: there is no such file"),
        (["--prompt", "x", "--steps", 0], "steps"),
        (["--prompt", "x", "--shift", -1], "shift"),
        (["--prompt", "x", "--lora", "none"], "none: there is no such file of adapters"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(
    arguments: list[Any], said: str, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("torn.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    done = qvl_edit("edit", runs["full"], *arguments)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1


def test_a_folder_without_a_model_is_one_sentence(tmp_path: Path) -> None:
    done = qvl_edit("edit", tmp_path, "--prompt", "x")
    assert done.code == 2
    assert "no edit.json there, so it is no model that edits; name a run folder" in done.err
