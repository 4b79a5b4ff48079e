import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qvl_data.sample import Sample


@pytest.fixture(scope="session")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The processor of the tiny Qwen3-VL: real classes, real chat layout."""
    from qvl_core.qwen3vl.tiny import tiny
    from transformers import AutoProcessor

    folder = tiny(tmp_path_factory.mktemp("tiny"), ["Which digit is this?", "odd even", "The answer is seven."])
    return AutoProcessor.from_pretrained(folder)


def picture(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.fixture
def chat() -> Callable[..., Sample]:
    """Build a chat: each turn is (role, part, ...), a part is a text, a picture, or (fps, [pictures])."""
    return build


def build(*turns: tuple[Any, ...], **fields: Any) -> Sample:
    media: list[dict[str, Any]] = []

    def show(image: Image.Image) -> int:
        media.append({"kind": "image", "bytes": encoded(image)})
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


def write_png(path: Path, image: Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(image))
    return path
