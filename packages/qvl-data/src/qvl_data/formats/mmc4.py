"""Documents of Multimodal C4 (Zhu et al. 2023, arXiv:2304.06939): sentences, and the pictures that belong to them.

    {"url": ..., "text_list": ["A cat.", "It sleeps."], "similarity_matrix": ...,
     "image_info": [{"raw_url": "http://host/cat.jpg", "image_name": "cat.jpg", "matched_text_index": 0}]}

A picture stands before the sentence that it was matched with; sentences are joined by a space. Pictures are taken from
`raw_url`, or from another key of `image_info`: `--map image=image_name`, with `--media-root` for their folder.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import BadSample
from ..sample import Sample
from . import register
from .columns import Columns
from .documents import Piece, document, only_read, others


@register("mmc4")
class Mmc4:
    def __init__(self, columns: Mapping[str, str] | None = None) -> None:
        self.source = Columns("mmc4", ("image",), columns).renamed.get("image", "raw_url")

    def matches(self, row: Any) -> bool:
        return isinstance(row, dict) and isinstance(row.get("image_info"), list) and "text_list" in row

    def read(self, row: Any, place: str) -> Sample:
        if not isinstance(row, dict) or not all(isinstance(row.get(key), list) for key in ("text_list", "image_info")):
            raise BadSample("mmc4", 'expected an object with the lists "text_list" and "image_info"', place)
        pieces = list(self._pieces(row["text_list"], row["image_info"], place))
        return document("mmc4", pieces, others(row, "text_list"), row.get("url"), place)

    def write(self, sample: Sample) -> Any:
        only_read("mmc4", sample)

    def _pieces(self, sentences: list[Any], images: list[Any], place: str) -> Iterator[Piece]:
        if not all(isinstance(sentence, str) for sentence in sentences):
            raise BadSample("mmc4", '"text_list" holds something that is no text', place)
        matched: dict[int, list[Any]] = {}
        for number, image in enumerate(images):
            at = image.get("matched_text_index") if isinstance(image, dict) else None
            if not isinstance(at, int) or isinstance(at, bool) or not 0 <= at < len(sentences):
                problem = f"image_info[{number}]: matched_text_index {at!r} is none of the {len(sentences)} sentences"
                raise BadSample("mmc4", problem, place)
            if image.get(self.source) is None:
                problem = f'image_info[{number}] has no "{self.source}"; name its key with --map image=KEY'
                raise BadSample("column", problem, place)
            matched.setdefault(at, []).append(image[self.source])
        for number, sentence in enumerate(sentences):
            for image in matched.get(number, ()):
                yield "image", image
            yield "text", sentence + " " * (number < len(sentences) - 1)
