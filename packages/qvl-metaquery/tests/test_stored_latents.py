"""Latents that are stored: training from them is training from pictures, to the bit; every picture once; any kill."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC
from drawing_verbs import Done, qvl_metaquery
from safetensors.torch import load_file
from sketches import autoencoder, drawn, edited, mixed, said, written

from qvl_core.errors import BadInput
from qvl_core.recipe.load import load
from qvl_core.run import RunFolder
from qvl_core.training.parts import Callbacks, Parts
from qvl_core.training.store import Store
from qvl_data.example.digits import digit_media
from qvl_data.hashing import media_key
from qvl_data.media import Opener
from qvl_data.sample import Media
from qvl_metaquery import build as building
from qvl_metaquery import encode as encoding
from qvl_metaquery import train
from qvl_metaquery.coder import Coder, open_coder
from qvl_metaquery.encode import encode, part_of
from qvl_metaquery.latents import about
from qvl_metaquery.pixels import square, stacked
from qvl_metaquery.recipe import RECIPE, MetaQueryRecipe
from qvl_metaquery.tiny import tiny, tiny_sana

STEPS = 3


class Drawable(AutoencoderDC):  # as `tiny_sana` takes a coder
    channels, factor = 8, 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny parts: qwen/, sana/ with exact pixels, dcae/ with a tiny autoencoder."""
    folder = tmp_path_factory.mktemp("parts") / "base"
    tiny(folder)
    model = autoencoder()
    model.__class__ = Drawable
    tiny_sana(folder / "dcae", coder=model)
    config = folder / "dcae/vae/config.json"
    values = json.loads(config.read_text(encoding="utf-8")) | {"_class_name": "AutoencoderDC"}
    config.write_text(json.dumps(values), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.parquet asks for eight pictures, held.parquet for two more and one that is there already."""
    folder = tmp_path_factory.mktemp("drawings")
    written(folder / "train.parquet", mixed())
    written(folder / "held.parquet", [drawn(30), drawn(31), drawn(0, "the first one")])
    return folder


@pytest.fixture
def recipe(base: Path, data: Path) -> Callable[..., MetaQueryRecipe]:
    def make(*changes: str, sana: str = "sana") -> MetaQueryRecipe:
        return load(RECIPE, "tiny", keys(base, data, sana, *changes), "qvl_metaquery")

    return make


def keys(base: Path, data: Path, sana: str, *changes: str) -> list[str]:
    lists = f"data={{train: {data / 'train.parquet'}, validation: {data / 'held.parquet'}}}"
    parts = [f"model.name={base / 'qwen'}", f"sana.name={base / sana}", lists]
    short = [f"train.steps={STEPS}", "schedule.warmup=1", "batch.size=4", "checkpoint.every=1", "log.every=1"]
    return [*parts, *short, "flow.task=instruct", "queries.number=4", "evaluate.every=2", *changes]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "WINDOW", 4)


def curve(run: Path) -> list[tuple[Any, ...]]:
    records = [tuple(r.get(n) for n in ("loss", "validation_loss")) for r in RunFolder(run).read_metrics()]
    return [record for record in records if record != (None, None)]


def same(one: Path, other: Path) -> None:
    """Two runs to the bit: losses, those of the validation list, and weights."""
    assert curve(one) == curve(other)
    assert [loss is not None for loss, _ in curve(one)] == [True, True, False, True, False]
    for file in ("connector.safetensors", "transformer/diffusion_pytorch_model.safetensors"):
        ours, theirs = (load_file(run / "final" / file) for run in (one, other))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def content(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name[0] != ".")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


# What is the same


@pytest.mark.parametrize(
    ("sana", "precision"),
    [
        ("sana", "fp32"),
        ("dcae", "bf16"),
        pytest.param("sana", "bf16", marks=pytest.mark.slow),
        pytest.param("dcae", "fp32", marks=pytest.mark.slow),
    ],
)
def test_training_from_the_folder_is_training_from_pictures_to_the_bit(
    sana: str, precision: str, recipe: Callable[..., MetaQueryRecipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = (f"train.precision={precision}", "batch.micro=3")
    train(recipe(*how, sana=sana), tmp_path / "online")
    encode(recipe(*how, sana=sana), tmp_path / "latents", batch=3)
    head = json.loads((tmp_path / "latents/store.json").read_text(encoding="utf-8"))
    coded = "bfloat16" if (sana, precision) == ("dcae", "bf16") else "float32"
    assert (head["about"]["dtype"], head["scale"]) == (coded, 0.25 if sana == "dcae" else 1.0)
    monkeypatch.setattr(Coder, "encode", None)  # it would fail
    train(recipe(*how, f"flow.latents={tmp_path / 'latents'}", sana=sana), tmp_path / "stored")
    same(tmp_path / "stored", tmp_path / "online")


class Killed(BaseException):
    """Nothing may catch it."""


def dying(*given: Any, build: Callable[..., Parts] = building.build) -> Parts:
    """A run that dies as soon as it has saved something."""

    def die(step: int, checkpoint: Path) -> None:
        raise Killed

    return replace(build(*given), callbacks=(Callbacks(on_checkpoint=die),))


def test_a_run_that_is_resumed_may_take_either(
    recipe: Callable[..., MetaQueryRecipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(recipe(sana="dcae"), tmp_path / "latents")
    latents = f"flow.latents={tmp_path / 'latents'}"
    train(recipe(sana="dcae"), tmp_path / "online")

    for changes in ((), (latents,)):  # killed after a step of each
        with monkeypatch.context() as patch:
            patch.setattr(building, "build", dying)
            with pytest.raises(Killed):
                train(recipe(*changes, sana="dcae"), tmp_path / "mixed")
    train(recipe(sana="dcae"), tmp_path / "mixed")
    same(tmp_path / "mixed", tmp_path / "online")
    finished = RunFolder(tmp_path / "online").read_result()
    assert train(recipe(latents, sana="dcae"), tmp_path / "online") == finished


@pytest.mark.slow
def test_workers_read_what_this_process_reads(recipe: Callable[..., MetaQueryRecipe], tmp_path: Path) -> None:
    encode(recipe("data.workers=1"), tmp_path / "latents")
    encode(recipe(), tmp_path / "again")
    assert content(tmp_path / "latents") == content(tmp_path / "again")
    latents = f"flow.latents={tmp_path / 'latents'}"
    train(recipe(), tmp_path / "one")
    train(recipe(latents, "data.workers=2"), tmp_path / "two")
    same(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_read_what_one_reads(recipe: Callable[..., MetaQueryRecipe], tmp_path: Path) -> None:
    encode(recipe(), tmp_path / "latents")
    train(recipe(f"flow.latents={tmp_path / 'latents'}"), tmp_path / "one")
    command = [sys.executable, "-m", "qvl_metaquery", "train", str(tmp_path / "one/recipe.yaml"), "--nproc", "2"]
    command += ["parallel.strategy=ddp", "--out", str(tmp_path / "two")]
    assert subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=400).returncode == 0
    ours, theirs = ([value for pair in curve(tmp_path / name) for value in pair if value] for name in ("one", "two"))
    assert theirs == pytest.approx(ours, rel=1e-5)


def test_a_picture_is_the_same_alone_and_among_others(base: Path) -> None:
    pixels = stacked([square(Opener().open(digit_media(index)), 8) for index in range(5)])
    for sana in ("sana", "dcae"):
        for dtype in (torch.float32, torch.bfloat16):
            coder = open_coder(base / sana / "vae", dtype)
            whole = coder.raw(pixels)
            assert whole.dtype == coder.dtype
            assert all(torch.equal(coder.raw(pixels[i : i + 1])[0], whole[i]) for i in range(5))
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(coder.raw(pixels), whole)
            assert torch.equal(coder.encode(pixels), whole.float() * coder.scale)


# Every picture once


def test_each_picture_once_under_its_content(
    recipe: Callable[..., MetaQueryRecipe], base: Path, tmp_path: Path
) -> None:
    encode(recipe(sana="dcae"), tmp_path / "latents")
    coder = open_coder(base / "dcae/vae")
    store = Store.open(tmp_path / "latents", about(coder, 8), "")
    targets = [0, 1, 2, 3, 4, 6, 7, 8, 30, 31]
    assert len(store) == sum(len(load_file(file)["keys"]) for file in (tmp_path / "latents/shards").iterdir()) == 10
    for index in targets:
        media = digit_media(index)
        wanted = coder.raw(stacked([square(Opener().open(media), 8)]))[0]
        assert torch.equal(store.get(media_key(media, Opener())), wanted)  # type: ignore[arg-type]
    assert len(store.shards()) == 3


def test_parts_are_the_whole(recipe: Callable[..., MetaQueryRecipe], tmp_path: Path, capsys: Any) -> None:
    encode(recipe(), tmp_path / "whole")
    assert "holds 10 pictures, 0 samples are left out; train with flow.latents=" in capsys.readouterr().out
    for part in (2, 3, 1):
        encode(recipe(), tmp_path / "parts", f"{part}/3")
    assert [line.split(": ")[-1] for line in capsys.readouterr().out.splitlines()[:2]] == [
        "part 2 of 3 is done; 2 of 3 shards are still to come.",
        "part 3 of 3 is done; 1 of 3 shards are still to come.",
    ]
    store = {name: Store.open(tmp_path / name, {}, "") for name in ("whole", "parts")}
    assert len(store["parts"]) == len(store["whole"]) == 10
    for index in (0, 8, 31):
        key = media_key(digit_media(index), Opener())
        assert torch.equal(store["parts"].get(key), store["whole"].get(key))  # type: ignore[arg-type]


def test_a_finished_folder_is_left_and_other_data_are_added(
    recipe: Callable[..., MetaQueryRecipe], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    encode(recipe(), tmp_path / "latents")
    before = content(tmp_path / "latents")
    with monkeypatch.context() as patch:
        patch.setattr(Coder, "raw", None)
        encode(recipe(f"flow.latents={tmp_path / 'latents'}"))
        assert content(tmp_path / "latents") == before
        encode(recipe(f"data.train={data / 'held.parquet'}"), tmp_path / "latents")  # of which all are there
    more = written(tmp_path / "more.parquet", [drawn(50), drawn(0)])
    encode(recipe(f"data.train={more}"), tmp_path / "latents")
    assert len(Store.open(tmp_path / "latents", {}, "")) == 11
    assert content(tmp_path / "latents").items() >= {k: v for k, v in before.items() if "index" not in k}.items()


# Kills


KILLED = """
import sys
from qvl_core.testing import operations
from qvl_metaquery import encode
from qvl_metaquery.cli import app

encode.WINDOW = 4
with operations(int(sys.argv[1]), ("replace", "fsync")):
    code = app.run(sys.argv[2:])
sys.exit(code)
"""


def killed(number: int, *args: object) -> bool:
    """Whether a process was killed before its file operation `number`, or ended well before."""
    command = [sys.executable, "-c", KILLED, str(number), *map(str, args)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, timeout=300)
    assert done.returncode in (0, -9), done.stderr.decode()
    return done.returncode == -9


def survived(base: Path, data: Path, tmp_path: Path, numbers: Iterable[int]) -> int:
    """How many kills left what the same command ended with as if it was never killed."""
    given = ["encode", "tiny", *keys(base, data, "dcae"), "--out"]
    assert qvl_metaquery(*given, tmp_path / "whole").code == 0
    for number in numbers:
        out = tmp_path / f"{number}"
        if not killed(number, *given, out):
            return number - 1
        assert qvl_metaquery(*given, out).code == 0
        assert content(out) == content(tmp_path / "whole"), number
        assert not list((out / "shards").glob(".*"))
    return number


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX")
def test_killed_in_the_second_shard(base: Path, data: Path, tmp_path: Path) -> None:
    assert survived(base, data, tmp_path, [11]) == 11


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX")
def test_killed_at_writes_of_each_kind(base: Path, data: Path, tmp_path: Path) -> None:
    assert survived(base, data, tmp_path, count(1, 4)) >= 16  # the store's own tests kill at every one


# What cannot be used


def damaged() -> Media:
    media = digit_media(9)
    assert media.bytes is not None
    return media.model_copy(update={"bytes": media.bytes[: len(media.bytes) // 2]})


def test_a_bad_sample_is_counted_and_named_once(
    recipe: Callable[..., MetaQueryRecipe], tmp_path: Path, capsys: Any
) -> None:
    bad = drawn(9).model_copy(update={"media": (damaged(),)})
    file = written(tmp_path / "train.parquet", [*(drawn(i) for i in range(5)), bad, said(0), edited(10)])
    of = (f"data={{train: {file}}}", "evaluate.every=null")
    with pytest.raises(BadInput, match=r"data\.max_bad allows 1 bad samples and this is one more") as caught:
        encode(recipe(*of, "data.max_bad=1"), tmp_path / "latents")
    assert "\n" not in str(caught.value)
    for _ in range(2):
        encode(recipe(*of, "data.max_bad=2"), tmp_path / "latents")
        assert "holds 6 pictures, 2 samples are left out" in capsys.readouterr().out
    listed = [json.loads(line) for line in (tmp_path / "latents/left_out.jsonl").read_text("utf-8").splitlines()]
    assert [entry["reason"] for entry in listed] == ["image_truncated", "no_picture"]
    assert all(f"{file}" in entry["id"] and entry["message"] for entry in listed)
    with pytest.raises(BadInput, match=r"data\.max_bad allows 1 bad samples"):
        encode(recipe(*of, "data.max_bad=1"), tmp_path / "latents")
    latents = f"flow.latents={tmp_path / 'latents'}"
    train(recipe(*of, "data.max_bad=2", latents), tmp_path / "stored")
    result = RunFolder(tmp_path / "stored").read_result()
    assert result is not None
    assert result["bad_samples"] == 2


def test_a_picture_that_was_not_encoded_is_left_out_by_name(
    recipe: Callable[..., MetaQueryRecipe], data: Path, tmp_path: Path
) -> None:
    encode(recipe(), tmp_path / "latents")
    file = written(tmp_path / "more.parquet", [*(drawn(i) for i in range(3)), drawn(40)])
    more = (f"data.train={file}", f"flow.latents={tmp_path / 'latents'}")
    with pytest.raises(BadInput, match=r"qvl-metaquery encode.*data\.max_bad allows 0 bad samples"):
        train(recipe(*more), tmp_path / "run")
    train(recipe(*more, "data.max_bad=1"), tmp_path / "other")
    (line,) = (tmp_path / "other/bad_samples.jsonl").read_text("utf-8").splitlines()
    entry = json.loads(line)
    assert (entry["reason"], "drawn-40" in entry["id"]) == ("not_encoded", True)


def refused(recipe: MetaQueryRecipe, tmp_path: Path, words: str) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        train(recipe, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert "qvl-metaquery encode" in str(caught.value) or "remove" in str(caught.value)
    assert not (tmp_path / "run/metrics.jsonl").is_file()


def test_latents_of_another_coder_size_or_type_are_refused(
    recipe: Callable[..., MetaQueryRecipe], data: Path, tmp_path: Path
) -> None:
    encode(recipe(sana="dcae"), tmp_path / "latents")
    latents = f"flow.latents={tmp_path / 'latents'}"
    refused(recipe(latents), tmp_path, r"latents: was made with coder \w+, and this is coder pixels 2")
    refused(recipe(latents, "flow.size=16", sana="dcae"), tmp_path, "size 8, and this is size 16")
    refused(recipe(latents, "train.precision=bf16", sana="dcae"), tmp_path, "dtype float32, and this is dtype bfloat16")
    refused(recipe(f"flow.latents={tmp_path}"), tmp_path, r"has no store\.json that can be read")
    for changes in (("flow.size=16",), ("train.precision=bf16",)):
        with pytest.raises(BadInput, match=r"was made with .*; choose another --out"):
            encode(recipe(*changes, sana="dcae"), tmp_path / "latents")


def test_what_was_never_encoded_is_said_before_the_first_step(
    recipe: Callable[..., MetaQueryRecipe], data: Path, tmp_path: Path
) -> None:
    other = written(tmp_path / "other.parquet", [drawn(60), drawn(61)])
    encode(recipe(f"data={{train: {other}}}", "evaluate.every=null"), tmp_path / "latents")
    latents = f"flow.latents={tmp_path / 'latents'}"
    refused(recipe(latents), tmp_path, r"data\.train: none of its first pictures is stored: .* is not in flow\.latents")
    refused(recipe(latents, f"data.train={other}"), tmp_path, r"data\.validation: none of its first")
    augmented = f"data.train={{source: {other}, augment: {{flip: 0.5}}}}"
    refused(recipe(latents, augmented), tmp_path, r"flow\.latents: data\.train is augmented")


# The command


def test_the_command(base: Path, data: Path, tmp_path: Path) -> None:
    def run(*args: object) -> Done:
        return qvl_metaquery("encode", "tiny", *keys(base, data, "sana"), *args)

    done = run("--out", tmp_path / "latents", "--batch", 2)
    assert (done.code, done.out) == (
        0,
        f"{tmp_path / 'latents'} holds 10 pictures, 0 samples are left out; train with flow.latents="
        f"{tmp_path / 'latents'}.\n",
    )
    done = run(f"flow.latents={tmp_path / 'other'}", "--shard", "2/2")
    assert (done.code, "part 2 of 2 is done; 2 of 3 shards" in done.out) == (0, True)
    assert run().err.strip() == "--out: is not given; name a folder for the latents, or set flow.latents."
    for shard in ("3/2", "0/2", "2", "a/b"):
        done = run("--out", tmp_path / "x", "--shard", shard)
        assert (done.code, f"--shard {shard}: write I/N" in done.err) == (2, True)
    assert part_of("8/8") == (8, 8)


def test_the_shipped_tiny_parts_need_no_folder(data: Path, tmp_path: Path) -> None:
    lists = f"data={{train: {data / 'train.parquet'}}}"
    assert qvl_metaquery("encode", "tiny", lists, "--out", tmp_path / "latents").code == 0
    done = qvl_metaquery(
        "train", "tiny", lists, f"flow.latents={tmp_path / 'latents'}", "train.steps=1", "batch.size=4",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.code == 0, done.err
