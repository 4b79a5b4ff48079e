"""Tensors by key: what was written is found to the bit, however it is split and after any kill; damage is seen."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from harness import child
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qvl_core.errors import BadInput, QVLError
from qvl_core.testing import operations
from qvl_core.training import store as stores
from qvl_core.training.store import Store

ABOUT = {"size": 8, "dtype": "bfloat16"}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool]
begin = partial(Store.begin, about=ABOUT, fix="choose another")
opened = partial(Store.open, about=ABOUT, fix="choose another")


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def value(number: int, rows: int = 2, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(rows, 3, 4, generator=torch.Generator().manual_seed(number)).to(dtype)


def fill(folder: Path, shards: Sequence[Sequence[int]], **how: int) -> Store:
    """A store in which shard n has these numbers' tensors."""
    store = begin(folder)
    for index, numbers in enumerate(shards):
        store.write(f"{index:03d}", {key(number): value(number, **how) for number in numbers}, {"shard": str(index)})
    return opened(folder)


# What is found


@settings(max_examples=30)
@given(
    st.lists(
        st.dictionaries(
            st.binary(min_size=2, max_size=2).map(lambda end: end[:1] + bytes(30) + end[1:]),  # zeros also at the end
            st.tuples(st.integers(0, 99), st.integers(0, 3)),
            max_size=6,
        ),
        max_size=5,
    ),
    st.sampled_from(DTYPES),
)
def test_what_was_written_is_found_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, shards: list[dict[bytes, tuple[int, int]]], dtype: torch.dtype
) -> None:
    folder = tmp_path_factory.mktemp("store") / "new"
    store = begin(folder)
    wanted: dict[bytes, Tensor] = {}
    for number, shard in enumerate(shards):
        entries = {name: value(seed, rows, dtype) for name, (seed, rows) in shard.items()}
        store.write(f"{number}", entries)
        wanted = entries | wanted  # the first shard's stays
    store = pickle.loads(pickle.dumps(opened(folder)))
    assert len(store) == len(wanted)
    for name, tensor in wanted.items():
        found = store.get(name)
        assert found is not None
        assert found.dtype == dtype
        assert torch.equal(found, tensor)
    for other in (bytes(32), b"\xff" * 32, key(0), *(name[:31] + bytes([name[31] ^ 1]) for name in wanted)):
        assert (other in store) == (other in wanted)


def test_shards_make_no_difference_and_those_that_come_later_are_seen(tmp_path: Path) -> None:
    one, many = fill(tmp_path / "one", [range(9)]), fill(tmp_path / "many", [[8, 3], [], [0, 1, 2, 4, 5, 6], [7]])
    for number in range(9):
        assert torch.equal(one.get(key(number)), many.get(key(number)))  # type: ignore[arg-type]
    assert (len(one), many.shards(), many.notes("002")) == (9, ["000", "001", "002", "003"], {"shard": "2"})
    many.write("late", {key(9): value(9)})
    assert many.get(key(9)) is None  # as it was opened
    assert torch.equal(many.again().get(key(9)), value(9))  # type: ignore[arg-type]
    assert len(list(many.folder.glob("index-*"))) > 1
    many.again().tidy()
    assert len(list(many.folder.glob("index-*"))) == 1
    assert key(9) in opened(many.folder)


def test_a_worker_that_starts_after_others_have_added_and_tidied_finds_what_was_there(tmp_path: Path) -> None:
    sent = pickle.dumps(fill(tmp_path / "store", [[0], [1]]))
    for number in (2, 3):
        store = begin(tmp_path / "store")
        store.write(f"{number:03d}", {key(number): value(number)})
        store.again().tidy()
    late = pickle.loads(sent)
    for number in (0, 1):
        assert torch.equal(late.get(key(number)), value(number))


def test_a_look_up_reads_one_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fill(tmp_path / "store", [range(5), range(5, 9)])
    touched: list[str] = []
    file = Store._file
    monkeypatch.setattr(Store, "_file", lambda self, name: touched.append(name) or file(self, name))
    assert key(6) in store
    assert not touched
    store.get(key(6))
    assert set(touched) == {"001"}


@pytest.mark.parametrize(("limit", "room"), [("MAPPED", 2), ("MAPPED_BYTES", 2 * 3 * 48 + 1)])
def test_shards_that_were_read_from_last_stay_mapped_and_checked_ones_stay_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, room: int
) -> None:
    monkeypatch.setattr(stores, limit, room)
    store = fill(tmp_path / "store", [range(at, at + 3) for at in range(0, 12, 3)])
    mapped: list[str] = []
    checked: list[bytes] = []
    map_one, add_up = Store._map, stores._sum
    monkeypatch.setattr(Store, "_map", lambda self, name: mapped.append(name) or map_one(self, name))
    monkeypatch.setattr(stores, "_sum", lambda name, tensor: checked.append(name) or add_up(name, tensor))
    kept = store.get(key(0))
    for number in (0, 3, 1, 6, 2, 4, 9, 0):
        assert torch.equal(store.get(key(number)), value(number))  # type: ignore[arg-type]
    assert mapped == ["000", "001", "002", "001", "003", "000"]
    assert checked == [key(number) for number in (0, 3, 1, 6, 2, 4, 9)]
    assert torch.equal(kept, value(0))  # type: ignore[arg-type]
    store.get(key(3)), store.get(key(6))  # 003 makes room
    file = store.folder / "shards/003.safetensors"
    data = bytearray(file.read_bytes())
    data[data.index(value(9).view(torch.uint8).numpy().tobytes())] ^= 1
    file.write_bytes(data)
    with pytest.raises(QVLError, match="is not what was written"):  # though it was checked before it changed
        store.get(key(9))


# Whose it is


def test_values_of_another_origin_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "store", [[0]])
    for change, words in ({"size": 16}, "size 8, and this is size 16"), ({"coder": "x"}, "coder None, and this is"):
        for take in (Store.begin, Store.open):
            with pytest.raises(BadInput, match=f"was made with {words}.*; choose another") as caught:
                take(tmp_path / "store", ABOUT | change, "choose another")
            assert "\n" not in str(caught.value)
    begin(tmp_path / "store")


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"has no store\.json that can be read; choose another"):
        opened(tmp_path)
    (tmp_path / "mine.txt").touch()
    for place in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(BadInput, match="holds something else; choose another"):
            begin(place)
    for text in ("{", "[]", '{"about": {}}'):
        (tmp_path / "store.json").write_text(text)
        with pytest.raises(BadInput, match=r"store\.json|was made with"):
            opened(tmp_path)


def test_it_says_what_it_is_told(tmp_path: Path) -> None:
    begin(tmp_path / "store", said={"scale": 0.25})
    assert json.loads((tmp_path / "store/store.json").read_text())["scale"] == 0.25


# What can go wrong


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("sound") / "store", [range(4), range(4, 7)]).folder


@settings(max_examples=150)
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7), st.booleans())
def test_a_damaged_shard_never_gives_another_tensor(sound: Path, where: float, bit: int, cut: bool) -> None:
    file = sound / "shards/000.safetensors"
    whole = file.read_bytes()
    store, at = opened(sound), int(where * len(whole))
    changed = bytearray(whole)
    changed[at] ^= 1 << bit
    try:
        file.write_bytes(whole[:at] if cut else changed)
        for number in range(4):
            with suppress(QVLError):
                found = store.get(key(number))
                assert found is not None
                assert (found.dtype, torch.equal(found, value(number))) == (torch.bfloat16, True)
        assert torch.equal(store.get(key(5)), value(5))  # type: ignore[arg-type]
    finally:
        file.write_bytes(whole)


def test_each_bit_of_a_tensor_counts(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "store")
    file = tmp_path / "store/shards/001.safetensors"
    data = bytearray(file.read_bytes())
    data[data.index(value(5).view(torch.uint8).numpy().tobytes()) + 11] ^= 16
    file.write_bytes(data)
    store = opened(tmp_path / "store")
    with pytest.raises(
        QVLError, match=r"001\.safetensors: is damaged \(what it has of .*remove it and .*, and run the command"
    ):
        store.get(key(5))
    assert torch.equal(store.get(key(4)), value(4))  # type: ignore[arg-type]
    file.unlink()
    assert (key(5) in opened(store.folder), key(0) in opened(store.folder)) == (False, True)


def test_a_damaged_index_is_one_sentence(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "store")
    file = tmp_path / "store" / opened(tmp_path / "store").index
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(QVLError, match=r"index-.*: is damaged .*remove it, and start again"):
        opened(tmp_path / "store").get(key(0))
    file.unlink()
    assert key(0) in opened(tmp_path / "store")


# Kills


SHARDS = [[0, 1, 2], [3], []]


def written(folder: Path, number: int = 0) -> int:
    """Fill a store and index it, but die before file operation `number`; how many there were."""
    with operations(number) as done:
        fill(folder, SHARDS).tidy()
    return len(done)


def sweep(tmp_path: Path, every: int) -> None:
    operations = written(tmp_path / "whole")
    assert operations >= 15
    for number in range(1, operations + 1, every):
        folder = tmp_path / f"{number}"
        assert child(written, folder, number) != 0, number
        if (folder / "store.json").is_file():  # what is there is whole
            store = opened(folder)
            assert all(torch.equal(store.get(key(n)), value(n)) for n in range(4) if key(n) in store)  # type: ignore[arg-type]
        written(folder)
        assert content(folder) == content(tmp_path / "whole"), number
        assert not list((folder / "shards").glob(".*"))


def test_killed_while_writing(tmp_path: Path) -> None:
    sweep(tmp_path, every=6)


@pytest.mark.slow
def test_killed_before_every_file_operation(tmp_path: Path) -> None:
    sweep(tmp_path, every=1)


def content(folder: Path) -> dict[str, bytes]:
    """What readers see."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name[0] != ".")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}
