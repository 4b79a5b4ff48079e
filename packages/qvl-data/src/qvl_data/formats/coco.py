"""COCO detections (Lin et al. 2014, arXiv:1405.0312) as chats about where things are, and back.

    {"image": {"id": 7, "file_name": "cats/1.jpg", "width": 640, "height": 480},
     "annotations": [{"id": 1, "image_id": 7, "category_id": 17, "bbox": [10, 20, 100, 50], "iscrowd": 0, ...}],
     "categories": [{"id": 17, "name": "cat"}]}

`coco_rows` makes such rows from a COCO file and `coco_writer` one file of them. Each picture becomes one question that
names the categories to find (one of TEMPLATES, chosen by the picture's id and `seed`) and an answer with their boxes.

- Boxes are `regions` of kind `box` (x1, y1, x2, y2), polygons of kind `polygon`, cut at the border; run lengths (RLE)
  are kept and not looked at.
- A category with a crowd in the picture (`iscrowd`) is not asked about, since its boxes are not all there.
- Boxes without area (`region_empty`) or outside the picture (`region_outside`) are refused; one that reaches over the
  border stays, for `validate` to tell (`region_beyond`) and to cut. `--map boxes=clip` cuts these at the border and
  leaves out the others; `boxes=drop` leaves out all of them. Less than a pixel over the border is rounding, and cut.
- `write` gives back every annotation as it was, those that were left out too, as long as no region was removed.

COCO's boxes are in the pixels of the file as stored; its tools ignore the EXIF orientation. `settle` turns boxes of a
rotated picture upright if `width` and `height` are those of the stored file.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from qvl_core.errors import BadInput

from .. import grounding
from ..errors import BadSample
from ..media import media_name, stored_size
from ..order import mix
from ..sample import Message, Part, Region, Sample
from . import register
from .columns import Columns
from .common import build, media_at, not_expressible, source_of, unpack_extra
from .fitted import fitted
from .kept import keep

TEMPLATES = (
    "Locate every {labels} in the picture.",
    "Find all of these and give their boxes: {labels}.",
    "Where in the picture is each {labels}?",
    "Detect these objects: {labels}.",
)
"""Questions; `{labels}` becomes the names of the categories with commas between them."""

_KEPT = ("categories", "license", "dataset")
_SIDES = ("width", "height")
_POLICIES = ("error", "clip", "drop")
_LARGEST = 1e9
_ROUNDING = 1.0  # pixels
_SAME = 1e-6  # pixels; how far a turn there and back may lead


@register("coco")
class Coco:
    def __init__(self, columns: Mapping[str, str] | None = None) -> None:
        options = Columns("coco", ("boxes", "seed"), columns).renamed
        self.boxes, seed = options.get("boxes", "error"), options.get("seed", "0")
        if self.boxes not in _POLICIES:
            raise BadInput(f"--map boxes={self.boxes}: use one of {', '.join(_POLICIES)}.")
        if not (seed.isascii() and seed.isdigit()):
            raise BadInput(f"--map seed={seed}: write a whole number.")
        self.seed = int(seed[:18])

    def matches(self, row: Any) -> bool:
        return isinstance(row, dict) and isinstance(row.get("image"), dict) and isinstance(row.get("annotations"), list)

    def read(self, row: Any, place: str) -> Sample:
        image, annotations, names = _parts(row, place)
        width, height = image["width"], image["height"]
        media = media_at(image["file_name"], "image", place).model_copy(update={"width": width, "height": height})
        regions: list[Region] = []
        hints, shown = [], []
        crowded = {annotation.get("category_id") for annotation in annotations if annotation.get("iscrowd") == 1}
        for number, annotation in enumerate(annotations):
            label = names[annotation["category_id"]]
            hint: dict[str, Any] = {}
            if (box := self._box(annotation, label, width, height, f"annotations[{number}]", place)) is not None:
                hint["box"] = len(regions)
                if annotation["category_id"] not in crowded:
                    shown.append(len(regions))
                regions.append(box)
            polygons = _polygons(annotation, label, width, height) if box is not None else []
            if polygons:
                hint["polygons"] = list(range(len(regions), len(regions) + len(polygons)))
                regions += polygons
            exact = polygons and [list(polygon.xy) for polygon in polygons] == annotation.get("segmentation")
            hint["rest"] = {key: value for key, value in annotation.items() if key != "segmentation" or not exact}
            hints.append(hint)
        if not shown:
            raise BadSample("no_regions", "no box to ask about (none at all, left out, or only crowds)", place)
        kept = {key: row[key] for key in _KEPT if key in row}
        layout = {"image": image, "annotations": hints, "regions": len(regions), "boxes": self.boxes, **kept}
        others = {key: value for key, value in row.items() if key not in ("image", "annotations", *kept)}
        license = row.get("license")
        name = license.get("name") if isinstance(license, dict) else None
        return build(
            "coco",
            place,
            {"id": str(image["id"])},
            others,
            layout,
            [media],
            self._chat(image, [regions[index].label or "" for index in shown], shown),
            regions=tuple(regions),
            meta={"license": name} if isinstance(name, str) else {},
        )

    def settle(self, sample: Sample) -> Sample:
        """The sample with its regions in the upright picture, whose header is read. Raises BadSample."""
        media = sample.media[0]
        opener = sample.opener
        try:
            width, height, turn = stored_size(media, opener.root, opener.allow_root, opener.limits)
        except BadSample:  # told by whoever opens it
            return sample
        stated = (media.width, media.height)
        upright = (height, width) if turn >= 5 else (width, height)
        if turn == 1 or (stated == upright != (width, height)):
            return sample
        if stated != (width, height):
            problem = f"is {width} x {height} pixels, not {stated[0]} x {stated[1]} as the annotations say"
            raise BadSample("media_stated_size", f"{problem}; use the picture that was annotated", media_name(media))
        regions = tuple(
            region.model_copy(update={"xy": grounding.upright(region.xy, turn, width, height)})
            for region in sample.regions
        )
        _, layout = unpack_extra(sample, "coco")
        for hint in layout["annotations"]:  # turned back they may differ in the last bit
            if hint.get("polygons"):
                hint["rest"].setdefault("segmentation", [list(sample.regions[i].xy) for i in hint["polygons"]])
        extra = {**json.loads(sample.extra or "{}"), "layout": keep({**layout, "turn": turn})}
        changes = {
            "regions": regions,
            "media": (media.model_copy(update={"width": upright[0], "height": upright[1]}),),
            "extra": json.dumps(extra, ensure_ascii=False),
        }
        return sample.model_copy(update=changes)

    @fitted
    def write(self, sample: Sample) -> Any:
        fields, layout = unpack_extra(sample, "coco")
        if len(sample.media) != 1 or sample.media[0].kind != "image":
            raise not_expressible("coco", "anything but the regions of one picture", sample)
        if not is_numbered(sample):
            return _from_regions(sample)
        image = {**layout["image"], "file_name": _file_name(sample)}
        frame = (layout.get("turn", 1), image["width"], image["height"])
        stays = layout.get("boxes", "error") == "error"
        names = {category["id"]: category["name"] for category in layout["categories"]}
        annotations = [self._annotation(sample, hint, frame, stays, names) for hint in layout["annotations"]]
        kept = {key: layout[key] for key in _KEPT if key in layout}
        return {**fields, "image": image, "annotations": annotations, **kept}

    def _annotation(
        self, sample: Sample, hint: dict[str, Any], frame: tuple[int, int, int], stays: bool, names: dict[Any, str]
    ) -> dict[str, Any]:
        """An annotation as it was read, with what has been changed in its regions since."""
        annotation = dict(hint["rest"])
        turn, width, height = frame
        if "box" in hint:
            region = sample.regions[hint["box"]]
            if region.label != names[annotation["category_id"]]:
                annotation["category_id"] = next((key for key, name in names.items() if name == region.label), None)
                if annotation["category_id"] is None:
                    raise not_expressible("coco", f"the new label {region.label!r}", sample)
            xy = grounding.stored(region.xy, turn, width, height)
            if _moved(xy, _as_read(grounding.xyxy(annotation["bbox"]), width, height, stays)):
                annotation["bbox"] = list(grounding.xywh(xy))
        if "polygons" in hint:
            found = [grounding.stored(sample.regions[index].xy, turn, width, height) for index in hint["polygons"]]
            read = [region.xy for region in _polygons(annotation, "", width, height)]
            if len(read) != len(found) or any(map(_moved, found, read)):
                annotation["segmentation"] = [list(xy) for xy in found]
        return annotation

    def _box(
        self, annotation: dict[str, Any], label: str, width: int, height: int, where: str, place: str
    ) -> Region | None:
        """The box of an annotation; None if it is left out. Raises BadSample."""
        bbox: Any = annotation.get("bbox")
        if not _numbers(bbox) or len(bbox) != 4:
            raise BadSample("coco", f"{where}: bbox {bbox!r} is no list of x, y, width and height", place)
        x1, y1, x2, y2 = grounding.xyxy([float(value) for value in bbox])
        if not (x1 < x2 and y1 < y2):
            if self.boxes != "error":
                return None
            raise BadSample("region_empty", f"{where}: box {bbox} has no area; remove it, or --map boxes=drop", place)
        score: Any = annotation.get("score")
        region = Region(
            media=0,
            kind="box",
            xy=(x1, y1, x2, y2),
            label=label,
            score=float(score) if _numbers([score]) else None,
            crowd=True if annotation.get("iscrowd") == 1 else None,
        )
        inside = grounding.clip(region, width, height)
        if inside is None and self.boxes == "error":
            problem = (
                f"{where}: box {bbox} lies outside the picture of {width} x {height} pixels; mend it, or"
                " --map boxes=clip"
            )
            raise BadSample("region_outside", problem, place)
        if inside is None or (self.boxes == "drop" and _over(region.xy, width, height) > _ROUNDING):
            return None
        return region.model_copy(update={"xy": _as_read(region.xy, width, height, self.boxes == "error")})

    def _chat(self, image: dict[str, Any], labels: list[str], shown: list[int]) -> list[Message]:
        key = int.from_bytes(hashlib.sha256(str(image["id"]).encode()).digest()[:8])
        template = TEMPLATES[mix(self.seed, key) % len(TEMPLATES)]
        question = template.replace("{labels}", ", ".join(dict.fromkeys(labels)))
        return [
            Message(role="user", parts=(Part(type="image", media=0), Part(type="text", text=question))),
            Message(role="assistant", parts=(Part(type="regions", regions=tuple(shown)),)),
        ]


def is_numbered(sample: Sample) -> bool:
    """Whether `write` gives the annotations that were read, with their ids: no region was added or removed."""
    return bool(unpack_extra(sample, "coco")[1].get("regions") == len(sample.regions))


def _parts(row: Any, place: str) -> tuple[dict[str, Any], list[dict[str, Any]], dict[Any, str]]:
    """The image and the annotations of a row, and the names of its categories by id. Raises BadSample."""

    def bad(problem: str) -> BadSample:
        return BadSample("coco", problem, place)

    row = row if isinstance(row, dict) else {}
    image, annotations, categories = row.get("image"), row.get("annotations"), row.get("categories")
    if not isinstance(image, dict) or not all(_objects(value) for value in (annotations, categories)):
        raise bad('expected an object "image" and lists of objects "annotations" and "categories"')
    if not isinstance(image.get("file_name"), str) or not _is_id(image.get("id")):
        raise bad("the image lacks an id or a file_name")
    if not all(isinstance(side := image.get(key), int) and not isinstance(side, bool) and side > 0 for key in _SIDES):
        raise bad(f"the image has width {image.get('width')!r} and height {image.get('height')!r}; give its pixels")
    for category in categories:
        if not _is_id(category.get("id")) or not isinstance(category.get("name"), str):
            raise bad(f"a category without an id or a name: {str(category)[:80]}")
    names = {category["id"]: category["name"] for category in categories}
    for number, annotation in enumerate(annotations):
        category = annotation.get("category_id")
        if not _is_id(category) or category not in names:
            raise bad(f"annotations[{number}]: category_id {category!r} is none of the categories")
    return image, annotations, names


def _from_regions(sample: Sample) -> dict[str, Any]:
    """The row of a sample that was not read from COCO: its boxes and polygons; what is said about them has no place."""
    media = sample.media[0]
    width, height = (media.width, media.height) if media.width and media.height else sample.opener.size(media)
    labels = sorted({region.label for region in sample.regions if region.label is not None})
    annotations = []
    for number, region in enumerate(sample.regions, 1):
        if region.label is None or region.kind == "point":
            raise not_expressible("coco", "points and regions without a label", sample)
        xs, ys = region.xy[::2], region.xy[1::2]
        annotation: dict[str, Any] = {
            "id": number,
            "image_id": sample.id,
            "category_id": labels.index(region.label) + 1,
            "bbox": list(grounding.xywh((min(xs), min(ys), max(xs), max(ys)))),
            "area": grounding.area(region),
            "iscrowd": int(region.crowd or False),
        }
        annotation |= {"segmentation": [list(region.xy)]} if region.kind == "polygon" else {}
        annotations.append(annotation | ({"score": region.score} if region.score is not None else {}))
    return {
        "image": {"id": sample.id, "file_name": _file_name(sample), "width": width, "height": height},
        "annotations": annotations,
        "categories": [{"id": number, "name": label} for number, label in enumerate(labels, 1)],
    }


def _polygons(annotation: dict[str, Any], label: str, width: int, height: int) -> list[Region]:
    """The polygons of an annotation, cut at the border; what is none, or lies outside, is left out."""
    listed = annotation.get("segmentation")
    found = []
    for xy in listed if isinstance(listed, list) else ():
        if not _numbers(xy) or len(xy) < 6 or len(xy) % 2:
            continue
        polygon = Region(media=0, kind="polygon", xy=tuple(map(float, xy)), label=label)
        if any(not 0 <= value <= side for values, side in ((xy[::2], width), (xy[1::2], height)) for value in values):
            cut = grounding.clip(polygon, width, height)
            found += [cut] if cut is not None else []
        else:
            found.append(polygon)
    return found


def _as_read(xy: tuple[float, ...], width: int, height: int, stays: bool) -> tuple[float, ...]:
    """The corners of a box, cut at the border; one that clearly reaches over it may stay."""
    if stays and _over(xy, width, height) > _ROUNDING:
        return xy
    x1, y1, x2, y2 = xy
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))


def _over(xy: tuple[float, ...], width: int, height: int) -> float:
    """By how many pixels a box reaches over the border; at most 0 if it does not."""
    x1, y1, x2, y2 = xy
    return max(-x1, -y1, x2 - width, y2 - height)


def _moved(xy: tuple[float, ...], read: tuple[float, ...]) -> bool:
    return len(xy) != len(read) or any(abs(a - b) > _SAME for a, b in zip(xy, read, strict=True))


def _file_name(sample: Sample) -> str:
    """What the picture's file is, or was, called."""
    media = sample.media[0]
    name = media.origin if media.bytes is not None else source_of(media)
    if not name:
        raise not_expressible("coco", "a picture without a file name", sample)
    return name


def _objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _numbers(values: Any) -> bool:
    """Whether a value is a list of numbers, none so large that arithmetic with it overflows."""
    return isinstance(values, list) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST for value in values
    )
