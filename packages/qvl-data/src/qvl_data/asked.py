"""Questions about pictures and videos as samples: what chat and sampling commands are given."""

import io
import mimetypes
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from PIL import Image

from qvl_core.errors import BadInput

from .sample import Media, Message, Part, Sample

Showable = Media | Image.Image | Path | str  # a path is a video if its ending says so, else a picture


def asked(question: str, media: Sequence[Showable] = ()) -> Sample:
    """A question about media, which stand before it, with an answer that is not looked at. Raises BadInput."""
    shown = [showable(one) for one in media]
    parts = [Part(type=one.kind, media=number) for number, one in enumerate(shown)]
    turn = Message(role="user", parts=(*parts, Part(type="text", text=question)))
    return Sample(id="question", task="chat", media=tuple(shown), messages=(turn, says("assistant", "-")))


def showable(what: Showable) -> Media:
    """A picture or video as a sample holds it. Raises BadInput."""
    if isinstance(what, Media):
        return what
    if isinstance(what, Image.Image):
        data = io.BytesIO()
        what.save(data, "PNG")
        return Media(kind="image", bytes=data.getvalue())
    kind = mimetypes.guess_type(str(what))[0] or ""
    return media_file(Path(what), "video" if kind.startswith("video/") else "image")


def media_file(path: Path, kind: Literal["image", "video"]) -> Media:
    """The file of a picture or video, whole. Raises BadInput if there is none."""
    if not path.is_file():
        raise BadInput(f"{path}: there is no such {'picture' if kind == 'image' else 'video'}.")
    return Media(kind=kind, bytes=path.read_bytes(), origin=str(path))


def says(role: str, text: str) -> Message:
    """A turn of words only."""
    return Message.model_validate({"role": role, "parts": [{"type": "text", "text": text}]})
