"""Which tokens see which while a text is denoised, from two numbers of each token.

A token is clean (read as it is) or noised (some of its kind are masks, and it is learned from), and it has a level:

- full    everything sees everything; all levels are 0.
- prefix  a prompt and each answer is a level of its own: what is clean sees the clean of its own level and before; a
          noised answer sees itself and the clean before it. Keys and values of a prompt never change: an exact cache.
- block   the same, and an answer is cut into blocks of `block_size` tokens, each a level (block diffusion: Arriola et
          al. 2025, arXiv:2503.09573).

So one forward over [clean prompt and answers | noised answers] learns all blocks of all answers of a chat at once, each
from what it will see when it is written, and the pictures stand in it once.

Shapes: B rows, T tokens.
"""

import torch
from torch import Tensor


def visible(levels: Tensor, clean: Tensor, documents: Tensor) -> Tensor:
    """Mask (B, 1, T, T), true where the query (third axis) sees the key (fourth).

    levels    (B, T) int
    clean     (B, T) bool
    documents (B, T) int: sample of each token in a packed row, different ones never see each other; -1: padding

    Padding sees itself, so that no row of the mask is empty (softmax over nothing is nan).
    """
    same = documents[:, :, None] == documents[:, None, :]  # (B, T, T)
    q_level, k_level = levels[:, :, None], levels[:, None, :]
    q_clean, k_clean = clean[:, :, None], clean[:, None, :]
    before = k_clean & (k_level < q_level)
    beside = (k_level == q_level) & (k_clean == q_clean)
    padding = (documents < 0)[:, None, :]  # (B, 1, T)
    itself = torch.eye(levels.shape[1], dtype=torch.bool, device=levels.device)
    return ((same & (before | beside) & ~padding) | itself)[:, None]
