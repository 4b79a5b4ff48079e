"""Greedy answers to encoded prompts, batched, and the figure that judges them: exact match; and how tokens are drawn.

Prompts are sorted by length, so that most batches need little padding or none, and padded on the left, so that every
row continues at its end. Greedy decoding draws nothing: the same model and prompts give the same answers, alone or in
a batch. A batch ends as soon as its last row has.

Shapes: B prompts of a batch, T tokens of the longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qvl_core.qwen3vl.batch import four_rows, media, padded
from qvl_core.qwen3vl.encoded import Encoded


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; None is as the checkpoint's generation_config.json says.

    temperature         0 takes the likeliest token, above 0 torch's generator draws one
    top_p               draw from the likeliest tokens that hold this part of the probability (1: from all)
    top_k               draw from so many of the likeliest tokens (0: from all)
    min_p               draw from tokens at least this part as likely as the likeliest
    repetition_penalty  divides the scores of tokens that the text has already (1: does not)
    """

    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def options(self, own: Any) -> dict[str, Any]:
        """What the library's generate() takes; `own` is the model's generation_config.

        What neither says draws from all tokens, where the library alone would draw from the likeliest 50.
        """
        values: dict[str, Any] = {"do_sample": self.temperature > 0}
        if self.repetition_penalty is not None:
            values["repetition_penalty"] = self.repetition_penalty
        if self.temperature == 0:
            return values
        values["temperature"] = self.temperature
        for name, every in (("top_p", 1.0), ("top_k", 0), ("min_p", None)):
            given = (getattr(self, name), getattr(own, name, None), every)
            values[name] = next((value for value in given if value is not None), None)
        return values


@torch.no_grad()
def generate(
    model: nn.Module,
    processor: Any,
    prompts: Sequence[Encoded],
    max_new_tokens: int,
    batch_size: int = 64,
    batch_tokens: int = 16384,
) -> list[str]:
    """Answers, in the order of the prompts, without special tokens.

    model     Qwen3VLForConditionalGeneration, as loaded or with peft adapters; generates in evaluation mode
    processor its processor, for the tokenizer
    prompts   chats up to and including the generation prompt; labels are not looked at
    batch_size, batch_tokens  prompts of a batch, and their tokens with padding, at most: the cache grows with them
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)  # the largest batch comes first
    answers = [""] * len(prompts)
    training = model.training
    model.eval()
    try:
        start = 0
        while start < len(order):
            rows = max(1, batch_tokens // len(prompts[order[start]]))
            chosen = order[start : start + min(batch_size, rows)]
            start += len(chosen)
            texts = _answer(model, processor.tokenizer, [prompts[i] for i in chosen], max_new_tokens)
            for i, text in zip(chosen, texts, strict=True):
                answers[i] = text
    finally:
        model.train(training)
    return answers


def exact_match(answers: Sequence[str], references: Sequence[str]) -> float:
    """Part of the answers, in 0..1, that equal their reference up to white space at the ends. nan if there are none."""
    equal = [answer.strip() == reference.strip() for answer, reference in zip(answers, references, strict=True)]
    return sum(equal) / len(equal) if equal else float("nan")


def _answer(model: Any, tokenizer: Any, prompts: list[Encoded], max_new_tokens: int) -> list[str]:
    inputs = inputs_of(model, tokenizer, prompts)
    tokens = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    new = tokens[:, inputs["input_ids"].shape[1] :]
    return list(tokenizer.batch_decode(new, skip_special_tokens=True))


def inputs_of(model: Any, tokenizer: Any, prompts: Sequence[Encoded]) -> dict[str, Tensor]:
    """What the library's generate() takes; with positions of our own it need not work them out row by row."""
    merge = model.config.vision_config.spatial_merge_size
    inputs = {
        "input_ids": _left([prompt.ids for prompt in prompts], tokenizer.pad_token_id),
        "attention_mask": _left([np.ones_like(prompt.ids) for prompt in prompts]),
        "mm_token_type_ids": _left([prompt.types for prompt in prompts]),
        "position_ids": _left([four_rows(prompt, merge) for prompt in prompts]),
        # generate() refuses the bounds of the frames; the vision tower finds them itself
        **{name: value for name, value in media(prompts).items() if "seqlen" not in name},
    }
    device = model.get_input_embeddings().weight.device
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def _left(rows: list[Any], fill: int = 0) -> Tensor:
    """(..., L) of each prompt as (..., B, T), padded on the left."""
    return padded([row[..., ::-1] for row in rows], fill).flip(-1)
