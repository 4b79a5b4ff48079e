"""The files of a model folder that make a processor, read as transformers reads them, or refused with the reason."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qvl_core.errors import BadInput, first_line

from .parts import ImageProcessor, Processor, Tokenizer, VideoProcessor

FIXED_IMAGES, FIXED_VIDEOS = "QVLImageProcessor", "QVLVideoProcessor"  # of qvl-vision: one size, one grid
IMAGE_KINDS = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil", FIXED_IMAGES)
VIDEO_KINDS = ("Qwen3VLVideoProcessor", FIXED_VIDEOS)
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def open_processor(folder: str | Path) -> Processor:
    """The processor in a local model folder. Raises BadInput for what is missing, damaged, or not Qwen3-VL's.

    Reads tokenizer.json, tokenizer_config.json, the chat template (chat_template.json, chat_template.jinja, or in
    tokenizer_config.json) and the settings (processor_config.json, else preprocessor_config.json and
    video_preprocessor_config.json). Needs the extra `tokens`.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; give a local model folder (tokenizer.json, template, settings).")
    config = _json(folder / "tokenizer_config.json")
    try:
        return Processor(
            tokenizer=_tokenizer(folder, config),
            chat_template=_chat_template(folder, config),
            image_processor=ImageProcessor(**_image_settings(folder)),
            video_processor=VideoProcessor(**_video_settings(folder)),
            named_tokens={name: text for name in NAMED_TOKENS if (text := _token_text(config.get(name)))},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{folder}: its settings are damaged ({error}); copy the base model's processor files."
        ) from None


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
        raise BadInput(f"{file}: cannot be read ({first_line(error)}); copy it again.") from None
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
    if settings["image_processor_type"] == FIXED_IMAGES:
        return {name: settings[name] for name in ("size", "patch_size", "merge_size", "grid")}
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
    known = {"size": dict(size)} | {name: settings.get(name, value) for name, value in defaults.items()}
    return known | ({"grid": settings["grid"]} if settings["video_processor_type"] == FIXED_VIDEOS else {})


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
