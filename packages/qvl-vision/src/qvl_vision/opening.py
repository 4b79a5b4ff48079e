"""From a name to an encoder with its weights, and what has to be known of it, read from its own files or seen.

Names: one of the registry (`rad_dino`, or one's own), `timm:NAME`, a hub id, or a folder. How many tokens it gives,
whether tokens come before the patches, and whether it takes pictures of another size is not asked of the user and not
looked up: a black picture is sent through it.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from qvl_core.errors import BadInput, first_line
from qvl_core.qwen3vl.load import commit_of, find_folder, quiet
from qvl_vision.encoders import JoinedEncoder, NativeEncoder, OwnEncoder, Spec, TransformersEncoder, build_encoder
from qvl_vision.registry import EncoderInfo, encoder_info, family_of, list_encoders

# Of its files alone: where it lay, and the type that its weights were stored in, which is now the whole model's.
_NOT_SHAPE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
MOST_PREFIX = 16  # tokens before the patch tokens; more than that is another arrangement of tokens


def open_encoder(name: str, options: dict[str, Any], dtype: torch.dtype) -> tuple[Spec, nn.Module]:
    """What describes the encoder called `name`, and the module with its weights. Raises BadInput.

    options  arguments of one's own module
    """
    info = _info(name)
    if info is not None and info.build is not None:
        return _own(info, options, dtype)
    if options:
        raise BadInput(f'encoder_options belong to a module of one\'s own; "{name}" has its own configuration.')
    if info is not None and info.source is None:
        raise BadInput(f'encoder "{name}" needs a name: timm:vit_small_patch14_dinov2.lvd142m, or a hub id or folder.')
    source = info.source if info is not None and info.source else name
    source = f"timm/{source.removeprefix('timm:')}" if source.startswith("timm:") else source
    folder = find_folder(source, key="encoder")
    config = _vision_config(folder)
    model = _weights(folder, config, dtype)
    info = info or family_of(config.model_type)
    mean, std = _normal(folder, config, info)
    spec = Spec(
        name=info.name if info is not None and info.source == source else config.model_type,
        family=config.model_type,
        config=_plain(config),
        size=_size(folder, config, info),
        patch=_patch(config, info),
        mean=mean,
        std=std,
        source=_origin(source),
        licence=info.licence if info is not None and info.source == source else "not stated",
    )
    _look(spec, model)
    return spec, model


def planned_spec(name: str) -> Spec:
    """What describes an encoder of the catalogue without its files: sizes are known, weights are not needed.

    Raises BadInput for one whose files have to be there.
    """
    info = _info(name)
    if info is None or info.shape is None:
        raise BadInput(
            f'plan: the sizes of "{name}" stand in its files; give its folder, or a name of `qvl-vision list`.'
        )
    config = CONFIG_MAPPING[info.family](**info.shape)
    assert info.size is not None
    assert info.patch is not None
    return Spec(
        name=info.name,
        family=info.family,
        config=_plain(config),
        size=[info.size, info.size],
        patch=info.patch,
        prefix=info.prefix,
        mean=list(info.mean or ()),
        std=list(info.std or ()),
        licence=info.licence,
        width=config.hidden_sizes[-1] if hasattr(config, "hidden_sizes") else config.hidden_size,
        tokens=(info.size // info.patch) ** 2 + info.prefix,
    )


def native_spec(vision_config: PreTrainedConfig, images: Any = None) -> Spec:
    """What describes the tower of a stock Qwen3-VL; `images`, its image processor, is not needed for a plan."""
    config: Any = vision_config
    side = int(config.num_position_embeddings**0.5) * config.patch_size
    return Spec(
        name="native",
        family="native",
        config=_plain(config),
        size=[side, side],
        patch=config.patch_size,
        width=config.hidden_size,
        mean=list(images.image_mean) if images else [],
        std=list(images.image_std) if images else [],
        licence="the base model's",
    )


def with_weights(encoder: nn.Module, models: Sequence[nn.Module]) -> None:
    """Put opened models in the place of the random ones of a built encoder: nothing is copied."""
    parts: list[Any] = [*encoder.parts] if isinstance(encoder, JoinedEncoder) else [encoder]
    for part, model in zip(parts, models, strict=True):
        if isinstance(part, NativeEncoder):
            part.take(model)
        else:
            part.model = model


def _info(name: str) -> EncoderInfo | None:
    """The registry's entry; None for what names files. Raises BadInput for a word that is neither."""
    names_files = "/" in name or "\\" in name or name.startswith((".", "timm:")) or Path(name).is_dir()
    known = any(info.name == name for info in list_encoders())
    return encoder_info(name) if known or not names_files else None


def _own(info: EncoderInfo, options: dict[str, Any], dtype: torch.dtype) -> tuple[Spec, nn.Module]:
    size = info.size or 224
    spec = Spec(
        name=info.name,
        family="module",
        options=options,
        size=[size, size],
        fixed=info.patch is None,
        patch=info.patch,
        mean=list(info.mean or ()),
        std=list(info.std or ()),
        licence=info.licence,
    )
    encoder = OwnEncoder(spec, None, "patch")
    if info.pretrained is not None:
        info.pretrained(encoder.model)
    encoder.to(dtype)
    tokens = _through(encoder, spec, (size, size))
    spec.tokens, spec.width = tokens.shape[1:]
    if spec.patch and tokens.shape[1] != (size // spec.patch) ** 2:
        raise BadInput(
            f'encoder "{spec.name}": registered with patch {spec.patch}, so a picture of {size} x {size} pixels should '
            f"give {(size // spec.patch) ** 2} tokens, but it gave {tokens.shape[1]}; mend `patch`, or leave it out."
        )
    if spec.patch and _through(encoder, spec, (3 * spec.patch, 5 * spec.patch)).shape[1] != 15:
        raise BadInput(
            f'encoder "{spec.name}": registered with patch {spec.patch}, but a picture of 3 x 5 patches does not give '
            "15 tokens; leave `patch` out, and all its pictures have one size."
        )
    return spec, encoder.model


def _vision_config(folder: Path) -> Any:
    try:
        with quiet(bars=False):
            config = AutoConfig.from_pretrained(folder)
    except ImportError as error:
        raise BadInput(f'encoder: {folder} is a model of timm; pip install "qvl-vision[timm]" ({error}).') from None
    except (ValueError, KeyError, OSError) as error:
        raise BadInput(f"encoder: {folder} is no model that transformers knows ({first_line(error)}).") from None
    return getattr(config, "vision_config", None) or config


def _weights(folder: Path, config: Any, dtype: torch.dtype) -> nn.Module:
    """The vision model of a checkpoint, whole. Raises BadInput if anything of it is missing."""
    if config.model_type == "timm_wrapper":
        config.model_args = _timm_args(config)
    try:
        kind = AutoModel._model_mapping[type(config)]
    except KeyError:
        raise BadInput(f"encoder: {folder}: transformers has no bare model of {config.model_type}.") from None
    if not list(folder.glob("*.safetensors")):
        raise BadInput(f"encoder: {folder} has no weights there (*.safetensors); download or convert them.")
    try:
        with quiet(bars=False):
            model, info = kind.from_pretrained(folder, config=config, dtype=dtype, output_loading_info=True)
    except RuntimeError as error:
        raise BadInput(
            f"encoder: {folder}: the weights' shapes are not those of config.json; copy both again."
        ) from error
    # A pooling head is of no use here; some checkpoints come without it.
    lost = sorted(key for key in info["missing_keys"] if not key.startswith(("pooler.", "head.")))
    if lost:
        raise BadInput(f"encoder: {folder} lacks {lost[0]} and {len(lost) - 1} more weights; it would be random there.")
    return model.eval()


def _timm_args(config: Any) -> dict[str, Any] | None:
    """Pictures of any size where timm's model can take them."""
    asked = dict(config.model_args or {}) | {"dynamic_img_size": True}
    trial = type(config)(architecture=config.architecture, model_args=asked)
    try:
        with torch.device("meta"):
            AutoModel.from_config(trial)
    except TypeError:
        return config.model_args
    return asked


def _look(spec: Spec, model: nn.Module) -> None:
    """Send black pictures through it: fills in width, prefix, patch and fixed."""
    encoder = _around(spec, model)
    height, width = spec.size
    timm: Any = getattr(model, "timm_model", None)
    if timm is not None and hasattr(timm, "patch_embed"):
        spec.patch = timm.patch_embed.patch_size[0]
    states = _through(encoder, spec, (height, width), raw=True)
    if states.ndim == 4:  # (1, D, h, w), or (1, h, w, D)
        spec.channels_last = _channels_last(spec, model, states)
        encoder.channels_last = spec.channels_last
        rows, columns = states.shape[1:3] if spec.channels_last else states.shape[2:]
        spec.patch, spec.tokens = height // rows, rows * columns
        spec.width = states.shape[-1] if spec.channels_last else states.shape[1]
    elif states.ndim == 3:
        spec.tokens, spec.width = states.shape[1:]
        before = states.shape[1] - (height // spec.patch) * (width // spec.patch) if spec.patch else -1
        if 0 <= before <= MOST_PREFIX:
            spec.prefix = before
        else:
            spec.patch = None
    else:
        raise BadInput(
            f'encoder "{spec.name}": its output is {tuple(states.shape)}; it has to be (B, N, D) or (B, D, h, w).'
        )
    spec.fixed = spec.patch is None or not _takes_other_sizes(encoder, spec)


def _channels_last(spec: Spec, model: nn.Module, states: Tensor) -> bool:
    """Where 4-dimensional features have their channels. Raises BadInput if that cannot be told."""
    config: Any = model.config
    timm: Any = getattr(model, "timm_model", None)
    sizes = getattr(config, "hidden_sizes", None) or [getattr(config, "hidden_size", None)]
    width = timm.num_features if timm is not None else sizes[-1]
    first, last = states.shape[1] == width, states.shape[3] == width
    if first == last:
        raise BadInput(
            f'encoder "{spec.name}": its features {tuple(states.shape)} are of width {width}, and which of their sides '
            "that is cannot be told; register it as a module of your own that returns (B, N, D)."
        )
    return last


def _around(spec: Spec, model: nn.Module) -> TransformersEncoder:
    """The encoder of a spec around a model that is there already."""
    with torch.device("meta"):
        encoder = build_encoder([spec], None, "all")
    assert isinstance(encoder, TransformersEncoder)
    encoder.model = model
    return encoder.eval()


def _takes_other_sizes(encoder: TransformersEncoder, spec: Spec) -> bool:
    assert spec.patch is not None
    size = (3 * spec.patch, 5 * spec.patch)
    try:
        states = _forward(encoder, size, raw=True)
    except Exception:  # whatever a library says to a size that it does not take
        return False
    if states.ndim == 4:
        return tuple(states.shape[1:3] if spec.channels_last else states.shape[2:]) == (3, 5)
    return states.shape[1] == 15 + spec.prefix


def _through(encoder: nn.Module, spec: Spec, size: tuple[int, int], raw: bool = False) -> Tensor:
    try:
        return _forward(encoder, size, raw)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(
            f'encoder "{spec.name}": fails on a picture of {size[0]} x {size[1]} pixels '
            f"({type(error).__name__}: {first_line(error)})."
        ) from error


@torch.no_grad()
def _forward(encoder: nn.Module, size: tuple[int, int], raw: bool) -> Tensor:
    first = next(encoder.parameters(), torch.zeros(1))
    picture = torch.zeros(1, 3, *size, dtype=first.dtype, device=first.device)
    encoder.eval()
    if raw:
        assert isinstance(encoder, TransformersEncoder)
        return encoder.call(picture).last_hidden_state
    return encoder(picture)[0]


def _plain(config: PreTrainedConfig) -> dict[str, Any]:
    """A configuration as JSON, without what this process added to it."""
    values = json.loads(config.to_json_string(use_diff=False)) | {"model_type": config.model_type}
    return {key: value for key, value in values.items() if key not in _NOT_SHAPE}


def _patch(config: Any, info: EncoderInfo | None) -> int | None:
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, (list, tuple)):
        patch = patch[0]
    if config.model_type == "timm_wrapper" or not patch or hasattr(config, "depths"):
        return info.patch if info is not None else None  # a convolutional net's patch_size is that of its stem
    return int(patch)


def _size(folder: Path, config: Any, info: EncoderInfo | None) -> list[int]:
    """Height and width of the pictures it was trained on."""
    # A net without positions has the size of its class's default in its configuration; its pictures are told elsewhere.
    size = None if hasattr(config, "depths") and _settings(folder) else getattr(config, "image_size", None)
    if size is None and (timm := getattr(config, "pretrained_cfg", None)):
        size = list(timm["input_size"])[1:]
    if size is None and config.model_type == "siglip2_vision_model":
        size = int(config.num_patches**0.5) * config.patch_size
    if size is None:
        settings = _settings(folder)
        size = settings.get("crop_size") or settings.get("size")
        if isinstance(size, dict):
            size = size.get("height") or size.get("shortest_edge")
    size = size or getattr(config, "image_size", None) or (info.size if info is not None else None)
    if size is None:
        raise BadInput(f"encoder: {folder} does not say for which size of pictures; set image_size in its config.json.")
    return [int(size[0]), int(size[1])] if isinstance(size, (list, tuple)) else [int(size), int(size)]


def _normal(folder: Path, config: Any, info: EncoderInfo | None) -> tuple[list[float], list[float]]:
    """Mean and deviation that pictures are normalised with: of its own files, else the catalogue's."""
    if _settings(folder).get("do_normalize") is False:
        return [0.0] * 3, [1.0] * 3
    for found in (_settings(folder), getattr(config, "pretrained_cfg", None) or {}):
        mean, std = found.get("image_mean") or found.get("mean"), found.get("image_std") or found.get("std")
        if mean and std:
            return list(mean), list(std)
    if info is None or info.mean is None or info.std is None:
        raise BadInput(
            f"encoder: {folder} has no preprocessor_config.json, so mean and deviation of its pictures are not known; "
            "copy that file beside the weights."
        )
    logging.getLogger(__name__).warning(
        "encoder: %s has no preprocessor_config.json; mean and deviation are taken as those of %s.", folder, info.name
    )
    return list(info.mean), list(info.std)


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / "preprocessor_config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise BadInput(f"{file}: is not JSON ({error}); copy it again.") from None
    return found if isinstance(found, dict) else {}


def _origin(source: str) -> str:
    """Hub id and commit, or the name of the folder: paths of one machine mean nothing elsewhere."""
    if Path(source).is_dir():
        return Path(source).name
    commit = commit_of(source)
    return f"{source}@{commit}" if commit else source
