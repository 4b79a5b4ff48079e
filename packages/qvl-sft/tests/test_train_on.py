"""From the recipe to the loss: `data.train_on` and the weights of answers."""

import json
from pathlib import Path

import pytest
from command import Done, qvl_sft

from qvl_core.qwen3vl.tiny import tiny_processor
from qvl_core.recipe.load import load
from qvl_data.convert import write_samples
from qvl_data.sample import Sample
from qvl_data.sources import mixtures
from qvl_sft.batch import chat_batches, chat_samples
from qvl_sft.recipe import RECIPE, SFTRecipe


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations of two answers, of which the first is marked in some and the second weighs a half."""

    def chat(number: int) -> Sample:
        texts = ("How many?", f"{number}", "And twice?", f"{2 * number}")
        said = [
            {"role": ("user", "assistant")[i % 2], "parts": [{"type": "text", "text": t}]} for i, t in enumerate(texts)
        ]
        said[1] |= {"train": True} if number % 2 else {}
        said[3] |= {"weight": 0.5} if number % 4 < 2 else {}
        return Sample.model_validate({"id": str(number), "task": "chat", "messages": said})

    folder = tmp_path_factory.mktemp("chats")
    write_samples(map(chat, range(16)), folder / "train.parquet")
    write_samples(map(chat, range(16, 24)), folder / "validation.parquet")
    return folder


def overrides(data: Path, train_on: str) -> list[str]:
    return [
        f"data={{train: {data}, validation: {data}, train_on: {train_on}}}",
        *("batch.size=4", "train.steps=2", "schedule.warmup=0", "checkpoint.every=2", "evaluate.every=null"),
        *("evaluate.metrics=[]", "log.every=1"),
    ]


def train(data: Path, train_on: str, out: Path, *more: str) -> Done:
    return qvl_sft("train", "tiny", *overrides(data, train_on), *more, "--out", str(out))


def test_a_run_learns_and_measures_what_train_on_says(data: Path, tmp_path: Path) -> None:
    losses = {}
    for train_on in ("all", "last"):
        done = train(data, train_on, tmp_path / train_on)
        assert done.code == 0, done.err
        losses[train_on] = json.loads((tmp_path / train_on / "result.json").read_text(encoding="utf-8"))[
            "validation_loss"
        ]
    assert losses["all"] != losses["last"]
    refused = train(data, "all", tmp_path / "last", "train.steps=4")
    assert refused.code == 2
    assert "train_on" in refused.err


def test_none_learns_only_what_is_marked(data: Path, tmp_path: Path) -> None:
    refused = train(data, "none", tmp_path / "refused")
    assert refused.code == 2
    assert "no answer is marked to be learned, and train_on is none" in refused.err
    done = train(data, "none", tmp_path / "run", "data.max_bad=99")
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("train_on", "answers"),
    [("all", {0.5: 8, 1.0: 24}), ("last", {0.5: 8, 1.0: 8}), ("none", {0.5: 8, 1.0: 8})],
)
def test_weights_reach_the_batches(data: Path, train_on: str, answers: dict[float, int]) -> None:
    """An epoch's answers by weight, counted at their <|im_end|>."""
    processor = tiny_processor()
    recipe = load(RECIPE, "tiny", [*overrides(data, train_on), "data.max_bad=99"], "qvl_sft")
    assert isinstance(recipe, SFTRecipe)
    batches = chat_batches(recipe, chat_samples(recipe, mixtures(recipe.data)["train"], processor))
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    found: dict[float, int] = {}
    for step in range(4):
        for micro in batches.build(batches.plan(step, 0, 1)):
            batch = micro.batch
            weights = [1.0] * batch.count if batch.weights is None else batch.weights.tolist()
            for target, weight in zip(batch.targets.tolist(), weights, strict=True):
                found[weight] = found.get(weight, 0) + (target == end)
    assert found == answers
