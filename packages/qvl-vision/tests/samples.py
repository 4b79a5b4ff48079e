"""Pictures, clips and chats for the tests, and the three ways they go through a model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from qvl_core.qwen3vl.encoded import Encoded
from qvl_data.chat import encode
from qvl_data.sample import Media, Message, Part, Sample, Video

SIZES = ((60, 90), (90, 60), (64, 64))


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A smooth random picture of (width, height)."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (5, 4, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def png(size: tuple[int, int], seed: int = 0) -> bytes:
    import io

    held = io.BytesIO()
    picture(size, seed).save(held, "PNG")
    return held.getvalue()


def chat(sizes: Sequence[tuple[int, int]], seed: int = 0, frames: int = 0) -> Sample:
    """A question about some pictures (and a clip of so many frames), and its answer."""
    media = [Media(kind="image", bytes=png(size, seed + i)) for i, size in enumerate(sizes)]
    parts: list[Part] = []
    for index in range(len(sizes)):
        parts += [Part(type="image", media=index), Part(type="text", text=f" picture {index} ")]
    if frames:
        first = len(media)
        media += [Media(kind="image", bytes=png((70, 50), seed + 10 + i)) for i in range(frames)]
        media.append(Media(kind="video", video=Video(fps=2.0, frames=tuple(range(first, first + frames)))))
        parts.append(Part(type="video", media=len(media) - 1))
    question = Message(role="user", parts=(*parts, Part(type="text", text="What digit is this?")))
    answer = Message(role="assistant", parts=(Part(type="text", text="seven, or 7"),))
    return Sample(id=f"s{seed}", task="chat", media=tuple(media), messages=(question, answer))


def encoded(processor: Any, sizes: Sequence[tuple[int, int]] = SIZES, seed: int = 0, frames: int = 0) -> Encoded:
    return encode(chat(sizes, seed, frames), processor)


def library_inputs(processor: Any, sizes: Sequence[tuple[int, int]] = SIZES, seed: int = 0) -> dict[str, torch.Tensor]:
    """The same question as the library's own processor lays it out."""
    content: list[dict[str, Any]] = []
    for i, size in enumerate(sizes):
        content += [{"type": "image", "image": picture(size, seed + i)}, {"type": "text", "text": f" picture {i} "}]
    content.append({"type": "text", "text": "What digit is this?"})
    done = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    return dict(done)


@torch.no_grad()
def answered(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Six tokens, greedily."""
    return model.generate(**inputs, max_new_tokens=6, do_sample=False)
