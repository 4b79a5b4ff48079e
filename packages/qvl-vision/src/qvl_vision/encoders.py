"""The encoders inside a tower, behind one call: pictures in, tokens of the asked layers out.

    encoder = build_encoder(specs, feature_layer=None, feature_select="patch")
    tokens, *deep = encoder(pictures, layers=(2, 5))          # each (B, N, D)

- `TransformersEncoder`: any vision model of transformers (timm's through its wrapper), looked up by its configuration.
- `NaFlexEncoder`: SigLIP 2 NaFlex, which takes patches and their grid.
- `OwnEncoder`: a registered module.
- `JoinedEncoder`: several side by side, their channels joined.
- `NativeEncoder`: Qwen's own tower, which takes the processor's patches of all pictures at once.

Shapes: B pictures of H x W pixels, N tokens, D width, P patches of all pictures, p side of a patch.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import AutoConfig, AutoModel

from qvl_core.errors import BadInput
from qvl_vision.registry import encoder_info


@dataclass
class Spec:
    """One encoder as a checkpoint's config.json describes it: enough to build it again.

    name     of the registry, or the model_type if it was named by a folder or hub id
    family   `native`, `module`, or the model_type of `config`
    config   its transformers configuration; options: the arguments of one's own module
    size     [height, width] it was trained on; fixed: whether it takes nothing else
    patch    side of a patch in pixels; None if its tokens form no grid
    channels_last   its features are (B, h, w, D), not (B, D, h, w)
    prefix   tokens before the patch tokens
    tokens   tokens of a picture of `size`, prefix included
    width    D
    """

    name: str
    family: str
    config: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    size: list[int] = field(default_factory=list)
    fixed: bool = False
    patch: int | None = None
    channels_last: bool = False
    prefix: int = 0
    tokens: int = 0
    width: int = 0
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    source: str | None = None
    licence: str = "not stated"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Spec":
        """Raises BadInput for an entry of another version."""
        try:
            return cls(**values)
        except TypeError as error:
            raise BadInput(
                f"config.json: an entry of vision_config.encoders is not understood ({error}); "
                "update qvl-vision, or swap the encoder again."
            ) from None


def build_encoder(specs: Sequence[Spec], feature_layer: int | None, feature_select: str) -> nn.Module:
    """The encoder of a tower, with random weights. Raises BadInput if a registered one is not there."""
    if len(specs) > 1:
        return JoinedEncoder(specs, feature_layer, feature_select)
    kinds: dict[str, type[nn.Module]] = {
        "native": NativeEncoder,
        "module": OwnEncoder,
        "siglip2_vision_model": NaFlexEncoder,
    }
    return kinds.get(specs[0].family, TransformersEncoder)(specs[0], feature_layer, feature_select)


def transformers_config(spec: Spec) -> Any:
    """The configuration of a model of transformers."""
    values = dict(spec.config)
    return AutoConfig.for_model(values.pop("model_type"), **values)


class TransformersEncoder(nn.Module):
    """A vision model of transformers; 4-dimensional features (B, D, h, w) become tokens row by row."""

    def __init__(self, spec: Spec, feature_layer: int | None, feature_select: str) -> None:
        super().__init__()
        self.model = AutoModel.from_config(transformers_config(spec))
        self.feature_layer = feature_layer
        self.prefix = spec.prefix if feature_select == "patch" else 0
        self.channels_last = spec.channels_last
        takes = inspect.signature(type(self.model).forward).parameters
        self.options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}

    def forward(self, pictures: Tensor, layers: Sequence[int] = ()) -> list[Tensor]:
        """Pictures (B, 3, H, W) to tokens (B, N, D): of the feature layer, then of each of `layers` (0: the first)."""
        states = self.feature_layer is not None or len(layers) > 0
        out = self.call(pictures, output_hidden_states=states)
        first = out.last_hidden_state if self.feature_layer is None else out.hidden_states[self.feature_layer]
        return [self.tokens(states) for states in (first, *(out.hidden_states[layer + 1] for layer in layers))]

    def call(self, pictures: Tensor, **options: Any) -> Any:
        return self.model(pixel_values=pictures, **self.options, **options)

    def tokens(self, states: Tensor) -> Tensor:
        if states.ndim == 4:
            return states.flatten(1, 2) if self.channels_last else states.flatten(2).transpose(1, 2)  # (B, h*w, D)
        return states[:, self.prefix :]


class NaFlexEncoder(TransformersEncoder):
    """SigLIP 2 NaFlex (transformers/models/siglip2): patches with their channels last, and the shape of their grid."""

    def call(self, pictures: Tensor, **options: Any) -> Any:
        p = self.model.config.patch_size
        b, _, height, width = pictures.shape
        h, w = height // p, width // p
        patches = pictures.reshape(b, 3, h, p, w, p).permute(0, 2, 4, 3, 5, 1).reshape(b, h * w, p * p * 3)
        mask = torch.ones(b, h * w, dtype=torch.long, device=pictures.device)
        shapes = torch.tensor([[h, w]] * b, device="cpu")  # the model asks for its values
        return self.model(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes, **options)


class OwnEncoder(nn.Module):
    """A module from the registry: pictures (B, 3, H, W) to tokens (B, N, D)."""

    def __init__(self, spec: Spec, feature_layer: int | None, feature_select: str) -> None:
        super().__init__()
        self.spec = spec
        self.model = make_own(spec)

    def forward(self, pictures: Tensor, layers: Sequence[int] = ()) -> list[Tensor]:
        if layers:
            raise BadInput(f'encoder "{self.spec.name}": a module of one\'s own gives no intermediate layers; '
                           "leave deepstack out.")  # fmt: skip
        tokens = self.model(pictures)
        if not isinstance(tokens, Tensor) or tokens.ndim != 3 or len(tokens) != len(pictures):
            found = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise BadInput(
                f'encoder "{self.spec.name}": its output is {found} for {len(pictures)} pictures; '
                "it has to return tokens (B, N, D)."
            )
        return [tokens]


def restore_buffers(module: nn.Module, make: Callable[[], nn.Module]) -> None:
    """Buffers that are no part of a checkpoint are what the module computes when it is made."""
    part: Any
    for part in module.modules():
        part._is_hf_initialized = True  # the library need not ask for each of them
    own = dict(module.named_buffers())
    if lost := own.keys() - set(module.state_dict(keep_vars=True)):
        fresh = dict(make().named_buffers())
        for name in lost:
            own[name].copy_(fresh[name])


@contextmanager
def really_made() -> Iterator[None]:
    """Modules of one's own are made on the CPU in fp32, whatever is being built around them: they may compute."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


def make_own(spec: Spec) -> nn.Module:
    """The module of a registered encoder. Raises BadInput for an unknown name, or options that it does not take."""
    try:
        info = encoder_info(spec.name)
    except BadInput:
        info = None
    if info is None or info.build is None:
        raise BadInput(
            f'the encoder "{spec.name}" of this checkpoint is not registered; '
            "install the package that brings it, or name its file with --plugin FILE.py."
        )
    try:
        with really_made():
            made = info.build(**spec.options)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise BadInput(f'encoder "{spec.name}": cannot be made with {spec.options} ({what}).') from error
    return made.to(torch.get_default_dtype())


class JoinedEncoder(nn.Module):
    """Encoders side by side on the same grid, their tokens joined by channels (Prismatic VLMs, arXiv:2402.07865).

    Takes pictures in 0..1 at the largest part's resolution; each part resizes and normalises them for itself.
    """

    def __init__(self, specs: Sequence[Spec], feature_layer: int | None, feature_select: str) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.parts = nn.ModuleList(build_encoder([spec], feature_layer, feature_select) for spec in specs)
        self.patch = max(spec.patch or 0 for spec in specs)

    def forward(self, pictures: Tensor, layers: Sequence[int] = ()) -> list[Tensor]:
        """Pictures (B, 3, H, W) in 0..1 to tokens (B, N, D1 + D2 ...)."""
        each = [part(self._for(spec, pictures), layers) for spec, part in zip(self.specs, self.parts, strict=True)]
        counts = [tokens[0].shape[1] for tokens in each]
        if len(set(counts)) > 1:
            found = ", ".join(f"{spec.name} {count}" for spec, count in zip(self.specs, counts, strict=True))
            raise BadInput(
                f"joined encoders give different numbers of tokens for one picture ({found}); join encoders whose "
                "pictures have the same number of patches."
            )
        return [torch.cat(states, dim=-1) for states in zip(*each, strict=True)]

    def _for(self, spec: Spec, pictures: Tensor) -> Tensor:
        height, width = pictures.shape[-2:]
        size = tuple(spec.size)
        if not spec.fixed and spec.patch:
            size = (height // self.patch * spec.patch, width // self.patch * spec.patch)
        whole = pictures.float()  # a CPU resizes nothing in 16 bits
        if size != (height, width):
            whole = interpolate(whole, size, mode="bicubic", antialias=True, align_corners=False)
        mean, std = (torch.tensor(x, device=whole.device) for x in (spec.mean, spec.std))
        return ((whole - mean[:, None, None]) / std[:, None, None]).to(pictures.dtype)


class NativeEncoder(nn.Module):
    """Qwen's own tower without its mergers, which are the swapped tower's: all patches in, all patch tokens out."""

    def __init__(self, spec: Spec, feature_layer: int | None, feature_select: str) -> None:
        super().__init__()
        self.model: Any = AutoModel.from_config(transformers_config(spec))
        self.model.merger = nn.Identity()
        self.model.deepstack_merger_list = nn.ModuleList(nn.Identity() for _ in self.model.deepstack_visual_indexes)

    def take(self, tower: Any) -> None:
        """The layers of a stock tower, whose merge size and DeepStack layers may be others."""
        for name in ("patch_embed", "pos_embed", "rotary_pos_emb", "blocks"):
            setattr(self.model, name, getattr(tower, name))

    def forward(self, patches: Tensor, grid_thw: Tensor, **kwargs: Any) -> list[Tensor]:
        """Patches (P, C) of all pictures to tokens (P, D), then those of the DeepStack layers."""
        out = self.model(patches, grid_thw=grid_thw, **kwargs)
        return [out.pooler_output, *out.deepstack_features]
