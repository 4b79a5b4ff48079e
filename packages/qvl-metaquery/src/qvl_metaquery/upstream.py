"""Checkpoints in upstream's layout: which tensor is what. Pure functions of names; nothing of upstream's code is in it.

parts = sorted_out(names)                             # every name has a place, or BadInput
rows = query_rows(tokenizer)                          # where the queries stand in the vocabulary

<...>mllm_backbone.<name in Qwen3-VL>                 its embedding has the queries as its last rows
<...>connector.0.layers.<n>.<name in Qwen2>           the encoder layers; q_norm and k_norm (heads, 1, 64)
<...>connector.{1,3}.{weight,bias}, connector.4.weight
<...>transformer.<name in SanaTransformer2DModel>
<...>vae.<name in AutoencoderDC>                      never trained, and not read
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qvl_core.errors import BadInput

TABLE = "model.language_model.embed_tokens.weight"
_PART = re.compile(r"(?:^|.*?\.)(mllm_backbone|connector|transformer|vae)\.(.+)")
_LAYER = {
    "input_layernorm.weight": "attention_norm.weight",
    "post_attention_layernorm.weight": "mlp_norm.weight",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.out",
    "self_attn.q_norm.gamma": "attention.query_scale",
    "self_attn.k_norm.gamma": "attention.key_scale",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
_HEAD = {"1": "project_in", "3": "project_out", "4": "norm"}


@dataclass
class Upstream:
    """Names of a checkpoint by the part and the name that they have here.

    mllm, connector, transformer  name here: name there
    vae                           how many tensors of the autoencoder are left out
    """

    mllm: dict[str, str] = field(default_factory=dict)
    connector: dict[str, str] = field(default_factory=dict)
    transformer: dict[str, str] = field(default_factory=dict)
    vae: int = 0

    @property
    def layers(self) -> int:
        """Encoder layers of the connector."""
        return len({name.split(".")[2] for name in self.connector if name.startswith("connector.layers.")})


def sorted_out(names: Iterable[str]) -> Upstream:
    """Every tensor's part and name. Raises BadInput for one that has no place, and for a checkpoint without queries."""
    found = Upstream()
    for name in names:
        match = _PART.fullmatch(name)
        part, rest = match.groups() if match else ("", name)
        if part == "mllm_backbone":
            found.mllm[rest] = name
        elif part == "connector":
            found.connector[f"connector.{connector_name(rest)}"] = name
        elif part == "transformer":
            found.transformer[rest] = name
        elif part == "vae":
            found.vae += 1
        else:
            raise BadInput(
                f"{name}: belongs to no part of a MetaQuery checkpoint (mllm_backbone, connector, transformer)."
            )
    if TABLE not in found.mllm or not found.connector:
        raise BadInput(
            f"no mllm_backbone.{TABLE} or no connector there, so it is no MetaQuery checkpoint over a Qwen3-VL."
        )
    return found


def connector_name(name: str) -> str:
    """Our name of a tensor of upstream's connector, such as `layers.3.attention.query.bias`. Raises BadInput."""
    head, _, rest = name.partition(".")
    if head in _HEAD:
        return f"{_HEAD[head]}.{rest}"
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", rest) if head == "0" else None
    if match is not None:
        number, inner = match.groups()
        for there, here in _LAYER.items():
            if inner == there or inner.startswith(f"{there}."):
                return f"layers.{number}.{here}{inner[len(there) :]}"
    raise BadInput(f"connector.{name}: is not known of upstream's connector; its layout is another one.")


def query_rows(tokenizer: Any) -> list[int]:
    """Ids of the row before the queries, the queries, and the row behind. Raises BadInput for a tokenizer without."""
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    number = 0
    while f"<img{number}>" in vocabulary:
        number += 1
    names = ["<begin_of_img>", *(f"<img{index}>" for index in range(number)), "<end_of_img>"]
    if not number or any(name not in vocabulary for name in names):
        raise BadInput(
            "the tokenizer does not know <begin_of_img>, <img0>, ... and <end_of_img>; save the one of the run "
            "(tokenizer.save_pretrained) beside its weights."
        )
    return [vocabulary[name] for name in names]
