"""What mmc4, OBELICS and OmniCorpus share: a web page as texts and pictures in reading order, task `interleaved`.

A document is one assistant turn, since all of it is what a model would write. Pictures stay addresses (nothing is
fetched while data is read), or are paths and embedded files where somebody has downloaded them.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NoReturn

from ..errors import BadSample
from ..sample import Media, Message, Part, Sample
from .cells import media_in
from .common import build, not_expressible

Piece = tuple[Literal["text", "image"], Any]


def document(name: str, pieces: Iterable[Piece], fields: dict[str, Any], url: Any, place: str) -> Sample:
    """The sample of a document in the format `name`. Raises BadSample."""
    media: list[Media] = []
    parts = []
    for number, (kind, value) in enumerate(pieces):
        if kind == "text":
            parts.append(Part(type="text", text=value))
            continue
        read, _ = media_in(value, "image", place, f"the picture at {number + 1}")
        parts.append(Part(type="image", media=len(media)))
        media.append(read)
    if not media:
        raise BadSample(name, "a document without pictures; remove it", place)
    meta = {"url": url} if isinstance(url, str) else {}
    messages = [Message(role="assistant", parts=tuple(parts))]
    return build(name, place, fields, fields, {}, media, messages, task="interleaved", meta=meta)


def side_by_side(name: str, images: Any, texts: Any, place: str) -> list[tuple[Any, str | None]]:
    """Two equally long lists as pairs of picture and text. Raises BadSample."""
    if not isinstance(images, list) or not isinstance(texts, list):
        raise BadSample(name, 'expected the lists "images" and "texts"', place)
    if len(images) != len(texts):
        problem = f"{len(images)} images and {len(texts)} texts, whose order cannot be told; give null where one is not"
        raise BadSample("media_count", problem, place)
    for number, text in enumerate(texts):
        if text is not None and not isinstance(text, str):
            raise BadSample(name, f"texts[{number}] is {type(text).__name__}, neither text nor null", place)
    return list(zip(images, texts, strict=True))


def looks_like_a_document(row: Any) -> bool:
    """Whether a row has lists `images` and `texts` of texts."""
    if not isinstance(row, dict) or not isinstance(row.get("images"), list) or not isinstance(row.get("texts"), list):
        return False
    return all(text is None or isinstance(text, str) for text in row["texts"])


def others(row: Mapping[str, Any], *taken: str) -> dict[str, Any]:
    """The columns that become no part of the text."""
    return {key: value for key, value in row.items() if key not in taken}


def only_read(name: str, sample: Sample) -> NoReturn:
    """Refuse to write: these formats name pictures by address and leave out what QVL adds."""
    raise not_expressible(name, "anything, since it is only read", sample)
