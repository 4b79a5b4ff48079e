"""`qvl-vision plan`: parameters, tokens and bytes of a swap before anything is downloaded.

The encoder is one of the catalogue (offline) or a folder, the base a released name (offline) or a folder. Counts are
those of the real modules without storage.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.load import open_config
from qvl_core.qwen3vl.presets import count_parameters
from qvl_vision.commands import pairs
from qvl_vision.encoders import Spec
from qvl_vision.opening import native_spec, open_encoder, planned_spec
from qvl_vision.registry import list_encoders
from qvl_vision.swapping import arranged, checked, swapped_config_of

if TYPE_CHECKING:
    from rich.table import Table

GIB = 2**30


@dataclass(frozen=True)
class SwapPlan:
    """Parameters by tune group, before and after; tokens of a picture at most."""

    before: dict[str, int]
    after: dict[str, int]
    tokens: int
    layout: str

    @property
    def trained_bytes(self) -> int:
        """What training the merger alone adds to the weights: fp32 weights, gradients, two Adam states."""
        return 16 * (self.after["merger"] + self.after["deepstack_mergers"])

    def rich(self) -> "Table":
        from rich.table import Table

        total = sum(self.after.values())
        table = Table(show_footer=True, caption_justify="left")
        table.add_column("group", "all")
        table.add_column("stock", f"{sum(self.before.values()):,}", justify="right")
        table.add_column("swapped", f"{total:,}", justify="right")
        for group, count in self.after.items():
            if count or self.before[group]:
                table.add_row(group, f"{self.before[group]:,}", f"{count:,}")
        table.caption = (
            f"Layout {self.layout}; a picture has at most {self.tokens:,} tokens. Weights in bf16: "
            f"{2 * total / GIB:.2f} GiB; training the merger alone adds {self.trained_bytes / GIB:.2f} GiB."
        )
        return table


def plan(
    base: str,
    encoder: Sequence[str],
    merger: str,
    max_tokens: int | None,
    encoder_options: Sequence[str],
    merger_options: Sequence[str],
    **settings: Any,
) -> None:
    """Print the plan of a swap."""
    own, options = pairs("--encoder-option", encoder_options), pairs("--merger-option", merger_options)
    planned = predict(base, encoder, merger, max_tokens, encoder_options=own, merger_options=options, **settings)
    Console().print(planned.rich())


def predict(
    base: str, encoder: Sequence[str], merger: str = "linear", max_tokens: int | None = None, **settings: Any
) -> SwapPlan:
    """The plan of a swap; settings are those of `planned_config`. Raises BadInput."""
    if "native" in encoder:
        raise BadInput("plan: Qwen's own tower is the base's; see qvl-sft plan.")
    stock = open_config(base, key="base")
    swapped = planned_config(stock, encoder, merger, **settings)
    vision = swapped.vision_config
    side = vision.spatial_merge_size
    if vision.layout == "image":
        h, w = vision.grid or (1, 1)
        tokens = h * w // side**2
    else:
        tokens = max_tokens or (max(max(spec["size"]) for spec in vision.encoders) // (vision.patch_size * side)) ** 2
    return SwapPlan(count_parameters(stock), count_parameters(swapped), tokens, vision.layout)


def planned_config(
    stock: Any,
    encoder: str | Sequence[str],
    merger: str,
    encoder_options: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """The configuration that `swap` gives a base of the configuration `stock`; settings are those of `arranged`.

    Encoders of the catalogue are not opened: this needs neither files nor network. Raises BadInput.
    """
    names = checked([encoder] if isinstance(encoder, str) else encoder)
    specs = [_spec(name, stock, encoder_options or {}) for name in names]
    return swapped_config_of(stock, arranged(stock, specs, merger, **settings))


def _spec(name: str, stock: Any, options: dict[str, Any]) -> Spec:
    if name == "native":
        return native_spec(stock.vision_config)
    in_catalogue = any(info.name == name and info.shape is not None for info in list_encoders())
    return planned_spec(name) if in_catalogue else open_encoder(name, options, torch.float32)[0]
