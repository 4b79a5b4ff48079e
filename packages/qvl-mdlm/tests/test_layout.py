"""Layouts against brute force: who is masked, who sees whom, at which positions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qvl_core.qwen3vl.encoded import IGNORE, Encoded, runs
from qvl_core.qwen3vl.positions import positions
from qvl_mdlm.layout import Shape, upto
from qvl_mdlm.pattern import visible

MERGE, PAD = 2, 999


def chat(turns: list[tuple[int, int]], picture_in: int | None = 0) -> Encoded:
    """Prompts and answers of these lengths, ids counted up; a picture of 4 tokens in one prompt; a tail of 1."""
    labels, types = [], []
    for number, (asked, answered) in enumerate(turns):
        types += [0] * asked + ([1] * 4 + [0] if number == picture_in else [])
        labels += [IGNORE] * (len(types) - len(labels))
        labels += [1] * answered
        types += [0] * answered
    labels.append(IGNORE)
    types.append(0)
    ids = np.arange(len(types))
    pictures = picture_in is not None and picture_in < len(turns)
    return Encoded(
        "chat",
        ids,
        np.where(np.array(labels) == IGNORE, IGNORE, ids),
        np.array(types),
        images=np.zeros((16, 3), np.float32) if pictures else None,
        image_grid=np.array([[1, 4, 4]]) if pictures else None,
    )


TURNS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=3)


@given(TURNS, st.sampled_from([None, 4]))
def test_full_is_the_chat_up_to_its_last_answer(turns: list[tuple[int, int]], pad_to: int | None) -> None:
    sample = chat(turns)
    laid = Shape("full", MERGE, PAD, pad_to).lay_out(sample)
    end = runs(sample.labels != IGNORE)[-1][1]
    np.testing.assert_array_equal(laid.ids[:end], sample.ids[:end])
    assert (laid.ids[end:] == PAD).all()
    last = turns[-1][1]
    assert len(laid.ids) - end == (-last % pad_to if pad_to else 0)
    np.testing.assert_array_equal(laid.segments[:end] >= 0, sample.labels[:end] != IGNORE)
    assert (laid.segments[end:] == 0).all()
    np.testing.assert_array_equal(laid.positions[1:, :end], positions(sample, MERGE)[:, :end])
    steps = np.diff(laid.positions[:, end - 1 :], axis=1)
    assert (steps == 1).all()  # what fills goes on counting


def brute_force(
    sample: Encoded, block_size: int | None, fill: int
) -> tuple[list[tuple[str, int, int]], list[set[int]]]:
    """Tokens of the layout, and which of them each token sees, from the definition."""
    answers = runs(sample.labels != IGNORE)
    groups: list[tuple[int, list[int]]] = []  # (level, places) of the chat, in order
    place = 0
    blocks: list[tuple[int, list[int]]] = []
    for start, stop in answers:
        groups.append((len(groups), list(range(place, start))))
        size = block_size or (stop - start)
        for first in range(start, stop, size):
            blocks.append((len(groups), list(range(first, min(first + size, stop)))))
            groups.append(blocks[-1])
        place = stop
    clean = [(level, at) for level, group in groups for at in group]
    noisy_levels = {level for level, _ in blocks}
    last = blocks[-1][0]
    tokens = [("clean", at, level) for level, at in clean if level != last]
    for level, group in blocks:
        tokens += [("noisy", at, level) for at in group]
        multiple = block_size or fill
        length = len(group)
        ends_answer = group[-1] + 1 in {stop for _, stop in answers}
        if ends_answer and multiple:
            tokens += [("noisy", -1, level)] * (-length % multiple)
    assert noisy_levels
    sees = []
    for kind, _, level in tokens:
        if kind == "clean":
            sees.append({j for j, (k, _, other) in enumerate(tokens) if k == "clean" and other <= level})
        else:
            sees.append(
                {
                    j
                    for j, (k, _, other) in enumerate(tokens)
                    if (k == "clean" and other < level) or (k == "noisy" and other == level)
                }
            )
    return tokens, sees


@pytest.mark.parametrize("block_size", [None, 1, 3, 4])
@given(turns=TURNS)
def test_copies_see_what_they_will_see_when_they_are_written(
    block_size: int | None, turns: list[tuple[int, int]]
) -> None:
    sample = chat(turns)
    shape = Shape("block" if block_size else "prefix", MERGE, PAD, 4, block_size)
    laid = shape.lay_out(sample)
    tokens, sees = brute_force(sample, block_size, 4)
    np.testing.assert_array_equal(laid.ids, [PAD if at < 0 else sample.ids[at] for _, at, _ in tokens])
    np.testing.assert_array_equal(laid.clean, [kind == "clean" for kind, _, _ in tokens])
    np.testing.assert_array_equal(laid.segments >= 0, ~laid.clean)
    mask = visible(
        torch.from_numpy(laid.levels)[None], torch.from_numpy(laid.clean)[None], torch.zeros(1, len(tokens), dtype=int)
    )[0, 0]
    assert [set(row.nonzero().flatten().tolist()) for row in mask] == sees
    here = positions(sample, MERGE)
    for token, (_, at, _) in enumerate(tokens):
        if at >= 0:
            np.testing.assert_array_equal(laid.positions[1:, token], here[:, at])
        else:
            np.testing.assert_array_equal(laid.positions[:, token], laid.positions[:, token - 1] + 1)
    # each block (or answer) is noised for itself
    by_segment = {}
    for token, (kind, _, level) in enumerate(tokens):
        if kind == "noisy":
            by_segment.setdefault(laid.segments[token], set()).add(level)
    assert all(len(levels) == 1 for levels in by_segment.values())
    assert sorted(by_segment) == list(range(len(by_segment)))
    assert shape.length(len(sample), runs(sample.labels != IGNORE)) == len(tokens)


def test_documents_of_a_packed_row_and_padding_never_see_one_another() -> None:
    levels = torch.zeros(1, 6, dtype=torch.long)
    mask = visible(levels, levels == 0, torch.tensor([[0, 0, 1, 1, 1, -1]]))[0, 0]
    wanted = torch.block_diag(torch.ones(2, 2), torch.ones(3, 3), torch.ones(1, 1)).bool()
    assert torch.equal(mask, wanted)


@pytest.mark.parametrize("pattern", ["full", "prefix"])
def test_media_behind_the_last_answer_go_with_their_tokens(pattern: str) -> None:
    sample = chat([(3, 2), (3, 2)], picture_in=1)
    only_first = np.where(np.arange(len(sample)) < 5, sample.labels, IGNORE)  # the second answer is not learned
    sample = Encoded("x", sample.ids, only_first, sample.types, images=sample.images, image_grid=sample.image_grid)
    short = upto(sample, 5, MERGE)
    assert short.images is None
    assert short.image_grid is None
    laid = Shape(pattern, MERGE, PAD).lay_out(sample)  # type: ignore[arg-type]
    assert (laid.types == 0).all()


def test_one_of_two_pictures_stays() -> None:
    sample = chat([(3, 2)], picture_in=0)
    twice = Encoded(
        "x",
        np.concatenate([sample.ids, sample.ids]),
        np.concatenate([sample.labels, np.full(len(sample), IGNORE)]),
        np.concatenate([sample.types, sample.types]),
        images=np.concatenate([sample.images, sample.images + 1]),  # type: ignore[operator]
        image_grid=np.concatenate([sample.image_grid, sample.image_grid]),  # type: ignore[arg-type]
    )
    short = upto(twice, len(sample), MERGE)
    np.testing.assert_array_equal(short.images, sample.images)  # type: ignore[arg-type]
    np.testing.assert_array_equal(short.image_grid, sample.image_grid)  # type: ignore[arg-type]
