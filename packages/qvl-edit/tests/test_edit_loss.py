"""A step's prediction is the pipeline's; pictures to latents and back; the loss is a sum over targets."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as edit
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit_plus
from PIL import Image
from torch import Tensor

from qvl_core.recipe.load import load
from qvl_edit.batch import EditBatch, Example, collate
from qvl_edit.build import open_transformer
from qvl_edit.coder import PatchCoder
from qvl_edit.cut import Bucket
from qvl_edit.embed import Embedder, EncoderInput
from qvl_edit.geometry import Geometry, numbers, resized
from qvl_edit.latents import Vae
from qvl_edit.loss import edit_loss, edit_losses
from qvl_edit.model import Given, TwoStreams
from qvl_edit.packing import Grid
from qvl_edit.profile import Profile
from qvl_edit.recipe import RECIPE

AREA = 64 * 128
CALL = TwoStreams(Grid())


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Of (height, width)."""
    values = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(values)


def calls(transformer: Any, run: Callable[[], Any]) -> list[tuple[dict[str, Any], Tensor]]:
    """Arguments and result of each call of the transformer while `run` runs."""
    found: list[tuple[dict[str, Any], Tensor]] = []

    def keep(module: Any, arguments: Any, named: dict[str, Any], result: Any) -> None:
        found.append((named, result[0]))

    handle = transformer.register_forward_hook(keep, with_kwargs=True)
    try:
        run()
    finally:
        handle.remove()
    return found


@pytest.mark.parametrize(
    ("name", "count"), [("edit", 1), ("edit-plus", 1), ("edit-plus", 2), ("edit-2511", 2), ("t2i", 0)]
)
def test_a_steps_prediction_is_that_of_the_pipeline_at_the_same_time(
    name: str,
    count: int,
    pipeline: Callable[[str], Any],
    profile: Callable[[str], Profile],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(edit_plus, "CONDITION_IMAGE_SIZE", AREA)
    monkeypatch.setattr(edit_plus, "VAE_IMAGE_SIZE", AREA)
    sides = edit.calculate_dimensions
    monkeypatch.setattr(edit, "calculate_dimensions", lambda area, ratio: sides(AREA, ratio))
    pipe, kind = pipeline(name), profile(name)
    sources = [picture((64, 128), seed=1), picture((96, 96), seed=2)][:count]
    target = picture((96, 96), seed=3)
    geometry = Geometry(area=AREA, vl_area=AREA)
    bucket = geometry.fit((96, 96), [(one.height, one.width) for one in sources])
    shown = tuple(resized(one, geometry.vl((one.height, one.width))) for one in sources)
    seen = pipe.processor.image_processor if count else None
    (embedded,) = Embedder(pipe.text_encoder, pipe.tokenizer, seen, kind)([EncoderInput(("make it red",), shown)])
    told = embedded.whole(0)

    drawn = calls(
        pipe.transformer,
        lambda: pipe(
            **({"image": sources} if count else {}),
            prompt_embeds=told[None],
            prompt_embeds_mask=torch.ones(1, len(told), dtype=torch.long),
            height=bucket.target[0],
            width=bucket.target[1],
            true_cfg_scale=1.0,
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ),
    )
    assert len(drawn) == 3
    vae = Vae(pipe.vae)
    sizes = (bucket.target, *bucket.sources)
    pictures = tuple(numbers(resized(one, size)) for one, size in zip((target, *sources), sizes, strict=True))
    latents = CALL.grid.pack(vae.encode(torch.from_numpy(pictures[0])[None]))  # (1, N, F)
    for named, theirs in drawn:
        level = named["timestep"]
        noisy = named["hidden_states"][:, : latents.shape[1]]
        noise = (noisy - (1 - level) * latents) / level
        example = Example(
            id="a", bucket=bucket, pictures=pictures, told=(told,), noise=noise[0].numpy(), level=float(level)
        )
        other = replace(example, told=(told[:2], told[2:-3]))  # makes padding of the first
        batch = collate([other, example], coded=False)
        ((ours, predicted),) = calls(
            pipe.transformer, lambda batch=batch: edit_losses(pipe.transformer, batch, vae, CALL)
        )
        assert ours["img_shapes"] == named["img_shapes"] * 2
        assert torch.allclose(ours["hidden_states"][1:], named["hidden_states"], atol=1e-5)
        n = latents.shape[1]
        assert torch.allclose(predicted[1:, :n], theirs[:, :n], atol=1e-5)
        loss = edit_losses(pipe.transformer, batch, vae, CALL)[1].item()
        assert loss == pytest.approx(float((theirs[:, :n] - (noise - latents)).square().mean()), rel=1e-4)


def test_padding_is_not_read(pipeline: Callable[[str], Any]) -> None:
    pipe = pipeline("edit-plus")
    batch, vae = some(pipe, [7, 4]), Vae(pipe.vae)
    assert batch.told_mask is not None
    alone = some(pipe, [7, 4], only=1)
    assert alone.told_mask is None
    together = edit_losses(pipe.transformer, batch, vae, CALL)
    assert torch.allclose(together[1], edit_losses(pipe.transformer, alone, vae, CALL)[0], atol=1e-5)
    blind = replace(batch, told_mask=torch.ones_like(batch.told_mask))
    assert abs(edit_losses(pipe.transformer, blind, vae, CALL)[1] - together[1]) > 1e-4


def test_texts_of_one_length_have_no_mask(pipeline: Callable[[str], Any]) -> None:
    pipe = pipeline("edit-plus")
    batch, vae = some(pipe, [5, 5]), Vae(pipe.vae)
    assert batch.to("cpu").told_mask is None
    masked = replace(batch, told_mask=torch.ones(2, 5, dtype=torch.bool))
    losses = [edit_losses(pipe.transformer, one, vae, CALL) for one in (batch, masked)]
    assert torch.allclose(*losses, atol=1e-5)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_all_of_the_transformer_may_be_in_fewer_bits(kind: str, checkpoint: Callable[..., Path]) -> None:
    pytest.importorskip({"nf4": "bitsandbytes", "int8": "torchao"}[kind])
    bucket, rng = Bucket((32, 32), ((32, 32),)), torch.Generator().manual_seed(0)
    noisy, source, told = (torch.randn(1, count, 64, generator=rng) for count in (4, 4, 5))
    predicted = []
    for quantization in ("null", f"{{kind: {kind}, groups: [transformer]}}"):
        recipe = load(RECIPE, "tiny", [f"model.quantization={quantization}", "tune={attn: {mode: lora}}"], "qvl_edit")
        model, _ = open_transformer(recipe, checkpoint() / "transformer", torch.float32, torch.device("cpu"))
        with torch.no_grad():
            predicted.append(CALL(model, noisy, torch.tensor([0.6]), Given([source], told, None, bucket)))
    assert 1e-3 < (predicted[1] - predicted[0]).norm() / predicted[0].norm() < 0.2


def some(pipe: Any, lengths: list[int], shares: list[int] | None = None, only: int | None = None) -> EditBatch:
    """Samples with a source, of texts of such lengths."""
    bucket = Bucket((32, 64), ((32, 32),))
    rng = np.random.default_rng(0)
    features = pipe.transformer.config.in_channels
    examples = [
        Example(
            id=str(number),
            bucket=bucket,
            pictures=tuple(numbers(picture(size, seed=number)) for size in (bucket.target, *bucket.sources)),
            told=(torch.from_numpy(rng.standard_normal((length, 64), dtype=np.float32)),),
            noise=rng.standard_normal((CALL.grid.tokens(bucket.target), features), dtype=np.float32),
            level=0.2 + 0.3 * number,
            share=1 if shares is None else shares[number],
        )
        for number, length in enumerate(lengths)
    ]
    return collate(examples if only is None else [examples[only]], coded=False)


def test_the_loss_is_a_sum_over_targets_without_witnesses(pipeline: Callable[[str], Any]) -> None:
    pipe = pipeline("edit-plus")
    vae = Vae(pipe.vae)
    each = edit_losses(pipe.transformer, some(pipe, [5, 3, 4]), vae, CALL)
    assert torch.allclose(
        edit_loss(pipe.transformer, some(pipe, [5, 3, 4], [1, 0, 1]), vae, CALL).total, each[0] + each[2]
    )


def test_latents_that_were_computed_before_are_the_same(pipeline: Callable[[str], Any]) -> None:
    pipe = pipeline("edit-plus")
    vae, batch = Vae(pipe.vae), some(pipe, [5, 3])
    coded = replace(batch, pictures=tuple(vae.raw(pictures) for pictures in batch.pictures), coded=True)
    assert torch.equal(edit_losses(pipe.transformer, coded, vae, CALL), edit_losses(pipe.transformer, batch, vae, CALL))


def test_latents_are_normalised_and_come_back(pipeline: Callable[[str], Any]) -> None:
    vae = Vae(PatchCoder(latents_mean=[0.5] * 12, latents_std=[2.0] * 12))
    pixels = torch.rand(2, 3, 8, 12) * 2 - 1
    latents = vae.encode(pixels)
    assert latents.shape == (2, 12, 4, 6)
    assert float(latents.mean()) == pytest.approx((float(pixels.mean()) - 0.5) / 2, abs=1e-5)
    assert torch.allclose(vae.decode(latents), pixels, atol=1e-6)
    real = Vae(pipeline("edit-plus").vae)
    assert real.channels == 16
    assert real.decode(real.encode(pixels[:, :, :8, :8])).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("batch", [1, 2, None])
def test_the_autoencoder_is_given_so_many_pictures_at_once(batch: int | None, pipeline: Callable[[str], Any]) -> None:
    model = pipeline("edit-plus").vae
    vae, seen = Vae(model, batch), []
    handle = model.encoder.register_forward_hook(lambda module, given, result: seen.append(len(given[0])))
    pixels = torch.rand(3, 3, 16, 16)
    latents = vae.encode(pixels)
    handle.remove()
    assert seen[0] == (batch or 3)
    assert torch.allclose(latents, Vae(model).encode(pixels), atol=1e-5)
