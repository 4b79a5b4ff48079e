"""A sample as a card of a report: its pictures with what is drawn on them, and the conversation."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from qvl_core.errors import BadInput
from qvl_core.report import Card, Picture, Shape, Strip, Turn

from ..errors import BadSample
from ..media import media_name
from ..sample import Message, Sample
from ..shown import frames, small

SIDE = 480  # pixels of a picture on a card
_FRAME = 160
_PICTURES, _SHAPES, _TURNS, _CHARACTERS = 8, 50, 12, 4000  # most of each on one card


def card(sample: Sample, tags: tuple[str, ...] = (), folder: Path | None = None) -> Card:
    """The card of a sample. A picture that cannot be opened becomes a sentence in the card's note.

    Files are named as seen from `folder`.
    """
    order, problems = shown_media(sample), []
    pictures: list[Picture | Strip] = []
    numbers: dict[int, int] = {}  # media index -> place on the card
    for index in order[:_PICTURES]:
        try:
            opened = picture_of(sample, index)
        except (BadSample, BadInput) as error:
            problems.append(seen_from(folder, str(error)))
        else:
            numbers[index] = len(pictures)
            pictures.append(opened)
    more = [f"{len(order) - _PICTURES} more pictures"] if len(order) > _PICTURES else []
    more += [f"{len(sample.messages) - _TURNS} more turns"] if len(sample.messages) > _TURNS else []
    return Card(
        title=shortened(sample.id, 80),
        pictures=pictures,
        turns=[*_instructions(sample), *(_turn(m, numbers, sample) for m in sample.messages[:_TURNS])],
        tags=tags,
        note="\n".join([*problems, *(["and " + ", ".join(more)] if more else [])]),
        becomes=sample.edit is not None and len(pictures) > 1,
    )


def seen_from(folder: Path | None, text: str) -> str:
    """A sentence without the way to `folder`, so that it is the same wherever the folder lies."""
    if folder is None or folder == folder.parent:  # where we are, or a root: no name that could be left out
        return text
    return text.replace(f"{folder}{os.sep}", "").replace(str(folder), folder.name)


def shown_media(sample: Sample) -> list[int]:
    """Pictures and videos in the order in which they are shown; frames only as part of their video."""
    edit = sample.edit
    order = [part.media for message in sample.messages for part in message.parts if part.media is not None]
    order += [*edit.sources, edit.target] if edit is not None else []
    order += [region.media for region in sample.regions]
    return list(dict.fromkeys(order))


def picture_of(sample: Sample, index: int, side: int = SIDE) -> Picture | Strip:
    """A picture with the sample's regions on it, or the frames of a video. Raises BadSample."""
    media, edit = sample.media[index], sample.edit
    if media.kind == "video":
        shown = [
            Picture(small(frame, _FRAME), "" if second is None else f"{second:.1f} s")
            for second, frame in frames(sample, media)
        ]
        return Strip(shown, shortened(media_name(media), 120))
    opened = sample.opener.open(media)
    width, height = opened.size
    name = media_name(media) if edit is None else "target" if index == edit.target else "source"
    named = f"{shortened(name, 120)} · {width}\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}{height}"
    return Picture(small(opened, side), named, shapes=tuple(_shapes(sample, index))[:_SHAPES], size=opened.size)


def compared(sample: Sample, caption: str, bad: bool, side: int = 240) -> Iterator[Picture]:
    """The first pictures of a sample under one caption, for groups of duplicates."""
    for index in [index for index in shown_media(sample) if sample.media[index].kind == "image"][:2]:
        try:
            opened = picture_of(sample, index, side)
        except BadSample:
            continue
        if isinstance(opened, Picture):
            yield replace(opened, caption=caption, mark="bad" if bad else None, shapes=())


def _shapes(sample: Sample, index: int) -> Iterator[Shape]:
    for region in sample.regions:
        if region.media == index:
            yield Shape(region.kind, region.xy, shortened(region.label or "", 60))


def _instructions(sample: Sample) -> Iterator[Turn]:
    """What is asked of a picture edit, by language."""
    if sample.edit is None:
        return
    for name, said in (("instruction", sample.edit.instruction), ("inverse", sample.edit.inverse or {})):
        for language, text in said.items():
            if text:
                yield Turn(f"{name} · {language}", [shortened(text)])


def _turn(message: Message, numbers: dict[int, int], sample: Sample) -> Turn:
    parts: list[str | int] = []
    for part in message.parts:
        if part.text is not None:
            parts.append(shortened(part.text))
        elif part.media is not None:
            parts.append(numbers.get(part.media, f"[{part.type}]"))
        elif part.regions is not None:
            parts.append(", ".join(_said(sample, region) for region in part.regions[:_SHAPES]))
    return Turn(message.role, parts, message.trained)


def _said(sample: Sample, number: int) -> str:
    region = sample.regions[number]
    numbers = ", ".join(f"{value:g}" for value in region.xy)
    return f"\u2068{shortened(region.label or region.kind, 60)}\u2069 ({numbers})"  # its direction ends with it


def shortened(text: str, most: int = _CHARACTERS) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"
