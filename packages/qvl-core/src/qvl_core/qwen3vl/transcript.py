"""An encoded sample read back: its turns, and in each what the tokens spell and what they are for.

    for turn in read(encoded, processor.tokenizer):
        print(turn.role, "".join(piece.text for piece in turn.pieces), turn.weight)

Everything comes from the tokens and labels themselves, not from the data: what is shown is what is trained on.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np

from qvl_core.qwen3vl.encoded import IGNORE, Encoded

Kind = Literal["template", "prompt", "image", "video", "learned"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_STAMP = re.compile(r"<\d+\.\d seconds>")
_LONGEST = 12  # tokens that may spell one character: an emoji of several code points is several characters


@dataclass(frozen=True)
class Piece:
    """Tokens that belong together: those of one character (mostly one token), of one picture, or of one frame.

    text     what they spell; empty for pictures
    kind     `template`: written by the chat template; `prompt`: text of the data that is not learned
    weight   factor in the loss; 0 where nothing is learned
    special  a token of its own, such as <|im_end|>; typed in the data, its name is ordinary text
    media    number of the picture among the sample's pictures, or of the frame among its frames
    """

    text: str
    ids: tuple[int, ...]
    kind: Kind
    weight: float = 0.0
    special: bool = False
    media: int | None = None


@dataclass(frozen=True)
class Turn:
    """From one <|im_start|> up to the next."""

    role: str
    pieces: tuple[Piece, ...]

    @cached_property
    def counts(self) -> Counter[str]:
        """Tokens by kind."""
        return counted(self.pieces)

    @property
    def weight(self) -> float:
        """Factor of what is learned of it; 0 if nothing is."""
        return max((piece.weight for piece in self.pieces), default=0.0)


def counted(pieces: Iterable[Piece]) -> Counter[str]:
    """Tokens by kind."""
    found: Counter[str] = Counter()
    for piece in pieces:
        found[piece.kind] += len(piece.ids)
    return found


def read(sample: Encoded, tokenizer: Any) -> list[Turn]:
    """The turns of a sample, in order; together their pieces hold each of its tokens once."""
    reader = _Reader(sample, tokenizer)
    starts = np.flatnonzero(sample.ids == reader.start).tolist()
    bounds = sorted({0, *starts, len(sample)})
    return [reader.turn(first, last) for first, last in pairwise(bounds)]


class _Reader:
    """What is fixed for one sample, and how many pictures and frames have been met."""

    def __init__(self, sample: Encoded, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids, self._types = sample.ids.tolist(), sample.types.tolist()
        learned = (sample.labels != IGNORE).astype(np.float32)
        self._weights = (learned if sample.weights is None else learned * sample.weights).tolist()
        self._names = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
        self.start, self._end, self._opens = (
            tokenizer.convert_tokens_to_ids(name) for name in ("<|im_start|>", "<|im_end|>", "<|vision_start|>")
        )
        self._met = [0, 0, 0]  # runs of each type

    def turn(self, first: int, last: int) -> Turn:
        pieces = list(self._pieces(first, last))
        header = self._header(pieces, first, last)
        role = "".join(piece.text for piece in pieces[:header] if not piece.special).split("\n")[0]
        ended = False
        for place, piece in enumerate(pieces):
            given = place < header or ended or (piece.special and piece.text.startswith("<|"))
            if given and piece.kind == "prompt":
                pieces[place] = Piece(piece.text, piece.ids, "template", special=piece.special)
            ended = ended or piece.ids == (self._end,)
        return Turn(role, tuple(pieces))

    def _header(self, pieces: Sequence[Piece], first: int, last: int) -> int:
        """How many pieces open the turn: up to what is learned, or up to the end of the line that names its role."""
        if any(self._weights[first:last]):
            return next(place for place, piece in enumerate(pieces) if piece.weight)
        return next((place + 1 for place, piece in enumerate(pieces) if "\n" in piece.text), 0)

    def _pieces(self, first: int, last: int) -> Iterator[Piece]:
        at = first
        while at < last:
            token, kind, weight = self._ids[at], self._types[at], self._weights[at]
            stop = at + 1
            if kind:
                while stop < last and self._types[stop] == kind:
                    stop += 1
                number, self._met[kind] = self._met[kind], self._met[kind] + 1
                yield Piece("", tuple(self._ids[at:stop]), "image" if kind == 1 else "video", media=number)
            elif token in self._names:
                yield Piece(self._names[token], (token,), "learned" if weight else "prompt", weight, special=True)
            else:
                while stop < last and self._is_text(stop) and self._weights[stop] == weight:
                    stop += 1
                stamp = self._is_stamp(at, stop)
                for text, ids in self._spelled(self._ids[at:stop]):
                    yield Piece(text, ids, "learned" if weight else "template" if stamp else "prompt", weight)
            at = stop

    def _is_text(self, place: int) -> bool:
        return self._types[place] == 0 and self._ids[place] not in self._names

    def _is_stamp(self, first: int, last: int) -> bool:
        """Whether a text is the time that the processor writes before a frame."""
        after = self._ids[last : last + 1]  # where a clip begins, no frame follows its first <|vision_start|>
        frame = after == [self._opens] and self._types[last + 1 : last + 2] == [2]
        return frame and _STAMP.fullmatch(self._decoded(self._ids[first:last])) is not None

    def _spelled(self, ids: Sequence[int]) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Tokens that spell whole characters: the bytes of one may lie in several."""
        waiting: list[int] = []
        for token in ids:
            waiting.append(token)
            text = self._decoded(waiting)
            if not text.endswith("\ufffd") or len(waiting) == _LONGEST:
                yield text, tuple(waiting)
                waiting = []
        if waiting:
            yield self._decoded(waiting), tuple(waiting)

    def _decoded(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text
