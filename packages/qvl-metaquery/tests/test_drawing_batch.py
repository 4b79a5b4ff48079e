"""What a step learns from: noise, level and what is left out, by position alone; bad samples, sizes, and the loss."""

import io
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from sketches import drawn, edited, mixed, said, written
from torch import Tensor

from qvl_core.errors import BadInput
from qvl_core.recipe.blocks import Data
from qvl_core.recipe.drawing import DrawingBatch as BatchBlock
from qvl_core.training.batches import SampleBatches
from qvl_core.training.parts import Micro
from qvl_core.training.samples import LeftOut
from qvl_data.example.digits import digit_media
from qvl_data.sample import Media
from qvl_data.sources import mixtures
from qvl_metaquery.batch import Corruption, Drawing, DrawingBatch, DrawingSamples, collation, distinct, witness
from qvl_metaquery.coder import Pixels
from qvl_metaquery.dropout import Task, dropped
from qvl_metaquery.flow import LEVELS, between, noise_level, shifted
from qvl_metaquery.loss import drawing_loss
from qvl_metaquery.pixels import square
from qvl_metaquery.prompts import PromptLayout

SHAPE, SIZE = (4, 4, 4), 8
CODER = Pixels(2)


@pytest.fixture
def stream(processor: Any, tmp_path: Path) -> Callable[..., DrawingSamples]:
    """`stream(samples)`: the endless order of these samples."""

    def make(samples: Sequence[Any], task: Task = "t2i", seed: int = 0, **more: Any) -> DrawingSamples:
        file = written(tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet", samples)
        lists = mixtures(Data.model_validate({"train": str(file)}))
        layout = PromptLayout(system="Draw it.")
        return DrawingSamples(lists["train"], processor, layout, Corruption(SHAPE, **more), task, SIZE, seed)

    return make


def micros(samples: DrawingSamples, size: int, micro: int | None = None, rank: int = 0, world: int = 1) -> list[Micro]:
    """The first step's."""
    batches = SampleBatches(
        samples,
        BatchBlock(size=size, micro=micro),
        samples.seed,
        collation(samples.processor, coded=False),
        witness(samples),
        pictured=False,
    )
    return batches.build(batches.plan(0, rank, world))


def damaged() -> Media:
    """A PNG that breaks off."""
    media = digit_media(9)
    assert media.bytes is not None
    return media.model_copy(update={"bytes": media.bytes[: len(media.bytes) // 2]})


def same(one: Drawing, other: Drawing) -> bool:
    return (
        np.array_equal(one.ids, other.ids)
        and np.array_equal(one.picture, other.picture)
        and np.array_equal(one.noise, other.noise)
        and (one.level, one.id) == (other.level, other.id)
    )


# By position alone


def test_noise_and_level_are_functions_of_seed_and_position() -> None:
    corruption = Corruption(SHAPE)
    places = [(seed, position) for seed in (0, 1) for position in range(50)]
    found = {place: corruption.draw(*place) for place in places}
    torch.manual_seed(5)
    again = {place: corruption.draw(*place) for place in reversed(places)}
    for place in places:
        assert np.array_equal(found[place][0], again[place][0])
        assert found[place][1:] == again[place][1:]
    assert len({noise.tobytes() for noise, *_ in found.values()}) == 100
    assert len({choice for *_, choice in found.values()}) == 100


def test_noise_is_normal_and_levels_are_even() -> None:
    noise, levels, choices = zip(*(Corruption((4, 8, 8)).draw(0, position) for position in range(2000)), strict=True)
    values = np.stack(noise)
    assert (float(values.mean()), float(values.std())) == pytest.approx((0, 1), abs=0.01)
    for numbers in (levels, choices):
        counts, _ = np.histogram(numbers, 10, (0, 1))
        assert (abs(counts - 200) < 50).all()
    assert abs(np.corrcoef(levels, choices)[0, 1]) < 0.06


def test_a_sample_is_the_same_however_the_step_is_dealt(stream: Callable[..., DrawingSamples]) -> None:
    samples = stream(mixed(), "instruct")
    whole = [samples.encode(position) for position in range(8)]
    copy: DrawingSamples = pickle.loads(pickle.dumps(samples))
    assert all(same(copy.encode(position), whole[position]) for position in reversed(range(8)))
    dealt = [micro for rank in (1, 0) for micro in micros(samples, 8, 2, rank, 2)]
    assert sum(micro.count for micro in dealt) == 8
    (single,) = micros(samples, 8)
    assert isinstance(single.batch, DrawingBatch)
    levels = {name: float(level) for name, level in zip(single.samples, single.batch.levels, strict=True)}
    for micro in dealt:
        assert isinstance(micro.batch, DrawingBatch)
        assert micro.batch.levels.tolist() == [levels[name] for name in micro.samples]


def test_equal_prompts_are_read_once(stream: Callable[..., DrawingSamples]) -> None:
    samples = stream(mixed(), part=0.0)
    encoded = {drawing.id: drawing for drawing in map(samples.encode, range(8))}
    found, number = distinct([encoded[f"drawn-{index}"] for index in range(5)])
    assert (len(found), number[2] == number[3]) == (len(set(number)), True)
    pictured = [encoded["edited-5"], encoded["edited-5"]]
    assert len(distinct(pictured)[0]) == 2  # pictures are taken to differ


# Levels


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_levels_are_the_schedulers(shift: float) -> None:
    sigmas = FlowMatchEulerDiscreteScheduler(num_train_timesteps=LEVELS, shift=shift).sigmas[:LEVELS]
    levels = [noise_level((index + 0.5) / LEVELS, shift) for index in range(LEVELS)]
    assert (torch.tensor(levels) - sigmas).abs().max() <= 1.2e-7
    assert levels == [shifted(1 - index / LEVELS, shift) for index in range(LEVELS)]
    assert 0 < min(levels) < max(levels) == 1
    assert noise_level(0.0, shift) == 1
    assert noise_level(1 - 1e-16, shift) > 0


def test_a_normals_levels_lie_in_the_middle() -> None:
    even, middle = (
        [noise_level((i + 0.5) / 500, times=times) for i in range(500)] for times in ("uniform", "logit_normal")
    )
    inside = [sum(0.25 <= level <= 0.75 for level in levels) / 500 for levels in (even, middle)]
    assert inside[0] == pytest.approx(0.5, abs=0.01)
    assert inside[1] == pytest.approx(0.728, abs=0.01)  # of a standard normal, within log 3 of its mean
    assert sum(middle) / 500 == pytest.approx(0.5, abs=0.01)


# The loss


def fixed(levels: Sequence[float], shares: Sequence[float]) -> DrawingBatch:
    generator = torch.Generator().manual_seed(0)
    number = len(levels)
    grey = torch.rand(number, 1, SIZE, SIZE, generator=generator) * 2 - 1
    return DrawingBatch(
        prompts=SimpleNamespace(inputs=dict),  # type: ignore[arg-type]
        prompt_of=torch.tensor([0, 1, 0, 1][:number]),
        pictures=grey.expand(-1, 3, -1, -1),
        noise=torch.randn(number, *SHAPE, generator=generator),
        levels=torch.tensor(levels),
        shares=torch.tensor(shares),
        coded=False,
    )


class Linear:
    """A model whose direction is a known function of what it is given."""

    def read(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return inputs

    def condition(self, prefix: dict[str, Any]) -> Tensor:
        return torch.tensor([0.5, -0.25]).view(2, 1, 1)  # of two prompts

    def velocity(self, latents: Tensor, levels: Tensor, conditions: Tensor) -> Tensor:
        return 0.7 * latents + levels.view(-1, 1, 1, 1) + conditions.view(-1, 1, 1, 1)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_loss_is_the_closed_form(shift: float) -> None:
    draws, shares = (0.0, 0.25, 0.5, 0.9), (1.0, 1.0, 0.0, 1.0)
    batch = fixed([noise_level(draw, shift) for draw in draws], shares)
    found = drawing_loss(Linear(), batch, CODER).total
    wanted, said = 0.0, (0.5, -0.25, 0.5, -0.25)
    for index, draw in enumerate(draws):
        s = 1 - draw
        s = shift * s / (1 + (shift - 1) * s)
        x, e = CODER.encode(batch.pictures)[index].double(), batch.noise[index].double()
        predicted = 0.7 * ((1 - s) * x + s * e) + s + said[index]
        wanted += shares[index] * float(((predicted - (e - x)) ** 2).mean())
    assert float(found) == pytest.approx(wanted, rel=1e-6)


def test_a_right_direction_costs_nothing_and_latents_are_taken_as_they_are() -> None:
    batch = fixed([1.0, 0.3, 0.001], [1.0, 1.0, 1.0])
    latents = CODER.encode(batch.pictures)

    class Right(Linear):
        def velocity(self, given: Tensor, levels: Tensor, conditions: Tensor) -> Tensor:
            assert torch.equal(given, between(latents, batch.noise, levels))
            return batch.noise - latents

    assert float(drawing_loss(Right(), batch, CODER).total) == 0
    coded = replace(batch, pictures=latents, coded=True)
    assert float(drawing_loss(Linear(), coded, CODER).total) == float(drawing_loss(Linear(), batch, CODER).total)


# What is left out of a prompt


@pytest.mark.parametrize(
    ("task", "regions"),
    [
        ("t2i", [(0.125, True, False), (1, False, False)]),
        ("reconstruct", [(0.125, True, True), (1, True, False)]),
        ("edit", [(0.125, False, True), (1, False, False)]),
        ("instruct", [(0.125, True, False), (0.25, True, True), (0.375, False, True), (1, False, False)]),
    ],
)
def test_regions(task: Task, regions: list[tuple[float, bool, bool]]) -> None:
    start = 0.0
    for end, *wanted in regions:
        for draw in (start, (start + end) / 2, float(np.nextafter(end, 0))):
            assert list(dropped(task, draw, 0.125)) == wanted, draw
        start = end


def test_what_is_left_out_is_an_empty_text_and_a_black_picture(stream: Callable[..., DrawingSamples]) -> None:
    whole, without = (stream([edited(5)], "instruct", part=part) for part in (0.0, 0.3))
    seen = set()
    for position in range(40):
        left_out = dropped("instruct", whole.corruption.draw(0, position)[2], 0.3)
        one, other = whole.encode(position), without.encode(position)
        assert one.images is not None
        assert other.images is not None
        assert np.array_equal(one.images, other.images) == (not left_out.pictures)
        assert np.array_equal(one.ids, other.ids) == (not left_out.text)
        assert len(one.ids) - len(other.ids) == (
            len(whole.processor.tokenizer("the next one")["input_ids"]) if left_out.text else 0
        )
        assert one.images.shape == other.images.shape
        if left_out.pictures:
            assert len(np.unique(other.images)) == 1
        seen.add(left_out)
    assert len(seen) == 4


def test_a_text_alone_is_t2i_in_every_task(stream: Callable[..., DrawingSamples]) -> None:
    lengths = {}
    for task in ("t2i", "edit", "instruct"):
        samples = stream([drawn(0)], task, part=0.3)
        lengths[task] = [len(samples.encode(position)) for position in range(40)]
    assert lengths["edit"] == lengths["instruct"] == lengths["t2i"]
    assert len(set(lengths["t2i"])) == 2


# Samples that are odd


def test_a_corrupt_picture_is_left_out_and_the_mean_is_over_the_others(stream: Callable[..., DrawingSamples]) -> None:
    good = [drawn(index) for index in range(3)]
    bad = drawn(3).model_copy(update={"media": (damaged(),)})
    source = edited(5, sources=[damaged()])
    samples = stream([*good, bad, source], "edit")
    (micro,) = micros(samples, 5)
    assert isinstance(micro.batch, DrawingBatch)
    assert (micro.count, len(micro.batch.pictures), len(micro.bad)) == (3, 3, 2)
    assert sorted(micro.samples) == ["drawn-0", "drawn-1", "drawn-2"]
    assert all("\n" not in entry.message for entry in micro.bad)


def test_a_step_without_a_sample_waits_for_nobody(stream: Callable[..., DrawingSamples]) -> None:
    samples = stream([drawn(3).model_copy(update={"media": (damaged(),)})])
    (alone,) = micros(samples, 1)
    assert (alone.batch, alone.count) == (None, 0)
    (one, *_), (other, *_) = (micros(samples, 2, rank=rank, world=2) for rank in (0, 1))
    for micro in (one, other):
        assert isinstance(micro.batch, DrawingBatch)  # a witness, which counts nothing
        assert (micro.count, micro.batch.shares.tolist()) == (0, [0])


def test_pictures_of_all_sizes_become_squares(stream: Callable[..., DrawingSamples]) -> None:
    def picture(width: int, height: int) -> Media:
        file = io.BytesIO()
        ramp = np.linspace(0, 255, width * height).reshape(height, width).astype(np.uint8)
        Image.fromarray(ramp).save(file, "PNG")
        return Media(kind="image", bytes=file.getvalue(), mime="image/png")

    sizes = [(64, 64), (40, 200), (8, 8), (3, 5), (1, 1)]
    given = [drawn(i).model_copy(update={"media": (picture(*size),)}) for i, size in enumerate(sizes)]
    (micro,) = micros(stream(given), 5)
    assert isinstance(micro.batch, DrawingBatch)
    assert micro.batch.pictures.shape == (5, 3, SIZE, SIZE)
    assert micro.batch.pictures.abs().max() <= 1


def test_the_middle_is_kept() -> None:
    stripes = np.zeros((4, 12, 3), np.uint8)
    stripes[:, 4:8] = 255
    assert (square(Image.fromarray(stripes), 4) == 1).all()
    assert square(Image.fromarray(stripes).rotate(90, expand=True), 4).shape == (3, 4, 4)


def test_an_empty_prompt_is_a_prompt(stream: Callable[..., DrawingSamples]) -> None:
    (micro,) = micros(stream([drawn(4, "")]), 1)
    assert isinstance(micro.batch, DrawingBatch)
    assert micro.count == 1
    assert micro.batch.prompts.input_ids.shape[1] > 0


def test_a_sample_in_which_nothing_is_drawn_is_left_out(stream: Callable[..., DrawingSamples]) -> None:
    with pytest.raises(LeftOut, match="no picture is drawn in it") as caught:
        stream([said(0)]).encode(0)
    assert caught.value.bad.reason == "no_picture"


def test_texts_keys_are_refused() -> None:
    for key, value in {"tokens": 4096, "packing": True, "max_length": 64}.items():
        with pytest.raises(ValueError, match=f"`{key}` belongs to text"):
            BatchBlock.model_validate({"size": 4, key: value})


@pytest.mark.parametrize("missing", ["scaling_factor", None])
def test_a_coder_without_its_scale_is_refused(missing: str | None, tmp_path: Path) -> None:
    from qvl_metaquery.coder import open_coder

    values = {"_class_name": "AutoencoderDC"} if missing else {"_class_name": "VAE"}
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(BadInput, match=missing or "no autoencoder that is known"):
        open_coder(tmp_path)
