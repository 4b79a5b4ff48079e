"""The next-token loss of a batch: body, label rows, chunked head. Works on packed and padded batches alike.

Shapes: B rows, T tokens per row, D hidden width, N labels.
"""

from typing import Any

import torch
from torch import Tensor, nn

from qvl_core.qwen3vl import tied
from qvl_core.qwen3vl.batch import Batch
from qvl_core.qwen3vl.head import full_nll, head_nll, label_nll


def next_token_loss(
    model: nn.Module,
    batch: Batch,
    weights: Tensor | None = None,
    *,
    label_rows: bool = True,
    encoded: dict[str, Any] | None = None,
) -> Tensor:
    """Negative log-likelihood in nats, summed over the batch's labels: a scalar in fp32, with gradients.

    model      Qwen3VLForConditionalGeneration, as loaded or with peft adapters. Under FSDP2 or DDP call this from the
               wrapped root's forward, where the weights are whole.
    weights    (N,) factor of each label; default: the batch's own
    label_rows false computes the logits of every token, as the library does: the same loss from more memory and time
    encoded    what the vision tower gave, for a batch without pixels (features.FeatureCache)
    """
    core = core_of(model)
    weights = batch.weights if weights is None else weights
    if not label_rows:
        hidden = hidden_states(core, batch, encoded)
        return full_nll(core.lm_head, hidden, batch.label_rows, batch.targets, weights)
    with tied.lookup(core) as waiting:
        states = label_states(core, batch, encoded)
    if waiting is not None:
        states, matrix = tied.head(states, core.lm_head.weight, waiting)
        return label_nll(states, matrix, batch.targets, weights)[0]
    return head_nll(core.lm_head, states, batch.targets, weights)[0]


@torch.no_grad()
def token_losses(model: nn.Module, batch: Batch, encoded: dict[str, Any] | None = None) -> Tensor:
    """Negative log-likelihood of each label (N,) in nats, fp32, without gradients.

    encoded  what the vision tower gave, for a batch without pixels (`seen.given`)
    """
    core = core_of(model)
    return head_nll(core.lm_head, label_states(core, batch, encoded), batch.targets)[1]


def label_states(model: nn.Module, batch: Batch, encoded: dict[str, Any] | None = None) -> Tensor:
    """Hidden states (N, D) that predict the labels: all that the head has to see."""
    return hidden_states(model, batch, encoded).index_select(0, batch.label_rows)


def hidden_states(model: nn.Module, batch: Batch, encoded: dict[str, Any] | None = None) -> Tensor:
    """Hidden states of every token (B * T, D)."""
    body: Any = core_of(model).model
    given = {} if encoded is None else {"mm_encoder_outputs": encoded}
    hidden: Tensor = body(**batch.inputs(), **given, use_cache=False).last_hidden_state  # (B, T, D)
    return hidden.flatten(0, 1)


def core_of(model: nn.Module) -> Any:
    """The Qwen3-VL inside a PeftModel; any other model is its own core."""
    wrapped: Any = model
    return wrapped.get_base_model() if hasattr(model, "get_base_model") else model
