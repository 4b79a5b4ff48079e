"""From an encoded chat to the tokens that a denoising model reads and may have masked; nothing is random here.

`full`: the chat as it is, up to its last answer. `prefix` and `block`: the chat without the end of its last answer,
clean, and behind it the answers once more, to be noised (see `pattern`). Behind an answer its end may be filled with
end tokens up to a multiple of `pad_to`, so that the model learns where a longer canvas stops.

Shapes: L tokens of the chat, T of the layout.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvl_core.qwen3vl.batch import four_rows
from qvl_core.qwen3vl.encoded import IGNORE, Encoded, runs
from qvl_data.template import ANSWER, END, START
from qvl_mdlm.config import Pattern
from qvl_mdlm.media import Media

Array = NDArray[Any]
FILL = -1  # place of a token that only fills a canvas up


@dataclass(frozen=True)
class Layout:
    """What is read, before noise."""

    ids: Array
    """(T,) int64"""
    types: Array
    """(T,) int64: 0 text, 1 image, 2 video"""
    positions: Array
    """(4, T) int64: text, time, height, width"""
    levels: Array
    """(T,) int64"""
    clean: Array
    """(T,) bool: never masked; in `full` that says nothing of who sees whom"""
    segments: Array
    """(T,) int64: tokens with the same number are noised to the same degree; -1: never masked"""
    weights: Array
    """(T,) float32: factor of each token in the loss"""
    shown: Encoded
    """the chat up to where it is read, with the media that stand in it"""


@dataclass(frozen=True)
class Marks:
    """Ids that enclose an answer. Only the template writes them: typed in a text, they are ordinary tokens."""

    opening: tuple[int, ...]
    """<|im_start|>assistant and the end of its line"""
    end: int
    """<|im_end|>"""

    @staticmethod
    def of(tokenizer: Any) -> "Marks":
        start, end = tokenizer.convert_tokens_to_ids([START, END])
        return Marks((start, *tokenizer(ANSWER, add_special_tokens=False)["input_ids"]), end)

    def answers(self, ids: Array) -> list[tuple[int, int]]:
        """Bounds of the answers in a chat, their ends included; one that is only opened is none."""
        ends = np.flatnonzero(ids == self.end)
        found = []
        for at in np.flatnonzero(ids == self.opening[0]):
            first = int(at) + len(self.opening)
            stop = ends[ends >= first]
            if tuple(ids[at:first].tolist()) == self.opening and len(stop):
                found.append((first, int(stop[0]) + 1))
        return found


@dataclass(frozen=True)
class Shape:
    """How chats are laid out.

    merge    side of the patch square that one token covers
    pad_id   the token that fills a canvas behind an answer's own end
    pad_to   an answer and what fills it are a multiple of so many tokens; None: nothing is filled
    marks    how the chat template encloses an answer
    """

    pattern: Pattern
    merge: int
    pad_id: int
    pad_to: int | None = None
    block_size: int | None = None
    marks: Marks | None = None

    def levels(self, ids: Array, runs: Sequence[tuple[int, int]] = ()) -> Array:
        """(L,) levels of a clean chat: one more at the start of each answer, of each of its blocks, and behind it.

        Answers that are not learned from count as well, so that the levels do not depend on what is learned; of those
        that are, `runs` tells where they begin.
        """
        if self.pattern == "full":
            return np.zeros(len(ids), np.int64)
        return np.searchsorted(self._bounds(ids, runs), np.arange(len(ids)), side="right")

    def lay_out(self, sample: Encoded) -> Layout:
        """Raises nothing: a sample without labels has no segment."""
        answers = runs(sample.labels != IGNORE)
        if not answers:
            return self._whole(sample, len(sample), 0)
        end = answers[-1][1]
        if self.pattern == "full":
            return self._whole(upto(sample, end, self.merge), end, self._fill(answers[-1]))
        return self._copied(sample, answers)

    def length(self, tokens: int, runs: Sequence[tuple[int, int]]) -> int:
        """Tokens of the layout of a chat of `tokens` tokens with these answers, without encoding it."""
        if not runs:
            return tokens
        if self.pattern == "full":
            return runs[-1][1] + self._fill(runs[-1])
        return self._clean_end(runs) + sum(stop - start + self._fill((start, stop)) for start, stop in runs)

    def _fill(self, run: tuple[int, int]) -> int:
        """Tokens that fill the canvas of an answer."""
        multiple = self.block_size if self.pattern == "block" else self.pad_to
        return -(run[1] - run[0]) % multiple if multiple else 0

    def _clean_end(self, runs: Sequence[tuple[int, int]]) -> int:
        """End of what somebody sees clean: the last block of the last answer, nobody does."""
        start, stop = runs[-1]
        return start if self.block_size is None else start + (stop - start - 1) // self.block_size * self.block_size

    def _whole(self, sample: Encoded, end: int, fill: int) -> Layout:
        places = np.concatenate([np.arange(end), np.full(fill, FILL)])
        eligible = np.concatenate([sample.labels[:end] != IGNORE, np.ones(fill, bool)])
        return self._gathered(sample, places, np.zeros(len(places), np.int64), ~eligible, np.where(eligible, 0, -1))

    def _copied(self, sample: Encoded, runs: Sequence[tuple[int, int]]) -> Layout:
        of_chat = self.levels(sample.ids, runs)
        clean = np.arange(self._clean_end(runs))
        places, levels, segments = [clean], [of_chat[clean]], [np.full(len(clean), -1)]
        segment = 0
        for start, stop in runs:
            fill = self._fill((start, stop))
            own = np.arange(stop - start + fill)
            blocks = own // (self.block_size or len(own))
            places.append(np.where(own < stop - start, start + own, FILL))
            levels.append(of_chat[start] + blocks)
            segments.append(segment + blocks)
            segment += int(blocks[-1]) + 1
        count = len(clean)
        laid = np.arange(count + sum(len(part) for part in places[1:])) < count
        shown = upto(sample, runs[-1][1], self.merge)
        return self._gathered(shown, np.concatenate(places), np.concatenate(levels), laid, np.concatenate(segments))

    def _bounds(self, ids: Array, runs: Sequence[tuple[int, int]]) -> Array:
        """Where levels begin in the chat."""
        others = [] if self.marks is None else self.marks.answers(ids)
        others = [span for span in others if not any(span[0] <= start < span[1] for start, _ in runs)]
        bounds: list[int] = []
        for start, stop in sorted([*runs, *others]):
            bounds += [*range(start, stop, self.block_size or stop - start), stop]
        return np.array(bounds, np.int64)

    def _gathered(self, sample: Encoded, places: Array, levels: Array, clean: Array, segments: Array) -> Layout:
        """The tokens at `places` of a chat; those that fill go on counting where the answer before them ended."""
        fills = places == FILL
        at = np.where(fills, 0, places)
        positions = four_rows(sample, self.merge)[:, at]
        last = np.maximum.accumulate(np.where(fills, -1, np.arange(len(places))))  # the token that a fill goes on from
        positions = np.where(fills, positions[:, last] + np.arange(len(places)) - last, positions)
        weights = np.ones(len(sample), np.float32) if sample.weights is None else sample.weights
        return Layout(
            ids=np.where(fills, self.pad_id, sample.ids[at]),
            types=np.where(fills, 0, sample.types[at]),
            positions=positions,
            levels=levels,
            clean=clean,
            segments=segments,
            weights=np.where(fills, weights[at[last]], weights[at]).astype(np.float32),
            shown=sample,
        )


def shape_of(config: Any, tokenizer: Any, pad_to: int | None = None) -> Shape:
    """How chats are laid out for a model of this configuration."""
    merge = config.vision_config.spatial_merge_size
    return Shape(config.pattern, merge, tokenizer.pad_token_id, pad_to, config.block_size, Marks.of(tokenizer))


def upto(sample: Encoded, end: int, merge: int) -> Encoded:
    """The first `end` tokens of a chat and the media that stand in them. `end` lies outside media."""
    kept = sample.types[:end]
    images = Media("image", sample.images, sample.image_grid, merge).take(int((kept == 1).sum()))
    videos = Media("video", sample.videos, sample.video_grid, merge).take(int((kept == 2).sum()))
    return Encoded(
        id=sample.id,
        ids=sample.ids[:end],
        labels=sample.labels[:end],
        types=kept,
        weights=None if sample.weights is None else sample.weights[:end],
        images=images[0],
        image_grid=images[1],
        videos=videos[0],
        video_grid=videos[1],
    )
