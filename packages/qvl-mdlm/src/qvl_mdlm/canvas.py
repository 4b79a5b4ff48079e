"""A canvas as people see it, on the terminal and on pages: masks, what is written, what was written last, what ends it.

Shapes: N tokens of the canvas.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from qvl_core.printable import printable

Ids = NDArray[np.int64]
Kind = Literal["mask", "new", "old", "end"]
MASK, END = "░", "·"  # of one token each
STYLES: dict[Kind, str] = {"mask": "dim", "new": "bold black on green", "old": "default", "end": "dim"}


class Piece(NamedTuple):
    """Tokens in a row of one kind, as text."""

    text: str
    kind: Kind


def pieces(canvas: Ids, written: Sequence[int] | Ids, tokenizer: Any, mask_token_id: int | None) -> list[Piece]:
    """What a canvas (N,) shows.

    written  places of the last step
    """
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    new = set(np.asarray(written).tolist())

    def kind(place: int) -> Kind:
        token = canvas[place]
        return "mask" if token == mask_token_id else "end" if token in ends else "new" if place in new else "old"

    found = []
    for what, group in groupby(range(len(canvas)), kind):
        places = list(group)
        if what in ("mask", "end"):
            found.append(Piece((MASK if what == "mask" else END) * len(places), what))
        else:
            found.append(Piece(tokenizer.decode(canvas[places]), what))
    return found


def on_terminal(shown: Sequence[Piece]) -> Text:
    """Pieces in their colours; what cannot be seen is spelt out."""
    text = Text()
    for piece in shown:
        text.append(printable(piece.text, "\n\t"), STYLES[piece.kind])
    return text
