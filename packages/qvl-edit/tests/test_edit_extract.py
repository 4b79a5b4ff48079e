"""Embeddings are stored once, are those of the encoder, and are the same after a kill and of several processes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps

from qvl_core.errors import BadInput, QVLError
from qvl_core.recipe.load import load
from qvl_core.training.store import Store
from qvl_data.dataset import Dataset
from qvl_data.errors import BadSample
from qvl_edit import extract as extraction
from qvl_edit.embed import Embedder, EncoderInput
from qvl_edit.extract import extract
from qvl_edit.geometry import resized
from qvl_edit.opening import geometry_of
from qvl_edit.profile import read_profile
from qvl_edit.questions import questions, target_of
from qvl_edit.recipe import RECIPE, EditRecipe
from qvl_edit.stored import StoredEmbeddings

SKY = {
    "source_image": "001.png",
    "target_image": "001_edit.png",
    "instruction": "Change the sky to sunset.",
    "instruction_cn": "把天空改成日落。",
    "inverse_instruction": "A photo of a landscape with a blue sky.",
    "inverse_instruction_cn": "一张蓝天下的风景照。",
}
MERGE = {
    "source_image": ["001.png", "ref2.png"],
    "target_image": "out.png",
    "instruction": "Merge the two characters into one scene.",
    "instruction_cn": "把两个角色合成到一个场景里。",
}
CAT = {
    "source_image": None,
    "target_image": "generated.png",
    "instruction": "A cat sitting on a windowsill.",
    "instruction_cn": "一只猫坐在窗台上。",
}
ROWS = [SKY, MERGE, CAT]  # those of the document


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, photo: Image.Image) -> Path:
    folder = tmp_path_factory.mktemp("data")
    small = photo.resize((96, 72))
    for name, picture in {
        "001.png": small,
        "001_edit.png": ImageOps.invert(small),
        "ref2.png": ImageOps.mirror(small),
        "out.png": small.resize((64, 64)),
        "generated.png": small.rotate(90, expand=True),
    }.items():
        picture.save(folder / name)
    return write(folder, ROWS)


def write(folder: Path, rows: list[dict[str, Any]], name: str = "data.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / name


@pytest.fixture
def recipe(data: Path, checkpoint: Callable[..., Path]) -> Callable[..., EditRecipe]:
    def make(*changes: str, data: Path = data, model: Path | None = None) -> EditRecipe:
        given = [f"data={{train: {data}}}", f"model.name={model or checkpoint('edit-plus', 'patches')}"]
        return load(RECIPE, "tiny", [*given, "data.workers=0", *changes], "qvl_edit")

    return make


def keys(folder: Path) -> set[bytes]:
    store = Store(folder, "").again()
    return {row.tobytes() for row in store._index.keys}


def test_what_is_stored_is_what_the_encoder_says(recipe: Any, data: Path, tmp_path: Path, capsys: Any) -> None:
    extract(recipe(), tmp_path / "out")
    assert "holds the embeddings of 3 samples, 0 are left out; train with stored.embeddings=" in capsys.readouterr().out
    folder = Path(recipe().model.name)
    profile = read_profile(folder)
    geometry = geometry_of(recipe().pictures, profile, folder)
    embedder = Embedder.open(folder, profile, torch.float32)
    stored = StoredEmbeddings(Store(tmp_path / "out", "").again())
    counts = []
    for sample in map(Dataset(data).__getitem__, range(3)):
        for question in questions(sample, profile):
            pictures = [sample.opener.open(sample.media[index]) for index in question.pictures]
            seen = tuple(resized(one, geometry.vl((one.height, one.width))) for one in pictures)
            (online,) = embedder([EncoderInput(question.texts, seen)])
            for number, text in enumerate(question.texts):
                kept = torch.cat(stored.pieces(sample, question.pictures, text))
                torch.testing.assert_close(kept, online.whole(number), rtol=0, atol=1e-5)
            counts.append((len(question.pictures), len(question.texts)))
    assert counts == [(1, 3), (1, 3), (2, 3), (0, 3)]
    assert len(stored.store) == sum(texts + 1 for _, texts in counts)  # and what the texts share, once


def test_what_is_learned_of_a_row(data: Path, profile: Any) -> None:
    sky, merge, cat = map(Dataset(data).__getitem__, range(3))
    assert [target_of(sample) for sample in (sky, merge, cat)] == [1, 2, 0]
    there, back = questions(sky, profile("edit-plus"))
    assert (there.pictures, there.texts) == ((0,), (SKY["instruction"], SKY["instruction_cn"], ""))
    assert (back.pictures, back.texts[0]) == ((1,), SKY["inverse_instruction"])
    assert questions(sky, profile("edit-plus"), inverse=False) == [there]
    assert questions(sky, profile("edit-plus"), also=("", " "))[1].texts[-2:] == ("", " ")
    assert [question.pictures for question in questions(merge, profile("edit-plus"))] == [(0, 1)]
    assert questions(cat, profile("t2i")) == [((), (CAT["instruction"], CAT["instruction_cn"], ""))]
    with pytest.raises(BadSample, match="2 source pictures, and edit takes at most 1"):
        questions(merge, profile("edit"))


def test_a_row_without_a_word_is_refused(data: Path, profile: Any) -> None:
    write(data.parent, [{**SKY, "instruction": " ", "instruction_cn": None}, {**MERGE, "instruction": "",
          "instruction_cn": ""}], "silent.jsonl")  # fmt: skip
    back, silent = map(Dataset(data.parent / "silent.jsonl").__getitem__, range(2))
    assert [question.pictures for question in questions(back, profile("edit-plus"))] == [(1,)]
    with pytest.raises(BadSample, match="no instruction that says something; write one, or remove the row"):
        questions(silent, profile("edit-plus"))


def test_only_what_is_trained_is_embedded(recipe: Any, tmp_path: Path) -> None:
    extract(recipe("mixture.inverse=false"), tmp_path / "forth")
    assert len(keys(tmp_path / "forth")) == 3 * 4
    extract(recipe("mixture.sources=0=1"), tmp_path / "t2i")
    assert len(keys(tmp_path / "t2i")) == 4
    extract(recipe(), tmp_path / "forth")  # the way back is added
    assert len(keys(tmp_path / "forth")) == 4 * 4


def test_lists_that_are_measured_have_the_negative_text_as_well(recipe: Any, data: Path, tmp_path: Path) -> None:
    lists = f"data={{train: {data}, validation: {data}}}"
    extract(recipe(lists, "sampling.negative=ugly"), tmp_path / "out")
    assert len(keys(tmp_path / "out")) == 4 * 5
    extract(recipe(lists, "sampling.negative=ugly", "mixture.sources=0=1"), tmp_path / "t2i")
    assert keys(tmp_path / "t2i") == keys(tmp_path / "out")  # measured is all that is listed


def test_a_killed_extraction_goes_on(recipe: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "WINDOW", 1)
    extract(recipe(), tmp_path / "whole")
    write = Store.write

    def dies(store: Store, name: str, *given: Any) -> None:
        if name.endswith("1"):
            raise KeyboardInterrupt
        write(store, name, *given)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "write", dies)
        with pytest.raises(KeyboardInterrupt):
            extract(recipe(), tmp_path / "killed")
    assert len(Store(tmp_path / "killed", "").shards()) == 1
    embedded: list[int] = []
    call = Embedder.__call__
    monkeypatch.setattr(Embedder, "__call__", lambda self, asked: embedded.append(len(asked)) or call(self, asked))
    extract(recipe(), tmp_path / "killed")
    assert embedded == [1, 1]  # what was there is not embedded again
    assert keys(tmp_path / "killed") == keys(tmp_path / "whole")
    for shard in (tmp_path / "whole" / "shards").iterdir():
        assert (tmp_path / "killed" / "shards" / shard.name).read_bytes() == shard.read_bytes()
    extract(recipe(), tmp_path / "killed")
    assert embedded == [1, 1]


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_write_what_one_writes(recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe().model_dump_json(exclude_defaults=True), encoding="utf-8")
    program = "import sys; from qvl_edit import cli, extract; extract.WINDOW = 1; sys.exit(cli.app.run(sys.argv[1:]))"
    (tmp_path / "small.py").write_text("from qvl_edit import extract\nextract.WINDOW = 1\n", encoding="utf-8")
    for name, number in (("one", "1"), ("two", "2")):
        given = ["extract", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / name), "--nproc", number]
        given += ["--plugin", str(tmp_path / "small.py")]
        done = subprocess.run(
            [sys.executable, "-c", program, *given], env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=400
        )
        assert done.returncode == 0
    for shard in (tmp_path / "one" / "shards").iterdir():
        assert (tmp_path / "two" / "shards" / shard.name).read_bytes() == shard.read_bytes()
    assert len(list((tmp_path / "two" / "shards").iterdir())) == 3


@pytest.mark.parametrize(
    ("change", "said"), [("pictures.vl_size=112", "resize"), ("train.precision=bf16", "dtype"), ("model", "template")]
)
def test_a_folder_of_another_origin_is_refused(
    recipe: Any, checkpoint: Callable[..., Path], tmp_path: Path, change: str, said: str
) -> None:
    extract(recipe("mixture.sources=0=1"), tmp_path / "out")
    other = recipe(model=checkpoint("edit", "patches")) if change == "model" else recipe(change)
    with pytest.raises(BadInput, match=rf"was made with {said} .*; choose another --out"):
        extract(other, tmp_path / "out")


def test_other_weights_are_refused(recipe: Any, tmp_path: Path) -> None:
    from qvl_edit.tiny import tiny

    extract(recipe("mixture.sources=0=1"), tmp_path / "out")
    tiny(tmp_path / "model", seed=1, coder="patches")
    with pytest.raises(BadInput, match="was made with text_encoder"):
        extract(recipe("mixture.sources=0=1", model=tmp_path / "model"), tmp_path / "out")


def test_a_cut_shard_is_noticed(recipe: Any, data: Path, tmp_path: Path) -> None:
    extract(recipe("mixture.sources=0=1"), tmp_path / "out")
    (shard,) = (tmp_path / "out" / "shards").iterdir()
    shard.write_bytes(shard.read_bytes()[:-100])
    stored = StoredEmbeddings(Store(tmp_path / "out", next((tmp_path / "out").glob("index-*")).name))
    with pytest.raises(QVLError, match=r"is damaged .*; remove it"):
        stored.pieces(Dataset(data)[2], (), CAT["instruction"])


def test_what_is_not_there_is_said(recipe: Any, data: Path, tmp_path: Path) -> None:
    extract(recipe("mixture.sources=0=1"), tmp_path / "out")
    stored = StoredEmbeddings(Store(tmp_path / "out", "").again())
    with pytest.raises(BadSample, match=r'"Change the sky to sunset." with its 1 pictures is not in stored.embeddings'):
        stored.pieces(Dataset(data)[0], (0,), SKY["instruction"])


def test_bad_rows_are_counted_with_their_reasons(recipe: Any, data: Path, tmp_path: Path) -> None:
    Image.new("RGB", (20, 4000)).save(data.parent / "long.png")
    bad = [
        {**SKY, "source_image": "gone.png"},
        {**SKY, "source_image": "long.png"},
        {**MERGE, "instruction": "", "instruction_cn": None},
        {**MERGE, "source_image": ["001.png"] * 4},
    ]
    rows = write(data.parent, [*ROWS, *bad], "bad.jsonl")
    with pytest.raises(BadInput, match=r"data.max_bad allows 0 bad samples and this is one more"):
        extract(recipe(data=rows), tmp_path / "out")
    extract(recipe("data.max_bad=4", data=rows), tmp_path / "out")
    left = [json.loads(line) for line in (tmp_path / "out" / "left_out.jsonl").read_text("utf-8").splitlines()]
    assert [one["reason"] for one in left] == ["media_missing", "edit_shape", "no_instruction", "media_count"]
    assert all(f"bad.jsonl:{number}" in one["message"] for number, one in enumerate(left, start=4))
    extract(recipe(), tmp_path / "good")
    assert keys(tmp_path / "out") == keys(tmp_path / "good")


def test_a_way_back_that_cannot_be_learned_is_left_out_before_training(recipe: Any, data: Path, tmp_path: Path) -> None:
    """41 x 40 pixels fit as 40 x 40 do, and do not fit themselves."""
    for name, size in (("even.png", (40, 40)), ("odd.png", (41, 40))):
        Image.new("RGB", size).save(data.parent / name)
    rows = write(data.parent, [{**SKY, "source_image": "even.png", "target_image": "odd.png"}], "uneven.jsonl")
    extract(recipe("mixture.inverse=false", data=rows), tmp_path / "forth")
    with pytest.raises(BadInput, match=r"uneven.jsonl:1.*41 x 40 pixels would become 44 x 40"):
        extract(recipe(data=rows), tmp_path / "back")


def test_augmented_pictures_have_no_embeddings(recipe: Any, data: Path, tmp_path: Path) -> None:
    augmented = recipe(f"data={{train: [{{source: {data}, augment: {{flip: 0.5}}}}]}}")
    with pytest.raises(BadInput, match="augmented, and embeddings are of pictures as they are"):
        extract(augmented, tmp_path / "out")


def test_sizes_are_the_recipes_and_the_checkpoints(recipe: Any, checkpoint: Callable[..., Path], profile: Any) -> None:
    sizes = [
        geometry_of(recipe(*changes).pictures, profile("edit-plus"), checkpoint("edit-plus", coder))
        for changes, coder in (
            (("pictures.size=512", "pictures.vl_size=224"), "vae"),
            (("pictures={}",), "vae"),
            ((), "patches"),
        )
    ]
    assert [(one.area, one.vl_area, one.step, one.token) for one in sizes] == [
        (512**2, 224**2, 32, 16),
        (1024**2, 384**2, 32, 16),
        (42**2, 56**2, 4, 4),
    ]


def test_a_folder_must_be_named(recipe: Any) -> None:
    with pytest.raises(BadInput, match="--out: is not given"):
        extract(recipe("stored.embeddings=null"))
