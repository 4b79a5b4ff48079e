"""What can be wrong with a sample's regions once the sizes of its pictures are known."""

from ..errors import BadSample
from ..sample import Region, Sample
from .shapes import area
from .text import SPACES, Size, coord_space, named, outside, parse, states_coordinates


def check(sample: Sample, size: Size | None = None) -> list[BadSample]:
    """Every fault of the sample's regions, and of the coordinates that its text declares.

    region_outside  nothing of a region lies in its picture
    region_beyond   a region reaches over the border of its picture (`clip` mends it)
    region_empty    a polygon without area (boxes and NaN are refused when the sample is read)
    coordinates     text with a declared `extra.coord_space` that cannot be read in it

    size  of each upright picture; default: as the sample's opener gives it. What cannot be opened is left out here.
    """
    size = size or (lambda index: sample.opener.size(sample.media[index]))
    found = []
    for number, region in enumerate(sample.regions):
        try:
            width, height = size(region.media)
        except BadSample:
            continue
        if problem := _problem(region, number, width, height):
            found.append(problem)
    found.extend(_stated(sample, size))
    return [problem.at(sample.place or sample.meta.locator or "", sample.id) for problem in found]


def _problem(region: Region, number: int, width: int, height: int) -> BadSample | None:
    what = named(region, number)
    if region.kind == "polygon" and not area(region) > 0:
        return BadSample("region_empty", f"{what} has no area; remove it")
    if (problem := outside(region, number, width, height)) is not None:
        return problem
    if any(not 0 <= value <= side for xs, side in ((region.xy[::2], width), (region.xy[1::2], height)) for value in xs):
        return BadSample("region_beyond", f"{what} reaches beyond its picture of {width} x {height} pixels; clip it")
    return None


def _stated(sample: Sample, size: Size) -> list[BadSample]:
    """Faults of the coordinates in the text, as far as their space and their picture are known."""
    space = SPACES.get(coord_space(sample) or "unknown")
    pictures = [index for index, media in enumerate(sample.media) if media.kind == "image"]
    if space is None or not pictures or (len(pictures) > 1 and space.name != "qwen3vl"):
        return []
    found = []
    try:
        width, height = size(pictures[0])
    except BadSample:
        return []
    for number, message in enumerate(sample.messages):
        try:
            if states_coordinates(message.text):
                parse(message.text, width, height, space)
        except BadSample as problem:
            found.append(BadSample(problem.reason, f"messages[{number}]: {problem.problem}"))
    return found
