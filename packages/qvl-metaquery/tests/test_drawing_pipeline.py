"""The pipeline: a picture is its prompt's and its seed's own, prompts are read once, and the document's block runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.generate import generate
from qvl_core.qwen3vl.load import load_model
from qvl_core.recipe.blocks import Model
from qvl_data import chat
from qvl_data.example.digits import digits_dataset
from qvl_metaquery import MetaQueryPipeline, find_newest_checkpoint
from qvl_metaquery.remembered import Remembered

SEVEN, THREE = "a handwritten seven", "a handwritten three, in white on black"
FEW = {"num_inference_steps": 3}


def picture(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def pipeline(drawer: Path) -> MetaQueryPipeline:
    return MetaQueryPipeline.from_pretrained(drawer)


@pytest.fixture(autouse=True)
def _nothing_remembered(pipeline: MetaQueryPipeline) -> None:
    pipeline.remembered = Remembered()


@pytest.fixture
def readings(pipeline: MetaQueryPipeline, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Prompts of each reading."""
    found: list[int] = []
    read = pipeline.model.read

    def noted(inputs: dict[str, Any]) -> Any:
        found.append(len(inputs["input_ids"]))
        return read(inputs)

    monkeypatch.setattr(pipeline.model, "read", noted)
    return found


def drawn(pipeline: MetaQueryPipeline, *args: Any, **options: Any) -> Tensor:
    """(B, C, H, W) the last latents, which are not rounded as pictures are."""
    last: list[Tensor] = []
    pipeline(*args, **FEW, **options, on_step=lambda number, latents: last.append(latents))
    return last[-1]


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def test_a_picture_is_the_same_alone_and_in_a_batch(pipeline: MetaQueryPipeline) -> None:
    prompts: list[tuple[str, list[Image.Image]]] = [
        (SEVEN, []),
        (THREE, [picture(0)]),
        ("both", [picture(1), picture(2, 96, 64)]),
    ]
    together = drawn(pipeline, *map(list, zip(*prompts, strict=True)), seed=[5, 6, 7])
    for (text, shown), seed, one in zip(prompts, [5, 6, 7], together, strict=True):
        pipeline.remembered.clear()
        assert apart(drawn(pipeline, text, shown or None, seed=seed)[0], one) < 1e-5 * one.abs().max()
    assert all(apart(one, other) > 1e-3 for one, other in ((together[0], together[1]), (together[1], together[2])))


def test_pictures_come_caption_by_caption_and_seeds_count_up(pipeline: MetaQueryPipeline) -> None:
    whole = drawn(pipeline, [SEVEN, THREE], num_images=2, seed=4)
    for row, (text, seed) in enumerate([(SEVEN, 4), (SEVEN, 5), (THREE, 4), (THREE, 5)]):
        assert apart(drawn(pipeline, text, seed=seed)[0], whole[row]) < 1e-5
    named = drawn(pipeline, [SEVEN, THREE], num_images=2, seed=[4, 5, 4, 5])
    assert torch.equal(named, whole)
    assert len(pipeline([SEVEN, THREE], num_images=2, **FEW).images) == 4


def test_a_remembered_prompt_draws_what_a_fresh_one_does(pipeline: MetaQueryPipeline, readings: list[int]) -> None:
    fresh = drawn(pipeline, SEVEN, [picture(0)])
    assert readings == [3]  # the prompt, the negative one with the picture, and with a black one
    assert torch.equal(drawn(pipeline, SEVEN, [picture(0)]), fresh)
    assert readings == [3]
    drawn(pipeline, SEVEN, [picture(1)])
    assert readings == [3, 2]  # the black one is known


def test_distinct_prompts_are_read_once(pipeline: MetaQueryPipeline, readings: list[int]) -> None:
    drawn(pipeline, [SEVEN, THREE, SEVEN], num_images=3)
    assert readings == [3]  # two captions and the empty one


def test_memory_is_bounded_and_what_was_just_read_stays(pipeline: MetaQueryPipeline, readings: list[int]) -> None:
    pipeline.remembered = Remembered(most=3)
    many = drawn(pipeline, [SEVEN, THREE, "one", "two", "four"])
    assert len(pipeline.remembered) == 3
    assert readings == [6]
    assert apart(drawn(pipeline, ["two", "four"]), many[3:]) < 1e-5
    assert readings == [6, 1]  # `four` and `two` were the last but the empty one, which came first
    drawn(pipeline, ["two", "four"])
    assert readings == [6, 1]


def test_what_is_remembered_keeps_no_batch_in_memory() -> None:
    remembered = Remembered()
    batch = torch.zeros(100, 8, 8)
    remembered.put(b"x", batch[3])
    kept = remembered.get(b"x")
    assert kept is not None
    assert kept.untyped_storage().nbytes() == 8 * 8 * 4
    for key in (b"y", b"z"):
        remembered.put(key, batch[0])
    remembered.most = 2
    remembered.get(b"x")
    remembered.put(b"w", batch[0])
    assert [remembered.get(key) is not None for key in (b"x", b"y", b"z", b"w")] == [True, False, False, True]


def test_a_negative_prompt_takes_the_place_of_the_empty_one(pipeline: MetaQueryPipeline) -> None:
    plain = drawn(pipeline, SEVEN)
    assert apart(drawn(pipeline, SEVEN, negative_prompt=THREE), plain) > 1e-3
    assert apart(drawn(pipeline, SEVEN, negative_prompt=THREE, guidance_scale=1.0), plain) > 1e-3
    unguided = drawn(pipeline, SEVEN, guidance_scale=1.0)
    assert apart(drawn(pipeline, SEVEN, negative_prompt=SEVEN), unguided) < 1e-4


def test_every_picture_and_their_order_count(pipeline: MetaQueryPipeline) -> None:
    a, b = picture(0), picture(1)
    results = [drawn(pipeline, "x", shown) for shown in ([a, b], [b, a], [a], [b], None)]
    for row, one in enumerate(results):
        assert all(apart(one, other) > 1e-4 for other in results[row + 1 :])


def test_image_guidance_at_one_takes_two_branches(pipeline: MetaQueryPipeline, readings: list[int]) -> None:
    plain = drawn(pipeline, "x", [picture(0)], image_guidance_scale=1.0)
    assert readings == [2]
    assert apart(plain, drawn(pipeline, "x", [picture(0)], image_guidance_scale=2.0)) > 1e-4


def test_a_picture_list_goes_to_each_caption(pipeline: MetaQueryPipeline) -> None:
    a, b = picture(0), picture(1)
    shared = drawn(pipeline, ["x", "y"], a)
    assert torch.equal(shared, drawn(pipeline, ["x", "y"], [[a], [a]]))
    assert apart(shared[1], drawn(pipeline, ["x", "y"], [[a], [b]])[1]) > 1e-4


def test_pictures_share_a_budget_of_tokens(drawer: Path, pipeline: MetaQueryPipeline) -> None:
    whole = drawn(pipeline, "x", [picture(0, 256, 256)])
    frugal = MetaQueryPipeline(
        pipeline.model,
        pipeline.processor,
        pipeline.coder,
        pipeline.settings.model_copy(update={"image_tokens": 4}),
        pipeline.shift,
    )
    assert apart(drawn(frugal, "x", [picture(0, 256, 256)]), whole) > 1e-4
    small = picture(0, 256, 256).resize((64, 64), Image.Resampling.BICUBIC)
    assert torch.equal(
        frugal.conditions([_prompt("x", picture(0, 256, 256))]), pipeline.conditions([_prompt("x", small)])
    )


def _prompt(text: str, shown: Image.Image) -> Any:
    from qvl_metaquery.prompts import Prompt

    return Prompt(text, (shown,))


def test_a_size_other_than_the_trained_one(pipeline: MetaQueryPipeline) -> None:
    assert pipeline(SEVEN, size=12, **FEW).images[0].size == (12, 12)
    assert pipeline(SEVEN, **FEW).images[0].size == (8, 8)


@pytest.mark.parametrize("name", ["euler", "dpm"])
def test_each_step_is_told(name: Any, pipeline: MetaQueryPipeline) -> None:
    steps: list[tuple[int, tuple[int, ...]]] = []
    pipeline(
        [SEVEN, THREE],
        num_inference_steps=4,
        scheduler=name,
        on_step=lambda number, latents: steps.append((number, tuple(latents.shape))),
    )
    assert steps == [(number, (2, 4, 4, 4)) for number in (1, 2, 3, 4)]


def test_moved_to_sixteen_bits_positions_stay_exact(drawer: Path) -> None:
    moved = MetaQueryPipeline.from_pretrained(drawer)
    buffers = {name: value.clone() for name, value in moved.model.named_buffers() if value.is_floating_point()}
    assert any(name.endswith("inv_freq") for name in buffers)
    assert moved.to("cpu", torch.bfloat16) is moved
    assert {parameter.dtype for parameter in moved.model.parameters()} == {torch.bfloat16}
    assert all(torch.equal(value, dict(moved.model.named_buffers())[name]) for name, value in buffers.items())
    (image,) = moved(SEVEN, [picture(0)], **FEW).images
    full = MetaQueryPipeline.from_pretrained(drawer)(SEVEN, [picture(0)], **FEW).images[0]
    assert np.abs(np.asarray(image, float) - np.asarray(full, float)).mean() < 8  # of 255


def test_what_reads_the_prompt_still_answers(pipeline: MetaQueryPipeline) -> None:
    plain, processor = load_model(Model(name=pipeline.settings.mllm), precision="fp32", device="cpu")
    asked = [chat.prompt(one, processor)[0] for one in digits_dataset("digit", "test")[:2]]
    pipeline(SEVEN, [picture(0)], **FEW)
    inside = generate(pipeline.model.mllm, pipeline.processor, asked, 6)
    assert inside == generate(plain, processor, asked, 6)
    assert all(inside)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"caption": []}, "captions: 0 of them"),
        ({"num_images": 0}, "num_images: 0 of them"),
        ({"num_inference_steps": 0}, "num_inference_steps: 0 of them"),
        ({"seed": [1, 2]}, "2 seeds for 1 pictures"),
        ({"size": 9}, "9 is no multiple of 2"),
        ({"caption": ["x", "y"], "image": [[picture(0)]]}, "1 lists of pictures for 2 captions"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(options: dict[str, Any], said: str, pipeline: MetaQueryPipeline) -> None:
    with pytest.raises(BadInput, match=said):
        pipeline(**{"caption": SEVEN, **options})


DOCUMENT = """
# 加载模型
pipeline = MetaQueryPipeline.from_pretrained(
    find_newest_checkpoint("/path/to/checkpoint"),
    ignore_mismatched_sizes=True,
    _gradient_checkpointing=False,
    torch_dtype=torch.bfloat16,
).to("cuda", torch.bfloat16)

# 文本生成图像
images = pipeline(
    caption="A serene mountain lake at sunset",
    guidance_scale=4.5,
    num_inference_steps=30,
).images

# 保存
images[0].save("output.png")
"""


@pytest.fixture
def _a_device_called_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        to = torch.nn.Module.to
        monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: to(self, "cpu"))
    return


@pytest.mark.usefixtures("_a_device_called_cuda")
def test_the_documents_block_runs_as_written(drawer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {
        "torch": torch,
        "MetaQueryPipeline": MetaQueryPipeline,
        "find_newest_checkpoint": lambda path: find_newest_checkpoint(drawer if "checkpoint" in path else path),
    }
    exec(DOCUMENT, names)
    with Image.open(tmp_path / "output.png") as image:
        assert image.size == (8, 8)
