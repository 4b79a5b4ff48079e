"""What a swapped model is: its encoders, how pictures become tokens, and where the parameters are."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvl_core.qwen3vl.groups import GROUPS, group_of
from qvl_core.qwen3vl.load import open_config, open_processor
from qvl_core.qwen3vl.presets import meta_model
from qvl_core.recipe.blocks import Model
from qvl_vision.checkpoint import swapped_config

if TYPE_CHECKING:
    from rich.table import Table

SIZES = ((224, 224), (448, 448), (640, 480), (1920, 1080))  # of pictures whose tokens are shown


@dataclass(frozen=True)
class Inspection:
    """`rich()` prints it, `as_dict()` is for programs."""

    encoders: list[dict[str, Any]]
    merger: str
    layout: str
    token: str
    deepstack: list[int]
    tokens: dict[str, int]
    parameters: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def rich(self) -> "Table":
        from rich.table import Table

        table = Table(show_header=False, box=None)
        for number, encoder in enumerate(self.encoders):
            what = "encoder" if len(self.encoders) == 1 else f"encoder {number + 1}"
            table.add_row(what, _line(encoder))
            normal = " ".join(f"{mean:g}/{std:g}" for mean, std in zip(encoder["mean"], encoder["std"], strict=True))
            origin = encoder["source"] or "its code"
            table.add_row("", f"mean/std {normal}; licence: {encoder['licence']}; from {origin}")
        table.add_row("merger", self.merger)
        table.add_row("layout", f"{self.layout}; {self.token}")
        table.add_row("deepstack", ", ".join(map(str, self.deepstack)) or "off")
        table.add_row("tokens", "  ".join(f"{size}: {count}" for size, count in self.tokens.items()))
        total = sum(self.parameters.values())
        for group, count in self.parameters.items():
            table.add_row(group, f"{count:,} parameters ({count / total:.1%})")
        return table


def inspect(model: Any, processor: Any = None) -> Inspection:
    """Look at a swapped model (with its processor), or at the folder of one, whose weights are not read.

    Raises BadInput for another model.
    """
    if isinstance(model, (str, Path)):
        folder = str(model)
        model, processor = meta_model(open_config(folder)), open_processor(Model(name=folder))
    config = swapped_config(model)
    parameters = dict.fromkeys(GROUPS, 0)
    for name, parameter in model.named_parameters():
        parameters[group_of(name)] += parameter.numel()
    merge = config.spatial_merge_size
    side = config.patch_size * merge
    shape = f"one token is {merge} x {merge} patches" if merge > 1 else "one token is one patch"
    if config.layout == "image":
        h, w = config.image_size or (0, 0)
        token = f"pictures are resized to {h} x {w} pixels, grid {config.grid}"
    else:
        token = f"{shape}, {side} x {side} pixels"
    images = processor.image_processor
    tokens = {
        f"{width}x{height}": images.get_number_of_image_patches(height, width, {}) // merge**2
        for width, height in SIZES
    }
    return Inspection(
        encoders=list(config.encoders or []),
        merger=f"{config.merger} ({config.hidden_size} -> {config.out_hidden_size})"
        + (", LayerNorm before it" if config.input_norm else "")
        + ("" if config.merger_trained else ", still random"),
        layout=config.layout,
        token=token,
        deepstack=list(config.deepstack_visual_indexes),
        tokens=tokens,
        parameters={group: count for group, count in parameters.items() if count},
    )


def _line(encoder: dict[str, Any]) -> str:
    size = "x".join(map(str, encoder["size"]))
    patch = f"patch {encoder['patch']}" if encoder["patch"] else f"{encoder['tokens']} tokens"
    shape = "pictures of this size only" if encoder["fixed"] else "pictures of any size"
    return (
        f"{encoder['name']} ({encoder['family']}), width {encoder['width']}, {patch}, trained at {size}, {shape}, "
        f"{encoder['prefix']} prefix tokens"
    )
