"""The page of `qvl-sft inspect`: samples as the model reads them, tokens by kind, and how rows are filled."""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.panels import note
from qvl_core.qwen3vl.pixels import frames, pictures
from qvl_core.qwen3vl.transcript import KINDS, Piece, Turn, counted
from qvl_core.report import Picture, Said, Section, Stacks, Table, Text, Token, Transcript, render
from qvl_sft.reading import Reading
from qvl_sft.recipe import SFTRecipe

NAMES = {
    "prompt": "text that is read",
    "image": "pictures",
    "learned": "learned",
    "video": "video",
    "template": "chat template",
}
COLOURS = {"prompt": 1, "image": 2, "learned": 3, "video": 4, "template": 6}
THUMBNAIL = 320  # pixels of the longer side
FRAMES = 24  # of a sample's frames that are shown; the others are named


class Rows(NamedTuple):
    """Lengths of the samples in the first rows of a step, tokens that a full row holds, and rows of the step."""

    lengths: tuple[tuple[int, ...], ...]
    full: int
    total: int


def page(
    recipe: SFTRecipe, name: str, list_name: str, readings: Sequence[Reading], rows: Rows | None, processor: Any
) -> str:
    """The HTML page."""
    parts = [Section("Samples", [_transcript(reading, processor) for reading in readings], lead=_LEGEND)]
    if any(reading.kept for reading in readings):
        parts.append(Section("Tokens by kind", [_kinds(readings), _table(readings)]))
    if rows is not None:
        parts.append(Section("The first rows", [_packing(recipe, rows)]))
    learned = {"all": "all answers", "last": "the last answer of each conversation", "none": "answers that are marked"}
    lead = (
        f"{len(readings)} of the samples in data.{list_name}, read as {recipe.model.name} reads them: "
        f"{learned[recipe.data.train_on]} are learned, up to {recipe.batch.max_length:,} tokens, what is longer is "
        f"{'an error' if recipe.batch.too_long == 'error' else _TOO_LONG[recipe.batch.too_long]}."
    )
    return render(f"What {name} reads and learns", parts, lead)


_TOO_LONG = {"drop": "left out", "cut": "cut from the front"}
_LEGEND = (
    "Green is learned, the deeper the more it weighs. Rounded tokens are special ones; the same characters typed in "
    "the data are ordinary text. Rest the pointer on a text to see where its tokens begin, on a token for its number."
)


def _transcript(reading: Reading, processor: Any) -> Transcript:
    tokens = counted(piece for turn in reading.kept for piece in turn.pieces)
    tags = [f"{sum(tokens.values()):,} tokens", f"{tokens['learned']:,} learned"] if not reading.problem else []
    if reading.cut:
        gone = counted(piece for place in reading.cut for piece in reading.turns[place].pieces)
        tags.append(f"{sum(gone.values()):,} cut")
    shots = _Shots(reading.whole, processor)
    lost = range(len(reading.turns)) if reading.problem else reading.cut
    turns = [
        Said(turn.role, list(_parts(turn, shots)), note(turn, place in lost), turn.weight, cut=place in reading.cut)
        for place, turn in enumerate(reading.turns)
    ]
    about = " · ".join(() if reading.problem else (reading.place, *reading.changes))
    return Transcript(reading.name or reading.place, turns, tags, about, reading.problem)


def _parts(turn: Turn, shots: "_Shots") -> Iterator[Token | Picture]:
    for piece in turn.pieces:
        if piece.kind in ("image", "video"):
            yield shots.of(piece)
        else:
            faint = piece.kind == "template"
            yield Token(piece.text, _hint(piece), piece.weight, chip=piece.special, faint=faint)


def _hint(piece: Piece) -> str:
    numbers = ", ".join(map(str, piece.ids))
    learned = f" · learned × {piece.weight:g}" if piece.weight else ""
    return f"{'token' if len(piece.ids) == 1 else 'tokens'} {numbers}{learned}"


class _Shots:
    """Thumbnails of a sample's pictures and frames, from the patches that the model is given."""

    def __init__(self, sample: Encoded | None, processor: Any) -> None:
        self._images = pictures(sample, processor) if sample else []
        self._frames = frames(sample, processor) if sample else []
        self._sides = (processor.image_processor.patch_size, processor.video_processor.patch_size)
        step = max(1, -(-len(self._frames) // FRAMES))
        self._shown = set(range(0, len(self._frames), step))

    def of(self, piece: Piece) -> Picture | Token:
        assert piece.media is not None
        video = piece.kind == "video"
        count = f"{len(piece.ids):,} tokens"
        if video and piece.media not in self._shown:
            return Token(count, "a frame that is not shown here", chip=True)
        pixels = (self._frames if video else self._images)[piece.media]
        height, width = pixels.shape[:2]
        side = self._sides[video]
        patches = "" if video else f"\n{width // side} × {height // side} patches"
        caption = f"{count}\n{width} × {height} px{patches}"
        return Picture(_thumbnail(pixels, THUMBNAIL // 2 if video else THUMBNAIL), caption)


def _thumbnail(pixels: np.ndarray[Any, np.dtype[np.uint8]], most: int) -> bytes:
    picture, file = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((most, most))
    picture.save(file, "PNG")
    return file.getvalue()


def _kinds(readings: Sequence[Reading]) -> Stacks:
    rows = []
    for reading in readings:
        if reading.kept:
            counts = counted(piece for turn in reading.kept for piece in turn.pieces)
            segments = [(f"{NAMES[kind]}: {counts[kind]:,}", counts[kind], COLOURS[kind]) for kind in _ORDER]
            rows.append((reading.name or reading.place, segments, f"{sum(counts.values()):,} tokens"))
    return Stacks("", rows, legend={NAMES[kind]: COLOURS[kind] for kind in _ORDER})


def _table(readings: Sequence[Reading]) -> Table:
    counts = Counter[str]()
    for reading in readings:
        counts += counted(piece for turn in reading.kept for piece in turn.pieces)
    total = sum(counts.values())
    rows = [
        {"kind": NAMES[kind], "tokens": counts[kind], "share": f"{counts[kind] / total:.1%}"}
        for kind in KINDS
        if counts[kind]
    ]
    return Table(rows, note=f"{total:,} tokens of the samples above, without what is cut or left out.")


_ORDER = ("prompt", "image", "learned", "video", "template")


def _packing(recipe: SFTRecipe, rows: Rows) -> Stacks | Text:
    if not any(map(sum, rows.lengths)):
        return Text("No sample of the first step can be used.", tone="bad")
    bars = []
    for number, lengths in enumerate(rows.lengths, start=1):
        segments = [(f"{length:,} tokens", length, 1 + place % 5) for place, length in enumerate(lengths)]
        what = f"{len(lengths)} sample{'s' * (len(lengths) != 1)}, {sum(lengths) / rows.full:.0%} full"
        bars.append((f"row {number}", segments, what))
    whole = sum(map(sum, rows.lengths)) / (rows.full * len(rows.lengths))
    how = "packed end to end, each attending only to itself" if recipe.batch.packing else "padded to the longest"
    shown = f"{len(rows.lengths)} of the {rows.total} rows" if len(rows.lengths) < rows.total else "The rows"
    planned = " A sample that will be cut is planned as a full row." if recipe.batch.too_long == "cut" else ""
    note = f"{shown} of the first step, {how}: {whole:.1%} full.{planned}"
    return Stacks("", bars, total=rows.full, note=note)
