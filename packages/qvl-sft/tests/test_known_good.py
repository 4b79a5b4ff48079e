"""What `check` says about the data and the switches of a recipe; it never blocks."""

from pathlib import Path

import pytest
from command import qvl_sft

from qvl_core.qwen3vl.tiny import tiny
from qvl_core.recipe.load import load
from qvl_data.convert import write_samples
from qvl_data.sample import Sample
from qvl_sft.known_good import Content, about_data, warnings
from qvl_sft.recipe import RECIPE, SFTRecipe

LARGE = 4_000_000_000


def of(*overrides: str) -> SFTRecipe:
    recipe = load(RECIPE, "lora_4b", list(overrides), "qvl_sft")
    assert isinstance(recipe, SFTRecipe)
    return recipe


@pytest.mark.parametrize(
    ("overrides", "doubt"),
    [
        (["model.quantization=nf4", "tune.llm.lr=8e-4"], "tune.llm: lr 0.0008 is high over 4-bit weights"),
        (["model.quantization={kind: int8, groups: [llm, vision]}"], "model.quantization.groups: vision suffer most"),
        (["tune.llm.init=pissa", "tune.llm.lr=5e-4"], "tune.llm: lr 0.0005 moves the main directions"),
        (["tune.llm.dora=true"], "tune.llm: DoRA puts each weight together anew"),
        (["tune.llm.plus=64", "tune.llm.lr=2e-4"], "tune.llm: lr 0.0002 x plus 64 gives B a rate of 0.0128"),
        (["tune.llm.rslora=true", "tune.llm.alpha=64"], "tune.llm: alpha / sqrt(rank) is 16; 1 to 4 is usual"),
        (["optim.ema=0.999", "train.steps=60"], "optim.ema: over 60 steps"),
        (["speed.compile=true", "train.steps=60"], "speed.compile: the first steps take minutes longer"),
        (["evaluate.group_by=kind", "data.validation=[]", "data.test=[]"], "evaluate.group_by"),
    ],
)
def test_a_doubt_is_said_once(overrides: list[str], doubt: str) -> None:
    before = list(warnings(of(), LARGE))
    (sentence,) = [sentence for sentence in warnings(of(*overrides), LARGE) if sentence not in before]
    assert sentence.startswith(doubt)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.quantization=nf4"],
        ["tune.llm.init=pissa", "tune.llm.lr=2e-5"],
        ["tune.llm.plus=16"],
        ["tune.llm.rslora=true", "tune.llm.alpha=16"],
        ["optim.ema=0.999", "speed.compile=true", "train.steps=1000"],
    ],
)
def test_usual_values_raise_none(overrides: list[str]) -> None:
    assert set(warnings(of(*overrides), LARGE)) <= set(warnings(of(), LARGE))


@pytest.mark.parametrize(
    ("met", "thinks", "overrides", "doubt"),
    [
        (Content(9, reasoned=3), False, [], "3 of 9 samples read hold reasoning (<think>), which this checkpoint"),
        (Content(9), True, [], "no answer that was read holds reasoning"),
        (Content(9, reasoned=9, lost=4), True, [], "4 of 9 samples read hold reasoning in earlier turns"),
        (Content(9, unmarked=9), False, ["data.train_on=none"], "data.train_on is none, and 9 of 9 samples"),
        (Content(9), False, ["media.fps=1", "media.max_frames=8"], "media.fps, media.max_frames: no sample that was"),
        (Content(9, videos=1), False, ["media.fps=1"], None),
        (Content(9, reasoned=9), True, [], None),
        (Content(9, unmarked=1), False, [], None),
        (Content(), True, ["media.fps=1"], None),
    ],
)
def test_doubts_about_the_data(met: Content, thinks: bool, overrides: list[str], doubt: str | None) -> None:
    found = list(about_data(of(*overrides), met, thinks))
    assert [sentence[: len(doubt)] for sentence in found] == [doubt] if doubt else found == []


def test_check_reads_the_data_and_the_template(tmp_path: Path) -> None:
    def chat(name: str, *turns: tuple[str, str]) -> Sample:
        said = [{"role": role, "parts": [{"type": "text", "text": text}]} for role, text in turns]
        return Sample.model_validate({"id": name, "task": "chat", "messages": said})

    thought = "<think>\nhm\n</think>\n\nyes"
    samples = [
        chat("a", ("user", "q"), ("assistant", thought)),
        chat("b", ("user", "q"), ("assistant", thought), ("user", "q"), ("assistant", thought)),
    ]
    write_samples(samples, tmp_path / "train.parquet")
    write_samples([chat("c", ("user", "q"), ("assistant", "yes"))], tmp_path / "plain.parquet")
    thinking = tiny(tmp_path / "thinking", thinking=True)

    def said(*overrides: str) -> str:
        done = qvl_sft("check", "tiny", "data.test=[]", "data.validation=[]", "batch.size=2", *overrides)
        assert done.code == 0, done.err
        return " ".join(done.out.split())

    data = f"data.train={tmp_path / 'train.parquet'}"
    assert "note: 2 of 2 samples read hold reasoning (<think>)" in said(data)
    both = said(data, f"model.name={thinking}")
    assert "note: 1 of 2 samples read hold reasoning in earlier turns" in both
    assert "hold reasoning (<think>)" not in both
    assert "hold reasoning" not in said(data, f"model.name={thinking}", "data.train_on=last")
    plain = f"data.train={tmp_path / 'plain.parquet'}"
    assert "note: no answer that was read holds reasoning" in said(plain, f"model.name={thinking}", "media.fps=1")
    assert "note: media.fps: no sample that was read holds a video." in said(plain, "media.fps=1")


BAD = {
    "a box outside the picture": (
        [{"kind": "image", "bytes": "PNG"}],
        {"regions": [{"media": 0, "kind": "box", "xy": [90, 10, 120, 40]}]},
        [{"type": "image", "media": 0}],
        [{"type": "regions", "regions": [0]}],
        "box [90, 10, 120, 40] lies outside its picture of 64 x 64 pixels; is it in another space, or not upright?",
    ),
    "a video without frames": (
        [{"kind": "video", "video": {"frames": [], "fps": 2.0}}],
        {},
        [{"type": "video", "media": 0}],
        [{"type": "text", "text": "a"}],
        "a video given as frames needs at least one",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_samples_are_told_by_check_and_train(name: str, tmp_path: Path) -> None:
    from qvl_data.example.digits import digits_dataset

    media, fields, question, answer, sentence = BAD[name]
    digit = digits_dataset("digit", "test")[0].media[0].bytes
    media = [{**entry, "bytes": digit} if "bytes" in entry else entry for entry in media]
    messages = [{"role": "user", "parts": question}, {"role": "assistant", "parts": answer}]
    sample = Sample.model_validate({"id": "bad", "task": "chat", "media": media, "messages": messages, **fields})
    write_samples([sample], tmp_path / "train.parquet")
    for verb, out in (("check", "check"), ("train", "run")):
        done = qvl_sft(
            *(verb, "tiny", f"data={{train: {tmp_path / 'train.parquet'}}}", "batch.size=1", "train.steps=1"),
            *("--out", str(tmp_path / out)),
        )
        assert done.code == 2, done.err
        told = done.out + done.err + "".join(file.read_text() for file in (tmp_path / out).glob("bad_samples.jsonl"))
        assert sentence in " ".join(told.split())
        assert "Traceback" not in done.err
