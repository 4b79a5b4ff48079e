"""The model: a frozen Qwen3-VL, queries, the connector, and Sana.

    condition = model.condition(model.read(prompts))        # (U, N, C), with gradients to the queries
    velocity = model.velocity(latents, levels, condition)

Queries are parameters of their own, not rows of the vocabulary: nothing that a prompt says can be taken for one, weight
decay moves no embedding, and lm_head stays, so that the same model still answers.

Shapes: U prompts, N queries, D width of the language model, C width of the conditions, B pictures.
"""

from typing import Any

import torch
from torch import Tensor, nn

from qvl_core.qwen3vl.groups import GROUPS as QWEN
from qvl_metaquery.conditions import Prefix, ask, read
from qvl_metaquery.connector import Connector
from qvl_metaquery.flow import LEVELS

GROUPS = {
    "queries": r"queries",
    "connector": r"connector\..*",
    "transformer": r"transformer\..*",
    **{group: rf"mllm\.{pattern}" for group, pattern in QWEN.items()},
}
"""What a recipe's `tune` names. Those of Qwen3-VL are there to be reported: no gradient reaches the prompt."""


class MetaQuery(nn.Module):
    """Shapes of the parameters of its own: queries (N + 2, D), the row before them and the row behind them included.

    The row behind is never read, and is kept because upstream's checkpoints have it.
    """

    def __init__(self, mllm: Any, transformer: Any, number: int, connector: Connector) -> None:
        super().__init__()
        self.mllm, self.transformer, self.connector = mllm, transformer, connector
        width = mllm.config.get_text_config().hidden_size
        self.queries = nn.Parameter(torch.empty(number + 2, width))
        # As large as the embeddings among which the language model expects them.
        nn.init.normal_(self.queries, std=_spread(mllm.get_input_embeddings().weight))
        self.recompute = False

    @property
    def number(self) -> int:
        """Queries, the rows around them left out."""
        return len(self.queries) - 2

    def read(self, inputs: dict[str, Any]) -> Prefix:
        """Prompts, by the arguments of `mllm.model`, without gradients."""
        return read(self.mllm, inputs)

    def condition(self, prefix: Prefix) -> Tensor:
        """(U, N, C) what Sana is told of each prompt."""
        states = ask(self.mllm, self.queries[:-1], prefix, self.recompute)[:, 1:]  # (U, N, D)
        conditions: Tensor = self.connector(states.to(_dtype(self.connector)))
        return conditions

    def velocity(self, latents: Tensor, levels: Tensor, conditions: Tensor) -> Tensor:
        """(B, C', H, W): the direction from picture to noise at latents with noise of `levels` (B,) in (0, 1]."""
        dtype = _dtype(self.transformer)
        moved: Tensor = self.transformer(
            hidden_states=latents.to(dtype),
            encoder_hidden_states=conditions.to(dtype),
            timestep=levels * LEVELS,
            return_dict=False,
        )[0]
        return moved


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _spread(table: Tensor) -> float:
    """Standard deviation of an embedding, from a part of its rows; 1 on the meta device."""
    return 1.0 if table.is_meta else float(table.detach()[:: max(1, len(table) // 1024)].float().std())
