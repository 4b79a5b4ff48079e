"""Pictures and chats to test with."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qvl_data.sample import Sample


def picture(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def file_of(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def write_png(path: Path, image: Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file_of(image))
    return path


def build(*turns: tuple[Any, ...], **fields: Any) -> Sample:
    """A chat: each turn is (role, part, ...); a part is a text, a picture, or a video as (fps, [pictures])."""
    media: list[dict[str, Any]] = []

    def show(image: Image.Image) -> int:
        media.append({"kind": "image", "bytes": file_of(image)})
        return len(media) - 1

    def part(value: Any) -> dict[str, Any]:
        if isinstance(value, str):
            return {"type": "text", "text": value}
        if isinstance(value, Image.Image):
            return {"type": "image", "media": show(value)}
        fps, frames = value
        video = {"fps": fps, "frames": [show(frame) for frame in frames]}
        media.append({"kind": "video", "video": video})
        return {"type": "video", "media": len(media) - 1}

    messages = [{"role": role, "parts": [part(value) for value in parts]} for role, *parts in turns]
    return Sample.model_validate({"task": "chat", "messages": messages, "media": media, **fields})
