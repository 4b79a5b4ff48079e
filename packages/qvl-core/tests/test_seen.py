"""The tower's outputs of samples that are read several times: one pass of the tower, the same losses."""

from functools import partial
from typing import Any

import pytest
import torch
from chats import MERGE, chat

from qvl_core.qwen3vl import attention, seen
from qvl_core.qwen3vl.batch import by_tokens, collate
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.loss import token_losses
from qvl_core.qwen3vl.seen import blind, given, look
from qvl_core.qwen3vl.tiny import tiny_model, tiny_processor

COLLATE = partial(collate, packing=True, merge=MERGE, pad_id=0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def samples() -> list[Encoded]:
    """Two pictures; text alone; a picture and a clip."""
    tokenizer = tiny_processor().tokenizer
    shown = [((2, 2), (2, 3)), (), ((3, 2),)]
    return [chat(tokenizer, n, 12, pictures, [(2, 2, 2)] * (n == 2)) for n, pictures in enumerate(shown)]


@pytest.fixture(scope="module")
def model() -> Any:
    built = tiny_model(tiny_processor().tokenizer, 1)
    attention.use(built)
    return built.eval()


def test_losses_are_those_of_the_pixels_and_the_tower_runs_once(
    model: Any, samples: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = token_losses(model, COLLATE(samples))
    found = look(model, samples)
    monkeypatch.setattr(model.model.visual, "forward", None)  # it would fail
    for order in ([0, 1, 2], [2, 0, 0, 1]):
        batch, shown = [samples[n] for n in order], [found[n] for n in order]
        losses = token_losses(model, blind(COLLATE(batch)), given(batch, shown, CPU))
        counts = [sample.count for sample in samples]
        parts = wanted.split(counts)
        torch.testing.assert_close(losses, torch.cat([parts[n] for n in order]), atol=1e-5, rtol=1e-5)


def test_a_sample_that_shows_the_first_pictures_alone_takes_their_features(model: Any, samples: list[Encoded]) -> None:
    whole = samples[0]
    (found,) = look(model, [whole])
    tokenizer = tiny_processor().tokenizer
    first = chat(tokenizer, 7, 5, [(2, 2)])
    patches = int(first.image_grid[0].prod())  # type: ignore[index]
    first.images[:] = whole.images[:patches]  # type: ignore[index]
    losses = token_losses(model, blind(COLLATE([first])), given([first], [found], CPU))
    torch.testing.assert_close(losses, token_losses(model, COLLATE([first])), atol=1e-5, rtol=1e-5)


def test_the_tower_takes_a_limited_number_of_patches(
    model: Any, samples: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = look(model, samples)
    monkeypatch.setattr(seen, "PATCHES", 1)
    for one, other in zip(look(model, samples), together, strict=True):
        for kind in ("images", "videos"):
            torch.testing.assert_close(getattr(one, kind), getattr(other, kind), atol=1e-5, rtol=1e-5)


def test_runs_of_samples_stay_below_the_limit_and_in_order() -> None:
    lengths = [3, 2, 9, 1, 1, 4, 5]
    groups = list(by_tokens([range(n) for n in lengths], 6))
    assert [[len(one) for one in group] for group in groups] == [[3, 2], [9], [1, 1, 4], [5]]
    assert list(by_tokens(["ab"], 1, lambda _: 0)) == [["ab"]]
    assert list(by_tokens([], 1)) == []
