"""Blocks whose weights wait compute what they compute otherwise, to the bit, and are there for their turn alone."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.lora import apply_tune
from qvl_core.recipe.blocks import Group
from qvl_edit.cut import Bucket
from qvl_edit.groups import groups
from qvl_edit.model import OneStream, TwoStreams
from qvl_edit.packing import Grid
from qvl_edit.streaming import stream, waiting
from qvl_edit.tiny import tiny_transformer
from qvl_edit.tiny_21 import tiny_parts_21

CPU = torch.device("cpu")
TUNE = {"attn": Group(mode="lora", rank=4)}


def tuned(one_stream: bool, recompute: bool, tune: dict[str, Group] = TUNE) -> Any:
    torch.manual_seed(0)
    model = tiny_parts_21("patches")["transformer"] if one_stream else tiny_transformer(12)
    apply_tune(model, tune, 0, groups=groups(tune, len(model.transformer_blocks)))
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data.normal_(std=0.1)
    if recompute:
        model.enable_gradient_checkpointing()
    return model.train()


def learned(model: Any, one_stream: bool) -> list[Tensor]:
    """Loss and gradients, of two micro-batches one after the other."""
    call = OneStream(Grid(2, 1), (6,)) if one_stream else TwoStreams(Grid(2))
    bucket, rng = Bucket((16, 16), ((16, 8),)), torch.Generator().manual_seed(1)
    width, features = (128, 16) if one_stream else (64, 48)
    losses = []
    for _ in range(2):
        noisy = torch.randn(2, call.grid.tokens((16, 16)), features, generator=rng)
        source = torch.randn(2, call.grid.tokens((16, 8)), features, generator=rng)
        told = torch.randn(2, 12, width, generator=rng)
        made = call(model, noisy, [source], told, None, torch.tensor([0.3, 0.8]), bucket)
        loss = made.square().mean()
        loss.backward()
        losses.append(loss.detach())
    return losses + [p.grad for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("one_stream", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_losses_and_gradients_are_the_same(count: int, recompute: bool, one_stream: bool) -> None:
    model = tuned(one_stream, recompute)
    other = copy.deepcopy(model)
    streamed = stream(other.transformer_blocks, count, CPU)
    assert streamed is not None
    assert streamed.there == []
    for wanted, found in zip(learned(model, one_stream), learned(other, one_stream), strict=True):
        assert torch.equal(wanted, found)
    assert len(streamed.there) <= 2
    with torch.no_grad():  # and drawing, afterwards
        for wanted, found in zip(values(model, one_stream), values(other, one_stream), strict=True):
            assert torch.equal(wanted, found)


def values(model: Any, one_stream: bool) -> list[Tensor]:
    call = OneStream(Grid(2, 1)) if one_stream else TwoStreams(Grid(2))
    width, features = (128, 16) if one_stream else (64, 48)
    torch.manual_seed(2)
    noisy = torch.randn(1, call.grid.tokens((16, 16)), features)
    told = torch.randn(1, 5, width)
    return [call(model, noisy, [], told, None, torch.tensor([level]), Bucket((16, 16))) for level in (1.0, 0.4)]


@pytest.mark.parametrize("recompute", [False, True])
def test_no_more_than_two_are_there_at_once(recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tuned(False, recompute)
    streamed = stream(model.transformer_blocks, 3, CPU)
    assert streamed is not None
    sizes = [{p.numel() for p in block.parameters() if not p.requires_grad} for block in model.transformer_blocks]
    assert sizes == [{0}] * 3
    counts, turns = [], []

    def turn(place: int, onward: int) -> None:
        real(place, onward)
        turns.append((place, onward))
        there = [any(p.numel() for p in b.parameters() if not p.requires_grad) for b in model.transformer_blocks]
        counts.append(sum(there))

    real = streamed._turn
    monkeypatch.setattr(streamed, "_turn", turn)
    learned(model, False)
    assert max(counts) == 2
    assert (0, 1) in turns
    assert (0, -1) in turns


def test_blocks_that_wait_are_spread() -> None:
    assert waiting(0, 60) == []
    assert waiting(3, 60) == [19, 39, 59]
    assert waiting(60, 60) == list(range(60))
    assert len(set(waiting(45, 60))) == 45


def test_what_cannot_wait_is_refused() -> None:
    model = tuned(False, False, {"transformer": Group(mode="full")})
    with pytest.raises(BadInput, match="there are 3 blocks, and 4 cannot wait"):
        stream(model.transformer_blocks, 4, CPU)
    with pytest.raises(BadInput, match="nothing in these blocks is frozen"):
        stream([model.transformer_blocks[0]], 1, CPU)
