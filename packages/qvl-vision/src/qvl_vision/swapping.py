"""Put another vision encoder into Qwen3-VL.

    model, processor = swap("Qwen/Qwen3-VL-4B-Instruct", "rad_dino")
    save(model, processor, Path("qwen3vl-4b-rad-dino"))

The language model stays as it is; encoder weights are its own; the merger between them is new and has to be trained.
All sizes come from the two configurations. What the result is, config.json says, and `inspect` shows.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from PIL import Image
from torch import nn
from transformers import Qwen3VLMoeConfig

from qvl_core.errors import BadInput, first_line
from qvl_core.qwen3vl import attention
from qvl_core.qwen3vl.load import Precision, load_model, stored_precision
from qvl_core.recipe.blocks import Model
from qvl_vision.calibrating import calibrate as calibrate_merger
from qvl_vision.config import QVLConfig, QVLMoeConfig, QVLVisionConfig
from qvl_vision.encoders import NativeEncoder, Spec
from qvl_vision.mergers import fixed_tokens
from qvl_vision.model import QVLForConditionalGeneration, QVLMoeForConditionalGeneration
from qvl_vision.opening import native_spec, open_encoder, with_weights
from qvl_vision.processing import as_batch, processor_for
from qvl_vision.registry import MergerInfo, family_of, merger_info
from qvl_vision.tower import QVLVisionModel

LAYOUTS, SELECTIONS = ("auto", "patches", "image"), ("patch", "all")


def swap(
    base: str | Path | tuple[Any, Any],
    encoder: str | Sequence[str],
    merger: str = "linear",
    *,
    layout: Literal["auto", "patches", "image"] = "auto",
    feature_layer: int | None = None,
    feature_select: Literal["patch", "all"] = "patch",
    max_tokens: int | None = None,
    merge: int | None = None,
    deepstack: Sequence[int] = (),
    encoder_options: dict[str, Any] | None = None,
    merger_options: dict[str, Any] | None = None,
    input_norm: bool = False,
    calibrate: bool = False,
    precision: Precision | None = None,
    seed: int = 0,
) -> tuple[Any, Any]:
    """A Qwen3-VL with another vision tower, in evaluation mode on the base's device, and its processor.

    base            folder, hub id, or (model, processor), whose language model then belongs to the result
    encoder         name (`list_encoders()`), `timm:NAME`, hub id or folder; several are joined by channels
    merger          name (`list_mergers()`)
    layout          patches: pictures of any size, tokens on their grid; image: one size, any number of tokens;
                    auto: patches wherever the encoder and the merger can
    feature_layer   index of the encoder's hidden states (-2: the second-last); default: what is usual for it
    feature_select  patch: without CLS and registers; all: with them (layout image)
    max_tokens      most tokens of a picture; default: those of the encoder's own picture size
    merge           side of the square of patches that becomes one token; default: the merger's usual one
    deepstack       encoder layers (0: the first) that go into the first layers of the language model, each by a merger
                    of its own; default: off, and for Qwen's own tower with its own merger its own layers
    input_norm      a LayerNorm before the merger
    calibrate       scale the new merger so that its tokens are as large as text embeddings, measured on pictures
    precision       of the result (fp32, bf16, fp16), if base is a name; default: as the base is stored
    seed            decides the merger's first weights

    Raises BadInput for what cannot be meant or does not fit.
    """
    names = [encoder] if isinstance(encoder, str) else list(encoder)
    if not isinstance(base, tuple):
        if precision not in (None, *get_args(Precision)):
            raise BadInput(f"precision {precision}: must be one of {', '.join(get_args(Precision))}.")
        precision = precision or stored_precision(str(base))
        base = load_model(Model(name=str(base)), precision=precision, device="cpu")
    model, processor = base
    dtype = model.dtype
    opened = [_open(name, model, processor, encoder_options or {}, dtype) for name in checked(names)]
    vision = arranged(
        model.config,
        [spec for spec, _ in opened],
        merger,
        layout=layout,
        feature_layer=feature_layer,
        feature_select=feature_select,
        merge=merge,
        deepstack=deepstack,
        merger_options=merger_options,
        input_norm=input_norm,
    )

    tower = _tower(vision, opened, model, dtype, seed)
    swapped = _assemble(model, vision, tower)
    new_processor = processor_for(processor, vision, max_tokens)
    _prove(swapped, new_processor)
    if calibrate:
        calibrate_merger(swapped, new_processor)
    return swapped, new_processor


@torch.no_grad()
def _prove(model: Any, processor: Any) -> None:
    """Send a picture through processor, encoder and merger. Raises BadInput for parts that do not go together."""
    visual, vision = model.model.visual, model.config.vision_config
    pixels, grid = as_batch(processor, [Image.new("RGB", (96, 64))])
    try:
        visual(pixels.to(visual.device, visual.dtype), grid.to(visual.device))
    except (RuntimeError, IndexError) as error:
        deepstack = list(vision.deepstack_visual_indexes)
        layers = f"feature_layer {vision.feature_layer}, deepstack {deepstack}"
        raise BadInput(
            f"encoder and merger do not fit together with {layers} ({first_line(error)}); choose other layers."
        ) from error


def checked(names: Sequence[str]) -> Sequence[str]:
    """Names of encoders that can stand together. Raises BadInput."""
    if not names or ("native" in names and len(names) > 1):
        raise BadInput("encoder: name one, or several others to join; Qwen's own tower cannot be joined.")
    return names


def arranged(
    base: Any,
    specs: Sequence[Spec],
    merger: str,
    *,
    layout: str = "auto",
    feature_layer: int | None = None,
    feature_select: str = "patch",
    merge: int | None = None,
    deepstack: Sequence[int] = (),
    merger_options: dict[str, Any] | None = None,
    input_norm: bool = False,
) -> QVLVisionConfig:
    """The configuration of the new tower of a base with the configuration `base`: what was not asked for is as usual.

    Raises BadInput.
    """
    for key, value, allowed in (("layout", layout, LAYOUTS), ("feature_select", feature_select, SELECTIONS)):
        if value not in allowed:
            raise BadInput(f"{key} {value}: must be one of {', '.join(allowed)}.")
    if merge is not None and merge < 1:
        raise BadInput(f"merge {merge}: must be at least 1.")
    if any(layer < 0 for layer in deepstack):
        raise BadInput(f"deepstack {list(deepstack)}: layers are counted from 0, the first.")
    info, native = merger_info(merger), specs[0].family == "native"
    if merge is not None and merge > 1 and info.queries is not None:
        raise BadInput(
            f"merge {merge}: merger {info.name} gives {info.queries} tokens whatever is merged; leave it out."
        )
    if feature_layer is None and len(specs) == 1:
        feature_layer = usual_layer(specs[0])
    side = merge or info.merge
    deepstack = list(deepstack)
    if native:
        if merge is None and info.merge > 1:
            side = base.vision_config.spatial_merge_size
        if merger == "native" and not deepstack:
            deepstack = list(base.vision_config.deepstack_visual_indexes)
        specs[0].config |= {"spatial_merge_size": side, "deepstack_visual_indexes": deepstack}
    vision = vision_config(
        specs, info, merger_options or {}, side, layout, feature_layer, feature_select, deepstack, input_norm
    )
    vision.out_hidden_size = base.text_config.hidden_size
    return vision


def usual_layer(spec: Spec) -> int | None:
    """The layer that is usually taken of an encoder."""
    info = family_of(spec.family)
    return info.feature_layer if info is not None else None


def vision_config(
    specs: Sequence[Spec],
    info: MergerInfo,
    merger_options: dict[str, Any],
    merge: int,
    layout: str,
    feature_layer: int | None,
    feature_select: str,
    deepstack: Sequence[int],
    input_norm: bool,
) -> QVLVisionConfig:
    """How pictures become tokens. Pure; raises BadInput for what does not go together."""
    named = " + ".join(spec.name for spec in specs)
    queries = fixed_tokens(info, merger_options)
    free = all(spec.patch and not spec.fixed for spec in specs) and feature_select == "patch" and queries is None
    if layout == "patches" and not free:
        if queries is not None:
            why = f"merger {info.name} gives {queries} tokens for any picture"
        elif feature_select == "all":
            why = "feature_select all keeps tokens that are on no grid"
        else:
            why = f"{named} takes pictures of one size only"
        raise BadInput(f"layout patches: {why}; use layout image.")
    native = specs[0].family == "native"
    if native and (layout == "image" or queries is not None):
        raise BadInput("encoder native keeps Qwen's own layout of patches; choose another merger, and no layout image.")
    layout = "patches" if layout in ("auto", "patches") and free else "image"
    first = max(specs, key=lambda spec: spec.size[0])
    shape: dict[str, Any] = {"patch_size": max(spec.patch or 1 for spec in specs)}
    if layout == "image":
        height, width = first.size
        grid = _grid(specs, feature_select)
        if merge > 1 and (grid[0] % merge or grid[1] % merge):
            raise BadInput(
                f"merger {info.name} makes one token of {merge} x {merge} patches, which does not divide the grid of "
                f"{grid[0]} x {grid[1]} that {named} gives; choose another merger or layout patches."
            )
        shape = {"image_size": [height, width], "grid": grid, "patch_size": max(1, height // grid[0])}
        if queries is not None:
            shape["grid"] = [1, queries]
    return QVLVisionConfig(
        encoders=[spec.to_dict() for spec in specs],
        merger=info.name,
        merger_options=merger_options,
        input_norm=input_norm,
        layout=layout,
        feature_layer=feature_layer,
        feature_select=feature_select,
        deepstack_visual_indexes=list(deepstack),
        spatial_merge_size=merge,
        temporal_patch_size=specs[0].config["temporal_patch_size"] if native else 1,
        hidden_size=sum(spec.width for spec in specs),
        **shape,
    )


def _grid(specs: Sequence[Spec], feature_select: str) -> list[int]:
    """The grid of a picture in the layout `image`: the patches', or [1, N] where the tokens form none."""
    counts = [spec.tokens - spec.prefix * (feature_select == "patch") for spec in specs]
    if len(set(counts)) > 1:
        found = ", ".join(f"{spec.name} {count}" for spec, count in zip(specs, counts, strict=True))
        raise BadInput(f"encoder: joined encoders need equally many tokens for a picture ({found}); join others.")
    spec, count = specs[0], counts[0]
    if spec.patch:
        h, w = spec.size[0] // spec.patch, spec.size[1] // spec.patch
        if h * w == count:
            return [h, w]
    return [1, count]


def _open(name: str, model: Any, processor: Any, options: dict[str, Any], dtype: torch.dtype) -> tuple[Spec, nn.Module]:
    if name != "native":
        return open_encoder(name, options, dtype)
    if isinstance(model.config.vision_config, QVLVisionConfig):
        raise BadInput("encoder native: the base's tower has been swapped already; start from the stock model.")
    return native_spec(model.config.vision_config, processor.image_processor), model.model.visual


def _tower(
    vision: QVLVisionConfig, opened: list[tuple[Spec, nn.Module]], model: Any, dtype: torch.dtype, seed: int
) -> QVLVisionModel:
    """The new tower: opened encoders as they are, new mergers from the seed, Qwen's own where they are asked for."""
    with torch.device("meta"):
        tower = QVLVisionModel(vision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower.make_mergers()
    with_weights(tower.encoder, [module for _, module in opened])
    vision.merger_trained = isinstance(tower.encoder, NativeEncoder) and _take_mergers(tower, model)
    return tower.to(model.device, dtype).eval()


def _take_mergers(tower: QVLVisionModel, model: Any) -> bool:
    """Take Qwen's own merger and DeepStack mergers, if they are the ones that were asked for; whether they are."""
    old, vision = model.model.visual, tower.config
    same = vision.merger == "native" and vision.spatial_merge_size == old.spatial_merge_size and not vision.input_norm
    if not same:
        return False
    tower.merger.load_state_dict(old.merger.state_dict())
    layers = list(model.config.vision_config.deepstack_visual_indexes)
    for layer, new in zip(vision.deepstack_visual_indexes, tower.deepstack_merger_list, strict=True):
        if layer in layers:
            new.load_state_dict(old.deepstack_merger_list[layers.index(layer)].state_dict())
    return True


def swapped_config_of(old: Any, vision: QVLVisionConfig) -> Any:
    """The configuration of a swapped model: that of the base with another tower."""
    moe = isinstance(old, Qwen3VLMoeConfig)  # swapped before or not
    vision.out_hidden_size = old.text_config.hidden_size
    tokens = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return (QVLMoeConfig if moe else QVLConfig)(
        text_config=copy.deepcopy(old.text_config).to_dict(),
        vision_config=vision.to_dict(),
        dtype=old.dtype,
        **{key: getattr(old, key) for key in (*tokens, "tie_word_embeddings")},
    )


def _assemble(model: Any, vision: QVLVisionConfig, tower: QVLVisionModel) -> Any:
    """A new model of the base's language model and the new tower: nothing is copied."""
    config = swapped_config_of(model.config, vision)
    moe = isinstance(config, QVLMoeConfig)
    with torch.device("meta"):
        swapped: Any = (QVLMoeForConditionalGeneration if moe else QVLForConditionalGeneration)(config)
    swapped.model.language_model, swapped.lm_head = model.model.language_model, model.lm_head
    swapped.model.visual = tower
    tower.config = swapped.config.vision_config
    swapped.config.text_config = model.model.language_model.config
    swapped.generation_config = model.generation_config
    swapped.tie_weights()
    if model.config._attn_implementation == attention.NAME:
        attention.use(swapped)
    return swapped.eval()
