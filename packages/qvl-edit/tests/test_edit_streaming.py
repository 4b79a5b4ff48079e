"""Blocks whose weights wait compute what they compute otherwise, to the bit, and are there for their turn alone."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.lora import apply_tune
from qvl_core.recipe.blocks import Group
from qvl_edit.cut import Bucket
from qvl_edit.groups import groups
from qvl_edit.model import Given, OneStream, TwoStreams
from qvl_edit.packing import Grid
from qvl_edit.streaming import Streamed, stream, waiting_blocks
from qvl_edit.tiny import tiny_transformer
from qvl_edit.tiny_21 import tiny_parts_21

CPU = torch.device("cpu")
TUNE = {"attn": Group(mode="lora", rank=4)}


def tuned(one_stream: bool, tune: dict[str, Group] = TUNE) -> Any:
    torch.manual_seed(0)
    model = tiny_parts_21("patches")["transformer"] if one_stream else tiny_transformer(12)
    apply_tune(model, tune, 0, groups=groups(tune, len(model.transformer_blocks)))
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data.normal_(std=0.1)
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
        made = call(model, noisy, torch.tensor([0.3, 0.8]), Given([source], told, None, bucket))
        loss = made.square().mean()
        loss.backward()
        losses.append(loss.detach())
    return losses + [p.grad for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("one_stream", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_losses_and_gradients_are_the_same(count: int, one_stream: bool) -> None:
    model = tuned(one_stream)
    other = copy.deepcopy(model)
    stream(other, count, CPU)
    assert sum(any(p.numel() for p in frozen(block)) for block in other.transformer_blocks) == 3 - count
    for wanted, found in zip(learned(model, one_stream), learned(other, one_stream), strict=True):
        assert torch.equal(wanted, found)
    with torch.no_grad():  # and drawing, afterwards
        for wanted, found in zip(values(model, one_stream), values(other, one_stream), strict=True):
            assert torch.equal(wanted, found)


def values(model: Any, one_stream: bool) -> list[Tensor]:
    call = OneStream(Grid(2, 1)) if one_stream else TwoStreams(Grid(2))
    width, features = (128, 16) if one_stream else (64, 48)
    torch.manual_seed(2)
    noisy = torch.randn(1, call.grid.tokens((16, 16)), features)
    told = torch.randn(1, 5, width)
    given = Given([], told, None, Bucket((16, 16)))
    return [call(model, noisy, torch.tensor([level]), given) for level in (1.0, 0.4)]


def frozen(block: Any) -> list[Any]:
    return [p for p in block.parameters() if not p.requires_grad]


@pytest.mark.parametrize("one_stream", [False, True])
def test_no_more_than_two_are_alive_at_once(one_stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of blocks that have gone nothing keeps the memory, neither autograd nor a gradient."""
    model = tuned(one_stream)
    of_block = max(sum(p.nbytes for p in frozen(block)) for block in model.transformer_blocks)
    copies: list[tuple[Any, int]] = []
    alive, turns = [], []

    def send_for(streamed: Streamed, place: int) -> None:
        new = place not in streamed._there
        real_send(streamed, place)
        if new:
            storages = [weight.data.untyped_storage() for weight in streamed._weights[place]]
            copies.extend((storage._weak_ref(), storage.nbytes()) for storage in storages)

    def turn(streamed: Streamed, place: int, following: int) -> None:
        real_turn(streamed, place, following)
        turns.append((place, following))
        alive.append(sum(size for ref, size in copies if not torch.UntypedStorage._expired(ref)))

    real_send, real_turn = Streamed._send_for, Streamed._turn
    monkeypatch.setattr(Streamed, "_send_for", send_for)
    monkeypatch.setattr(Streamed, "_turn", turn)
    stream(model, 3, CPU)
    learned(model, one_stream)
    assert of_block < max(alive) <= 2 * of_block
    assert {(0, 1), (1, 2), (2, 3), (2, 1), (1, 0), (0, -1)} == set(turns)
    turns.clear()
    with torch.no_grad():
        values(model, one_stream)
    assert turns == [(0, 1), (1, 2), (2, 0)] * 2


def test_blocks_that_wait_are_spread() -> None:
    blocks = [torch.nn.Linear(1, 1).requires_grad_(False) for _ in range(60)]

    def places(count: int) -> list[int]:
        return [blocks.index(block) for block in waiting_blocks(SimpleNamespace(transformer_blocks=blocks), count)]

    assert places(0) == []
    assert places(3) == [19, 39, 59]
    assert places(60) == list(range(60))
    assert len(set(places(45))) == 45


def test_what_cannot_wait_is_refused() -> None:
    with pytest.raises(BadInput, match="there are 3 blocks, and 4 cannot wait"):
        stream(tuned(False), 4, CPU)
    with pytest.raises(BadInput, match="nothing in these blocks is frozen"):
        stream(tuned(True, {"transformer": Group(mode="full")}), 1, CPU)
