"""The vision tower of a swapped Qwen3-VL: what `model.visual` has to be, around any encoder and merger.

    pixels -> (pictures) -> encoder -> tokens of each picture -> merger -> tokens at the language model's width

Qwen3VLModel asks of its tower (transformers/models/qwen3_vl/modeling_qwen3_vl.py, get_image_features): `dtype`,
`spatial_merge_size`, and `tower(pixels, grid_thw=...)` that returns `pooler_output`, the tokens of all pictures end to
end, and `deepstack_features`. A picture has to give prod(grid) / merge**2 tokens; the library only compares totals, so
each picture is checked here.

Layouts: `patches`, where pixels are the processor's patches (P, 3*p*p) and pictures have any size; `image`, where they
are pictures (n, 3, H, W) of one size. A frame of a video is a picture.

Shapes: n pictures, P patches of all, N tokens of a picture, D encoder width, M tokens out, T text width, r merge size.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from qvl_core.errors import BadInput
from qvl_vision.config import QVLVisionConfig
from qvl_vision.encoders import (
    NativeEncoder,
    OwnEncoder,
    Spec,
    build_encoder,
    make_own,
    really_made,
    restore_buffers,
)
from qvl_vision.layout import to_pictures, to_squares
from qvl_vision.mergers import build_merger
from qvl_vision.registry import merger_info

Grid = tuple[int, int]


class QVLVisionModel(PreTrainedModel):
    """Encoder and merger in the place of Qwen3-VL's vision tower."""

    config: QVLVisionConfig
    config_class = QVLVisionConfig
    base_model_prefix = "visual"
    main_input_name = "pixel_values"
    input_modalities = ("image", "video")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: QVLVisionConfig) -> None:
        super().__init__(config)
        specs = [Spec.from_dict(entry) for entry in config.encoders or []]
        self.spatial_merge_size = config.spatial_merge_size
        self.encoder = build_encoder(specs, config.feature_layer, config.feature_select)
        self.make_mergers()
        self.whole = merger_info(config.merger).whole
        self.post_init()

    def make_mergers(self) -> None:
        """New mergers, with random weights: the tower's and those of its DeepStack layers."""
        self.merger = self._make_merger()
        self.deepstack_merger_list = nn.ModuleList(
            self._make_merger(deep=True) for _ in self.config.deepstack_visual_indexes
        )

    def _make_merger(self, deep: bool = False) -> nn.Module:
        config = self.config
        options = (config.merger_options or {}) | ({"after": True} if deep and config.merger == "native" else {})
        widths = config.hidden_size, config.out_hidden_size
        return build_merger(config.merger, *widths, config.spatial_merge_size, options, config.input_norm)

    def _init_weights(self, module: nn.Module) -> None:
        """Called for what `from_pretrained` found in no file: the buffers of registered modules, which compute them."""
        owns: list[tuple[nn.Module, Callable[[], nn.Module]]] = [(self.merger, self._make_merger)]
        owns += [(merger, partial(self._make_merger, deep=True)) for merger in self.deepstack_merger_list]
        for part in self.encoder.modules():
            if isinstance(part, OwnEncoder):
                owns.append((part.model, partial(make_own, part.spec)))
        for own, make in owns:
            if any(module is part for part in own.modules()):
                with really_made():
                    restore_buffers(own, make)
                return
        super()._init_weights(module)

    def train(self, mode: bool = True) -> Self:
        """Statistics of batch norm stay those of the pretrained encoder: no checkpoint or adapter holds buffers."""
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    @property
    def blocks(self) -> list[nn.Module]:
        """The encoder's transformer blocks, the innermost where they are nested: what FSDP gathers one by one."""
        layers = [module for module in self.encoder.modules() if isinstance(module, GradientCheckpointingLayer)]
        for module in self.encoder.modules():
            if isinstance(inside := getattr(module, "timm_model", None), nn.Module):
                layers += list(getattr(inside, "blocks", ()))
        known = {id(layer) for layer in layers}
        return [
            layer for layer in layers if not any(id(part) in known for part in layer.modules() if part is not layer)
        ]

    def forward(self, pixel_values: Tensor, grid_thw: Tensor, **kwargs: Any) -> BaseModelOutputWithDeepstackFeatures:
        """Tokens (sum of M, T) of all pictures in order, and one such tensor for each DeepStack layer.

        pixel_values  (P, C) patches, or (n, 3, H, W) pictures, by the layout
        grid_thw      (media, 3) time, height, width of each image or video in patches

        Raises BadInput for a picture whose tokens are not as many as its grid says.
        """
        grids = [(h, w) for t, h, w in grid_thw.tolist() for _ in range(t)]
        frozen = not any(parameter.requires_grad for parameter in self.encoder.parameters())
        if frozen:
            self.encoder.eval()  # a frozen encoder gives the same features in training: no dropout
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            if isinstance(self.encoder, NativeEncoder):
                groups = [(list(range(len(grids))), self.encoder(pixel_values, grid_thw, **kwargs))]
            else:
                layers = tuple(self.config.deepstack_visual_indexes)
                groups = [
                    (places, self._encoded(places, self.encoder(pictures, layers), grids))
                    for places, pictures in self._pictures(pixel_values, grids)
                ]
        mergers = [self.merger, *self.deepstack_merger_list]
        merged, *deep = (
            self._merged(merger, [(places, states[number]) for places, states in groups], grids)
            for number, merger in enumerate(mergers)
        )
        return BaseModelOutputWithDeepstackFeatures(
            last_hidden_state=merged, pooler_output=merged, deepstack_features=deep
        )

    def _pictures(self, pixels: Tensor, grids: Sequence[Grid]) -> Iterator[tuple[list[int], Tensor]]:
        """Pictures of one size at a time, (n, 3, H, W), with their places among all."""
        if self.config.layout == "image":
            if len(pixels) != len(grids):
                raise BadInput(f"{len(pixels)} pictures, but grid_thw tells of {len(grids)}; {_CAUSES}")
            yield list(range(len(grids))), pixels
            return
        sizes = [h * w for h, w in grids]
        if sum(sizes) != len(pixels):
            raise BadInput(f"{len(pixels)} patches, but grid_thw tells of {sum(sizes)}; {_CAUSES}")
        pieces = pixels.split(sizes)
        for h, w in dict.fromkeys(grids):
            places = [place for place, grid in enumerate(grids) if grid == (h, w)]
            patches = torch.stack([pieces[place] for place in places])  # (n, h*w, C)
            yield places, to_pictures(patches, h, w, self.config.patch_size, self.spatial_merge_size)

    def _encoded(self, places: Sequence[int], states: list[Tensor], grids: Sequence[Grid]) -> list[Tensor]:
        """What the encoder gave for pictures of one size, (n, N, D), checked and laid out square by square."""
        if self.whole:
            return states
        _check(places, grids, states[0].shape[1], "encoder")
        h, w = grids[places[0]]
        return [to_squares(state, h, w, self.spatial_merge_size) for state in states]

    def _merged(self, merger: nn.Module, groups: list[tuple[Sequence[int], Tensor]], grids: Sequence[Grid]) -> Tensor:
        """Tokens of all pictures in order (sum of M, T), from groups of one size (n, N, D) or all patches (P, D)."""
        done = [(places, merger(states)) for places, states in groups]  # (n, M, T), or (M of all, T)
        if self.whole:
            for places, tokens in done:
                _check(places, grids, tokens.shape[1], "merger")
        if len(done) == 1:
            return done[0][1].reshape(-1, done[0][1].shape[-1])
        pieces = {place: piece for places, tokens in done for place, piece in zip(places, tokens.unbind(), strict=True)}
        return torch.cat([pieces[place] for place in range(len(grids))])


def _check(places: Sequence[int], grids: Sequence[Grid], found: int, who: str) -> None:
    """Raise BadInput for a picture whose grid calls for another number of tokens than were found."""
    for place in places:
        h, w = grids[place]
        if found != h * w:
            raise BadInput(
                f"picture {place + 1} of {len(grids)}: its grid of {h} x {w} calls for {h * w} tokens, but the "
                f"{who} gave {found}; {_CAUSES}"
            )


_CAUSES = (
    "usual causes: a processor of another model (load both from one folder), a merge size that differs between "
    "processor and config, an encoder that keeps or drops its CLS token otherwise than when it was swapped."
)
