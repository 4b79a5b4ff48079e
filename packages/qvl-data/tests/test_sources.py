import json
import pickle
import shutil
import time
from collections import Counter

import pytest

from qvl_core.errors import BadInput
from qvl_core.recipe.blocks import Source
from qvl_data.convert import write_samples
from qvl_data.errors import BadSample
from qvl_data.sources import Item, Mixture, read_sources, shared

from .chats import build, picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three data sets of 40, 25 and 7 samples; the answers are the numbers."""
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("a", 40), ("b", 25), ("c", 7)):
        for split in ("train", "test"):
            chats = (build(("user", picture(16, 16, i)), ("assistant", str(i)), id=f"{name}{i}") for i in range(count))
            write_samples(chats, folder / name / f"{split}.parquet")
    return folder


def mixture(folder, *sources):
    return Mixture([Source(source=str(folder / name), **options) for name, options in sources])


def drawn(mix, seed, positions):
    return [mix.locate(seed, position) for position in positions]


def test_an_epoch_of_whole_sources_is_a_permutation(folder):
    mix = mixture(folder, ("a", {}), ("b", {}), ("c", {}))
    assert len(mix) == 72
    epochs = [drawn(mix, 5, range(e * 72, e * 72 + 72)) for e in range(3)]
    for epoch in epochs:
        assert {(item.source, item.index) for item in epoch} == {
            (s, i) for s, n in enumerate((40, 25, 7)) for i in range(n)
        }
    assert len({tuple((i.source, i.index) for i in epoch) for epoch in epochs}) == 3
    assert [item.pass_number for item in epochs[2]] == [2] * 72
    assert drawn(mix, 6, range(72)) != epochs[0]
    sources = [item.source for item in epochs[0]]
    assert len(set(sources[:12])) == 3  # shuffled among one another


def test_weights_count_draws_and_cycle_without_replacement(folder):
    mix = mixture(folder, ("a", {"weight": 0.3}), ("b", {"weight": 2}), ("c", {"weight": 1.5}))
    assert len(mix) == 12 + 50 + 10
    first = Counter(item.source for item in drawn(mix, 0, range(72)))
    assert first == {0: 12, 1: 50, 2: 10}
    assert set(Counter(i.index for i in drawn(mix, 0, range(72)) if i.source == 1).values()) == {2}
    # ten epochs of source a are 120 draws: each of its 40 samples exactly three times
    many = Counter(item.index for item in drawn(mix, 0, range(720)) if item.source == 0)
    assert set(many.values()) == {3}
    # and no sample comes again before all others came
    passes = Counter((item.pass_number, item.index) for item in drawn(mix, 0, range(720)) if item.source == 2)
    assert set(passes.values()) == {1}


def test_subsets_are_fixed_random_choices(folder):
    takes = [{item.index for item in mixture(folder, ("a", {"take": 10})).items()} for _ in range(2)]
    assert takes[0] == takes[1]
    assert takes[0] != set(range(10))
    mix = mixture(folder, ("a", {"take": 10}))
    for seed in (0, 1):
        assert {item.index for item in drawn(mix, seed, range(10))} == takes[0]
    more = {item.index for item in mixture(folder, ("a", {"percent": 50})).items()}
    assert len(more) == 20
    assert takes[0] < more  # a smaller choice is part of a larger one
    assert len(mixture(folder, ("c", {"percent": 1}))) == 1
    assert list(mixture(folder, ("a", {"percent": 100})).items()) == list(mixture(folder, ("a", {})).items())
    with pytest.raises(BadInput, match=r"train\.parquet: take 41 of only 40 samples"):
        mixture(folder, ("a", {"take": 41}))


def test_above_100_percent_is_a_weight(folder):
    over = mixture(folder, ("a", {"percent": 250}), ("b", {}))
    same = mixture(folder, ("a", {"weight": 2.5}), ("b", {}))
    assert len(over) == 125
    assert drawn(over, 4, range(300)) == drawn(same, 4, range(300))
    assert mixture(folder, ("a", {"percent": 250, "weight": 0.2})).draws == (20,)


def test_a_weight_that_draws_nothing_is_refused(folder):
    with pytest.raises(BadInput, match=r"weight 0\.01 of 7 samples is less than one .* make it at least 0\.071429"):
        mixture(folder, ("c", {"weight": 0.01}))
    assert mixture(folder, ("c", {"weight": 0.071429})).draws == (1,)


def test_parts_are_carved_from_the_only_split_without_overlap(folder):
    file = folder / "a" / "train.parquet"
    lists = {
        name: Mixture(f"'{file}'[train:20,test:5,validation:15]", name) for name in ("train", "validation", "test")
    }
    chosen = {name: {item.index for item in mix.items()} for name, mix in lists.items()}
    assert {name: len(indices) for name, indices in chosen.items()} == {"train": 20, "validation": 15, "test": 5}
    assert len(set.union(*chosen.values())) == 40
    assert chosen["train"] != set(range(20))
    assert shared(lists) == []
    again = Mixture(f"'{file}'[validation:15,test:5,train:20]", "test")  # the order of writing does not matter
    assert {item.index for item in again.items()} == chosen["test"]
    assert {item.index for item in drawn(lists["test"], 1, range(50))} == chosen["test"]
    with pytest.raises(BadInput, match=r"train\.parquet: 30 train \+ 11 test of only 40 samples; lower the parts"):
        Mixture(f"'{file}'[train:30,test:11]", "train")
    with pytest.raises(BadInput, match="has no part for the list test; add test:COUNT"):
        Mixture(f"'{file}'[train:30]", "test")


def test_parts_of_a_folder_with_one_split_are_carved_from_it(folder, tmp_path):
    shutil.copy(folder / "b" / "train.parquet", tmp_path / "all.parquet")
    lists = {name: Mixture(f"'{tmp_path}'[train:20,test:5]", name) for name in ("train", "test")}
    assert [len(mix) for mix in lists.values()] == [20, 5]
    assert shared(lists) == []


def test_parts_come_from_the_splits_where_there_are_such(folder, tmp_path):
    lists = {name: Mixture(f"'{folder / 'a'}'[train:10,test:40]", name) for name in ("train", "test")}
    assert [mix.datasets[0].file.stem for mix in lists.values()] == ["train", "test"]
    assert [len(mix) for mix in lists.values()] == [10, 40]
    with pytest.raises(BadInput, match=r"test\.parquet: 41 test of only 40 samples"):
        Mixture(f"'{folder / 'a'}'[train:10,test:41]", "test")
    with pytest.raises(BadInput, match='no split "validation", and which of test, train it should be carved from'):
        Mixture(f"'{folder / 'a'}'[train:10,validation:5]", "train")
    for name in ("train", "dev"):
        shutil.copy(folder / "a" / "train.parquet", tmp_path / f"{name}.parquet")
    assert Mixture(f"'{tmp_path}'[train:10,validation:5]", "validation").datasets[0].file.stem == "dev"


def test_samples_that_two_lists_share_are_found(folder):
    def lists(train, test):
        return {"train": Mixture(train, "train"), "test": Mixture(test, "test")}

    file = f"'{folder / 'a' / 'train.parquet'}'"
    found = folder / "a" / "train.parquet"
    assert shared(lists(file, file)) == [f"{found}: 40 samples are in train and in test"]
    assert shared(lists(f"{file}%50", f"{file}%25")) == [f"{found}: 10 samples are in train and in test"]
    again = f"'{folder / 'b' / '..' / 'a' / 'train.parquet'}'"
    assert shared(lists(file, again)) == [f"{found}: 40 samples are in train and in test"]
    assert shared(lists(f"{file}[train:30]", f"{file}[test:10]")) == [f"{found}: 10 samples are in train and in test"]
    assert shared(lists(f"'{folder / 'a'}'", f"'{folder / 'a'}'")) == []


def test_text_names_sources(folder):
    a, b = folder / "a", folder / "b"
    mix = Mixture(f"0.5*'{a}' + '{b}'[test]%20", "train")
    assert mix.draws == (20, 5)
    assert [dataset.file for dataset in mix.datasets] == [a / "train.parquet", b / "test.parquet"]
    assert read_sources("a%50 + b", "c") == [
        Source(source="a", percent=50), Source(source="b"), Source(source="c")
    ]  # fmt: skip
    with pytest.raises(BadInput, match="position 3"):
        Mixture("a%")


@pytest.mark.parametrize("sizes", [[10**7], [6 * 10**6, 3 * 10**6, 10**6]])
def test_ten_million_rows_open_and_resume_anywhere_at_once(sizes, monkeypatch):
    """No row is touched: neither when the mixture is made nor when a position is located."""
    monkeypatch.setattr("qvl_data.dataset.data_files", lambda path, split: (path,))
    monkeypatch.setattr("qvl_data.dataset.open_rows", lambda path: Synthetic(int(path.name)))
    started = time.process_time()
    mix = Mixture([Source(source=str(size), weight=1.5) for size in sizes])
    for position in (0, 10**7 - 1, 10**9, 10**12):
        assert 0 <= mix.locate(7, position).index < max(sizes)
    items = [mix.locate(7, position) for position in range(10**9, 10**9 + 2000)]
    assert time.process_time() - started < 1
    assert len({(item.source, item.index) for item in items}) > 1990
    assert sum(item.source == 0 for item in items) == pytest.approx(2000 * sizes[0] / 10**7, abs=100)
    assert mix.item(10**7 - 1) == Item(len(sizes) - 1, sizes[-1] - 1)


class Synthetic:
    """So many rows, none of which is ever read."""

    format = "qvl"

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count


def test_locate_is_pure_and_survives_pickling(folder):
    mix = mixture(folder, ("a", {"weight": 0.3}), ("b", {}))
    positions = [0, 5, 36, 37, 10**9]
    assert drawn(mix, 3, positions) == drawn(pickle.loads(pickle.dumps(mix)), 3, positions)
    assert drawn(mix, 3, [37]) == drawn(mixture(folder, ("a", {"weight": 0.3}), ("b", {})), 3, [37])


def test_blocks_and_single_positions_are_the_same_order(folder):
    mix = mixture(folder, ("a", {"weight": 0.3}), ("b", {"percent": 40}), ("c", {"percent": 150}))
    alone = [mix._located(9, position) for position in range(3000)]
    assert drawn(mix, 9, range(3000)) == alone  # the first of each block by itself, the others from it
    assert mix.located(9, range(3000)) == alone
    scattered = [position * 7919 % 3000 for position in range(3000)]
    assert drawn(
        mixture(folder, ("a", {"weight": 0.3}), ("b", {"percent": 40}), ("c", {"percent": 150})), 9, scattered
    ) == [alone[position] for position in scattered]


def test_items_are_every_sample_once_in_order(folder):
    mix = mixture(folder, ("b", {"weight": 3}), ("c", {"augment": {"shift": 2}}))
    items = list(mix.items())
    assert items == [Item(0, i) for i in range(25)] + [Item(1, i) for i in range(7)]
    sample = mix.sample(items[-1])
    assert sample.opener.augmentation is None


def test_shift_is_a_function_of_seed_pass_and_sample(folder):
    mix = mixture(folder, ("a", {"augment": {"shift": 5}}), ("b", {}))

    def pixels(item):
        sample = mix.sample(item)
        return sample.opener.open(sample.media[0]).tobytes()

    item = Item(0, 3, pass_number=0, seed=1)
    assert pixels(item) == pixels(Item(0, 3, pass_number=0, seed=1))
    others = [Item(0, 3, pass_number=e, seed=s) for e in range(4) for s in range(4)]
    assert len({pixels(other) for other in others}) > 8
    plain = Item(1, 3, pass_number=0, seed=1)
    assert pixels(plain) == pixels(Item(1, 3))


def test_splits_of_lists_and_sources(folder):
    validation = Mixture([Source(source=str(folder / "a"))], default_split="test")
    assert validation.datasets[0].file.name == "test.parquet"
    named = Mixture([Source(source=str(folder / "a"), split="test")])
    assert named.datasets[0].file.name == "test.parquet"
    file = Mixture([Source(source=str(folder / "a" / "test.parquet"))], default_split="validation")
    assert len(file) == 40
    with pytest.raises(BadInput, match='no split "validation"; available: test, train'):
        Mixture([Source(source=str(folder / "a"))], default_split="validation")
    with pytest.raises(BadInput, match=r"data\.test: no sources; name at least one"):
        Mixture([], default_split="test")


def test_fingerprint_is_the_content_of_the_files(folder, tmp_path):
    def written(text, name="x.jsonl"):
        row = {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "b"}]}
        (tmp_path / name).write_text(json.dumps(row))
        return Mixture([Source(source=str(tmp_path / name))]).fingerprint()

    first = written("a")
    assert len(first) == 64
    assert written("a", "y.jsonl") == first  # the name does not matter
    assert written("b") != first
    ab, ba = mixture(folder, ("a", {}), ("b", {})), mixture(folder, ("b", {}), ("a", {}))
    assert ab.fingerprint() != ba.fingerprint()


def test_fingerprint_sees_an_edit_of_the_same_length_anywhere(tmp_path):
    line = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}) + "\n"
    file = tmp_path / "x.jsonl"
    file.write_text(line * 1000)
    first = Mixture([Source(source=str(file))]).fingerprint()
    file.write_text(line * 500 + line.replace("b", "c") + line * 499)
    assert Mixture([Source(source=str(file))]).fingerprint() != first


def test_fingerprint_of_a_large_parquet_file_sees_all_but_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr("qvl_data.dataset.WHOLE_BYTES", 0)

    def fingerprint(name, answer="5", seed=5):
        seeds = [*range(5), seed, *range(6, 300)]
        chats = [build(("user", picture(8, 8, s)), ("assistant", str(i)), id=str(i)) for i, s in enumerate(seeds)]
        chats[5] = build(("user", picture(8, 8, seed)), ("assistant", answer), id="5")
        write_samples(chats, tmp_path / name)
        return Mixture([Source(source=str(tmp_path / name))]).fingerprint(), (tmp_path / name).stat().st_size

    first, size = fingerprint("a.parquet")
    assert fingerprint("b.parquet") == (first, size)
    assert fingerprint("c.parquet", answer="6")[0] != first
    assert fingerprint("d.parquet", seed=300) == (first, size)  # as long, and not seen
    monkeypatch.undo()
    assert fingerprint("e.parquet", seed=300)[0] != fingerprint("f.parquet")[0]


def test_a_bad_sample_is_raised_not_replaced(tmp_path):
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "x.jsonl").write_text(json.dumps(good) + "\nnot json\n")
    mix = Mixture([Source(source=str(tmp_path / "x.jsonl"))])
    with pytest.raises(BadSample, match=r"x\.jsonl:2: not valid JSON"):
        mix.sample(Item(0, 1))
