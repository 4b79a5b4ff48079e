import json
import pickle
from collections import Counter

import pytest

from qvl_core.errors import BadInput
from qvl_core.recipe.blocks import Source
from qvl_data.convert import write_samples
from qvl_data.errors import BadSample
from qvl_data.sources import Item, Mixture

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
    with pytest.raises(BadInput, match=r"train\.parquet: take 41 of only 40 samples"):
        mixture(folder, ("a", {"take": 41}))


def test_locate_is_pure_and_survives_pickling(folder):
    mix = mixture(folder, ("a", {"weight": 0.3}), ("b", {}))
    positions = [0, 5, 36, 37, 10**9]
    assert drawn(mix, 3, positions) == drawn(pickle.loads(pickle.dumps(mix)), 3, positions)
    assert drawn(mix, 3, [37]) == drawn(mixture(folder, ("a", {"weight": 0.3}), ("b", {})), 3, [37])


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
    monkeypatch.setattr("qvl_data.sources.WHOLE_BYTES", 0)

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
