import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import islice
from operator import attrgetter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl_core.errors import BadInput, QVLError
from qvl_data.convert import write_samples
from qvl_data.loader import Loader, decoded
from qvl_data.sources import Mixture

from .chats import build, picture

ID = attrgetter("id")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Mixtures of 30 and 12 samples, 54 in an epoch; of `broken` one is bad."""
    folder = tmp_path_factory.mktemp("data")
    chats = (build(("user", picture(8, 8, i)), ("assistant", "x"), id=f"a{i}") for i in range(30))
    write_samples(chats, folder / "a.parquet")
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "x"}]
    rows = [{"id": f"b{i}", "messages": turns} for i in range(12)]
    for name in ("sound", "broken"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        rows[5]["messages"] = "none"
    return {name: f"'{folder / 'a.parquet'}' + 2*'{folder / name}.jsonl'" for name in ("sound", "broken")}


@pytest.fixture(scope="module")
def mixture(data):
    return Mixture(data["sound"])


@pytest.fixture(scope="module")
def broken(data):
    return Mixture(data["broken"])


def test_batches_are_the_order_of_the_mixture(mixture):
    loader = Loader(mixture, seed=5, batch=8)
    batches = list(islice(loader, 20))
    expected = [mixture.sample(mixture.locate(5, position)) for position in range(160)]
    assert [sample.id for batch in batches for sample in batch] == [sample.id for sample in expected]
    assert loader.state["position"] == 160
    assert Loader(mixture, seed=6, batch=160).__iter__().__next__() != expected


def test_decoded_samples(mixture):
    sample, pictures = next(iter(Loader(mixture, each=decoded)))[0]
    assert pictures[0].tobytes() == sample.opener.open(sample.media[0]).tobytes()


def test_encoded_samples(mixture, processor):
    from qvl_data.chat import encode

    loader = Loader(mixture, batch=2, each=partial(encode, processor=processor))
    assert [type(one).__name__ for one in next(iter(loader))] == ["Encoded", "Encoded"]


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32), st.integers(1, 3), st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=5))
def test_any_number_of_ranks_reads_the_same_steps(mixture, seed, factor, worlds):
    """Each stretch of the run has another number of processes, all starting from the state of rank 0 before."""
    batch, state, position = 4 * factor, None, 0
    for world in worlds:
        loaders = [Loader(mixture, seed=seed, batch=batch, rank=r, world=world, state=state) for r in range(world)]
        for parts in islice(zip(*loaders, strict=True), 3):
            together = [sample.id for dealt in zip(*parts, strict=True) for sample in dealt]
            assert together == [mixture.sample(mixture.locate(seed, position + place)).id for place in range(batch)]
            position += batch
        assert len({json.dumps(loader.state) for loader in loaders}) == 1
        state = json.loads(json.dumps(loaders[0].state))


def test_epochs_end(mixture):
    assert len(mixture) == 54
    loader = Loader(mixture, batch=20, epochs=1.5)
    assert [len(batch) for batch in loader] == [20, 20, 20, 20, 1]
    assert list(loader) == []
    half = Loader(mixture, batch=20, rank=1, world=2, epochs=1)
    assert [len(batch) for batch in half] == [10, 10, 7]


def test_the_state_is_small_and_refused_elsewhere(mixture, data):
    loader = Loader(mixture, batch=2)
    next(iter(loader))
    state = loader.state
    assert state == {"seed": 0, "position": 2, "mixture": mixture.choice(), "bad": []}
    far = Loader(mixture, batch=2, state={**state, "position": 10**12})
    assert len(next(iter(far))) == 2
    with pytest.raises(BadInput, match="state is of seed 0, the loader of seed 1; resume with seed=0"):
        Loader(mixture, seed=1, state=state)
    with pytest.raises(BadInput, match="other sources, weights or numbers of samples"):
        Loader(data["sound"].replace("2*", "3*"), state=state)
    with pytest.raises(BadInput, match="is not one"):
        Loader(mixture, state={"step": 3})
    for position in (-5, 2.5, 10**30, True, "2", None):
        with pytest.raises(BadInput, match=rf"is at position {position!r}, which is no count of samples"):
            Loader(mixture, state={**state, "position": position})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch": 6, "world": 4}, "a batch of 6 samples cannot be dealt evenly to 4 processes"),
        ({"batch": 0}, "a batch of 0 samples"),
        ({"batch": 2, "rank": 2, "world": 2}, "rank 2 of 2 processes; ranks are 0 to 1"),
    ],
)
def test_impossible_batches(mixture, options, sentence):
    with pytest.raises(BadInput, match=sentence):
        Loader(mixture, **options)


def test_bad_samples_are_counted_listed_and_limited(broken):
    loader = Loader(broken, batch=54, max_bad=1)
    assert [len(batch) for batch in islice(loader, 3)] == [52, 52, 52]  # twice in each epoch
    assert loader.counts == {"openai": 1}
    (bad,) = loader.bad
    assert (Path(bad.place).name, bad.reason) == ("broken.jsonl:6", "openai")
    assert bad.message.startswith(bad.place)
    again = Loader(broken, batch=54, max_bad=1, state=json.loads(json.dumps(loader.state)))
    assert len(next(iter(again))) == 52
    assert again.counts == {"openai": 1}
    strict = Loader(broken, batch=54)
    with pytest.raises(BadInput, match=r"1 bad samples, max_bad allows 0; .*broken\.jsonl:6: "):
        next(iter(strict))
    assert strict.position == 0


@pytest.mark.parametrize(
    "workers", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)]
)
def test_workers_change_nothing(broken, workers):
    alone, team = (Loader(broken, seed=2, batch=4, workers=w, each=ID, max_bad=9) for w in (0, workers))
    for expected, found in islice(zip(alone, team, strict=True), 30):
        assert found == expected
        assert team.state == alone.state
    assert list(islice(team, 2)) == list(islice(alone, 2))  # iterating again goes on


def test_a_worker_that_is_killed_gives_one_sentence(mixture):
    before = set(multiprocessing.active_children())  # of tests that are being tidied away
    batches = iter(Loader(mixture, batch=4, workers=1, each=ID, max_bad=1))
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(QVLError, match=r"a worker of the loader died \(exit code -9") as caught:
        list(islice(batches, 4))  # some were ready
    assert caught.value.exit_code == 1


def test_a_function_that_fails_or_cannot_travel(mixture):
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*no attribute 'nothing'"):
        next(iter(Loader(mixture, workers=1, each=attrgetter("nothing"))))
    with pytest.raises(BadInput, match="cannot be sent from a worker"):
        next(iter(Loader(mixture, workers=1, each=attrgetter("__class__.__dict__"))))
    with pytest.raises(BadInput, match="`each` cannot be sent to workers"):
        next(iter(Loader(mixture, workers=1, each=lambda sample: sample)))


def consume(data, folder, workers, steps, kill=-1):
    program = [sys.executable, str(Path(__file__).with_name("consuming.py")), data, str(folder)]
    numbers = map(str, (workers, steps, kill))
    return subprocess.run(
        [*program, *numbers], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def batches(folder):
    """The batches that were consumed by where they ended, and the workers that did the work."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found = {}
    for line in lines:
        assert found.setdefault(line["end"], line["batch"]) == line["batch"]  # done again: the same
    return found, {pid for line in lines for pid in line["pids"]}


def runs(pid):
    """Whether a process is there and no zombie."""
    psutil = pytest.importorskip("psutil", reason="looks for processes that were left behind")
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("before", "after"),
    [(2, 0), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((0, 2), (1, 4), (4, 1)))],
)
def test_a_killed_run_goes_on_where_it_was(data, broken, tmp_path, before, after):
    killed = consume(data["broken"], tmp_path, before, 20, kill=7)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    state = json.loads((tmp_path / "state.json").read_text())
    assert state["position"] == 28
    _, pids = batches(tmp_path)
    assert len(pids) == before
    deadline = time.monotonic() + 30
    while any(map(runs, pids)):
        assert time.monotonic() < deadline, "workers of a killed run go on"
        time.sleep(0.1)
    done = consume(data["broken"], tmp_path, after, 13)
    assert done.returncode == 0, done.stderr
    whole = Loader(broken, seed=3, batch=4, each=ID, max_bad=9)
    assert list(batches(tmp_path)[0].items()) == [(4 * n + 4, batch) for n, batch in enumerate(islice(whole, 20))]
