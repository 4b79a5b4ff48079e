"""The demo's encoder: a tiny DINOv2 that learns to tell digits apart, before any language model is there.

It is to the demo what RAD-DINO is to a real swap: trained elsewhere, frozen, good at its pictures. What it knows is
measured by a linear probe, which is also the most that a merger can be expected to bring across.

Shapes: B pictures, N patch tokens of a picture, D width of the encoder, F = N * D.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qvl_core.training.seeds import mix
from qvl_data.example.digits import arrays, digit_png
from qvl_vision.tiny import MEAN, STD, tiny_dinov2, write_encoder

PATCH = 16  # pixels: 16 tokens of a picture
EPOCHS, BATCH, LR = 30, 64, 2e-3
SMOOTHING = 0.1  # of labels: features of pictures that were trained on stay like those of others
RIDGE = 1e-3  # L2 of the probe


def pretrain(folder: Path, trained: Sequence[int], seed: int, epochs: int = EPOCHS) -> Path:
    """Train a tiny DINOv2 to classify the digits with the numbers `trained`, and write it to the new folder `folder`.

    The classifier is a linear layer on the mean of the patch tokens; it is thrown away. Same seed, same bytes.
    """
    model = tiny_dinov2(seed, PATCH).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(seed, "encoder"))
        _classify(model, nn.Linear(model.config.hidden_size, 10), *digits(trained), epochs)
    return write_encoder(model.eval(), folder)


def _classify(model: Any, head: nn.Linear, pictures: Tensor, labels: Tensor, epochs: int) -> None:
    weights = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=LR, weight_decay=0.05)
    steps = epochs * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps, pct_start=0.1)
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels)).split(BATCH):
            logits = head(patch_tokens(model, pictures[chosen]).mean(1))  # (B, 10)
            optimizer.zero_grad()
            cross_entropy(logits, labels[chosen], label_smoothing=SMOOTHING).backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()


def probe(model: Any, trained: Sequence[int], tested: Sequence[int]) -> float:
    """Accuracy on the digits `tested` of a logistic regression that was fitted on the frozen features of `trained`.

    The features are the N patch tokens of a picture side by side, standardised: all that a merger is given, and more
    than their mean, which is usual for DINOv2. The fit is that of LBFGS to convergence, with a weak L2.
    """
    known, labels = features(model, trained), digits(trained)[1]
    mean, deviation = known.mean(0), known.std(0) + 1e-6
    known = (known - mean) / deviation
    weight = torch.zeros(known.shape[1], 10, requires_grad=True)
    bias = torch.zeros(10, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(known @ weight + bias, labels) + RIDGE * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        logits = (features(model, tested) - mean) / deviation @ weight + bias
    return float((logits.argmax(1) == digits(tested)[1]).float().mean())


@torch.no_grad()
def features(model: Any, numbers: Sequence[int]) -> Tensor:
    """The patch tokens of digits side by side, (B, F)."""
    return torch.cat([patch_tokens(model, part).flatten(1) for part in digits(numbers)[0].split(256)])


def patch_tokens(model: Any, pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) to patch tokens (B, N, D), without CLS."""
    tokens: Tensor = model(pixel_values=pictures).last_hidden_state[:, 1:]
    return tokens


def digits(numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Digits by their number in the set: normalised pictures (B, 3, 64, 64) and labels (B,)."""
    grey = np.stack([np.asarray(Image.open(io.BytesIO(digit_png(number)))) for number in numbers])
    pixels = (torch.from_numpy(grey).float() / 255 - MEAN[0]) / STD[0]
    labels = torch.from_numpy(arrays()[1][list(numbers)].astype(np.int64))
    return pixels[:, None].expand(-1, 3, -1, -1), labels
