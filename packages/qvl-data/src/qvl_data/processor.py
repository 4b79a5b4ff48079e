"""A model's processor as far as lengths need it: tokenizer, chat template and settings, without torch or transformers.

    processor = open_processor("Qwen3-VL-4B-Instruct")     # a local folder
    qvl_data.chat.length(sample, processor)                # what transformers' own processor gives, exactly

It counts; it makes no pixels. Its settings have the names of transformers' (`image_processor.size`,
`video_processor.fps`, ...), so that `qvl_core.qwen3vl.budgets.apply_media` sets the budgets of either. Picklable.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from qvl_core.errors import BadInput

from .tokens import Images, Videos

IMAGE_KINDS = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil")
VIDEO_KINDS = ("Qwen3VLVideoProcessor",)
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
COUNTS_ONLY = "this processor only counts tokens; open transformers' AutoProcessor to encode pixels."


def open_processor(folder: str | Path) -> "Processor":
    """The processor in a local model folder. Raises BadInput for what is missing, damaged, or not Qwen3-VL's.

    Reads tokenizer.json, tokenizer_config.json, the chat template (chat_template.json, chat_template.jinja, or in
    tokenizer_config.json) and the settings (processor_config.json, else preprocessor_config.json and
    video_preprocessor_config.json). Needs the extra `tokens`.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise BadInput(
            f"{folder}: no such folder; give a local model folder (tokenizer.json, chat template, settings)."
        )
    config = _json(folder / "tokenizer_config.json")
    return Processor(
        tokenizer=_tokenizer(folder, config),
        chat_template=_chat_template(folder, config),
        image_processor=ImageProcessor(**_image_settings(folder)),
        video_processor=VideoProcessor(**_video_settings(folder)),
        named_tokens={name: text for name in NAMED_TOKENS if (text := _token_text(config.get(name)))},
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
        return _compiled(self.chat_template).render(
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
    """Picture settings under transformers' names; `size` holds the smallest and largest number of pixels."""

    size: dict[str, int]
    patch_size: int
    merge_size: int

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: Any = None) -> int:
        """Patches of a picture. Raises ValueError for one that Qwen3-VL does not take."""
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

    def _videos(self) -> Videos:
        return Videos(
            self.size["shortest_edge"],
            self.size["longest_edge"],
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
        return self._videos().patches(num_frames, width, height)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        raise BadInput(COUNTS_ONLY)


def _tokenizer(folder: Path, config: dict[str, Any]) -> Tokenizer:
    try:
        import tokenizers
    except ImportError:
        raise BadInput('counting tokens needs the tokenizers library; pip install "qvl-data[tokens]".') from None

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise BadInput(f"{folder}: no tokenizer.json there; copy the base model's processor files.")
    try:
        tokenizer = Tokenizer(tokenizers.Tokenizer.from_file(str(file)))
    except Exception as error:  # the library raises a bare Exception
        raise BadInput(f"{file}: cannot be read ({str(error).splitlines()[0]}); copy it again.") from None
    if not tokenizer.splits_like_qwen():
        raise BadInput(f"{file}: splits text otherwise than Qwen's tokenizer; copy the base model's processor files.")
    known = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    for token in config.get("added_tokens_decoder", {}).values():
        if known.get(token["content"]) != token.get("special", False):
            raise BadInput(
                f"{folder}: tokenizer_config.json and tokenizer.json disagree about {token['content']}; "
                "open the tokenizer with transformers once and save it again."
            )
    return tokenizer


def _token_text(token: Any) -> str | None:
    return token["content"] if isinstance(token, dict) else token


def _chat_template(folder: Path, config: dict[str, Any]) -> str:
    """In the order of transformers: an old chat_template.json goes before chat_template.jinja."""
    found = _json(folder / "processor_config.json").get("chat_template")
    found = found or _json(folder / "chat_template.json").get("chat_template")
    if not found and (folder / "chat_template.jinja").is_file():
        found = _text(folder / "chat_template.jinja")
    found = found or config.get("chat_template")
    if isinstance(found, list):
        found = next((entry["template"] for entry in found if entry.get("name") == "default"), None)
    if not isinstance(found, str):
        raise BadInput(f"{folder}: no chat template there (chat_template.jinja); copy the base model's.")
    return found


def _image_settings(folder: Path) -> dict[str, Any]:
    settings = _json(folder / "processor_config.json").get("image_processor")
    settings = settings or _json(folder / "preprocessor_config.json")
    if not settings:
        raise BadInput(f"{folder}: no picture settings there (preprocessor_config.json); copy the base model's.")
    _check_kind(folder, settings.get("image_processor_type"), IMAGE_KINDS)
    size = settings.get("size") or {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
    low, high = settings.get("min_pixels"), settings.get("max_pixels")
    return {
        "size": {
            "shortest_edge": size["shortest_edge"] if low is None else low,
            "longest_edge": size["longest_edge"] if high is None else high,
        },
        "patch_size": settings.get("patch_size", 14),
        "merge_size": settings.get("merge_size", 2),
    }


def _video_settings(folder: Path) -> dict[str, Any]:
    settings = _json(folder / "processor_config.json").get("video_processor")
    settings = settings or _json(folder / "video_preprocessor_config.json")
    if not settings:
        raise BadInput(f"{folder}: no video settings there (video_preprocessor_config.json); copy the base model's.")
    _check_kind(folder, settings.get("video_processor_type"), VIDEO_KINDS)
    size = settings.get("size") or {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768}
    defaults: dict[str, Any] = {
        "patch_size": 16,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "fps": 2,
        "num_frames": None,
        "min_frames": 4,
        "max_frames": 768,
        "cap_pixels_per_frame": None,
        "max_video_tokens": 768,
    }
    return {"size": dict(size)} | {name: settings.get(name, value) for name, value in defaults.items()}


def _check_kind(folder: Path, kind: Any, known: Sequence[str]) -> None:
    if kind not in known:
        raise BadInput(f"{folder}: its settings are for {kind}, which are counted otherwise; use Qwen3-VL's own.")


def _json(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no file. Raises BadInput."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file}: is not JSON ({error}); copy it again.") from None
    if not isinstance(content, dict):
        raise BadInput(f"{file}: holds no JSON object; copy it again.")
    return content


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file}: cannot be read ({error}); copy it again.") from None


class _Generation(Extension):
    """`{% generation %}` marks what transformers can mask as the assistant's; the text is written as it stands."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    """The template in the environment that transformers gives it: sandboxed, with its few additions."""
    environment: Environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=_raise, strftime_now=_now, namespace=_Names, dict=_Dict())
    return environment.from_string(template)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)


class _Dict:
    def __call__(self, *values: Any, **names: Any) -> dict[Any, Any]:
        return dict(*values, **names)

    def fromkeys(self, *values: Any) -> dict[Any, Any]:
        return dict.fromkeys(*values)


class _Names(Namespace):
    """A template must not reach Python's inside through a namespace."""

    def __init__(*values: Any, **names: Any) -> None:  # so that `namespace(self=...)` works
        self, *rest = values
        attributes = dict(*rest, **names)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise TemplateError(f"a chat template cannot store {name!r} on a namespace")
