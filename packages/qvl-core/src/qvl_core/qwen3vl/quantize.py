"""Frozen linear layers in fewer bits, under adapters (QLoRA: Dettmers et al. 2023, arXiv:2305.14314).

    quantize(model, Quantization(kind="nf4"), device="cuda")

Layers are replaced one by one in a model that was loaded in full, so that exactly the groups that are named change, and
no more than one layer is held twice. nf4 is computed by bitsandbytes, on CPU and GPU; int8 (weights only) by torchao.
Products are computed in the type that the weights had. LoRA may be injected before or after.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.groups import GROUPS, is_tied, linear_targets
from qvl_core.recipe.blocks import Quantization

if TYPE_CHECKING:
    from qvl_core.qwen3vl.initial import Start

LIBRARIES = {"nf4": "bitsandbytes", "int8": "torchao"}


@dataclass(frozen=True)
class Quantized:
    """What was done to a model."""

    kind: str
    double: bool
    groups: tuple[str, ...]
    layers: int
    share: float
    """Part of all weights that these layers hold."""
    error: float
    """The norm of the weights' change over their own, of all layers together."""
    largest_error: float
    """That of the layer that changed most."""

    def __str__(self) -> str:
        return (
            f"{self.layers} layers ({self.share:.0%} of the weights) in {self.kind}, which differ from the full ones "
            f"by {self.error:.1%} (at most {self.largest_error:.1%} in one layer)"
        )


def quantize(
    model: nn.Module,
    quantization: Quantization,
    device: "str | torch.device | None" = None,
    groups: Mapping[str, str] = GROUPS,
) -> Quantized:
    """Hold the linear layers of `quantization.groups` in fewer bits, in place, on `device` (default: where they are).

    What was done is kept as `model.quantized`. Raises BadInput without the library or for what cannot be meant.
    """
    check_library(quantization)
    targets = quantized_layers(model, quantization, groups)
    start: Start | None = getattr(model, "lora_start", None)
    changes, norms = [], []
    for name in targets:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        weight = linear.weight.detach().to(device or linear.weight.device)
        quantized = _nf4(linear, weight, quantization.double) if quantization.kind == "nf4" else _int8(linear, weight)
        change = weight.float() - dequantized(quantized.weight).float()
        if start is not None and (restored := start.restored(name.removesuffix(".base_layer"))) is not None:
            change -= restored.to(change.device)
        changes.append(change.norm())
        norms.append(weight.float().norm())
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, quantized)
    _confirm(model, targets)
    change_, norm_ = torch.stack(changes).cpu(), torch.stack(norms).cpu()
    found = Quantized(
        quantization.kind,
        quantization.double,
        tuple(quantization.groups),
        len(targets),
        sum(size(model.get_parameter(f"{name}.weight")) for name in targets) / sum(map(size, model.parameters())),
        (change_.norm() / norm_.norm()).item(),
        (change_ / norm_).max().item(),
    )
    setattr(model, "quantized", found)  # noqa: B010 - an attribute of our own on a library's class
    return found


def check_library(quantization: Quantization) -> None:
    """Raise BadInput where the library that computes with such weights is missing."""
    library = LIBRARIES[quantization.kind]
    if find_spec(library) is None:
        raise BadInput(f"model.quantization: {quantization.kind} needs {library}; run: pip install 'qvl-core[quant]'")


def quantized_layers(model: nn.Module, quantization: Quantization, groups: Mapping[str, str] = GROUPS) -> list[str]:
    """The layers that `quantize` would replace; a plan asks without the library. Raises BadInput as it does."""
    key = "model.quantization"
    if is_quantized(model):
        raise BadInput(f"{key}: the model is quantised already; load it in full.")
    if not quantization.groups:
        raise BadInput(f"{key}.groups: names no group; name llm, or leave {key} away.")
    targets = []
    for group in dict.fromkeys(quantization.groups):
        if group not in groups:
            raise BadInput(f"{key}: there is no group {group}; there are {', '.join(groups)}.")
        if group == "lm_head" and is_tied(model):
            raise BadInput(f"{key}: lm_head shares the embedding's matrix, which is not held in fewer bits; remove it.")
        found = linear_targets(model, group, groups)
        if not found:
            raise BadInput(f"{key}: {group} has no linear layers to hold in fewer bits; remove it.")
        targets.extend(found)
    return targets


def nearest(weight: Tensor, quantization: Quantization) -> Tensor:
    """What remains of a weight (out, in) that is held in nf4. fp32."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=quantization.double)
    return dequantize_4bit(packed, state).float()


def is_quantized(model: nn.Module) -> bool:
    """Whether any weight is held in fewer bits, by us or by transformers."""
    return getattr(model, "hf_quantizer", None) is not None or any(
        is_low_bit(parameter) for parameter in model.parameters()
    )


def is_low_bit(parameter: Tensor) -> bool:
    return hasattr(parameter, "quant_state") or hasattr(parameter, "qdata")


def size(parameter: Tensor) -> int:
    """Values that a parameter stands for, however it holds them."""
    state = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()


def held(parameter: Tensor) -> Tensor:
    """The values as they are held: whole numbers where they are in fewer bits."""
    return getattr(parameter, "qdata", parameter).detach()


def dequantized(weight: Any) -> Tensor:
    """A weight that is held in fewer bits (out, in), as its layer computes with it."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        values: Tensor = weight.dequantize()
        return values
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, state)


def _nf4(linear: nn.Linear, weight: Tensor, double: bool) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    layer = Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=False,
        compute_dtype=weight.dtype,
        compress_statistics=double,
        quant_type="nf4",
        device="meta",
    )
    layer.weight = Params4bit(
        weight, requires_grad=False, compress_statistics=double, quant_type="nf4", module=layer
    ).to(weight.device)
    layer.bias = None if linear.bias is None else nn.Parameter(linear.bias.to(weight.device), requires_grad=False)
    # It would repack the weights in evaluation mode on some processors: other bits, in the midst of training.
    layer.support_avx512bf16_for_cpu = False
    layer.train(linear.training)
    return layer


def _int8(linear: nn.Linear, weight: Tensor) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layer = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = None if linear.bias is None else nn.Parameter(linear.bias.to(weight.device), requires_grad=False)
    quantize_(layer, Int8WeightOnlyConfig())
    layer.train(linear.training)
    return layer


def _confirm(model: nn.Module, targets: list[str]) -> None:
    """Libraries that skip layers by name are known to skip others than was meant; ours must have changed these only."""
    low = {name.removesuffix(".weight") for name, parameter in model.named_parameters() if is_low_bit(parameter)}
    assert low == set(targets), sorted(low ^ set(targets))[:3]
