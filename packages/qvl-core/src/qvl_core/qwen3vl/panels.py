"""Turns as a model reads them, on a terminal: a box for each turn, learned tokens green, pictures as their tokens."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from qvl_core.printable import printable
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.transcript import Piece, Turn

BORDERS = {"system": "magenta", "user": "blue", "assistant": "green"}


def panels(title: str, turns: Sequence[Turn], sizes: "Sizes", cut: range = range(0), problem: str = "") -> Group:
    """Boxes below a title; those of cut turns are struck through, all of them if a problem says why."""
    lines = [Text(printable(title), style="bold")]
    if problem:
        lines.append(Text(printable(problem), style="red"))
    return Group(*lines, *_boxes(turns, sizes, range(len(turns)) if problem else cut))


Sizes = Sequence[tuple[int, int]]  # width and height of each picture in pixels


def picture_sizes(sample: Encoded | None, processor: Any) -> list[tuple[int, int]]:
    """Width and height of a sample's pictures as the model sees them."""
    if sample is None or sample.image_grid is None:
        return []
    side = processor.image_processor.patch_size
    return [(int(w) * side, int(h) * side) for _, h, w in sample.image_grid.tolist()]


def note(turn: Turn, cut: bool = False) -> str:
    """How many tokens a turn has, and, unless it is cut, what of them is learned: `12 tokens, 5 learned × 0.5`."""
    total, learned = sum(turn.counts.values()), turn.counts["learned"]
    if cut or not learned:
        return f"{total:,} tokens"
    return f"{total:,} tokens, {learned:,} learned" + (f" × {turn.weight:g}" if turn.weight != 1 else "")


def _boxes(turns: Sequence[Turn], sizes: Sizes, cut: range) -> Iterator[Panel]:
    for place, turn in enumerate(turns):
        text = Text()
        for piece in turn.pieces:
            said, style = _said(piece, sizes)
            text.append(said, f"{style} strike dim" if place in cut else style)
        yield Panel(
            text,
            title=Text(turn.role + (" (cut)" if place in cut else "")),
            subtitle=Text(note(turn, place in cut), style="dim"),
            title_align="left",
            subtitle_align="right",
            border_style="red" if place in cut else BORDERS.get(turn.role, "cyan"),
        )


def _said(piece: Piece, sizes: Sizes) -> tuple[str, str]:
    """Text and style of a piece."""
    if piece.kind == "image" and piece.media is not None:
        width, height = sizes[piece.media]
        return f"[{width}×{height} pixels: {len(piece.ids)} image tokens]", "cyan"
    if piece.kind == "video":
        return f"[frame: {len(piece.ids)} video tokens]", "cyan"
    text = printable(piece.text, kept="\n")
    if piece.kind == "learned":
        return text, "bold green" if piece.weight >= 1 else "green"
    return text, "dim" if piece.kind == "template" else "default"
