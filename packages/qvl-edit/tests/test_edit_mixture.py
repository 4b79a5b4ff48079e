"""What a step learns from: weights, number of sources, tasks and samples, texts, and the cut into forwards."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvl_core.errors import BadInput
from qvl_edit.build import shares
from qvl_edit.cut import Bucket, cut, deal
from qvl_edit.mixture import Draw, Mixture
from qvl_edit.tasks import Tasks
from qvl_edit.texts import Choice, Text, choose, directed, learnable
from qvl_edit.weights import source_weights, task_weights

# Number of sources of each sample: a has 30 without, 20 with one, 10 with two; b has 40 with one, 8 with three.
FOUND = {"a": np.repeat([0, 1, 2], [30, 20, 10]), "b": np.repeat([1, 3], [40, 8]), "c": np.repeat([0], [5])}
DOCUMENT = {0: 1.0, 1: 1.0, 2: 1.0, 3: 0.0}


def mixture(size: int = 8, seed: int = 0, **more: Any) -> Mixture:
    return Mixture(FOUND, size, seed, **more)


def close_to(counts: Mapping[Any, int], shares: Mapping[Any, float]) -> bool:
    """Within 4 standard errors of the binomial, each."""
    total = sum(counts.values())
    assert sum(shares.values()) == pytest.approx(1)
    return set(counts) <= set(shares) and all(
        abs(counts.get(name, 0) - total * share) <= 4 * math.sqrt(total * share * (1 - share))
        for name, share in shares.items()
    )


def test_weights_are_spelled_as_in_the_document() -> None:
    assert task_weights("a=0.5,b=1.2") == {"a": 0.5, "b": 1.2}
    assert task_weights(" a = 1e-1 , b=2,") == {"a": 0.1, "b": 2.0}
    assert source_weights("0=1,1=1,2=1,3=0") == {0: 1.0, 1: 1.0, 2: 1.0, 3: 0.0}
    assert task_weights({"a": 1}) == {"a": 1}
    assert task_weights(None) is None


@pytest.mark.parametrize(
    ("parse", "value", "said"),
    [
        (task_weights, "a=-1", "the weight of `a` is -1; it must be 0 or more"),
        (task_weights, "a=nan", "the weight of `a` is nan; it must be 0 or more"),
        (task_weights, "a=inf", "the weight of `a` is inf; it must be 0 or more"),
        (task_weights, "a=0,b=0", "all weights are 0, so that nothing is trained; give one at least a weight above 0"),
        (task_weights, "", "all weights are 0"),
        (task_weights, "a", "`a` is no weight; write NAME=NUMBER, with commas between"),
        (task_weights, "a=b", "`a=b` is no weight"),
        (task_weights, "=1", "`=1` is no weight"),
        (task_weights, "a=1;b=2", "`a=1;b=2` is no weight"),
        (task_weights, "a=1,a=2", "`a` has two weights; keep one"),
        (task_weights, {"a": -1}, "the weight of `a` is -1"),
        (source_weights, "one=1", "`one` is no number of sources; write 0=1,1=1,2=1,3=0"),
        (source_weights, {-1: 1}, "`-1` is no number of sources"),
    ],
)
def test_weights_that_cannot_be_meant(parse: Callable[[Any], Any], value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        parse(value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"tasks": {"aa": 1.0}}, 'mixture.tasks: there is no task "aa"; did you mean "a"?'),
        ({"tasks": {"plates": 1.0}}, 'mixture.tasks: there is no task "plates"; there are a, b, c.'),
        (
            {"tasks": {"b": 1.0, "a": 0.0}, "sources": DOCUMENT},
            "mixture.sources: 0 has weight 1, but no task with a weight has a sample of 0 sources; set 0=0, or give "
            "a task with such samples a weight.",
        ),
        (
            {"sources": {2: 1.0, 4: 2.0}},
            "mixture.sources: 4 has weight 2, but no task with a weight has a sample of 4 sources",
        ),
        (
            {"tasks": {"a": 1.0, "c": 2.0}, "sources": {1: 1.0, 2: 1.0}},
            "mixture.tasks: c has no sample of 1 or 2 sources, which are all that mixture.sources gives a weight",
        ),
    ],
)
def test_what_no_sample_answers_to_is_an_error_at_the_start(more: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        mixture(**more)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_weights_tasks_that_have_none_of_what_is_trained_are_passed_over() -> None:
    assert mixture(sources={3: 1.0}).tasks == ["b"]
    with pytest.raises(BadInput, match="a sample of 5 sources"):
        mixture(sources={5: 1.0})


def test_no_data_is_an_error() -> None:
    with pytest.raises(BadInput, match="there are no samples"):
        Mixture({}, 1, 0)


def test_a_step_has_one_number_of_sources_and_its_frequency_is_its_weight() -> None:
    weights = {0: 1.0, 1: 2.0, 2: 1.0, 3: 0.0}
    mixed = mixture(tasks={"a": 1.0, "b": 1.0}, sources=weights)
    steps = range(3000)
    numbers = {step: mixed.sources(step) for step in steps}
    assert close_to(Counter(numbers.values()), {0: 0.25, 1: 0.5, 2: 0.25, 3: 0.0})
    for step in range(50):
        assert {FOUND[draw.task][draw.sample] for draw in mixed.draw(step)} == {numbers[step]}


def test_frequencies_of_tasks_are_their_weights_among_those_that_have_such_samples() -> None:
    mixed = mixture(tasks={"a": 0.5, "b": 1.2}, sources=DOCUMENT)
    counts = Counter((mixed.sources(step), draw.task) for step in range(500) for draw in mixed.draw(step))
    of_one = {name: counts[1, name] for name in ("a", "b")}
    assert close_to(of_one, {"a": 0.5 / 1.7, "b": 1.2 / 1.7})
    assert {pair for pair in counts if pair[0] != 1} == {(0, "a"), (2, "a")}


def test_a_number_that_a_task_has_not_is_drawn_from_those_that_have_it_and_that_is_said() -> None:
    mixed = mixture(tasks={"a": 0.5, "b": 1.5}, sources=DOCUMENT)
    assert mixed.shares == pytest.approx(np.array([[1 / 3, 0], [1 / 12, 1 / 4], [1 / 3, 0]]))
    assert shares(mixed, Tasks(None, {}, FOUND)).splitlines() == [  # type: ignore[arg-type]  # no sample is read
        "0 sources: 33.3% of the steps, of a 100.0% (30 samples); none in b",
        "1 sources: 33.3% of the steps, of a 25.0% (20 samples), b 75.0% (40 samples)",
        "2 sources: 33.3% of the steps, of a 100.0% (10 samples); none in b",
    ]


def test_without_weights_each_sample_is_drawn_equally_often() -> None:
    mixed = mixture()
    counts = Counter(draw.task for step in range(1500) for draw in mixed.draw(step))
    # Slots of a step are drawn together, with one number of sources: their errors are larger than the binomial's.
    assert {name: count / counts.total() for name, count in counts.items()} == pytest.approx(
        {"a": 60 / 113, "b": 48 / 113, "c": 5 / 113}, abs=0.04
    )
    samples = Counter(draw for step in range(600) for draw in mixed.draw(step))
    assert set(samples) == {Draw(name, index) for name, numbers in FOUND.items() for index in range(len(numbers))}


def test_weights_of_tasks_alone_hold_over_all_numbers_of_sources() -> None:
    mixed = mixture(tasks={"a": 3.0, "b": 1.0})
    assert mixed.shares.sum(0) == pytest.approx([0.75, 0.25])
    assert mixed.shares.sum(1) == pytest.approx(
        [0.75 * 30 / 60, 0.75 * 20 / 60 + 0.25 * 40 / 48, 0.75 * 10 / 60, 0.25 * 8 / 48]
    )


def test_a_task_without_weight_is_not_trained() -> None:
    mixed = mixture(tasks={"a": 1.0, "c": 0.0})
    assert {draw.task for step in range(200) for draw in mixed.draw(step)} == {"a"}
    assert len(mixed) == 60


def test_no_sample_comes_again_before_all_had_their_turn() -> None:
    mixed = mixture(size=3, tasks={"a": 1.0, "b": 1.0}, sources={1: 1.0})
    drawn: dict[str, list[int]] = {"a": [], "b": []}
    for step in range(60):
        for draw in mixed.draw(step):
            drawn[draw.task].append(draw.sample)
    for task, samples in drawn.items():
        count = int((FOUND[task] == 1).sum())
        rounds = [samples[at : at + count] for at in range(0, len(samples) - count, count)]
        assert len(rounds) >= 2
        assert all(len(set(one)) == count for one in rounds)
        assert len({tuple(one) for one in rounds}) == len(rounds)


def test_a_draw_is_a_function_of_seed_and_step_alone() -> None:
    mixed = mixture(sources=DOCUMENT)
    whole = [mixed.draw(step) for step in range(40)]
    for step in (39, 3, 17):  # resumed, and looked at in any order
        assert mixture(sources=DOCUMENT).draw(step) == whole[step]
        assert mixed.draw(step) == whole[step]
    assert [mixture(sources=DOCUMENT, seed=1).draw(step) for step in range(40)] != whole
    assert len({tuple(step) for step in whole}) == 40


def test_another_task_leaves_the_order_of_a_task_as_it_was() -> None:
    def order(**tasks: float) -> list[int]:
        drawn = [draw for step in range(40) for draw in mixture(tasks=tasks, sources={1: 1.0}).draw(step)]
        return [draw.sample for draw in drawn if draw.task == "a"][:60]

    assert order(a=1.0) == order(a=1.0, b=1.0)


def test_texts_that_can_be_learned() -> None:
    said, back = {"en": "Make it red.", "zh": " "}, {"en": "Make it blue.", "zh": "改成蓝色"}
    assert learnable(said, back, sources=1) == (Text("en"), Text("en", True), Text("zh", True))
    assert learnable(said, back, sources=2) == learnable(said, {}, sources=1) == (Text("en"),)
    assert learnable({"en": ""}, {}, sources=1) == ()


def test_texts_are_drawn_alike_and_left_out_at_times() -> None:
    texts = (Text("en"), Text("en", True), Text("zh"), Text("zh", True))
    choices = [choose(texts, 0, step, slot, 0.05) for step in range(500) for slot in range(8)]
    assert close_to(Counter(choice.text for choice in choices), dict.fromkeys(texts, 0.25))
    assert close_to(Counter(choice.left_out for choice in choices), {True: 0.05, False: 0.95})
    assert not any(choose(texts, 0, step, 0, 0.0).left_out for step in range(100))
    assert [choose(texts, 0, 3, slot) for slot in range(8)] == choices[24:32]
    assert choose(texts[:1], 0, 0, 0, 1.0) == Choice(Text("en"), True)


def test_an_inverse_text_exchanges_source_and_target() -> None:
    assert directed(Text("en"), "target", ("source",)) == ("target", ("source",))
    assert directed(Text("en", True), "target", ("source",)) == ("source", ("target",))
    assert directed(Text("en"), "target", ("one", "two")) == ("target", ("one", "two"))


SIZES = st.sampled_from([(512, 512), (384, 672), (672, 384)])
BUCKETS = st.lists(st.builds(Bucket, SIZES, st.tuples(SIZES)), min_size=1, max_size=16)


@given(BUCKETS, st.integers(1, 8) | st.none(), st.integers(1, 8))
def test_a_step_is_the_same_set_however_it_is_dealt(buckets: list[Bucket], micro: int | None, world: int) -> None:
    forwards = cut(buckets, micro, world)
    hands = [deal(forwards, rank, world) for rank in range(world)]
    assert sorted(slot for hand in hands for forward in hand for slot in forward) == list(range(len(buckets)))
    assert len({len(hand) for hand in hands}) == 1
    assert sum(not forward for hand in hands for forward in hand) < world
    for forward in forwards:
        assert 1 <= len(forward) <= (micro or len(buckets))
        assert len({buckets[slot] for slot in forward}) == 1
        assert list(forward) == sorted(forward)
    areas = [buckets[forward[0]].area for forward in forwards]
    assert areas == sorted(areas, reverse=True)


@pytest.mark.parametrize(("micro", "world"), [(8, 1), (4, 2), (1, 8), (None, 1), (None, 8), (8, 8)])
def test_eight_of_one_size_are_dealt_evenly(micro: int | None, world: int) -> None:
    hands = [deal(cut([Bucket((512, 512))] * 8, micro, world), rank, world) for rank in range(world)]
    assert {sum(map(len, hand)) for hand in hands} == {8 // world}
