"""A few rows of a frozen embedding, trained beside LoRA: peft's trainable tokens, at the price of those rows alone.

peft writes them into a copy of the whole matrix in every forward. Here they take the place of what was looked up, so
they change what these tokens mean where they are read. A head that shares the matrix keeps its own rows until the
adapter is merged, or loaded by peft, which then gives these tokens' own logits, and no others, by the trained rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

NAME = "trained_rows"  # of the parameter (R, D) on the embedding
LAYER = "embed_tokens"  # what peft's `trainable_token_indices` calls it


def add_rows(model: Any, rows: Sequence[int], learned: bool = True) -> None:
    """Let these rows of the input embedding have values of their own, in fp32; they begin as they are."""
    table = model.get_input_embeddings()
    table.rows_trained = tuple(rows)
    table.register_parameter(NAME, nn.Parameter(table.weight.detach()[list(rows)].float(), learned))
    table.rows_hook = table.register_forward_hook(_put)


def rows_of(model: Any) -> tuple[int, ...]:
    """The rows that `add_rows` was given; none without."""
    return getattr(model.get_input_embeddings(), "rows_trained", ())


def merge_rows(model: Any) -> None:
    """Write the rows into the matrix, in place."""
    table = model.get_input_embeddings()
    with torch.no_grad():
        table.weight[list(table.rows_trained)] = getattr(table, NAME).to(table.weight.dtype)
    table.rows_hook.remove()
    delattr(table, NAME)
    del table.rows_trained, table.rows_hook


def _put(table: Any, arguments: tuple[Tensor, ...], found: Tensor) -> Tensor:
    (ids,) = arguments
    for row, values in zip(table.rows_trained, getattr(table, NAME), strict=True):
        found = torch.where((ids == row)[..., None], values.to(found.dtype), found)
    return found
