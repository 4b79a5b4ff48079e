"""Documents of OBELICS (Laurencon et al. 2023, arXiv:2306.16527): pictures and paragraphs in reading order.

    {"images": ["http://host/cat.jpg", null], "texts": [null, "A cat.\\n\\nIt sleeps."],
     "metadata": "[...]", "general_metadata": "{...}"}

Both lists are equally long, and one of the two is null at each place; the metadata are JSON in text and are kept.
"""

import json
from typing import Any

from ..errors import BadSample
from ..sample import Sample
from . import register
from .documents import Piece, document, looks_like_a_document, only_read, others, side_by_side


@register("obelics")
class Obelics:
    def matches(self, row: Any) -> bool:
        return looks_like_a_document(row) and all(
            isinstance(row.get(key), (str, type(None))) for key in ("metadata", "general_metadata")
        )

    def read(self, row: Any, place: str) -> Sample:
        row = row if isinstance(row, dict) else {}
        pieces: list[Piece] = []
        for number, (image, text) in enumerate(side_by_side("obelics", row.get("images"), row.get("texts"), place)):
            if (image is None) == (text is None):
                found = "both null" if text is None else "both there"
                raise BadSample("obelics", f"images[{number}] and texts[{number}] are {found}; give one of them", place)
            pieces.append(("image", image) if text is None else ("text", text))
        return document("obelics", pieces, others(row, "images", "texts"), _url(row.get("general_metadata")), place)

    def write(self, sample: Sample) -> Any:
        only_read("obelics", sample)


def _url(metadata: Any) -> Any:
    """The address of the page; None where the metadata do not say it."""
    try:
        known = json.loads(metadata) if isinstance(metadata, str) else None
    except (ValueError, RecursionError):
        return None
    return known.get("url") if isinstance(known, dict) else None
