"""Packed attention: documents that lie end to end in one row attend only to themselves, and no mask is ever built.

    attention.use(model)        # after loading; from then on every forward of the model takes this path

Where the documents end is told by the library's own arguments (`cu_seq_lens_q` for text, `cu_seqlens` for the vision
tower, where every frame is a document); `Batch.inputs()` carries them. Without them a packed row is recognised by its
text positions, which start again at 0. Three ways, same result:

- CUDA, bf16 or fp16: `torch.nn.attention.varlen.varlen_attn`, one kernel for all documents: that of torch,
  or after `use_flash()` an installed FlashAttention's.
- elsewhere: documents of equal length go through one SDPA call, batched; 8 documents in 2048 tokens cost 35 ms where a
  block-diagonal mask costs 231 ms.
- anything else (padded batches with a mask, steps from a key-value cache): the library's SDPA, unchanged.

Notable choices:

- The registered name contains "flash", because that is how transformers recognises implementations that take the
  boundaries of all pictures at once; any other is called picture by picture, with a device synchronisation per layer.
- So that no kernel is looked up on the hub under that name, `use` sets the loaded model's configuration instead of
  passing the name to `from_pretrained`. Saved configurations never hold it.

Shapes: T tokens, H query heads, K key-value heads (K divides H), D head width, N documents.
"""

import inspect
from functools import cache
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from qvl_core.errors import BadInput

NAME = "qvl_packed_flash"
FLASH = {"FA4": "flash_attn.cute.interface", "FA3": "flash_attn_interface"}  # torch's names, and what must be installed


def register() -> str:
    """Make the implementation known to transformers and return its name. `use` does this by itself."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, packed_mask)
    return NAME


def use(model: nn.Module) -> None:
    """Let a loaded model and its vision tower attend per document; `set_attn_implementation("sdpa")` undoes it."""
    config: Any = model.config
    config._attn_implementation = register()
    for module in model.modules():  # Qwen's tower inside a swapped one has a configuration of its own
        inner: Any = getattr(module, "config", None)
        if getattr(inner, "model_type", None) in ("qwen3_vl_vision", "qwen3_vl_moe_vision"):
            inner._attn_implementation = NAME


def use_flash() -> str:
    """From now on varlen kernels are those of FlashAttention 4 or 3; gives which. Raises BadInput without either."""
    for name, module in FLASH.items():
        if _installed(module):
            torch.nn.attention.activate_flash_attention_impl(name)
            return name
    raise BadInput(
        "model.attention: flash needs FlashAttention 4 or 3, and neither is installed; pip install flash-attn-4, or "
        "leave attention at auto, whose kernels come with torch."
    )


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


def packed_mask(
    q_length: int, kv_length: int, attention_mask: Tensor | None = None, use_vmap: bool = False, **kwargs: Any
) -> Tensor | None:
    """No mask where every row is whole and unpadded, packed or not: `packed_attention` knows the documents."""
    if attention_mask is None and q_length == kv_length and not use_vmap:
        return None
    return sdpa_mask(q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, use_vmap=use_vmap, **kwargs)


def packed_attention(
    module: nn.Module,
    query: Tensor,  # (B, H, T, D)
    key: Tensor,  # (B, K, T, D)
    value: Tensor,  # (B, K, T, D)
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of transformers' AttentionInterface; returns (B, T, H, D) and no weights.

    kwargs may hold `cu_seq_lens_q` (N + 1,) int32 and `max_length_q`, or `position_ids` (B, T).
    """
    bounds = None
    if attention_mask is None and query.shape[2] == key.shape[2]:
        bounds = kwargs.pop("cu_seq_lens_q", None)
        if bounds is None:
            bounds = _bounds(kwargs.get("position_ids"))
    if bounds is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **kwargs
        )

    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))  # (B * T, H or K, D)
    if dropout == 0 and (dtype := _kernel_type(query, value)) is not None:
        longest = kwargs.get("max_length_q") or max(_lengths(bounds))
        out = _varlen(q.to(dtype), k.to(dtype), v.to(dtype), bounds, longest, causal, scaling)
    else:
        out = _by_length(q, k, v, _lengths(bounds), causal, scaling, dropout)
    return out.unflatten(0, (query.shape[0], query.shape[2])), None  # (B, T, H, D)


def _by_length(
    query: Tensor, key: Tensor, value: Tensor, lengths: list[int], causal: bool, scale: float | None, dropout: float
) -> Tensor:
    """Attention over documents (T, H, D), one SDPA call for each distinct length."""

    def attend(*documents: Tensor) -> Tensor:  # each (n, length, H, D)
        q, k, v = (x.transpose(1, 2) for x in documents)
        shared = q.shape[1] != k.shape[1]
        out = scaled_dot_product_attention(q, k, v, None, dropout, causal, scale=scale, enable_gqa=shared)
        return out.transpose(1, 2)

    if len(set(lengths)) == 1:
        return attend(*(x.unflatten(0, (len(lengths), lengths[0])) for x in (query, key, value))).flatten(0, 1)
    documents = [x.split(lengths) for x in (query, key, value)]
    out: list[Tensor] = [query] * len(lengths)
    for length in dict.fromkeys(lengths):
        same = [i for i, n in enumerate(lengths) if n == length]
        rows = attend(*(torch.stack([parts[i] for i in same]) for parts in documents))
        for i, document in zip(same, rows.unbind(), strict=True):
            out[i] = document  # (length, H, D)
    return torch.cat(out)  # (T, H, D)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, causal: bool, scale: float | None
) -> Tensor:
    """Attention over documents (T, H, D) in one kernel."""
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {"scale": scale, "window_size": (-1, 0) if causal else (-1, -1)}
    if query.shape[1] != key.shape[1]:
        if _varlen_shares_heads():
            options["enable_gqa"] = True
        else:  # torch 2.11
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    out: Any = varlen_attn(query, key, value, bounds, bounds, longest, longest, **options)
    return cast(Tensor, out)  # (T, H, D)


@cache
def _varlen_shares_heads() -> bool:
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def _kernel_type(query: Tensor, value: Tensor) -> torch.dtype | None:
    """The type that the varlen kernel would run in, or None where there is no such kernel."""
    if not query.is_cuda or query.shape[-1] % 8 or query.shape[-1] > 256:
        return None
    # Under autocast the q/k norms leave fp32 beside bf16 values; SDPA is cast by torch, this kernel is not.
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else value.dtype
    return dtype if dtype in (torch.bfloat16, torch.float16) and _has_kernel(query.device) else None


@cache
def _has_kernel(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


# Both are asked for once per layer with the same tensor; on a GPU each answer costs a synchronisation.
_known_lengths = WeakTensorKeyDictionary()
_known_bounds = WeakTensorKeyDictionary()


def _lengths(bounds: Tensor) -> list[int]:
    """Document lengths as ints, read from the device once per batch."""
    if bounds not in _known_lengths:
        _known_lengths[bounds] = bounds.diff().tolist()
    return _known_lengths[bounds]


def _bounds(position_ids: Tensor | None) -> Tensor | None:
    """Document bounds (N + 1,) of rows whose text positions (B, T) break off, None if every row is one document."""
    if position_ids is None:
        return None
    if position_ids not in _known_bounds:
        starts = pad(position_ids.diff(dim=1) != 1, (1, 0), value=True)  # (B, T)
        packed = int(starts.sum()) > len(starts)
        ends = pad(starts.flatten(), (0, 1), value=True).nonzero().flatten().int()  # (N + 1,)
        _known_bounds[position_ids] = ends if packed else None
    return _known_bounds[position_ids]
