import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qvl_core.errors import BadInput
from qvl_data.cli import app
from qvl_data.convert import write_samples
from qvl_data.dataset import Dataset
from qvl_data.pack import Packed, Plan, fingerprint, pack, pack_source
from qvl_data.sources import Mixture

from .chats import build, picture
from .killing import check_every_kill


def naive(lengths, capacity):
    """Best-fit decreasing, one item at a time: the load of each bin."""
    loads = []
    for length in sorted(lengths, reverse=True):
        fits = [place for place, load in enumerate(loads) if load + length <= capacity]
        if fits:
            loads[max(fits, key=lambda place: loads[place])] += length
        else:
            loads.append(length)
    return loads


def check(plan, lengths, capacity, media=None, most=None):
    """Every index once, capacity and limit of media kept."""
    assert Counter([*plan.samples.tolist(), *plan.left_out.tolist()]) == Counter(range(len(lengths)))
    assert plan.lengths.tolist() == np.minimum(np.asarray(lengths, int)[plan.samples], capacity).tolist()
    assert np.concatenate([*plan, []]).tolist() == plan.samples.tolist()
    for number, samples in enumerate(plan):
        assert len(samples) > 0
        assert samples.tolist() == sorted(samples.tolist())
        assert plan.loads[number] == sum(min(lengths[sample], capacity) for sample in samples) <= capacity
        if most is not None and len(samples) > 1:
            assert sum(min(media[sample], most) for sample in samples) <= most


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), max_size=80), st.integers(60, 100), st.integers(0, 9))
@example([], 60, 0)
@example([60], 60, 0)
@example([30] * 7, 60, 0)
@example([31] * 7, 60, 0)
@example([1] * 61, 60, 1)
@example([20, 20, 20, 21, 21, 39, 40, 41] * 5, 60, 2)
@example([int(60 * part) for part in (1 / 2, 1 / 3, 1 / 7, 1 / 43) for _ in range(12)], 60, 3)
def test_bins_are_those_of_best_fit_decreasing(lengths, capacity, seed):
    plan = pack(lengths, capacity, seed=seed)
    check(plan, lengths, capacity)
    assert sorted(plan.loads.tolist()) == sorted(naive(lengths, capacity))
    assert plan.least <= len(plan) <= max(plan.least * 2, 1)  # any bin but one is more than half full
    again = pack(lengths, capacity, seed=seed)
    assert (again.samples.tolist(), again.ends.tolist()) == (plan.samples.tolist(), plan.ends.tolist())


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 400)), max_size=60),
    st.integers(1, 300),
    st.sampled_from(["drop", "cut"]),
)
@example([(5, 300)] * 3 + [(5, 0)] * 9, 300, "drop")
@example([(5, 299), (5, 1), (5, 2)], 300, "drop")
def test_media_and_over_long_samples(samples, most, too_long):
    lengths, media = [length for length, _ in samples], [shown for _, shown in samples]
    plan = pack(lengths, 30, too_long=too_long, media=media, max_media=most)
    check(plan, lengths, 30, media, most)
    over = {i for i, (length, shown) in enumerate(samples) if length and (length > 30 or shown > most)}
    unusable = {i for i, (length, _) in enumerate(samples) if not length}
    assert set(plan.left_out.tolist()) == unusable | (over if too_long == "drop" else set())
    if too_long == "cut":
        assert all(len(bin) == 1 for bin in plan if max(lengths[sample] for sample in bin) >= 30)


def test_a_million_lengths():
    """The figures of record are those of benchmarks/packing.py; this only guards them."""
    lengths = np.clip(np.random.default_rng(0).lognormal(6.2, 0.9, 1_000_000), 8, 4096).astype(np.int64)
    started = time.process_time()
    plan = pack(lengths, 4096)
    assert time.process_time() - started < 2
    assert plan.fill >= 0.999
    assert plan.loads.max() <= 4096
    assert np.array_equal(np.sort(plan.samples), np.arange(len(lengths)))


def test_bins_come_in_random_order():
    lengths = np.random.default_rng(1).integers(1, 100, 3000)
    plans = [pack(lengths, 100, seed=seed) for seed in (0, 1)]
    assert plans[0].samples.tolist() != plans[1].samples.tolist()
    assert {tuple(bin) for bin in plans[0]} == {tuple(bin) for bin in plans[1]}
    longest = [int(lengths[bin].max()) for bin in plans[0]]
    assert abs(np.mean(longest[: len(longest) // 2]) - np.mean(longest[len(longest) // 2 :])) < 5


@pytest.mark.parametrize(
    ("lengths", "options", "sentence"),
    [
        ([5, 11, 12], {}, r"sample 1: 11 tokens do not fit into a bin of 10 tokens \(2 samples do not\); raise"),
        ([5, 1], {"media": [9, 1], "max_media": 8}, "sample 0: 9 of at most 8 media do not fit"),
        ([-1], {}, "the lengths must be one list of whole numbers"),
        ([0.5], {}, "the lengths must be one list of whole numbers"),
        ([[1]], {}, "the lengths must be one list of whole numbers"),
        ([1], {"media": [1, 2], "max_media": 8}, "1 lengths, but media of 2 samples"),
        ([1], {"too_long": "own"}, "too_long 'own': must be one of error, drop, cut"),
        ([1], {"max_media": 0, "media": [0]}, "must be at least 1"),
    ],
)
def test_what_cannot_be_packed(lengths, options, sentence):
    with pytest.raises(BadInput, match=sentence):
        pack(lengths, 10, **options)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 60), max_size=80))
def test_a_plan_is_read_back(tmp_path_factory, lengths):
    file = tmp_path_factory.mktemp("plan") / "plan.parquet"
    plan = pack(lengths, 50, too_long="drop")
    plan.save(file)
    found = Plan.read(file)
    for name in ("capacity", "samples", "lengths", "ends", "left_out", "about"):
        assert np.array_equal(getattr(found, name), getattr(plan, name)), name
    before = file.read_bytes()
    plan.save(file)
    assert file.read_bytes() == before


def test_files_that_are_no_plans(tmp_path):
    with pytest.raises(BadInput, match="there is no such plan"):
        Plan.read(tmp_path / "gone.parquet")
    (tmp_path / "text.parquet").write_text("PAR1")
    with pytest.raises(BadInput, match="not a readable plan"):
        Plan.read(tmp_path / "text.parquet")
    write_samples([build(("user", "?"), ("assistant", "x"))], tmp_path / "data.parquet")
    with pytest.raises(BadInput, match="is no plan of qvl-data pack"):
        Plan.read(tmp_path / "data.parquet")
    plan = pack([6, 6], 10)
    Plan(10, plan.samples, plan.lengths, np.array([2]), plan.left_out).save(tmp_path / "over.parquet")
    with pytest.raises(BadInput, match="a bin holds more than its 10 tokens"):
        Plan.read(tmp_path / "over.parquet")


@pytest.fixture
def model(processor):
    """Folder of the tiny model."""
    return Path(processor.tokenizer.name_or_path)


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "train.parquet"
    write_samples(
        (build(("user", picture(32, 32, i), "?" * i), ("assistant", "x" * i), id=f"s{i}") for i in range(1, 30)), file
    )
    return file


def test_a_data_set_is_packed_and_read_back_bin_by_bin(data, tmp_path):
    mixture = Mixture(f"'{data}'%60")
    assert mixture.chosen == 17
    lengths = np.arange(17) + 1
    plan = Plan(**{**vars(pack(lengths, 20)), "about": {"fingerprint": fingerprint(mixture)}})
    packed = Packed(plan, mixture)
    ids = [sample.id for bin in packed for sample in bin]
    assert sorted(ids) == sorted(mixture.sample(item).id for item in mixture.items())
    assert [sample.id for sample in packed[0]] == [mixture.sample(mixture.item(n)).id for n in plan[0]]
    for other in (f"'{data}'%70", f"'{data}'"):
        with pytest.raises(BadInput, match="the plan was made from other data"):
            Packed(plan, Mixture(other))


def test_lengths_on_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("lengths.npy", np.array([10, 20, 30, 0, 50]))
    np.save("pictures.npy", np.array([1, 1, 1, 0, 2]))
    command = ["pack", "--lengths", "lengths.npy", "--capacity", "60", "--media", "pictures.npy", "--max-pictures", "2"]
    assert app.run([*command, "--out", "plan.parquet"]) == 0
    shown = capsys.readouterr().out
    assert "plan.parquet: 4 samples, 110 tokens in 3 bins of 60" in shown
    assert "1 samples were left out" in shown
    assert app.run([*command, "--out", "plan.parquet"]) == 0
    assert "nothing was done" in capsys.readouterr().out
    np.save("lengths.npy", np.array([object()]), allow_pickle=True)
    assert app.run(["pack", "--lengths", "lengths.npy", "--out", "b.parquet"]) == 2
    assert "lengths.npy: not a .npy file of numbers" in capsys.readouterr().err
    for wrong in (["pack"], ["pack", "x"], ["pack", "x", "--lengths", "y"], [*command, "--out", "plan.npz"]):
        assert app.run(wrong) == 2
    assert len(capsys.readouterr().err.splitlines()) == 4


def test_lengths_of_a_model_folder(data, tmp_path, processor, model, capsys):
    pytest.importorskip("tokenizers", reason="counts without transformers")
    from qvl_data.chat import length, sizes

    out = tmp_path / "plan.parquet"
    figures = pack_source(Mixture(f"'{data}'"), model, out, 160, max_pictures=2)
    plan = Plan.read(out)
    dataset = Dataset(data)
    expected = {number: length(dataset[number], processor) for number in range(29)}
    assert dict(zip(plan.samples.tolist(), plan.lengths.tolist(), strict=True)) == expected
    assert max(len(bin) for bin in plan) == 2
    assert (figures["samples"], figures["bins"], figures["before"]) == (29, len(plan), False)
    assert pack_source(Mixture(f"'{data}'"), model, out, 160, max_pictures=2)["before"]
    alone = sizes(dataset[0], processor)[1]  # tokens of one picture
    tokens = pack_source(Mixture(f"'{data}'"), model, tmp_path / "b.parquet", 160, max_media_tokens=alone)
    assert tokens["bins"] == 29
    with pytest.raises(
        BadInput, match=r"train\.parquet:\d+: \d+ tokens do not fit into a bin of 20 tokens \(27 samples"
    ):
        pack_source(Mixture(f"'{data}'"), model, tmp_path / "d.parquet", 20)
    with pytest.raises(BadInput, match=r"train\.parquet: is already there"):
        pack_source(Mixture(f"'{data}'"), model, data, 160)
    with pytest.raises(BadInput, match="a plan holds every sample once; remove the weights"):
        pack_source(Mixture(f"2*'{data}'"), model, tmp_path / "c.parquet", 160)


def test_samples_that_cannot_be_used(tmp_path, model):
    pytest.importorskip("tokenizers", reason="counts without transformers")
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "x"}]
    rows = [{"id": "a", "messages": turns}, {"id": "b", "messages": "none"}, {"id": "c", "messages": turns}]
    data = tmp_path / "x.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = tmp_path / "plan.parquet"
    with pytest.raises(BadInput, match=r"1 samples cannot be used, --max-bad allows 0; .* The first: .*x\.jsonl:2: "):
        pack_source(Mixture(f"'{data}'"), model, out, 160)
    figures = pack_source(Mixture(f"'{data}'"), model, out, 160, max_bad=1)
    assert (figures["samples"], figures["left_out"], figures["bad"]) == (2, 1, {"openai": 1})
    assert Plan.read(out).left_out.tolist() == [1]


@pytest.mark.slow
def test_kill_anywhere(data, tmp_path, model):
    pytest.importorskip("tokenizers", reason="counts without transformers")
    command = ["pack", str(data), "--model", str(model), "--capacity", "160"]
    assert check_every_kill(lambda out: [*command, "--out", str(out / "plan.parquet")], tmp_path / "kills") > 5
