"""Tasks from folders, and the micro-batches of a step: the same slots however they are dealt, resumed to the bit."""

import hashlib
import json
import pickle
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edit_rows import task

from qvl_core.errors import BadInput
from qvl_core.recipe.blocks import Data
from qvl_core.training.parts import Micro
from qvl_data import media
from qvl_data.sample import Sample
from qvl_data.sources import mixtures
from qvl_edit.batch import EditBatch
from qvl_edit.geometry import Geometry
from qvl_edit.mixture import Mixture
from qvl_edit.packing import Grid
from qvl_edit.questions import sources_of, target_of
from qvl_edit.slots import Corruption, EditBatches, Reading
from qvl_edit.stored import content
from qvl_edit.tasks import Tasks, expanded, tasks_of
from qvl_edit.texts import directed
from qvl_edit.times import Shift

WIDTH = 8
A, B = (0, 1, 1, 1, 2, 1), (1, 2, 1)


def told(sample: Sample, pictures: Sequence[int], text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A token, and as many as the text has letters; different for different pictures and texts."""
    asked = f"{[sample.media[index].path or sample.media[index].origin for index in pictures]} {text}"
    seed = int.from_bytes(hashlib.sha256(asked.encode()).digest()[:4], "big")
    tokens = torch.from_numpy(np.random.default_rng(seed).standard_normal((len(text) + 1, WIDTH), dtype=np.float32))
    return tokens[:1], tokens[1:]


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    """A folder of two tasks."""
    task(tmp_path / "meta" / "a", A)
    task(tmp_path / "meta" / "b", B)
    return tmp_path / "meta"


def opened(source: Any) -> Tasks:
    return tasks_of(mixtures(expanded(Data.model_validate({"train": source})))["train"])


def batches(
    meta: Path, size: int = 8, sources: Mapping[int, float] | None = None, micro: int | None = None, **more: Any
) -> EditBatches:
    tasks = opened(str(meta))
    corruption = Corruption(channels=12, grid=Grid(2), shift=Shift())
    reading = Reading(
        told, WIDTH, Geometry(area=64 * 64, vl_area=64 * 64, step=16), corruption, more.pop("inverse", True)
    )
    return EditBatches(tasks, Mixture(tasks.sources, size, seed=0, sources=sources), reading, micro=micro, **more)


def built(made: EditBatches, step: int, world: int = 1) -> list[list[Micro]]:
    """The micro-batches of each process."""
    return [made.build(made.plan(step, rank, world)) for rank in range(world)]


def slots(micros: Sequence[Micro]) -> list[tuple[str, bytes]]:
    """What is learned of each sample: its name and all numbers, without padding."""
    found = []
    for micro in micros:
        batch = micro.batch
        assert isinstance(batch, EditBatch)
        for at in np.flatnonzero(batch.shares).tolist():
            said = batch.told[at] if batch.told_mask is None else batch.told[at][batch.told_mask[at]]
            parts = [*(part[at] for part in batch.pictures), said, batch.noise[at], batch.levels[at]]
            digest = b"".join(part.numpy().tobytes() for part in parts)
            found.append((micro.samples[at], hashlib.sha256(digest).digest()))
    return sorted(found)


def test_a_plan_reads_no_whole_row(meta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process plans the slots of all; pictures that lie in rows are read where they are learned."""
    made = batches(meta)
    monkeypatch.setattr(type(made.tasks.mixture), "sample", lambda self, item: pytest.fail("read"))
    assert sum(map(len, made.plan(0, 0, 1).forwards)) == 8


def test_files_that_are_listed_apart_are_tasks_apart(meta: Path) -> None:
    """Whatever lies beside them."""
    task(meta / "c", A)
    (meta / "c" / "rows.jsonl").rename(meta / "c" / "one.jsonl")
    (meta / "c" / "two.jsonl").write_bytes((meta / "c" / "one.jsonl").read_bytes())
    assert set(opened(str(meta)).numbers) == {"a", "b", "c"}
    assert set(opened([str(meta / "c" / "one.jsonl"), str(meta / "c" / "two.jsonl")]).numbers) == {"one", "two"}
    assert len(opened(str(meta)).numbers["c"]) == 2 * len(A)


def test_each_subfolder_of_a_folder_of_tasks_is_a_task(meta: Path) -> None:
    tasks = opened(str(meta))
    assert {name: found.tolist() for name, found in tasks.sources.items()} == {"a": list(A), "b": list(B)}
    sample = tasks.mixture.sample(tasks.item("b", 1))
    assert sample.edit is not None
    assert sample.edit.instruction["en"] == "b 1"
    assert sample.opener.open(sample.media[0]).size == (80, 48)


def test_embeddings_beside_the_tasks_are_no_task(meta: Path) -> None:
    (meta / "embeddings" / "shards").mkdir(parents=True)
    for name in ("store.json", "left_out.jsonl"):  # as `qvl-edit extract` leaves them
        (meta / "embeddings" / name).write_text("", encoding="utf-8")
    assert set(opened(str(meta)).sources) == {"a", "b"}


def test_several_files_of_a_task_are_one_task(meta: Path) -> None:
    for name in ("rank_000", "rank_001"):
        task(meta / name, [1])
        (meta / name / "rows.jsonl").rename(meta / "a" / f"{name}.jsonl")
    assert len(opened(str(meta)).sources["a"]) == len(A) + 2


def test_two_tasks_of_one_name_are_refused(meta: Path, tmp_path: Path) -> None:
    shutil.copy(meta / "b" / "rows.jsonl", tmp_path / "a.jsonl")
    task(tmp_path / "other" / "a", (1,))
    for other in ("a.jsonl", "other"):
        with pytest.raises(BadInput, match=r"are both the task a; rename one of them"):
            opened([str(meta), str(tmp_path / other)])


def test_rows_that_cannot_be_read_are_left_out_and_told_once(meta: Path) -> None:
    rows = meta / "a" / "rows.jsonl"
    lines = rows.read_text("utf-8").splitlines()
    lines[1:3] = ["{broken", json.dumps({"target_image": 3})]
    rows.write_text("\n".join(lines) + "\n", encoding="utf-8")
    made = batches(meta)
    assert made.tasks.sources["a"].tolist() == [A[0], *A[3:]]
    assert made.tasks.mixture.sample(made.tasks.item("a", 1)).edit.instruction["en"] == "a 3"  # type: ignore[union-attr]
    told = [[one.id for micro in hand for one in micro.bad] for step in range(3) for hand in built(made, step, 2)]
    assert [[at.rsplit(":")[-1] for at in ids] for ids in told] == [["2", "3"], [], [], [], [], []]
    assert sum(micro.count for hand in built(made, 0, 2) for micro in hand) == 8
    rows.write_text("{broken\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"no row of the task a can be read: .*rows.jsonl:1"):
        opened(str(meta))


def test_any_other_source_is_a_task_by_its_name(meta: Path) -> None:
    tasks = opened([str(meta / "a" / "rows.jsonl"), {"source": str(meta / "b"), "split": "rows"}])
    assert sorted(map(len, tasks.sources.values())) == [3, 6]
    assert set(tasks.sources) == {"rows", "b"}


@pytest.mark.parametrize("sources", [None, {1: 1.0}, {2: 1.0}, {0: 1.0}])
def test_a_step_is_the_same_set_for_any_processes_and_micro_batches(
    meta: Path, sources: Mapping[int, float] | None
) -> None:
    for step in range(4):
        whole = slots(built(batches(meta, sources=sources), step)[0])
        assert len(whole) == 8
        for micro, world in ((8, 1), (4, 2), (1, 8), (None, 2), (2, 3)):
            hands = built(batches(meta, sources=sources, micro=micro), step, world)
            assert slots([one for hand in hands for one in hand]) == whole
            assert len({len(hand) for hand in hands}) == 1
            assert sum(one.count for hand in hands for one in hand) == 8


def test_a_micro_batch_is_of_one_bucket(meta: Path) -> None:
    made = batches(meta, size=16)
    for step in range(6):
        for micro in built(made, step)[0]:
            batch = micro.batch
            assert isinstance(batch, EditBatch)
            assert {tuple(part.shape[2:]) for part in batch.pictures[:1]} == {batch.bucket.target}
            assert [tuple(part.shape[2:]) for part in batch.pictures] == list(batch.bucket.sizes)
            assert batch.noise.shape[1:] == (batch.bucket.target[0] * batch.bucket.target[1] // 16, 48)
            assert micro.tokens == sum(h * w // 16 for h, w in batch.bucket.sizes) * micro.count


def test_a_step_is_a_function_of_its_number(meta: Path) -> None:
    made = batches(meta)
    first = [slots(built(made, step)[0]) for step in range(5)]
    again = pickle.loads(pickle.dumps(batches(meta)))
    assert [slots(built(again, step)[0]) for step in (4, 2)] == [first[4], first[2]]
    assert len({digest for step in first for _, digest in step}) == 40


def test_a_way_back_exchanges_pictures_and_texts(meta: Path) -> None:
    made = batches(meta, sources={1: 1.0}, dropout=0.5)
    seen = Counter()
    for step in range(12):
        for wanted in made.plan(step, 0, 1).forwards:
            for one in wanted:
                sample = made.tasks.mixture.sample(made.tasks.item(*one.draw))
                example = made.example(step, one)
                source, target = (sample.media[index].path for index in (0, 1))
                texts = sample.edit.inverse if one.choice.text.inverse else sample.edit.instruction  # type: ignore[union-attr]
                assert texts is not None
                said = "" if one.choice.left_out else texts[one.choice.text.language]
                seen_picture = 1 if one.choice.text.inverse else 0
                assert all(map(torch.equal, example.told, told(sample, (seen_picture,), said)))
                assert source != target
                seen[one.choice.text.inverse, one.choice.left_out] += 1
    assert len(seen) == 4
    alone = batches(meta, sources={1: 1.0}, inverse=False)
    forwards = [one for step in range(12) for forward in alone.plan(step, 0, 1).forwards for one in forward]
    assert not any(one.choice.text.inverse for one in forwards)


def test_a_picture_is_read_once_for_what_it_shows_and_what_is_known_of_it(
    meta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[bytes] = []

    def told_by_file(sample: Sample, pictures: Sequence[int], text: str) -> tuple[torch.Tensor, ...]:
        known.extend(content(sample, pictures))
        return told(sample, pictures, text)

    made = batches(meta)
    made = replace(made, reading=replace(made.reading, told=told_by_file))
    (forward, *_) = made.plan(0, 0, 1).forwards
    opened: list[str] = []
    open_one = media._file
    monkeypatch.setattr(media, "_file", lambda one, *roots: opened.append(one.path) or open_one(one, *roots))
    for wanted in forward:
        known.clear(), opened.clear()
        sample = made.sample(wanted.draw)
        made.example(0, wanted)
        assert sorted(filter(None, opened)) == sorted({one.path for one in sample.media})
        _, sources = directed(wanted.choice.text, target_of(sample), sources_of(sample))
        assert known == [*content(sample, sources)]


def test_bad_samples_are_left_out_and_named_once(meta: Path) -> None:
    rows = (meta / "b" / "rows.jsonl").read_text("utf-8").splitlines()
    said = json.loads(rows[0])
    rows[0] = json.dumps(said | dict.fromkeys(("instruction", "instruction_cn"), "") | {"inverse_instruction": ""})
    rows[2] = json.dumps(json.loads(rows[2]) | {"target_image": "none.png"})
    rows[0] = json.dumps(json.loads(rows[0]) | {"inverse_instruction_cn": None})
    (meta / "b" / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    damaged = meta / "a" / "003-1.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    for world in (1, 2):
        reasons = Counter()
        for step in range(12):
            hands = built(batches(meta, sources={1: 1.0}), step, world)
            assert len({sum(one.batch is not None for one in hand) for hand in hands}) == 1
            bad = [one for hand in hands for micro in hand for one in micro.bad]
            assert sum(micro.count for hand in hands for micro in hand) + len(bad) == 8
            reasons.update(one.reason for one in bad)
            assert all("rows.jsonl:" in one.id for one in bad)
        assert set(reasons) == {"no_instruction", "media_missing", "image_truncated"}


def test_epochs_are_of_what_is_drawn_from(meta: Path) -> None:
    from qvl_core.recipe.blocks import Train

    made = batches(meta, sources={1: 1.0}, size=4)
    assert len(made.mixture) == 6
    assert made.steps_of(Train(epochs=2)) == 3
    assert made.steps_of(Train(epochs=2, steps=2)) == 2
    assert made.steps_of(Train(steps=9)) == 9
