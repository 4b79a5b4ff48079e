"""Documents of OmniCorpus (Li et al. 2024, arXiv:2406.08418): pictures and texts in reading order.

    {"images": ["http://host/cat.jpg", null], "texts": [null, "A cat."], "metadata": [{"width": 640, ...}, null],
     "general_metadata": {"url": ..., "fluency_prob": 0.99}}

Both lists are equally long; a picture stands before a text at the same place. Lists of different lengths do not say
what belongs together and are refused.
"""

from typing import Any

from ..sample import Sample
from . import register
from .documents import Piece, document, looks_like_a_document, only_read, others, side_by_side


@register("omnicorpus")
class OmniCorpus:
    def matches(self, row: Any) -> bool:
        known = isinstance(row, dict) and (
            isinstance(row.get("general_metadata"), dict) or isinstance(row.get("metadata"), list)
        )
        return known and looks_like_a_document(row)

    def read(self, row: Any, place: str) -> Sample:
        row = row if isinstance(row, dict) else {}
        pieces: list[Piece] = []
        for image, text in side_by_side("omnicorpus", row.get("images"), row.get("texts"), place):
            pieces += [("image", image)] * (image is not None)
            pieces += [("text", text)] * (text is not None)
        known = row.get("general_metadata")
        url = known.get("url") if isinstance(known, dict) else None
        return document("omnicorpus", pieces, others(row, "images", "texts"), url, place)

    def write(self, sample: Sample) -> Any:
        only_read("omnicorpus", sample)
