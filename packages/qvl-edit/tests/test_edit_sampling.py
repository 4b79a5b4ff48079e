"""Drawing equals diffusers' own pipelines; a seed's picture is its own; a perfect direction recovers the picture."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as edit
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit_plus
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift
from PIL import Image
from torch import Tensor

from qvl_core.errors import BadInput
from qvl_core.training.seeds import first_noise
from qvl_edit import pipeline as pipeline_room
from qvl_edit.coder import PatchCoder
from qvl_edit.cut import Bucket
from qvl_edit.denoise import denoise
from qvl_edit.draw import Conditions, together
from qvl_edit.embed import Embedder, EncoderInput
from qvl_edit.geometry import Geometry, numbers, resized
from qvl_edit.latents import Vae
from qvl_edit.model import TwoStreams
from qvl_edit.packing import Grid
from qvl_edit.pipeline import EditPipeline
from qvl_edit.profile import Profile
from qvl_edit.sampling import Sampling
from qvl_edit.times import Shift
from qvl_edit.tiny import tiny_pipeline
from qvl_edit.turns import fit, there

AREA = 32 * 64
QWEN = {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
}
LIGHTNING = QWEN | {"base_shift": math.log(3), "max_shift": math.log(3), "shift_terminal": None}


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Of (height, width)."""
    values = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(values)


SOURCES = (picture((64, 128), seed=1), picture((96, 96), seed=2), picture((128, 64), seed=3))


@pytest.mark.parametrize("steps", [2, 4, 8, 40])
@pytest.mark.parametrize("tokens", [16, 1024, 4096])
@pytest.mark.parametrize(
    ("config", "shift"),
    [(QWEN, Shift()), (QWEN, Shift.of(QWEN)), (LIGHTNING, Shift.constant(3)), ({"shift": 2.0}, Shift.constant(2))],
    ids=["defaults", "qwen", "lightning", "constant"],
)
def test_levels_are_the_schedulers(config: dict[str, Any], shift: Shift, tokens: int, steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    mu = calculate_shift(tokens, *(scheduler.config.get(name) for name in names))
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    assert shift.grid(steps, tokens) == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)


def test_one_step_goes_from_noise_to_the_end() -> None:
    assert Shift().grid(1, 4096) == [1.0, 0.0]


@pytest.mark.parametrize("steps", [1, 4, 40])
def test_a_perfect_direction_recovers_the_picture(steps: int) -> None:
    vae = Vae(PatchCoder())
    pixels = torch.from_numpy(numbers(picture((32, 48))))[None]
    target = Grid(2).pack(vae.encode(pixels))
    noise = first_noise(target.shape[1:], [0])
    asked: list[float] = []

    def perfect(latents: Tensor, level: float) -> Tensor:
        asked.append(level)
        return (latents - target) / level

    levels = Shift().grid(steps, target.shape[1])
    *_, latents = denoise(perfect, noise, levels)
    assert asked == levels[:-1]
    torch.testing.assert_close(vae.decode(Grid(2).unpack(latents, (32, 48))), pixels, rtol=0, atol=1e-4)


def ours_of(pipe: Any, kind: Profile, geometry: Geometry) -> EditPipeline:
    seen = pipe.processor.image_processor if kind.pictures else None
    embedder = Embedder(pipe.text_encoder, pipe.tokenizer, seen, kind)
    call = TwoStreams(Grid(2 ** len(pipe.vae.temperal_downsample)))
    return EditPipeline(pipe.transformer, call, Vae(pipe.vae), embedder, geometry, Shift.of(pipe.scheduler.config))


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize(
    ("name", "count"), [("t2i", 0), ("edit", 1), ("edit-plus", 1), ("edit-plus", 3), ("edit-2511", 2)]
)
def test_it_draws_what_diffusers_draws(
    name: str,
    count: int,
    guidance: float,
    pipeline: Callable[[str], Any],
    profile: Callable[[str], Profile],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sides = edit.calculate_dimensions
    monkeypatch.setattr(edit_plus, "CONDITION_IMAGE_SIZE", AREA)
    monkeypatch.setattr(edit_plus, "VAE_IMAGE_SIZE", AREA)
    monkeypatch.setattr(edit, "calculate_dimensions", lambda area, ratio: sides(AREA, ratio))
    pipe = pipeline(name)
    pipe.set_progress_bar_config(disable=True)
    ours = ours_of(pipe, profile(name), Geometry(area=AREA, vl_area=AREA, stretch=0.3))
    shown = SOURCES[:count]
    size = ours.geometry.asked([(one.height, one.width) for one in shown]).target
    seen = tuple(resized(one, ours.geometry.vl((one.height, one.width))) for one in shown)
    (told,) = ours.embedder([EncoderInput(("make it red", " "), seen)])
    untold = {"negative_prompt_embeds": told.whole(1)[None]} if guidance > 1 else {}
    theirs: list[Tensor] = []
    wanted = pipe(
        **({"image": list(shown)} if count else {}),
        prompt_embeds=told.whole(0)[None],
        **untold,
        height=size[0],
        width=size[1],
        true_cfg_scale=guidance,
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(7),
        callback_on_step_end=lambda pipe, step, time, found: theirs.append(found["latents"]) or {},
    ).images[0]
    latents: list[Tensor] = []
    (drawn,) = ours(
        "make it red",
        shown or None,
        guidance_scale=guidance,
        num_inference_steps=3,
        seed=7,
        on_step=lambda number, after: latents.append(ours.call.grid.pack(after)),
    ).images
    for one, other in zip(latents, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    assert drawn.size == wanted.size
    assert np.abs(np.asarray(drawn, int) - np.asarray(wanted, int)).max() <= 1


@pytest.fixture(scope="module")
def drawing(profile: Callable[[str], Profile]) -> EditPipeline:
    """Small pictures, exactly coded."""
    kind = profile("edit-plus")
    made = ours_of(tiny_pipeline(kind, coder="patches"), kind, Geometry(area=16 * 32, vl_area=56 * 56, step=8, token=4))
    made.sampling = Sampling(guidance=3, steps=2)
    return made


def latents_of(pipe: EditPipeline, *args: Any, **options: Any) -> list[Tensor]:
    """Last latents of the pictures that were drawn together, in the order of drawing."""
    found: dict[int, list[Tensor]] = {}
    pipe(*args, **options, on_step=lambda number, latents: found.setdefault(number, []).extend(latents))
    return found[max(found)]


def test_a_picture_is_the_same_alone_and_in_a_batch(drawing: EditPipeline) -> None:
    """Unequal texts, numbers of sources and shapes; what is of one shape is drawn in one forward."""
    prompts = [
        ("make it red", [SOURCES[0]]),
        ("invert the colours of all of it, please", [SOURCES[0]]),
        ("flip", [SOURCES[0], SOURCES[2]]),
        ("a cat", []),
        ("make it red", [SOURCES[2]]),
    ]
    seeds = [5, 6, 7, 8, 5]
    together = latents_of(drawing, *map(list, zip(*prompts, strict=True)), seed=seeds)
    for (text, shown), seed, one in zip(prompts, seeds, together, strict=True):
        (alone,) = latents_of(drawing, text, [shown], seed=seed)
        torch.testing.assert_close(alone, one, rtol=0, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_encoder_and_transformer_take_turns_where_there_is_no_room(
    drawing: EditPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has left when the other comes, and all that is computed by it is computed while it is there."""
    encoder, transformer = drawing.embedder.model, drawing.transformer
    here: list[torch.nn.Module] = []
    called: list[torch.nn.Module] = []

    @contextmanager
    def turn(module: torch.nn.Module, device: torch.device) -> Iterator[None]:
        here.append(module)
        with there(module, device):
            yield
        here.remove(module)

    def note(module: torch.nn.Module, *_: Any) -> None:
        assert here == [encoder if module is encoder.model else module]
        called.append(*here)

    monkeypatch.setattr(pipeline_room, "there", turn)
    hooks = [module.register_forward_pre_hook(note) for module in (encoder.model, transformer)]
    drawing(["red", "blue"], SOURCES[0])
    for hook in hooks:
        hook.remove()
    assert list(dict.fromkeys(called)) == [encoder, transformer]


def test_blocks_come_one_after_the_other_where_there_is_no_room_for_all(
    profile: Callable[[str], Profile], drawing: EditPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = profile("edit-plus")
    other = ours_of(tiny_pipeline(kind, coder="patches"), kind, drawing.geometry)
    other.sampling = drawing.sampling
    other.transformer.requires_grad_(False)  # as `from_pretrained` leaves it
    monkeypatch.setattr(pipeline_room, "fit", lambda modules, device: False)
    other.to("cpu:0").to("cpu:0")  # tensors name it otherwise
    with pytest.raises(BadInput, match="blocks come to cpu:0 one by one; open it anew for meta"):
        other.to("meta")
    assert not any(weight.numel() for weight in other.transformer.transformer_blocks.parameters())
    for _ in range(2):
        found, wanted = (latents_of(each, ["red", "blue"], SOURCES[0]) for each in (other, drawing))
        assert all(map(torch.equal, found, wanted))
    there = [any(p.numel() for p in block.parameters()) for block in other.transformer.transformer_blocks]
    assert sum(there) <= 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_was_copied_to_a_device_leaves_it_without_a_copy() -> None:
    module = torch.nn.BatchNorm1d(4)
    homes = [tensor.data_ptr() for tensor in module.state_dict().values()]
    device = torch.device("cuda")
    assert fit([module], device)
    for _ in range(2):
        with there(module, device):
            assert all(tensor.is_cuda for tensor in module.state_dict().values())
        assert [tensor.data_ptr() for tensor in module.state_dict().values()] == homes
    assert torch.cuda.memory_allocated() == 0


def test_a_forward_holds_so_many_tokens_or_pictures(drawing: EditPipeline) -> None:
    def of(side: int, sources: int) -> Conditions:
        return Conditions(torch.empty(0), None, Bucket((side, side), ((side, side),) * sources), (), 0)

    call = TwoStreams(Grid(8, 2))
    each = [of(512, 1), of(1024, 1), *[of(512, 1)] * 5, of(1024, 2), of(1024, 1), of(1024, 2)]
    assert together(each, call) == [[0, 2, 3, 4], [5, 6], [1], [8], [7], [9]]
    assert together(each, call, 2) == [[0, 2], [3, 4], [5, 6], [1, 8], [7, 9]]


def test_pictures_come_prompt_by_prompt_and_seeds_count_up(drawing: EditPipeline) -> None:
    texts = ["make it red", "flip"]
    whole = drawing(texts, SOURCES[0], num_images=2, seed=4).images
    apart = [drawing(text, SOURCES[0], seed=seed).images[0] for text in texts for seed in (4, 5)]
    for one, other in zip(whole, apart, strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


def test_the_order_and_number_of_pictures_count(drawing: EditPipeline) -> None:
    shown = [SOURCES[1], picture((96, 96), seed=5)]
    found = [latents_of(drawing, "merge", [one])[0] for one in (shown, shown[::-1], shown[:1])]
    assert min((found[0] - other).abs().max() for other in found[1:]) > 1e-4


def test_sizes_are_those_of_the_last_picture_or_asked_for(drawing: EditPipeline) -> None:
    assert drawing("x", [SOURCES[0], SOURCES[2]]).images[0].size == (16, 32)
    assert drawing("x", SOURCES[0], height=8, width=21).images[0].size == (20, 8)
    assert drawing("a cat").images[0].size == (24, 24)
    transparent = SOURCES[0].convert("RGBA")
    assert drawing("x", transparent).images[0].tobytes() == drawing("x", SOURCES[0]).images[0].tobytes()


def test_a_shift_and_few_steps_are_another_way_to_the_picture(drawing: EditPipeline) -> None:
    plain, moved = (latents_of(drawing, "x", num_inference_steps=4, shift=shift)[0] for shift in (None, 3.0))
    assert (plain - moved).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"image": [*SOURCES, SOURCES[0]]}, "image: 4 pictures for 'x', and edit-plus takes at most 3"),
        ({"image": [[], []]}, "image: 2 lists of pictures for 1 prompts"),
        ({"num_inference_steps": 0}, "num_inference_steps: 0"),
        ({"seed": [1, 2]}, "seed: 2 seeds for 1 pictures"),
        ({"image": picture((8, 800))}, "would become"),
        ({"height": 3}, "height: 3 pixels are less than one token; ask for 4 or more"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(drawing: EditPipeline, how: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        drawing("x", **how)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_alone_takes_no_picture(pipeline: Callable[[str], Any], profile: Callable[[str], Profile]) -> None:
    with pytest.raises(BadInput, match="t2i takes at most 0"):
        ours_of(pipeline("t2i"), profile("t2i"), Geometry())("x", SOURCES[0])


@pytest.mark.parametrize("name", ["t2i", "edit", "edit-2511"])
def test_a_folder_of_diffusers_is_a_model_that_edits(checkpoint: Callable[..., Path], name: str) -> None:
    pipe = EditPipeline.from_pretrained(checkpoint(name, "patches"))
    assert pipe.sampling == Sampling()
    pipe.geometry = Geometry(area=16 * 16, vl_area=56 * 56, step=4, token=4)
    shown = None if name == "t2i" else SOURCES[0]
    assert len(pipe("x", shown, num_inference_steps=1).images) == 1


def test_transparent_pictures_lie_on_white(drawing: EditPipeline) -> None:
    clear = Image.new("RGBA", (32, 16), (255, 0, 0, 0))
    white = Image.new("RGB", (32, 16), "white")
    assert torch.equal(latents_of(drawing, "make it red", clear)[0], latents_of(drawing, "make it red", white)[0])
