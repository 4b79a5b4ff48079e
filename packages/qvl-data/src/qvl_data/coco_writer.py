"""COCO files from samples with boxes: one JSON object with all pictures, annotations and categories.

What was read from COCO files comes back: the same parts, pictures, categories and annotations by their ids; the
annotations of a picture stand together. Other samples get numbers from 1.
"""

import json
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryFile
from typing import Any

from qvl_core.errors import BadInput

from .errors import placed
from .formats import get_format
from .formats.coco import is_numbered
from .job import complete
from .sample import Sample


def write_coco(samples: Iterable[Sample], file: Path) -> int:
    """Write samples to one COCO file, in place of what is there; returns how many. Pictures are named, not copied.

    Raises BadInput, and BadSample for what COCO cannot say.
    """
    number = 0
    with complete(file) as part, Writer(part, file) as out:
        for number, sample in enumerate(samples, 1):  # noqa: B007
            out.write(sample)
    return number


class Writer:
    """Writes one COCO file at `path`, which messages call `name`; a context manager. Annotations wait on the disk."""

    def __init__(self, path: Path, name: Path) -> None:
        self._out, self._annotations = path.open("wb"), TemporaryFile()  # noqa: SIM115
        self._format, self._known = get_format("coco"), _Known(name)

    def write(self, sample: Sample) -> None:
        """Add a picture. Raises BadSample for what COCO cannot say, BadInput for an id that is there twice."""
        with placed(sample):
            row = self._format.write(sample)
        if not is_numbered(sample):
            row = _unnumbered(row)
        first = not self._known.images
        image = self._known.image(row)
        self._out.write((b'{"images": [' if first else b",") + _line(image))
        for annotation in row["annotations"]:
            written = self._known.annotation(annotation, image)
            self._annotations.write(b"," * (self._known.annotations > 1) + _line(written))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        with self._out as out, self._annotations as annotations:
            if kind is not None:
                return
            out.write(b"" if self._known.images else b'{"images": [')
            out.write(b'\n],\n"annotations": [')
            annotations.seek(0)
            copyfileobj(annotations, out)
            out.write(b"\n]")
            for name, value in (self._known.head | {"categories": list(self._known.categories.values())}).items():
                out.write(b",\n" + _dumps(name) + b": " + _dumps(value))
            out.write(b"}\n")


class _Known:
    """What a COCO file holds so far."""

    def __init__(self, name: Path) -> None:
        self.name = name
        self.head: dict[str, Any] = {}
        self.images: set[Any] = set()
        self.annotations = 0
        self.ids: set[Any] = set()  # of the annotations
        self.categories: dict[Any, Any] = {}  # by id
        self.names: dict[str, Any] = {}  # their ids by name

    def image(self, row: dict[str, Any]) -> dict[str, Any]:
        """The image of a row, with its id."""
        head = dict(row.get("dataset", {}))
        for category in (*head.pop("categories", ()), *row["categories"]):
            self.category(category)
        self.head |= head
        image: dict[str, Any] = {"id": len(self.images) + 1, **row["image"]}
        if image["id"] in self.images:
            raise BadInput(
                f"{self.name}: two pictures with the id {image['id']!r}; write data sets into files of their own."
            )
        self.images.add(image["id"])
        return image

    def category(self, category: dict[str, Any]) -> Any:
        """Note a category; its id, which is the one of that name if it brings none."""
        name, identity = str(category.get("name")), category.get("id")
        if identity is None:
            identity = self.names.get(name) or next(n for n in count(1) if n not in self.categories)
            category = self.categories.get(identity) or {"id": identity, **category}
        if self.categories.setdefault(identity, category) != category:
            raise BadInput(
                f"{self.name}: two categories with the id {identity!r}; write data sets into files of their own."
            )
        self.names.setdefault(name, identity)
        return identity

    def annotation(self, annotation: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
        """An annotation with its ids; one without a category's id names the category."""
        self.annotations += 1
        written = {"id": self.annotations, "image_id": image["id"], **annotation}
        if "category_id" not in written:
            written["category_id"] = self.names[written.pop("category")]
        if written["id"] in self.ids:
            raise BadInput(f"{self.name}: two annotations with the id {written['id']!r}; give each its own.")
        self.ids.add(written["id"])
        return written


def _unnumbered(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose ids count only in the row: without them, its annotations naming their categories."""
    names = {category["id"]: category["name"] for category in row["categories"]}
    image = {key: value for key, value in row["image"].items() if key != "id"}
    annotations = [
        {key: value for key, value in annotation.items() if key not in ("id", "image_id", "category_id")}
        | {"category": names[annotation["category_id"]]}
        for annotation in row["annotations"]
    ]
    return {"image": image, "annotations": annotations, "categories": [{"name": name} for name in names.values()]}


def _dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def _line(value: Any) -> bytes:
    return b"\n" + _dumps(value)
