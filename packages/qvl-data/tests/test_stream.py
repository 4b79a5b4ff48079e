import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qvl_core.errors import BadInput
from qvl_core.recipe.blocks import Source
from qvl_core.training.samples import LeftOut
from qvl_data.chat import encode
from qvl_data.convert import write_samples
from qvl_data.sources import Mixture
from qvl_data.stream import ChatSamples

from .chats import build, picture


@pytest.fixture
def mixture(tmp_path):
    chats = [build(("user", picture(64, 64, i), "?"), ("assistant", "x" * i), id=f"s{i}") for i in range(1, 9)]
    write_samples(chats, tmp_path / "train.parquet")
    return Mixture([Source(source=str(tmp_path), augment={"shift": 3})])


def test_positions_are_encoded_samples_of_the_mixture(mixture, processor):
    samples = ChatSamples(mixture, processor, seed=1, max_length=100)
    assert len(samples) == 8
    for position in range(20):
        encoded = samples.encode(position)
        expected = encode(mixture.sample(mixture.locate(1, position)), processor)
        np.testing.assert_array_equal(encoded.ids, expected.ids)
        np.testing.assert_array_equal(encoded.images, expected.images)
        assert samples.length(position) == len(encoded)
    again = pickle.loads(pickle.dumps(samples)).encode(3)
    np.testing.assert_array_equal(again.images, samples.encode(3).images)


def test_what_is_too_long_is_left_out_under_its_name(mixture, processor):
    whole = ChatSamples(mixture, processor, seed=1, max_length=100)
    limit = sorted(whole.length(p) for p in range(8))[4]
    for policy, tolerated in (("drop", True), ("error", False)):
        samples = ChatSamples(mixture, processor, seed=1, max_length=limit, too_long=policy)
        for position in range(8):
            if whole.length(position) <= limit:
                assert len(samples.encode(position)) == samples.length(position)
                continue
            assert samples.length(position) == 0
            with pytest.raises(LeftOut) as caught:
                samples.encode(position)
            bad = caught.value.bad
            assert (bad.reason, bad.tolerated) == ("too_long", tolerated)
            item = samples.mixture.locate(1, position)
            assert bad.id == f"{samples.mixture.datasets[0].file}:{item.index + 1} ({whole.encode(position).id})"


def test_what_will_be_cut_has_room_up_to_the_limit(tmp_path, processor):
    turns = [turn for i in range(4) for turn in (("user", f"q{i}"), ("assistant", f"a{i}"))]
    write_samples([build(*turns, id="long")], tmp_path / "train.parquet")
    chats = Mixture(str(tmp_path))
    limit = ChatSamples(chats, processor, seed=0, max_length=1000).length(0) - 1
    samples = ChatSamples(chats, processor, seed=0, max_length=limit, too_long="cut")
    assert len(samples.encode(0)) <= limit == samples.length(0)


def test_bad_samples_are_named_and_counted_by_reason(tmp_path, processor):
    rows = [
        {"id": "a", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"id": "b", "messages": [{"role": "user", "content": "q"}]},
        {
            "id": "c",
            "messages": [
                {"role": "user", "content": [{"type": "image", "image": "gone.png"}]},
                {"role": "assistant", "content": "a"},
            ],
        },
    ]
    lines = [json.dumps(row) for row in rows] + ["{"]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    samples = ChatSamples(Mixture([Source(source=str(tmp_path / "x.jsonl"))]), processor, seed=0, max_length=100)
    found = {}
    for position in range(4):
        if samples.mixture.locate(0, position).index == 0:
            assert samples.encode(position).id == "a"
            continue
        with pytest.raises(LeftOut) as caught:
            samples.encode(position)
        assert not caught.value.bad.tolerated
        found[caught.value.bad.id] = caught.value.bad.reason
    file = tmp_path / "x.jsonl"
    assert found == {f"{file}:2 (b)": "nothing_to_learn", f"{file}:3 (c)": "media_missing", f"{file}:4": "json"}


def test_bad_samples_of_one_id_are_told_apart(tmp_path, processor):
    bad = {"id": "same", "messages": [{"role": "user", "content": "q"}]}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text(f"{json.dumps(bad)}\n{json.dumps(bad)}\n")
    (tmp_path / "c.json").write_text(json.dumps([bad, bad]))
    sources = [Source(source=str(tmp_path / name)) for name in ("a", "b", "c.json")]
    samples = ChatSamples(Mixture(sources), processor, seed=0, max_length=100)
    found = set()
    for position in range(12):  # two epochs: a sample keeps its name
        with pytest.raises(LeftOut) as caught:
            samples.encode(position)
        found.add(caught.value.bad.id)
    folders = {f"{tmp_path / name / 'train.jsonl'}:{line} (same)" for name in ("a", "b") for line in (1, 2)}
    assert found == folders | {f"{tmp_path / 'c.json'}:1 (sample {number}) (same)" for number in (1, 2)}


def test_lengths_are_read_once(tmp_path, processor):
    file = tmp_path / "x.jsonl"
    chats = [build(("user", "?"), ("assistant", "x" * i), id=f"s{i}") for i in range(1, 5)]
    write_samples(chats, file)
    samples = ChatSamples(Mixture([Source(source=str(file))]), processor, seed=0, max_length=100)
    lengths = {samples.mixture.locate(0, position).index: samples.length(position) for position in range(4)}
    assert len(set(lengths.values())) > 1
    file.write_text("changed")  # whoever reads it now is told so
    assert {samples.mixture.locate(0, position).index: samples.length(position) for position in range(4, 8)} == lengths
    with pytest.raises(BadInput, match="was changed while it was in use"):
        samples.encode(0)


CHILD = """
import sys
sys.path.insert(0, sys.argv[2])
from peak import peak
from qvl_core.qwen3vl.tiny import tiny_processor
from qvl_core.recipe.blocks import Batch, Source
from qvl_core.training.batches import SampleBatches
from qvl_data.sources import Mixture
from qvl_data.stream import ChatSamples, witness

def batches(file):
    processor = tiny_processor()
    samples = ChatSamples(Mixture([Source(source=file)]), processor, seed=0, max_length=128)
    batch = Batch(tokens=1024, max_length=128)
    return SampleBatches(samples, batch, 0, collate=list, witness=witness(processor))

small, large = (batches(f"{sys.argv[1]}/{name}.parquet") for name in ("small", "large"))
for step in range(2):
    small.build(small.plan(step, 0, 1))
before = peak()
for step in range(20):
    assert not any(micro.bad for micro in large.build(large.plan(step, 0, 1)))
print(len(large.samples), peak() - before)
"""


@pytest.mark.slow
def test_a_training_reads_a_large_file_bit_by_bit(tmp_path):
    """Planning and encoding steps take a part of a file of pictures: one larger than the memory can be trained on."""
    chats = [build(("user", picture(256, 256, seed), "?"), ("assistant", "x"), id=str(seed)) for seed in range(10)]
    write_samples(chats, tmp_path / "small.parquet")
    many = (one.model_copy(update={"id": f"{one.id}-{copy}"}) for copy in range(100) for one in chats)
    write_samples(many, tmp_path / "large.parquet")
    assert (tmp_path / "large.parquet").stat().st_size > 180 << 20
    command = [sys.executable, "-c", CHILD, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    count, grown = map(int, done.stdout.split())
    assert count == 1000
    assert grown < 64 << 20
