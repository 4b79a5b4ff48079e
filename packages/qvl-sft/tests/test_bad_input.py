"""Whatever is wrong: one sentence with place and fix, the right exit code, nothing half-written, nothing lost."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from command import Done, files, qvl_sft

from qvl_core.qwen3vl.tiny import tiny
from qvl_core.run import RunFolder
from qvl_core.training import checkpoint
from qvl_data.example.digits import digits_dataset

SMALL = ["train.steps=4", "batch.size=2", "schedule.warmup=0", "checkpoint.every=2", "evaluate.every=null"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def start(base: Path, data: Path, tmp_path: Path) -> Callable[..., Done]:
    """Train a few steps in tmp_path/run, with changes to the recipe."""

    def run(*changes: str) -> Done:
        digits = f"data={{train: {data / 'digits'}}}"
        given = ["train", "tiny", f"model.name={base}", digits, *SMALL, *changes]
        return qvl_sft(*given, "--out", str(tmp_path / "run"))

    return run


def refused(done: Done, *words: str, code: int = 2) -> None:
    """The exit code, and exactly one sentence with all the words."""
    assert done.code == code, done.err
    sentence = done.err.strip()
    assert sentence.count("\n") == 0, sentence
    assert sentence.endswith((".", "?")), sentence
    for word in words:
        assert word in sentence, sentence


def rows(folder: Path, number: int = 4) -> list[dict[str, Any]]:
    """Good samples in the qwenvl format, with their pictures in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = digits_dataset("digit", "train")[:number]
    for index, sample in enumerate(samples):
        (folder / f"{index}.png").write_bytes(sample.media[0].bytes or b"")
    return [
        {
            "id": f"sample-{index}",
            "image": f"{index}.png",
            "conversations": [
                {"from": "human", "value": "<image>Which digit is this?"},
                {"from": "gpt", "value": sample.messages[-1].text},
            ],
        }
        for index, sample in enumerate(samples)
    ]


def write(folder: Path, given: Sequence[Any]) -> Path:
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    return file


def bad_samples(run: Path) -> dict[str, str]:
    lines = (run / "bad_samples.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["id"]: entry["reason"] for entry in map(json.loads, lines)}


# Recipes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("optimm.lr=1", ['unknown key "optimm"', 'did you mean "optim"?']),
        ("train.stepps=1", ['unknown key "train.stepps"', 'did you mean "train.steps"?']),
        ("optim.lr=-1", ["optim.lr=-1", "greater than 0"]),
        ("optim.lr=fast", ["optim.lr=fast"]),
        ("batch.tokens=64", ["exactly one of `size` and `tokens`"]),
        ("train.precision=fp8", ["train.precision", "bf16"]),
        ("version=2", ["version"]),
        ("tune.lmm={mode: lora}", ["tune.lmm", 'did you mean "llm"?']),
        ("tune.connector={mode: full}", ["tune.connector", "unknown group", "deepstack_mergers"]),
        ("tune.embed.mode=frozen", ["embed is frozen and lm_head is full", "give both the same mode"]),
        ("tune.llm={mode: lora, dropout: 1.5}", ["dropout", "less than 1"]),
        ("evaluate.metrics=[exactmatch]", ["evaluate.metrics", '"exactmatch"', "exact_match"]),
        ("evaluate={every: 1, early_stop: {metric: loss}}", ["early_stop", "data.validation"]),
        ("media={max_pixels: 1024, min_pixels: 4096}", ["media", "set both"]),
        ("model.name=Qwenn/nothing/here", ["model.name", "there is no folder Qwenn/nothing/here", "hub id"]),
    ],
)
def test_what_cannot_be_meant(change: str, words: list[str], start: Callable[..., Done], tmp_path: Path) -> None:
    refused(start(change), *words)
    assert set(files(tmp_path)) <= {"run/recipe.yaml"}


def test_a_mistake_in_a_file_is_named_by_its_line(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("version: 1\nmodel: {name: tiny}\ntune: {llm: {mode: lora}}\noptimm: {lr: 1}\n", encoding="utf-8")
    done = qvl_sft(
        "train", str(recipe), "data.train=x", "batch.size=1", "train.steps=1", "--out", str(tmp_path / "run")
    )
    refused(done, f'{recipe}:4: unknown key "optimm"', 'did you mean "optim"?')


def test_all_mistakes_are_said_at_once(start: Callable[..., Done]) -> None:
    done = start("optimm.lr=1", "train.clip=-1")
    assert done.code == 2
    assert len(done.err.splitlines()) == 2


def test_a_group_that_the_model_lacks(base: Path, start: Callable[..., Done], tmp_path: Path) -> None:
    """The DeepStack mergers are parameters of every Qwen3-VL but this one."""
    shutil.copytree(base, bare := tmp_path / "bare")
    from safetensors.torch import load_file, save_file

    weights = load_file(bare / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "deepstack" not in name}
    save_file(kept, bare / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((bare / "config.json").read_text(encoding="utf-8"))
    config["vision_config"]["deepstack_visual_indexes"] = []
    (bare / "config.json").write_text(json.dumps(config), encoding="utf-8")
    refused(start(f"model.name={bare}"), "tune.deepstack_mergers", "no such parameters", "remove the group")


# Data


@pytest.mark.parametrize("what", ["file", "folder", "split"])
def test_missing_data(what: str, start: Callable[..., Done], data: Path, tmp_path: Path) -> None:
    given = {
        "file": ("data.train=nothing.jsonl", ["nothing.jsonl: no such file or folder"]),
        "folder": (f"data.train={data / 'digit'}", ["no such file or folder", f'did you mean "{data / "digits"}"']),
        "split": (f"data.test={{source: {data / 'digits'}, split: tset}}", ['no split "tset"', 'did you mean "test"?']),
    }
    change, words = given[what]
    refused(start(change), *words)
    assert set(files(tmp_path)) <= {"run/recipe.yaml"}


def missing_picture(given: list[dict[str, Any]], folder: Path) -> None:
    (folder / "1.png").unlink()


def truncated_picture(given: list[dict[str, Any]], folder: Path) -> None:
    content = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(content[: len(content) // 2])


def no_picture(given: list[dict[str, Any]], folder: Path) -> None:
    (folder / "1.png").write_text("<html>404</html>", encoding="utf-8")


def one_tag_too_many(given: list[dict[str, Any]], folder: Path) -> None:
    given[1]["conversations"][0]["value"] = "<image><image>Which digit is this?"


def no_answer(given: list[dict[str, Any]], folder: Path) -> None:
    given[1]["conversations"].pop()


def outside(given: list[dict[str, Any]], folder: Path) -> None:
    given[1]["image"] = "../1.png"


def too_long(given: list[dict[str, Any]], folder: Path) -> None:
    given[1]["conversations"][0]["value"] += " Look closely." * 100


BAD: dict[Callable[..., None], tuple[str, str]] = {
    missing_picture: ("media_missing", "1.png: cannot be opened"),
    truncated_picture: ("image_truncated", "1.png: truncated or damaged picture"),
    no_picture: ("image_format", "is a web page, not a picture; replace it"),
    one_tag_too_many: ("media_count", '2 <image> tags but 1 image; add the missing path to "image" or remove a tag'),
    no_answer: ("nothing_to_learn", "no assistant turn to learn from; add an answer or remove the sample"),
    outside: ("media_path", "path '../1.png' leaves its folder"),
    too_long: ("too_long", "is over the limit of 256; raise batch.max_length"),
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_a_bad_sample_stops_the_run_or_is_counted_and_listed(
    spoil: Callable[..., None], start: Callable[..., Done], tmp_path: Path
) -> None:
    """Which ends: refused at its step; with max_bad raised, the same run goes on from its saved state."""
    given = rows(tmp_path / "data")
    spoil(given, tmp_path / "data")
    train, run = f"data.train={write(tmp_path / 'data', given)}", tmp_path / "run"
    reason, sentence = BAD[spoil]
    refused(start(train), "data.jsonl:2: ", sentence, "data.max_bad allows 0 bad samples", "raise data.max_bad")
    found, _ = checkpoint.newest(run / "checkpoints")
    assert found is not None
    assert not (run / "final").exists()
    assert not (run / "bad_samples.jsonl").exists()

    done = start(train, "data.max_bad=1")
    assert done.code == 0, done.err
    (resumed,) = [record for record in RunFolder(run).read_metrics() if record.get("event") == "resume"]
    assert resumed["step"] == found.step
    result = RunFolder(run).read_result()
    assert result is not None
    assert (result["steps"], result["bad_samples"], result["dropped_samples"]) == (4, 1, 0)
    assert list(bad_samples(run).values()) == [reason]


@pytest.mark.parametrize("packing", ["true", "false"])
def test_the_samples_that_are_left_are_seen_as_often_as_before(
    packing: str, start: Callable[..., Done], tmp_path: Path
) -> None:
    """A bad sample is never replaced by another one: two epochs count every good sample twice."""
    given = rows(tmp_path / "data")
    missing_picture(given, tmp_path / "data")
    done = start(
        f"data.train={write(tmp_path / 'data', given)}", "data.max_bad=1", f"batch.packing={packing}", "batch.size=2"
    )
    assert done.code == 0, done.err
    result = RunFolder(tmp_path / "run").read_result()
    assert result is not None
    shorter = qvl_sft(
        "train", "tiny", f"model.name={tmp_path / 'run/final'}", *SMALL, "train.steps=1", "batch.size=3",
        f"data={{train: {write(tmp_path / 'data', [given[0], *given[2:]])}}}", "--out", str(tmp_path / "good"),
    )  # fmt: skip
    assert shorter.code == 0, shorter.err
    epoch = RunFolder(tmp_path / "good").read_result()
    assert epoch is not None
    assert result["tokens"] == 2 * epoch["tokens"]


def test_too_long_is_dropped_or_cut_if_the_recipe_says_so(start: Callable[..., Done], tmp_path: Path) -> None:
    given = rows(tmp_path / "data")
    exchange = given[1]["conversations"]
    given[1]["conversations"] = [*exchange, *[{"from": "human", "value": "Again?"}, exchange[1]] * 40]
    given[1]["conversations"][0]["value"] = "Hello."  # the picture belongs to the last exchange, which is kept
    given[1]["conversations"][-2] = {"from": "human", "value": "<image>Which digit is this?"}
    train = f"data.train={write(tmp_path / 'data', given)}"
    for too_long, dropped in (("drop", 1), ("cut", 0)):
        done = start(train, f"batch.too_long={too_long}", "--fresh")
        assert done.code == 0, done.err
        result = RunFolder(tmp_path / "run").read_result()
        assert result is not None
        assert (result["bad_samples"], result["dropped_samples"]) == (0, dropped)
        assert (tmp_path / "run/bad_samples.jsonl").exists() == bool(dropped)


def test_bad_samples_of_the_test_set_are_counted_and_listed(start: Callable[..., Done], tmp_path: Path) -> None:
    given = rows(tmp_path / "data")
    missing_picture(given, tmp_path / "data")
    file = write(tmp_path / "data", given)
    done = start(f"data.test={file}")
    assert done.code == 0, done.err
    result = RunFolder(tmp_path / "run").read_result()
    assert result is not None
    assert (result["test_left_out"], result["bad_samples"]) == (1, 0)
    (entry,) = map(json.loads, (tmp_path / "run/left_out.jsonl").read_text(encoding="utf-8").splitlines())
    assert (entry["list"], entry["reason"]) == ("test", "media_missing")
    assert len((tmp_path / "run/predictions.jsonl").read_text(encoding="utf-8").splitlines()) == 3


# Runs and checkpoints


def test_a_checkpoint_of_another_recipe(start: Callable[..., Done], tmp_path: Path) -> None:
    assert start("train.steps=2").code == 0
    (tmp_path / "run/result.json").unlink()  # as if it had been killed at the end
    before = files(tmp_path / "run")
    refused(start("train.steps=2", "optim.lr=1e-5"), "optim.lr was 0.0015, is 1e-05", "--fresh", "--allow-change")
    refused(start("train.steps=2", "tune.vision.mode=frozen"), "tune.vision.mode was full, is frozen")
    assert files(tmp_path / "run") == before
    assert start("train.steps=2").code == 0


def test_resume_and_init_from_name_each_other(start: Callable[..., Done], base: Path, tmp_path: Path) -> None:
    refused(start("--resume", str(base)), str(base), "is no checkpoint folder", "model.init_from")
    assert not (tmp_path / "run/final").exists()
    assert start("--fresh").code == 0
    shutil.copytree(tmp_path / "run/checkpoints/step-000004", saved := tmp_path / "step-000004")
    refused(start(f"model.init_from={saved}", "--fresh"), str(saved), f"--resume {saved}", "final/")
    refused(start("model.init_from=nothing", "--fresh"), "model.init_from: there is no folder nothing")


def test_an_adapter_that_would_be_lost(adapted: Path, trained: Path, start: Callable[..., Done]) -> None:
    changes = [f"model.name={trained / 'final'}", f"model.init_from={adapted / 'final'}"]
    refused(start(*changes), "is a LoRA adapter and `tune` has no LoRA", "qvl-sft merge")
    lora = "tune={llm: {mode: lora}}"
    refused(
        start(*changes, lora), "model.visual.merger.linear_fc1.bias was trained in full, and is frozen here", "merging"
    )


def test_other_files_are_never_written_into(start: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/photo.png").touch()
    refused(start(), "holds files but no recipe.yaml", "choose another --out")
    refused(start("--fresh"), "holds files but no recipe.yaml")
    assert files(tmp_path) == ["run/photo.png"]


def test_a_full_disk_in_a_save(start: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        if path.parent.name == ".step-000004.partial":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_written", full)
    refused(start(), "step-000004: the checkpoint could not be written", "free some disk space", code=1)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-000002"]
    assert not (tmp_path / "run/final").exists()
    monkeypatch.undo()
    assert start().code == 0


def test_a_full_disk_in_the_export(start: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import Qwen3VLForConditionalGeneration

    def full(self: Any, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Qwen3VLForConditionalGeneration, "save_pretrained", full)
    refused(start(), "final: the trained weights could not be written", "the checkpoint has them", code=1)
    assert not [path for path in (tmp_path / "run").iterdir() if "final" in path.name]
    monkeypatch.undo()
    assert start().code == 0
    assert (tmp_path / "run/final/model.safetensors").stat().st_size > 1e6


def test_a_full_disk_in_a_merge(adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError
    from transformers import Qwen3VLForConditionalGeneration

    def full(self: Any, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(Qwen3VLForConditionalGeneration, "save_pretrained", full)
    refused(qvl_sft("merge", str(adapted), "--out", str(tmp_path / "new")), "the disk is full; free some", code=1)
    assert not list(tmp_path.iterdir())


# What was trained


def test_chat_with_pictures_that_cannot_be_read(trained: Path, tmp_path: Path) -> None:
    missing = qvl_sft("chat", str(trained), "Which digit is this?", "--image", str(tmp_path / "no.png"))
    refused(missing, f"{tmp_path / 'no.png'}: there is no such picture")
    (tmp_path / "half.png").write_bytes((digits_dataset("digit", "test")[0].media[0].bytes or b"")[:100])
    half = qvl_sft("chat", str(trained), "Which digit is this?", "--image", str(tmp_path / "half.png"))
    refused(half, f"{tmp_path / 'half.png'}: truncated or damaged picture", "replace the file")


def test_merge_into_what_is_there_or_from_what_is_none(adapted: Path, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").touch()
    out = ["--out", str(tmp_path / "there")]
    refused(qvl_sft("merge", str(adapted), *out), f"{tmp_path / 'there'}: is already there; choose a new folder")
    refused(qvl_sft("merge", str(trained), "--out", str(tmp_path / "new")), "is no adapter", "needs no merging")
    refused(qvl_sft("merge", "nothing", "--out", str(tmp_path / "new")), "there is no folder nothing")
    refused(qvl_sft("merge", str(adapted), "--out", str(tmp_path / "new"), "--dtype", "fp8"), "--dtype fp8", "bf16")
    wrong = qvl_sft("merge", str(adapted), "--out", str(tmp_path / "new"), "--base", "nothing")
    refused(wrong, "there is no folder nothing")
    assert files(tmp_path) == ["there/file"]


def test_evaluate(trained: Path, data: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "evaluation")]
    refused(qvl_sft("evaluate", str(trained), str(data / "digits"), "--split", "tset", *out), 'did you mean "test"?')
    refused(qvl_sft("evaluate", str(trained), "nothing.jsonl", *out), "nothing.jsonl: no such file or folder")
    given = rows(tmp_path / "data", 2)
    (tmp_path / "data/0.png").unlink()
    (tmp_path / "data/1.png").unlink()
    unusable = qvl_sft("evaluate", str(trained), str(write(tmp_path / "data", given)), *out)
    refused(unusable, "no sample can be used, such as: ", "data.jsonl:1: 0.png: cannot be opened")
    assert files(tmp_path) == ["data/data.jsonl"]


def test_what_is_not_trained_yet(trained: Path, start: Callable[..., Done], tmp_path: Path) -> None:
    shutil.copytree(trained, run := tmp_path / "run", ignore=shutil.ignore_patterns("final"))
    refused(qvl_sft("chat", str(run), "Hello"), "this run is not finished", "run its `qvl-sft train` command again")
    saved = run / "checkpoints/step-000080"
    refused(qvl_sft("chat", str(saved), "Hello"), f"{saved}: is a training checkpoint", "final/")
    refused(qvl_sft("report", str(tmp_path / "nothing")), "there is no such run folder")
