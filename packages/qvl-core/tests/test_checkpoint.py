"""Checkpoint folders: whole or absent, and every damage noticed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qvl_core.errors import BadInput, QVLError
from qvl_core.training import checkpoint

IDENTITY = {"optim": {"lr": 1e-3, "betas": [0.9, 0.99]}, "data": [{"source": "a", "weight": 1.0}]}
TENSORS = {
    "weights": {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.tensor([1.5])},
    "optimizer": {"a/exp_avg": torch.ones(2, 3), "a/step": torch.tensor(3.0)},
}


def save(folder: Path, step: int = 1, tensors: dict[str, Any] = TENSORS) -> Path:
    named = {kind: iter(entries.items()) for kind, entries in tensors.items()}
    return checkpoint.save(folder, step, tensors=named, state={"x": 0.1, "名": "é"}, identity=IDENTITY, base="none")


def equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_round_trip(tmp_path: Path) -> None:
    found = checkpoint.read(save(tmp_path, 12))
    assert found.path.name == "step-000012"
    assert (found.step, found.base, found.identity, found.state) == (12, "none", IDENTITY, {"x": 0.1, "名": "é"})
    assert equal(found.weights(), TENSORS["weights"])
    assert equal(found.optimizer(), TENSORS["optimizer"])
    assert [path.name for path in tmp_path.iterdir()] == ["step-000012"]


def test_no_tensors_yet(tmp_path: Path) -> None:
    found = checkpoint.read(save(tmp_path, tensors={"weights": {}, "optimizer": {}}))
    assert found.weights() == found.optimizer() == {}


def test_large_tensors_are_spread_over_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 100)
    tensors = {f"t{index}": torch.full((10,), float(index)) for index in range(7)}  # 40 bytes each
    found = checkpoint.read(save(tmp_path, tensors={"weights": tensors, "optimizer": {}}))
    assert [name for name in found.files if name.startswith("weights")] == [
        f"weights-{index:05d}.safetensors" for index in range(4)
    ]
    assert equal(found.weights(), tensors)


def test_nothing_is_pickled(tmp_path: Path) -> None:
    assert {path.suffix for path in save(tmp_path).iterdir()} == {".safetensors", ".json"}


def test_any_flipped_bit_of_the_manifest_is_noticed(tmp_path: Path) -> None:
    file = save(tmp_path) / "manifest.json"
    content = file.read_bytes()
    for place in range(len(content) * 8):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        file.write_bytes(damaged)
        with pytest.raises(QVLError, match=r"manifest\.json: "):
            checkpoint.read(file.parent)
    file.write_bytes(content)
    checkpoint.read(file.parent)


def test_any_cut_of_the_manifest_is_noticed(tmp_path: Path) -> None:
    file = save(tmp_path) / "manifest.json"
    content = file.read_bytes()
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(QVLError, match=r"manifest\.json: "):
            checkpoint.read(file.parent)
    file.write_bytes(content + b"\n")
    with pytest.raises(QVLError, match=r"manifest\.json: "):
        checkpoint.read(file.parent)


def test_a_manifest_of_another_format_is_said(tmp_path: Path) -> None:
    file = save(tmp_path) / "manifest.json"
    file.write_text(file.read_text(encoding="utf-8").replace("checkpoint/1", "checkpoint/2"), encoding="utf-8")
    with pytest.raises(QVLError, match=r"schema is .qvl\.checkpoint/2., expected .qvl\.checkpoint/1."):
        checkpoint.read(file.parent)


def test_saving_again_replaces_a_damaged_checkpoint(tmp_path: Path) -> None:
    (save(tmp_path) / "state.json").unlink()
    checkpoint.read(save(tmp_path))
    assert [path.name for path in tmp_path.iterdir() if path.name != "step-000001"] in ([], [".step-000001.removed"])
    checkpoint.tidy(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_a_failed_save_leaves_nothing_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    before = save(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "_written", full)
    with pytest.raises(QVLError, match=r"step-000002: .*No space left.*free some disk space") as error:
        save(tmp_path, 2)
    assert error.value.exit_code == 1
    assert list(tmp_path.iterdir()) == [before]


def test_newest_of_nothing(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) == (None, [])
    assert checkpoint.newest(tmp_path / "absent") == (None, [])


def test_newest_orders_by_number_and_ignores_other_names(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000, 5):
        save(tmp_path, step)
    (tmp_path / "step-latest").mkdir()
    (tmp_path / ".step-2000000.partial").mkdir()
    found, skipped = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.step, skipped) == (1_000_000, [])


@given(
    steps=st.sets(st.integers(1, 30), min_size=1, max_size=8),
    keep=st.integers(1, 4),
    best=st.none() | st.integers(1, 30),
    data=st.data(),
)
def test_prune_keeps_the_newest_and_the_best(
    tmp_path_factory: pytest.TempPathFactory, steps: set[int], keep: int, best: int | None, data: st.DataObject
) -> None:
    folder, step = tmp_path_factory.mktemp("checkpoints"), data.draw(st.sampled_from(sorted(steps)))
    for other in steps:
        (folder / f"step-{other:06d}").mkdir()
    (folder / ".step-000001.partial").mkdir()
    checkpoint.prune(folder, step, keep, best)
    expected = set(sorted(other for other in steps if other <= step)[-keep:]) | ({best} & steps)
    assert sorted(path.name for path in folder.iterdir()) == [f"step-{other:06d}" for other in sorted(expected)]


def test_the_same_run_is_the_same_after_json(tmp_path: Path) -> None:
    live = {"optim": {"lr": 0.001, "betas": (0.9, 0.99)}, "data": ({"source": "a", "weight": 1},)}
    checkpoint.same_run(checkpoint.read(save(tmp_path)).identity, live, tmp_path)


def test_another_run_names_every_difference(tmp_path: Path) -> None:
    now = {"optim": {"lr": 2e-3, "betas": [0.9, 0.99]}, "data": [*IDENTITY["data"], {"source": "b"}], "seed": 1}
    with pytest.raises(BadInput) as error:
        checkpoint.same_run(IDENTITY, now, tmp_path)
    told = "(data.1.source was absent, is b; optim.lr was 0.001, is 0.002; seed was absent, is 1)"
    assert told in str(error.value)
