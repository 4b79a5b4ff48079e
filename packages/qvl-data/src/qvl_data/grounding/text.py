"""Regions as the text that a model reads and writes, and back.

    {"bbox_2d": [x1, y1, x2, y2], "label": "cat"}       one region; several stand in a JSON list
    {"point_2d": [x, y], "label": "nose"}

as in QwenLM/Qwen3-VL (qwen-vl-finetune/README.md and the cookbooks). Qwen3-VL counts 0..1000 over the width and the
height of the picture, whatever its size; Qwen2.5-VL counts pixels of the picture as its processor resizes it.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qvl_core.errors import BadInput

from ..errors import BadSample, placed
from ..sample import Part, Region, Sample
from .shapes import clip

Size = Callable[[int], tuple[int, int]]
"""Media index -> width, height of the picture as it is shown."""

KEYS: dict[Literal["box", "point", "polygon"], str] = {"box": "bbox_2d", "point": "point_2d", "polygon": "polygon_2d"}
"""What a region's coordinates stand under. `polygon_2d` is our own: Qwen documents boxes and points."""
LAYOUTS = ("json", "fenced", "plain")
"""Values of `Part.template`: JSON on one line (default), a fenced list as the models answer, or only the numbers."""
MAX_TEXT = 100_000
"""Longest text in characters that coordinates are read from."""


@dataclass(frozen=True)
class Space:
    """In which numbers a text states coordinates.

    qwen3vl    0..1000 over width and height, also Qwen2-VL's; texts in 0..999 are read the same
    qwen2.5vl  pixels after Qwen2.5-VL's resizing to multiples of 28, within min_pixels..max_pixels
    pixel      pixels of the picture itself
    """

    name: Literal["qwen3vl", "qwen2.5vl", "pixel"]
    min_pixels: int = 56 * 56
    max_pixels: int = 3584 * 3584

    def extent(self, width: int, height: int) -> tuple[int, int]:
        """What the right and the lower border of a picture of width x height are called."""
        if self.name == "qwen3vl":
            return 1000, 1000
        if self.name == "pixel":
            return width, height
        return _resized(width, height, self.min_pixels, self.max_pixels)


SPACES: dict[str, Space] = {space.name: space for space in (Space("qwen3vl"), Space("qwen2.5vl"), Space("pixel"))}


def space_of(processor: Any) -> Space:
    """The space that the model of a processor speaks in."""
    if not type(processor).__name__.startswith("Qwen2_5"):
        return SPACES["qwen3vl"]
    size = processor.image_processor.size
    return Space("qwen2.5vl", size["shortest_edge"], size["longest_edge"])


def render(
    regions: Sequence[Region],
    size: Size,
    space: Space = SPACES["qwen3vl"],
    layout: str | None = None,
) -> str:
    """Regions as text: round(x / width * 1000), clamped to the picture.

    A coordinate that is read back is at most half a step off, which is width / 2000 pixels in `qwen3vl`. A box thinner
    than a step is written one step wide, so that it stays a box; its sides are at most one step off.
    Raises BadSample for an unknown layout.
    """
    entries = []
    for region in regions:
        entry: dict[str, Any] = {KEYS[region.kind]: _steps(region, *size(region.media), space)}
        if region.label is not None:
            entry["label"] = region.label
        entries.append(entry)
    if layout in (None, "json"):
        return json.dumps(entries[0] if len(entries) == 1 else entries, ensure_ascii=False)
    if layout == "fenced":
        lines = ",\n".join("\t" + json.dumps(entry, ensure_ascii=False) for entry in entries)
        return f"```json\n[\n{lines}\n]\n```"
    if layout == "plain":
        return ", ".join(json.dumps(next(iter(entry.values()))) for entry in entries)
    raise BadSample("regions", f'no layout "{layout}" of regions; use {", ".join(LAYOUTS)}')


def parse(
    text: str, width: int, height: int, space: Space = SPACES["qwen3vl"], media: int = 0, lenient: bool = False
) -> list[Region]:
    """The regions that a text states, in pixels of the upright picture of width x height, in their order.

    JSON objects with `bbox_2d`, `point_2d` or `polygon_2d` count, in a code fence or among other text; a `label` (or
    `text_content`) comes along. A text without any gives []. Raises BadSample (`coordinates`) for what is cut off or no
    JSON, values outside the space, values up to 1 (which are fractions of the picture), empty and inverted boxes.

    lenient  for what a model wrote: values are clamped into the space, and regions that cannot be read are left out
    """
    if len(text) > MAX_TEXT:
        raise BadSample("coordinates", f"coordinates in a text of {len(text)} characters, over {MAX_TEXT}; shorten it")
    found = list(entries(text))
    values = [value for _, xy, _ in found for value in xy]
    if values and all(0 <= value <= 1 for value in values):
        problem = f"{found[0][1]} looks like fractions of the picture; multiply by 1000 ({space.name})"
        raise BadSample("coordinates", problem if space.name == "qwen3vl" else problem.replace("1000", "its size"))
    if not lenient and len(found) < (stated := len(_KEY.findall(text))):
        raise BadSample("coordinates", f"{stated - len(found)} of {stated} regions in the text are no sound JSON")
    regions = []
    for kind, xy, label in found:
        try:
            regions.append(_region(kind, xy, label, space.extent(width, height), width, height, media, lenient))
        except BadSample:
            if not lenient:
                raise
    return regions


def as_text(sample: Sample, space: Space | str = "qwen3vl", size: Size | None = None) -> Sample:
    """The sample with its parts of type regions written out as text, which `extra.coord_space` then names.

    size  of each picture as the model is shown it; default: as the sample's opener gives it (augmented)

    Regions that are all written out leave the sample; where some are named nowhere, all stay. Raises BadSample, also
    for a region that is written out and lies outside its picture.
    """
    shown = {index for message in sample.messages for part in message.parts for index in part.regions or ()}
    if not any(part.type == "regions" for message in sample.messages for part in message.parts):
        return sample
    if isinstance(space, str):
        if space not in SPACES:
            raise BadInput(f'no coordinate space "{space}"; use one of {", ".join(SPACES)}.')
        space = SPACES[space]
    size = size or (lambda index: sample.opener.size(sample.media[index]))

    def written(part: Part) -> Part:
        if part.regions is None:
            return part
        regions = [sample.regions[index] for index in part.regions]
        for index, region in zip(part.regions, regions, strict=True):
            if (problem := outside(region, index, *size(region.media))) is not None:
                raise problem
        return Part(type="text", text=render(regions, size, space, part.template))

    with placed(sample):
        messages = [
            message.model_copy(update={"parts": tuple(map(written, message.parts))}) for message in sample.messages
        ]
    extra = {**(json.loads(sample.extra) if sample.extra else {}), "coord_space": space.name}
    changes: dict[str, Any] = {"messages": tuple(messages), "extra": json.dumps(extra, ensure_ascii=False)}
    if len(shown) == len(sample.regions):
        changes["regions"] = ()
    return sample.model_copy(update=changes)


def named(region: Region, number: int) -> str:
    """What to call a sample's region in a message."""
    numbers = ", ".join(f"{value:g}" for value in region.xy[:4])
    return f"regions[{number}]: {region.kind} [{numbers}{', ...' if len(region.xy) > 4 else ''}]"


def outside(region: Region, number: int, width: int, height: int) -> BadSample | None:
    """What is wrong with a region of which nothing lies in its picture: clamped, it would be a place in it."""
    if clip(region, width, height) is not None:
        return None
    problem = f"lies outside its picture of {width} x {height} pixels; is it in another space, or not upright?"
    return BadSample("region_outside", f"{named(region, number)} {problem}")


def coord_space(sample: Sample) -> str | None:
    """What `extra` declares the coordinates in the sample's text to be: a name of SPACES, `unknown`, or nothing."""
    if sample.extra is None or '"coord_space"' not in sample.extra:
        return None
    declared = json.loads(sample.extra).get("coord_space")
    return declared if declared is None or isinstance(declared, str) else "unknown"


def states_coordinates(text: str) -> bool:
    """Whether a text looks as if it holds coordinates: Qwen's keys and tags, or lists of 2 to 4 numbers."""
    return _STATED.search(text) is not None


_NUMBER = r"-?\d+(?:\.\d+)?"
_STATED = re.compile(
    rf"""(?x)
    \b(?:bbox|box|point|polygon)(?:es|s)?(?:_2d|_2D)?["']?\s*:\s*[\[(]   # "bbox_2d": [
    | <\|?(?:box|point|quad|bbox)(?:_start)?\b                           # <box>, <|box_start|>, <point x=
    | [\[(]\s*{_NUMBER}(?:\s*,\s*{_NUMBER}){{3}}\s*[\])]                 # [12, 34, 56, 78]
    | \(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)                                # (12, 34)
    | \[\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\]                                # [12, 34]
    """
)
_KEY = re.compile(r"""["'](?:bbox|point|polygon)_2d["']""")
_OBJECT = re.compile(r'\{\s*"')
_DECODER = json.JSONDecoder()


def _resized(width: int, height: int, min_pixels: int, max_pixels: int, factor: int = 28) -> tuple[int, int]:
    """Qwen2.5-VL's size of a picture (transformers: qwen2_vl/image_processing_qwen2_vl.py:smart_resize)."""
    wide, high = max(factor, round(width / factor) * factor), max(factor, round(height / factor) * factor)
    if wide * high > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
        high = max(factor, math.floor(height / shrink / factor) * factor)
    elif wide * high < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        wide = math.ceil(width * grow / factor) * factor
        high = math.ceil(height * grow / factor) * factor
    return wide, high


def _steps(region: Region, width: int, height: int, space: Space) -> list[int]:
    """Coordinates in whole steps of the space."""
    extents = space.extent(width, height)
    exact = [
        min(max(value / side * extent, 0.0), extent)
        for value, side, extent in zip(region.xy, _turns((width, height)), _turns(extents), strict=False)
    ]
    steps = [round(value) for value in exact]
    if region.kind == "box":
        for axis in (0, 1):
            if steps[axis] == steps[axis + 2]:  # thinner than a step
                low = min(math.floor((exact[axis] + exact[axis + 2]) / 2), extents[axis] - 1)
                steps[axis], steps[axis + 2] = low, low + 1
    return steps


def _turns(pair: tuple[int, int]) -> Iterator[int]:
    while True:
        yield from pair


def entries(text: str) -> Iterator[tuple[Literal["box", "point", "polygon"], list[float], str | None]]:
    """Kind, numbers and label of each sound JSON object that states a region."""
    at = 0
    while start := _OBJECT.search(text, at):
        try:
            value, at = _DECODER.raw_decode(text, start.start())
        except ValueError:
            at = start.end()
            continue
        except RecursionError:  # nested too deep to be regions
            return
        for entry in _objects(value):
            for kind, key in KEYS.items():
                xy = entry.get(key)
                if isinstance(xy, list) and all(type(number) in (int, float) for number in xy):
                    label = entry.get("label", entry.get("text_content"))
                    yield kind, xy, label if isinstance(label, str) else None


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """A JSON object and those inside it, the outer ones first."""
    waiting = [value]
    while waiting:
        value = waiting.pop(0)
        if isinstance(value, dict):
            yield value
            waiting.extend(value.values())
        elif isinstance(value, list) and not all(type(item) in (int, float) for item in value):
            waiting.extend(value)


def _region(
    kind: Literal["box", "point", "polygon"],
    xy: list[float],
    label: str | None,
    extents: tuple[int, int],
    width: int,
    height: int,
    media: int,
    lenient: bool,
) -> Region:
    """One region in pixels. Raises BadSample."""
    values = []
    for value, side, extent in zip(xy, _turns((width, height)), _turns(extents), strict=False):
        if not 0 <= value <= extent:  # also NaN
            if not lenient or value != value:
                raise BadSample("coordinates", f"{xy} leaves 0..{extent}; is it in another space, such as pixels?")
            value = min(max(value, 0), extent)
        values.append(value / extent * side)
    try:
        return Region(media=media, kind=kind, xy=tuple(values), label=label)
    except ValueError:
        raise BadSample("coordinates", f"{xy} is no {kind}: empty, inverted, or of a wrong count") from None
