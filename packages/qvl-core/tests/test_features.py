"""The cache of a frozen tower's outputs: equal to the bit, kept once, never trusted blindly."""

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from chats import MERGE, chat
from torch import Tensor

from qvl_core.errors import BadInput
from qvl_core.qwen3vl import attention
from qvl_core.qwen3vl.batch import collate
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.features import CachedCollate, FeatureBatch, FeatureCache, open_cache
from qvl_core.qwen3vl.learning import open_features
from qvl_core.qwen3vl.lora import apply_tune
from qvl_core.qwen3vl.loss import next_token_loss
from qvl_core.qwen3vl.tiny import tiny_model, tiny_processor
from qvl_core.recipe.blocks import Group, Recipe
from qvl_core.run import RunFolder
from qvl_core.training.world import World

LORA = Group(mode="lora", rank=4)
PLAIN = partial(collate, packing=True, merge=MERGE, pad_id=0)


@pytest.fixture(scope="module")
def samples() -> list[Encoded]:
    """Two pictures; the same picture twice, and a clip; text alone."""
    tokenizer = tiny_processor().tokenizer
    first = chat(tokenizer, 0, 12, [(2, 2), (2, 3)])
    return [first, chat(tokenizer, 1, 20, [(3, 2)], [(2, 2, 2)]), chat(tokenizer, 2, 9)]


@pytest.fixture(scope="module")
def model() -> Any:
    built = tiny_model(tiny_processor().tokenizer, 1)
    attention.use(built)
    apply_tune(built, {"llm": LORA}, seed=0)
    return built.train()


@pytest.fixture
def cache(model: Any, tmp_path: Path) -> FeatureCache:
    return open_cache(model, tmp_path / "features", gib=1, precision="fp32")


def step(model: Any, cache: FeatureCache, samples: list[Encoded]) -> tuple[Tensor, Tensor, FeatureBatch]:
    """Loss, gradients and the batch of one step with the cache."""
    batch = CachedCollate(PLAIN, cache)(samples)
    model.zero_grad()
    loss = next_token_loss(model, batch.batch, encoded=cache.encode(model, batch))
    loss.backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.detach(), torch.cat(grads), batch


def missing(batch: FeatureBatch) -> int:
    return sum(medium.features is None for medium in (*batch.images, *batch.videos))


def test_the_second_epoch_skips_the_tower_and_is_equal_to_the_bit(
    model: Any, cache: FeatureCache, samples: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    model.zero_grad()
    plain = next_token_loss(model, PLAIN(samples))
    loss, grads, batch = step(model, cache, samples)
    assert missing(batch) == 4
    assert abs(loss - plain) <= 1e-6 * plain
    monkeypatch.setattr(model.model.visual, "forward", None)  # it would fail
    again, same, batch = step(model, pickle.loads(pickle.dumps(cache)), samples)
    assert missing(batch) == 0
    assert torch.equal(loss, again)
    assert torch.equal(grads, same)


def test_features_do_not_depend_on_the_batch_they_came_in(model: Any, tmp_path: Path, samples: list[Encoded]) -> None:
    """A run killed in an epoch finds some pictures in the cache and others not: its losses stay the same."""
    fresh, half = (open_cache(model, tmp_path / name, 1, "fp32") for name in ("fresh", "half"))
    step(model, half, samples[1:2])
    assert missing(step(model, half, samples)[2]) == 2
    assert torch.equal(step(model, fresh, samples)[0], step(model, half, samples)[0])


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "text", "other"])
def test_a_damaged_file_is_computed_again(damage: str, model: Any, cache: FeatureCache, samples: list[Encoded]) -> None:
    loss, grads, _ = step(model, cache, samples)
    first, *_ = sorted(cache.folder.rglob("*.safetensors"))
    data = bytearray(first.read_bytes())
    if damage == "cut":
        data = data[:-100]
    elif damage == "bit":
        data[-7] ^= 4
    elif damage == "empty":
        data = bytearray()
    elif damage == "text":
        data = bytearray(b"not a tensor")
    else:
        from safetensors.torch import save

        data = bytearray(save({"0": torch.zeros(3)}))
    first.write_bytes(data)
    again, same, batch = step(model, cache, samples)
    assert missing(batch) == 1
    assert torch.equal(loss, again)
    assert torch.equal(grads, same)
    assert missing(step(model, cache, samples)[2]) == 0  # mended


def test_other_pixels_weights_and_settings_miss(model: Any, tmp_path: Path, samples: list[Encoded]) -> None:
    folder = tmp_path / "features"
    pixels = samples[0].images[:16]
    keys = {open_cache(model, folder, 1, precision).key(pixels, (1, 4, 4)) for precision in ("fp32", "bf16")}
    cache = open_cache(model, folder, 1, "fp32")
    keys |= {cache.key(pixels + 1e-6, (1, 4, 4)), cache.key(pixels, (1, 2, 8)), cache.key(pixels, (1, 4, 4))}
    weight = model.model.visual.merger.linear_fc1.weight
    with torch.no_grad():
        weight.add_(1)
        keys.add(open_cache(model, folder, 1, "fp32").key(pixels, (1, 4, 4)))
        weight.sub_(1)
    assert len(keys) == 5


def test_nothing_is_written_beyond_the_limit(model: Any, tmp_path: Path, samples: list[Encoded]) -> None:
    one = 4 * 3 * 128 * 4  # bytes: four tokens, the merger and two DeepStack layers, width 128, fp32
    cache = open_cache(model, tmp_path / "features", gib=1.5 * one / 2**30, precision="fp32")
    step(model, cache, samples)
    assert len(list(cache.folder.rglob("*.safetensors"))) == 1
    assert open_cache(model, cache.folder, 1.5 * one / 2**30, "fp32").room < one
    assert list(cache.folder.rglob("*.tmp")) == []


def test_a_full_disk_ends_the_writing_and_not_the_run(
    model: Any, cache: FeatureCache, samples: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qvl_core.qwen3vl.features.save_file", full)
    loss, _, _ = step(model, cache, samples)
    assert torch.isfinite(loss)
    assert cache.room == 0


def test_what_a_killed_writer_left_is_gone_at_the_next_start(
    model: Any, tmp_path: Path, samples: list[Encoded]
) -> None:
    blocks = {"model": {"name": "tiny"}, "data": {"train": "digits"}, "batch": {"size": 1}, "train": {"steps": 1}}
    recipe = Recipe.model_validate({"version": 1, **blocks, "tune": {"llm": LORA}, "speed": {"cache_features": 1}})
    run, world = RunFolder(tmp_path), World(0, 1, torch.device("cpu"), "single")
    step(model, found := open_features(recipe, model, run, world), samples)
    whole = sorted(found.folder.rglob("*.safetensors"))
    leftover = whole[0].with_name(f".{whole[0].name}.123.tmp")
    leftover.write_bytes(b"half")
    again = open_features(recipe, model, run, world)
    assert not leftover.exists()
    assert sorted(again.folder.rglob("*")) == sorted({*whole, *(file.parent for file in whole)})


@pytest.mark.parametrize("group", ["vision", "merger", "deepstack_mergers"])
def test_a_trained_tower_is_refused(group: str, tmp_path: Path) -> None:
    model = tiny_model(tiny_processor().tokenizer, 1)
    apply_tune(model, {group: LORA}, seed=0)
    with pytest.raises(BadInput, match="cache_features: the vision tower or a merger is trained"):
        open_cache(model, tmp_path, 1, "fp32")
