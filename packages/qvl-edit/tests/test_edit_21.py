"""Qwen-Image-2.1: asked, called and drawn as diffusers' pipeline does it, trained and exported like the others."""

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from edit_rows import task
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from qvl_core.errors import BadInput
from qvl_data.errors import BadSample
from qvl_edit import cli
from qvl_edit.batch import Example, collate
from qvl_edit.embed import Embedder, EncoderInput
from qvl_edit.geometry import Geometry, numbers, resized
from qvl_edit.groups import unused
from qvl_edit.latents import Vae, on_white
from qvl_edit.loss import edit_losses
from qvl_edit.model import Given, OneStream
from qvl_edit.opening import geometry_of
from qvl_edit.packing import Grid
from qvl_edit.pipeline import EditPipeline
from qvl_edit.profile import Profile, read_profile
from qvl_edit.recipe import Pictures
from qvl_edit.saving import LORA
from qvl_edit.times import Shift

SIDE = 96
GEOMETRY = Geometry(area=SIDE * SIDE, vl_area=None, token=32, stretch=0.3)
TEXTS = ("make it red", "flip left and right, and write 红色", "")


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


SOURCES = (picture((64, 128), 1), picture((96, 96), 2), picture((128, 64), 3))


@pytest.fixture(scope="module")
def pipe(pipeline: Callable[[str], Any]) -> Any:
    found = pipeline("image-2.1")
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def embedder(pipe: Any, profile: Callable[[str], Profile]) -> Embedder:
    processor = pipe.processor
    return Embedder(pipe.text_encoder, processor.tokenizer, processor.image_processor, profile("image-2.1"))


@pytest.fixture(scope="module")
def call(embedder: Embedder) -> OneStream:
    return OneStream(Grid(16, 1), embedder.profile.shown.gaps(3, embedder.tokenizer))


def shown(count: int) -> tuple[Image.Image, ...]:
    """So many sources at their size."""
    return tuple(resized(one, GEOMETRY.vl((one.height, one.width))) for one in SOURCES[:count])


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_embeddings_are_the_pipelines(count: int, pipe: Any, embedder: Embedder) -> None:
    pictures = shown(count)
    for number, text in enumerate(TEXTS):
        (ours,) = embedder([EncoderInput(TEXTS, pictures)])
        whole, _, seen = pipe._get_qwen_prompt_embeds(text, [one.convert("RGBA") for one in pictures] or None)
        texts = whole[0][~seen[0].bool()]
        torch.testing.assert_close(ours.whole(number), texts, rtol=0, atol=1e-5)
        gaps = embedder.profile.template(count).gaps(count, embedder.tokenizer)
        slots = [one.width * one.height // 32**2 for one in pictures]
        at = [int(place) for gap, many in zip(gaps, slots, strict=True) for place in [0] * gap + [1] * many]
        assert seen[0].long().tolist()[: len(at)] == at
        assert not any(seen[0].tolist()[len(at) :])


def test_prompts_are_the_pipelines(pipe: Any, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = type(pipe.processor).__call__
    monkeypatch.setattr(type(pipe.processor), "__call__", lambda *a, **k: asked.extend(k["text"]) or real(*a, **k))
    for count in range(4):
        pipe._get_qwen_prompt_embeds(list(TEXTS), list(shown(count)) or None)
        assert asked[-3:] == [embedder.profile.template(count).text(text, count) for text in TEXTS]
    assert embedder.profile.shown.unshown(embedder.tokenizer) == pipe._drop_idx


def test_hidden_states_are_those_before_the_norm(embedder: Embedder) -> None:
    (before,) = embedder([EncoderInput(("make it red",))])
    tokens = embedder.profile.alone.tokens("make it red", (), embedder.tokenizer)
    with torch.no_grad():
        states = embedder.model.model(input_ids=torch.from_numpy(tokens.ids)[None]).last_hidden_state[0]
    dropped = embedder.profile.alone.unshown(embedder.tokenizer)
    with torch.no_grad():
        normed = embedder.model.model.language_model.norm(before.whole(0))
    torch.testing.assert_close(normed, states[dropped:], rtol=0, atol=1e-5)


def test_what_a_processor_resizes_is_refused(embedder: Embedder, checkpoint: Callable[..., Path]) -> None:
    small = Image.new("RGB", (40, 64))
    with pytest.raises(BadInput, match=r"the text encoder's processor makes .* pixels of 40 x 64"):
        embedder([EncoderInput(("make it red",), (small,))])
    folder = checkpoint("image-2.1", "patches")
    geometry = geometry_of(Pictures(size=128), read_profile(folder), folder)
    assert geometry.seen == (4 * 4, 128 * 128)
    assert geometry.vl((64, 64)) == (128, 128)
    with pytest.raises(BadSample, match=r"takes 16 to 16,384 pixels as they are; set another pictures.size"):
        geometry.fit((64, 64), [(120, 90)])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_steps_prediction_is_the_pipelines(count: int, pipe: Any, embedder: Embedder, call: OneStream) -> None:
    (told,) = embedder([EncoderInput(("make it red",), shown(count))])
    target = picture((96, 96), 4)
    bucket = GEOMETRY.fit((96, 96), [(one.height, one.width) for one in SOURCES[:count]])
    drawn: list[tuple[dict[str, Any], Tensor]] = []
    given = partial(drawing, pipe, SOURCES[:count], bucket.target, 1.0)
    with torch.no_grad():
        handle = pipe.transformer.register_forward_hook(
            lambda module, args, named, made: drawn.append((named, made[0])), with_kwargs=True
        )
        given(use_kv_cache=False)
        handle.remove()
    vae = Vae(pipe.vae)
    pictures = tuple(
        numbers(resized(one, size)) for one, size in zip((target, *SOURCES[:count]), bucket.sizes, strict=True)
    )
    latents = call.grid.pack(vae.encode(torch.from_numpy(pictures[0])[None]))  # (1, N, F)
    count_of = latents.shape[1]
    for named, theirs in drawn:
        level = named["timestep"]
        noise = (named["hidden_states"][:, -count_of:] - (1 - level) * latents) / level
        one = Example(
            id="a", bucket=bucket, pictures=pictures, told=(told.whole(0),), noise=noise[0].numpy(), level=float(level)
        )
        other = replace(one, id="b", level=0.5)
        wanted = float((theirs[:, -count_of:] - (noise - latents)).square().mean())
        with torch.no_grad():
            for batch in (collate([one], coded=False), collate([other, one], coded=False)):
                loss = edit_losses(pipe.transformer, batch, vae, call)[-1].item()
                assert loss == pytest.approx(wanted, rel=1e-5)
    longer = replace(one, told=(told.whole(0), told.whole(0)[-1:]))
    with pytest.raises(ValueError, match="texts of one forward have one length"):
        edit_losses(pipe.transformer, collate([one, longer], coded=False), vae, call)


def test_a_picture_is_the_same_alone_and_beside_longer_texts(editor: EditPipeline) -> None:
    texts = ["red", "make it red", "make it red, and much larger than it is", "flip it"]
    one = SOURCES[0].resize((64, 64))
    how: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 64, "width": 64}

    def latents(*args: Any, **more: Any) -> list[Tensor]:
        found: list[list[Tensor]] = [[], []]
        editor(*args, **how, **more, on_step=lambda number, after: found[number - 1].extend(after))
        return found[1]

    alone = [latents(text, one, seed=seed)[0] for seed, text in enumerate(texts)]
    order: list[int] = []
    lengths = [editor.embedder.profile.length(editor.embedder.tokenizer, 1, text) for text in texts]
    for length in dict.fromkeys(lengths):  # in which pictures are drawn
        order += [place for place, other in enumerate(lengths) if other == length]
    together = latents(texts, one, seed=list(range(4)))
    assert len(set(lengths)) > 1
    for place, found in zip(order, together, strict=True):
        torch.testing.assert_close(found, alone[place], rtol=0, atol=1e-5)


def test_lengths_are_those_of_embeddings(embedder: Embedder) -> None:
    for count in range(4):
        (told,) = embedder([EncoderInput(TEXTS, shown(count))])
        for number, text in enumerate(TEXTS):
            assert embedder.profile.length(embedder.tokenizer, count, text) == len(told.whole(number))


def drawing(pipe: Any, sources: Sequence[Image.Image], size: tuple[int, int], guidance: float, **more: Any) -> Any:
    """What the pipeline draws, in three steps."""
    return pipe(
        "make it red",
        image=list(sources) or None,
        negative_prompt="" if guidance > 1 else None,
        true_cfg_scale=guidance,
        height=size[0],
        width=size[1],
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(7),
        output_resolution=SIDE,
        **more,
    )


@pytest.fixture(scope="module")
def editor(pipe: Any, embedder: Embedder, call: OneStream) -> EditPipeline:
    return EditPipeline(pipe.transformer, call, Vae(pipe.vae), embedder, GEOMETRY, Shift.of(pipe.scheduler.config))


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_pictures_are_drawn_as_the_pipeline_does(
    count: int, guidance: float, pipe: Any, editor: EditPipeline, call: OneStream
) -> None:
    ours = editor
    assert not ours.sampling.guided  # 2.1 is drawn without, if nothing is said
    sources = SOURCES[:count]
    size = GEOMETRY.asked([(one.height, one.width) for one in sources]).target
    theirs: list[Tensor] = []
    keep = {"callback_on_step_end": lambda pipe, step, time, found: theirs.append(found["latents"]) or {}}
    wanted = drawing(pipe, sources, size, guidance, **keep).images[0]
    latents: list[Tensor] = []
    (drawn,) = ours(
        "make it red",
        sources or None,
        negative_prompt="",
        guidance_scale=guidance,
        num_inference_steps=3,
        seed=7,
        on_step=lambda number, after: latents.append(call.grid.pack(after)),
    ).images
    for one, other in zip(latents, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    white = on_white(torch.from_numpy(np.asarray(wanted, np.float32).transpose(2, 0, 1))[None] / 127.5 - 1)
    rounded = ((white[0] + 1) * 127.5).permute(1, 2, 0).numpy()
    assert np.abs(np.asarray(drawn, float) - rounded).max() <= 2


def test_what_no_step_changes_is_computed_once(pipe: Any, call: OneStream) -> None:
    """Keys and values of text and sources are those of a call without memory, at all levels."""
    rng = torch.Generator().manual_seed(0)
    noisy, source = (torch.randn(2, 4, 64, generator=rng) for _ in range(2))
    told = torch.randn(2, sum(call.gaps[:1]) + 5, 128, generator=rng)
    bucket = Geometry(area=32 * 32, vl_area=None, token=32).fit((32, 32), [(32, 32)])
    given = Given([source], told, None, bucket)
    remembering = call.drawing(pipe.transformer)
    with torch.no_grad():
        for level in (1.0, 0.6, 0.2):
            levels = torch.full((2,), level)
            wanted = call(pipe.transformer, noisy, levels, given)
            found = remembering(pipe.transformer, noisy, levels, given)
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_a_prediction_depends_on_every_parameter(pipe: Any, call: OneStream) -> None:
    rng = torch.Generator().manual_seed(0)
    noisy, source = (torch.randn(2, 4, 64, generator=rng) for _ in range(2))
    told = torch.randn(2, call.gaps[0] + 5, 128, generator=rng)
    bucket = Geometry(area=32 * 32, vl_area=None, token=32).fit((32, 32), [(32, 32)])
    transformer = copy.deepcopy(pipe.transformer)
    predicted = call(transformer, noisy, torch.tensor([0.3, 0.9]), Given([source], told, None, bucket))
    predicted.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in transformer.parameters())
    layers = len(transformer.transformer_blocks)
    assert not any(re.fullmatch(unused(layers), name) for name, _ in transformer.named_parameters())


def test_its_own_levels_are_drawn_along() -> None:
    own = Shift.of({"use_dynamic_shifting": True}, [1.0, 0.7, 0.3])
    assert own.grid(None, 4096) == pytest.approx([own(level, 4096, lowest=0.3) for level in (1.0, 0.7, 0.3)] + [0.0])
    assert len(own.grid(8, 4096)) == 9
    assert len(Shift().grid(None, 4096)) == 41


def test_it_is_extracted_trained_drawn_and_exported(
    checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint("image-2.1", "patches")
    assert read_profile(folder).name == "image-2.1"
    data = task(tmp_path / "rows", (1, 2, 0, 1))
    recipe = [
        "tiny",
        f"model.name={folder}",
        f"data={{train: {data}}}",
        "pictures={size: 32}",
        f"stored={{embeddings: {tmp_path / 'embeddings'}, latents: {tmp_path / 'latents'}}}",
        "sampling={steps: 2, guidance: 2}",
        "train.steps=3",
        "tune={attn: {mode: lora, rank: 2}}",
    ]
    run = ["--out", str(tmp_path / "run")]
    assert cli.app.run(["validate", *recipe, "--out", str(tmp_path / "validated")]) == 0
    assert cli.app.run(["check", *recipe]) == 0
    assert cli.app.run(["extract", *recipe]) == 0
    assert cli.app.run(["train", *recipe, *run]) == 0
    assert cli.app.run(["plan", *recipe]) == 0
    changes = ["stored.latents=null", "batch.micro=1"]  # pictures, one in a forward
    assert cli.app.run(["train", *recipe, *changes, "--out", str(tmp_path / "one")]) == 0
    trained, one = (load_file(tmp_path / run / "final" / LORA) for run in ("run", "one"))
    assert all(torch.allclose(trained[name], one[name], rtol=0, atol=1e-5) for name in trained)
    drawn = ["edit", str(tmp_path / "run"), "--prompt", "make it red", "--image", str(data.parent / "000-0.png")]
    assert cli.app.run([*drawn, "--out", str(tmp_path / "drawn")]) == 0
    assert cli.app.run(["export", str(tmp_path / "run"), "--merge", "--out", str(tmp_path / "whole")]) == 0
    again = [*drawn, "--out", str(tmp_path / "again")]
    assert cli.app.run([str(tmp_path / "whole") if word == str(tmp_path / "run") else word for word in again]) == 0
    (first,), (second,) = (sorted((tmp_path / name).glob("*.png")) for name in ("drawn", "again"))
    first, second = (np.asarray(Image.open(path), int) for path in (first, second))
    assert np.abs(first - second).max() <= 1
    assert cli.app.run(["evaluate", str(tmp_path / "run"), str(data), "--out", str(tmp_path / "evaluated")]) == 0
    capsys.readouterr()
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "whole").transformer
    base = DiffusionPipeline.from_pretrained(folder).transformer
    changed = {name for name, value in loaded.state_dict().items() if not torch.equal(value, base.state_dict()[name])}
    assert changed
    assert all(".attn." in name for name in changed)
