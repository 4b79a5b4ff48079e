"""From the rules of a recipe and a key to what happens to one sample."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ..grounding import area, clip, coord_space, states_coordinates
from ..order import mix
from ..sample import Region, Sample
from .augmentation import Augmentation
from .sides import names_a_side

if TYPE_CHECKING:
    from qvl_core.recipe.blocks import Augment

TRIES = 10
"""How often a crop and shift is drawn before the sample keeps its frame."""

_SHIFT_X, _SHIFT_Y, _CROP_X, _CROP_Y, _CROP, _RESIZE, _FLIP, _BRIGHTNESS, _CONTRAST, _SATURATION = range(10)
_AGAIN = 10  # added to a choice for each further try


def augmented(sample: Sample, rules: "Augment", *key: int) -> Sample:
    """The sample with its regions moved, opening its pictures changed; the same for the same key.

    Sizes of pictures are read where they decide: for regions, and for an edit that may be shifted. Raises BadSample.
    """
    augmentation = draw(rules, sample, *key)
    sized = zip(sample.regions, _sizes(sample), strict=True)
    regions = tuple(_moved(augmentation, region, size) for region, size in sized)
    opener = replace(sample.opener, augmentation=augmentation)
    return sample.model_copy(update={"regions": regions}).read_from(opener, sample.place)


def draw(rules: "Augment", sample: Sample, *key: int) -> Augmentation:
    """What `rules` make of one sample under `key`. Raises BadSample where a size is needed and cannot be read."""
    texts = list(_texts(sample))
    colours = Augmentation(
        brightness=_between(1 - rules.brightness, 1 + rules.brightness, *key, _BRIGHTNESS),
        contrast=_between(1 - rules.contrast, 1 + rules.contrast, *key, _CONTRAST),
        saturation=_between(1 - rules.saturation, 1 + rules.saturation, *key, _SATURATION),
    )
    if not rules.coordinates and (coord_space(sample) or any(map(states_coordinates, texts))):
        return colours
    framed = replace(
        colours,
        resize=_between(*rules.resize, *key, _RESIZE),
        flip=_part(*key, _FLIP) < rules.flip and (rules.flip_sides or not any(map(names_a_side, texts))),
    )
    if rules.crop == 1 and rules.shift == 0:
        return framed
    sizes = _sizes(sample)
    most = rules.shift if _alike(sample) else 0
    for attempt in range(TRIES):
        x, y = (_part(*key, choice + attempt * _AGAIN) for choice in (_CROP_X, _CROP_Y))
        side = _between(rules.crop, 1, *key, _CROP + attempt * _AGAIN) ** 0.5
        dx, dy = (mix(*key, choice + attempt * _AGAIN) % (2 * most + 1) - most for choice in (_SHIFT_X, _SHIFT_Y))
        drawn = replace(framed, window=(x, y, side), shift=(dx, dy))
        if all(_visible(drawn, *pair, rules.visible) for pair in zip(sample.regions, sizes, strict=True)):
            return drawn
    return framed


def keeps_length(rules: "Augment", sample: Sample) -> bool:
    """Whether the sample has the same number of tokens in every pass."""
    if rules.crop < 1 or rules.resize != (1.0, 1.0):
        return False
    moved = bool(rules.flip or rules.shift)
    return not (moved and any(part.type == "regions" for message in sample.messages for part in message.parts))


def _moved(augmentation: Augmentation, region: Region, size: tuple[int, int]) -> Region:
    """The region after the augmentation, as far as it lies in the picture; one that lay outside before stays so."""
    moved = augmentation.region(region, size)
    return clip(moved, *augmentation.size(size)) or moved


def _visible(augmentation: Augmentation, region: Region, size: tuple[int, int], part: float) -> bool:
    """Whether `part` of the region's area (a point itself) stays in the picture."""
    left = clip(augmentation.region(region, size), *augmentation.size(size))
    before = clip(region, *size)
    if left is None or before is None:
        return False
    unclipped = area(augmentation.region(before, size))
    return region.kind == "point" or area(left) >= part * unclipped


def _sizes(sample: Sample) -> list[tuple[int, int]]:
    """Width and height of each region's picture."""
    return [sample.opener.size(sample.media[region.media]) for region in sample.regions]


def _alike(sample: Sample) -> bool:
    """Whether a shift by the same pixels is the same for all pictures: not between two sizes of an edit."""
    pictures = [media for media in sample.media if media.kind == "image"]
    return sample.edit is None or len({sample.opener.size(media) for media in pictures}) == 1


def _texts(sample: Sample) -> Iterator[str]:
    """All that the sample says about its pictures, in any language."""
    yield from (message.text for message in sample.messages)
    yield from (region.label for region in sample.regions if region.label is not None)
    if sample.edit is not None:
        yield from sample.edit.instruction.values()
        yield from (sample.edit.inverse or {}).values()


def _part(*key: int) -> float:
    """Uniform in [0, 1)."""
    return mix(*key) / 2**64


def _between(least: float, most: float, *key: int) -> float:
    return least + _part(*key) * (most - least)
