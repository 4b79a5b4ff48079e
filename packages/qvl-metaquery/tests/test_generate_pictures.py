"""`qvl-metaquery generate`: files that say what they show, whatever is drawn together; prompts in files."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawing_verbs import qvl_metaquery
from PIL import Image
from safetensors.torch import load_file, save_file

from qvl_core.run import read_records
from qvl_data.drawing.files import how_drawn
from qvl_metaquery.pipeline import MetaQueryPipeline

FEW = ("--steps", "2")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    file = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(file)
    return file


def test_pictures_have_names_and_say_how_they_were_drawn(drawer: Path, tmp_path: Path) -> None:
    prompt = ("--prompt", "A cat: 七 wearing a top hat!")
    how = ("--negative", "blurred", "--num-images", 3, "--seed", 42, "--guidance", 2, "--scheduler", "dpm")
    done = qvl_metaquery("generate", drawer, *prompt, *how, *FEW, "--batch", 2, "--out", tmp_path / "out")
    assert (done.code, done.err) == (0, "")
    files = [tmp_path / "out" / f"A-cat-七-wearing-a-top-hat-seed{seed}.png" for seed in (42, 43, 44)]
    assert done.out.split() == [str(file) for file in files]
    assert sorted((tmp_path / "out").glob("*.png")) == files
    said = how_drawn(files[1])
    assert said.pop("inputs")
    assert said == {
        "prompt": prompt[1],
        "images": [],
        "seed": 43,
        "model": str(drawer),
        "guidance": 2.0,
        "image_guidance": 1.5,
        "steps": 2,
        "scheduler": "dpm",
        "negative": "blurred",
        "size": None,
    }
    alone = ("--negative", "blurred", "--seed", 43, "--guidance", 2, "--scheduler", "dpm")
    assert qvl_metaquery("generate", drawer, *prompt, *alone, *FEW, "--out", tmp_path / "one").code == 0
    one, other = (np.asarray(Image.open(folder / files[1].name), int) for folder in (tmp_path / "one", files[1].parent))
    assert abs(one - other).max() <= 1


def test_another_picture_of_the_same_words_lies_beside_the_first(drawer: Path, tmp_path: Path) -> None:
    for guidance in (1, 2, 1, 2):
        done = qvl_metaquery("generate", drawer, "--prompt", "seven", *FEW, "--guidance", guidance, "--out", tmp_path)
        assert done.code == 0, done.err
    assert {file.name: how_drawn(file)["guidance"] for file in tmp_path.glob("*.png")} == {
        "seven-seed0.png": 1.0,
        "seven-seed0-2.png": 2.0,
    }


def test_the_same_command_draws_what_is_missing(
    drawer: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(shutil.copytree(drawer, tmp_path / "model"))
    command = ("generate", own, "--mode", "i2i", "--prompt", "inverted", "--image", photo, "--num-images", 3, *FEW)
    command += ("--batch", 1, "--out", tmp_path / "out")
    assert qvl_metaquery(*command).code == 0
    files = sorted((tmp_path / "out").glob("*.png"))
    whole, drawn = [file.read_bytes() for file in files], list[int]()
    files[1].unlink()
    call = MetaQueryPipeline.__call__

    def counted(self: Any, prompts: Any, *args: Any, **options: Any) -> Any:
        drawn.append(len(prompts))
        return call(self, prompts, *args, **options)

    monkeypatch.setattr(MetaQueryPipeline, "__call__", counted)
    again = qvl_metaquery(*command)
    assert (again.code, again.out.split(), drawn) == (0, [str(file) for file in files], [1])
    assert [file.read_bytes() for file in files] == whole
    Image.open(photo).rotate(180).save(photo)  # another picture of the same name
    assert qvl_metaquery(*command).code == 0
    assert sum(drawn) == 1 + 3
    connector = load_file(own / "connector.safetensors")  # another model
    save_file({name: 1.5 * value for name, value in connector.items()}, own / "connector.safetensors")
    assert qvl_metaquery(*command).code == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 9
    assert len(read_records(tmp_path / "out" / "drawn.jsonl")) == 9


def test_pictures_that_a_prompt_speaks_of(drawer: Path, photo: Path, tmp_path: Path) -> None:
    words = ("--prompt", "same, in winter", *FEW)
    shown = ("--mode", "i2i", "--image", photo, "--image", photo)
    assert qvl_metaquery("generate", drawer, *words, *shown, "--out", tmp_path / "two").code == 0
    assert qvl_metaquery("generate", drawer, *words, *shown[:4], "--out", tmp_path / "one").code == 0
    one, two = (Image.open(tmp_path / name / "same-in-winter-seed0.png").tobytes() for name in ("one", "two"))
    assert one != two
    assert how_drawn(tmp_path / "two" / "same-in-winter-seed0.png")["images"] == [str(photo), str(photo)]


def test_a_file_of_prompts_with_and_without_pictures(drawer: Path, photo: Path, tmp_path: Path) -> None:
    plain, records = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    plain.write_text("a seven\n\na three\n", encoding="utf-8")
    done = qvl_metaquery("generate", drawer, "--prompts", plain, *FEW, "--out", tmp_path / "plain")
    assert done.code == 0
    assert sorted(file.name for file in (tmp_path / "plain").glob("*.png")) == [
        "00000-a-seven-seed0.png",
        "00001-a-three-seed0.png",
    ]
    records.write_text(json.dumps({"prompt": "inverted", "images": [photo.name]}) + "\n", encoding="utf-8")
    arguments = ("--prompts", records, *FEW, "--out", tmp_path / "shown")
    assert qvl_metaquery("generate", drawer, "--mode", "i2i", *arguments).code == 0
    assert how_drawn(tmp_path / "shown" / "00000-inverted-seed0.png")["images"] == [photo.name]
    refused = qvl_metaquery("generate", drawer, *arguments)
    assert refused.code == 2
    assert refused.err.startswith("--mode t2i: prompt 'inverted' has pictures")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--prompt: is empty"),
        (["--prompt", "  "], "--prompt: is empty"),
        (["--mode", "i2i", "--prompt", "x"], "--mode i2i: prompt 'x' has no picture"),
        (["--prompt", "x", "--image", "none.png"], "none.png: there is no such picture"),
        (["--mode", "i2i", "--prompt", "x", "--image", "torn.png"], "torn.png"),
        (["--prompts", "none.txt"], "none.txt: there is no such file or folder of prompts"),
        (["--prompts", "none.txt", "--prompt", "x"], "--prompts: has its own prompts"),
        (["--prompt", "x", "--size", "7"], "7 is no multiple of 2"),
        (["--prompt", "x", "--steps", "0"], "steps"),
        (["--prompt", "x", "--scheduler", "ddim"], "ddim"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(
    arguments: list[str], said: str, drawer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("torn.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    done = qvl_metaquery("generate", drawer, *arguments)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1


def test_a_folder_that_holds_no_model_is_one_sentence(tmp_path: Path) -> None:
    done = qvl_metaquery("generate", tmp_path, "--prompt", "x")
    assert done.code == 2
    assert "no metaquery.json there" in done.err
