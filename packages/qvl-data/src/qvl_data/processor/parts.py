"""What `qvl_data.chat.length` asks of a processor, under the names that transformers gives it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qvl_core.errors import BadInput

from ..tokens import Images, Videos
from .render import compiled

COUNTS_ONLY = "this processor only counts tokens; open transformers' AutoProcessor to encode pixels."
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(eq=False)
class Processor:
    """What `qvl_data.chat.length` asks a processor for."""

    tokenizer: "Tokenizer"
    chat_template: str
    image_processor: "ImageProcessor"
    video_processor: "VideoProcessor"
    named_tokens: dict[str, str]
    image_token: str = "<|image_pad|>"
    video_token: str = "<|video_pad|>"
    vision_start_token: str = "<|vision_start|>"
    vision_end_token: str = "<|vision_end|>"

    @property
    def image_token_id(self) -> int:
        return self.tokenizer.id_of(self.image_token)

    @property
    def video_token_id(self) -> int:
        return self.tokenizer.id_of(self.video_token)

    def apply_chat_template(
        self, conversation: list[dict[str, Any]], *, tokenize: bool = False, add_generation_prompt: bool = False
    ) -> str:
        """The conversation as text. Raises jinja2's errors, and ValueError where tokens are asked for."""
        if tokenize:
            raise ValueError("use qvl_data.chat.length")
        return compiled(self.chat_template).render(
            **self.named_tokens,
            messages=conversation,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
        )


class Tokenizer:
    """A tokenizer.json, called as transformers' tokenizers are."""

    def __init__(self, backend: Any) -> None:
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.added_tokens_decoder: dict[int, Any] = dict(backend.get_added_tokens_decoder())

    def __call__(
        self,
        text: Sequence[str],
        *,
        add_special_tokens: bool = True,
        split_special_tokens: bool = False,
        return_attention_mask: bool = False,
    ) -> dict[str, list[list[int]]]:
        """Ids of each text; with `split_special_tokens`, special tokens in it are taken as ordinary text."""
        self._backend.encode_special_tokens = split_special_tokens
        encodings = self._backend.encode_batch_fast(list(text), add_special_tokens=add_special_tokens)
        return {"input_ids": [encoding.ids for encoding in encodings]}

    def splits_like_qwen(self) -> bool:
        """Whether text is normalised and split as transformers' Qwen2Tokenizer does, whatever the file says."""
        parts = [self._backend.normalizer, self._backend.pre_tokenizer]
        normalizer, splitter = (json.loads(part.__getstate__()) if part is not None else {} for part in parts)
        first = (splitter.get("pretokenizers") or [{}])[0]
        return normalizer == {"type": "NFC"} and first.get("pattern") == {"Regex": SPLIT}

    def id_of(self, token: str) -> int:
        index = self._backend.token_to_id(token)
        if index is None:
            raise BadInput(f"the tokenizer has no {token}; use the one of Qwen3-VL.")
        return int(index)


@dataclass
class ImageProcessor:
    """Picture settings under transformers' names; `size` holds the smallest and largest number of pixels.

    grid  height and width in patches of every picture, where all have one size (qvl-vision's layout `image`)
    """

    size: dict[str, int]
    patch_size: int
    merge_size: int
    grid: list[int] | None = None

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: Any = None) -> int:
        """Patches of a picture. Raises ValueError for one that Qwen3-VL does not take."""
        if self.grid is not None:
            return self.grid[0] * self.grid[1]
        low, high = self.size["shortest_edge"], self.size["longest_edge"]
        return Images(low, high, self.patch_size, self.merge_size).patches(width, height)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        raise BadInput(COUNTS_ONLY)


@dataclass
class VideoProcessor:
    """Video settings under transformers' names; `size` holds the smallest and largest number of pixels of a clip."""

    size: dict[str, int]
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    fps: float | None
    num_frames: int | None
    min_frames: int
    max_frames: int
    cap_pixels_per_frame: bool | None
    max_video_tokens: int
    grid: list[int] | None = None

    def _videos(self) -> Videos:
        return Videos(
            self.size.get("shortest_edge", 0),  # absent where all frames have one size
            self.size.get("longest_edge", 0),
            self.patch_size,
            self.merge_size,
            self.temporal_patch_size,
            self.fps,
            self.num_frames,
            self.min_frames,
            self.max_frames,
            self.max_video_tokens if self.cap_pixels_per_frame else None,
        )

    def sample_frames(self, metadata: Any, num_frames: int | None = None, fps: float | None = None) -> list[int]:
        """Which frames of a video with `metadata.total_num_frames` and `metadata.fps` are shown. Raises ValueError."""
        videos = self._videos()
        videos.frames = num_frames
        return videos.sample(metadata.total_num_frames, metadata.fps, fps)

    def get_num_of_video_patches(self, num_frames: int, height: int, width: int) -> int:
        """Patches of a clip. Raises ValueError for one that Qwen3-VL does not take."""
        if self.grid is not None:
            return num_frames * self.grid[0] * self.grid[1]
        return self._videos().patches(num_frames, width, height)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        raise BadInput(COUNTS_ONLY)
