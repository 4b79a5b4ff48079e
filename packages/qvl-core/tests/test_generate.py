"""Batched greedy answers equal the library's own, prompt by prompt."""

import math

import numpy as np
import pytest
import torch

from qvl_core.qwen3vl import attention
from qvl_core.qwen3vl.encoded import IGNORE, Encoded
from qvl_core.qwen3vl.generate import exact_match, generate
from qvl_core.qwen3vl.tiny import tiny_model, tiny_processor

PROCESSOR = tiny_processor()
TOKENIZER = PROCESSOR.tokenizer
NEW = 8


@pytest.fixture(scope="module", params=["packed", "sdpa"])
def model(request):
    model = tiny_model(TOKENIZER, seed=1)
    with torch.no_grad():  # away from the small initial weights, so that answers differ
        for weight in model.parameters():
            weight.mul_(3) if weight.ndim > 1 else None
    if request.param == "packed":
        attention.use(model)
    return model


def prompt(seed: int) -> Encoded:
    """Random words around no, one or two pictures, and a clip in every fourth."""
    rng = np.random.default_rng(seed)
    names = ["<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>"]
    start, image, video, end = TOKENIZER.convert_tokens_to_ids(names)
    images = [(1, 4, 2 * int(rng.integers(1, 4))) for _ in range(seed % 3)]
    videos = [(2, 4, 4)] if seed % 4 == 3 else []
    ids = rng.integers(5, 250, 3 + seed % 2).tolist()
    for _, h, w in images:
        ids += [start, *[image] * (h * w // 4), end]
    for t, h, w in videos:
        for frame in range(t):
            ids += [30 + frame, start, *[video] * (h * w // 4), end]
    ids = np.array([*ids, *rng.integers(5, 250, 4)])

    def media(grid):
        patches = rng.normal(size=(sum(t * h * w for t, h, w in grid), 1536)).astype(np.float32)
        return (patches, np.array(grid)) if grid else (None, None)

    types = (ids == image) + 2 * (ids == video)
    return Encoded(f"{seed}", ids, np.full(len(ids), IGNORE), types, *media(images), *media(videos))


PROMPTS = [prompt(seed) for seed in range(12)]


def librarys_answer(model, one: Encoded) -> str:
    arguments = {
        "input_ids": one.ids[None],
        "mm_token_type_ids": one.types[None],
        "pixel_values": one.images,
        "image_grid_thw": one.image_grid,
        "pixel_values_videos": one.videos,
        "video_grid_thw": one.video_grid,
    }
    arguments = {name: torch.from_numpy(value) for name, value in arguments.items() if value is not None}
    tokens = model.generate(**arguments, max_new_tokens=NEW, do_sample=False)
    return TOKENIZER.decode(tokens[0, len(one.ids) :], skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_answers_equal_the_librarys_one_by_one(model, batch_size):
    expected = [librarys_answer(model, one) for one in PROMPTS]
    assert len(set(expected)) > 6  # prompts matter
    assert generate(model, PROCESSOR, PROMPTS, NEW, batch_size) == expected


def test_rows_end_at_the_end_of_turn(model):
    free = generate(model, PROCESSOR, PROMPTS, NEW)
    ids = model.generate(input_ids=torch.from_numpy(PROMPTS[0].ids)[None], max_new_tokens=NEW, do_sample=False)[
        0, len(PROMPTS[0].ids) :
    ].tolist()
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [*before, ids[2]]
    try:
        ended = generate(model, PROCESSOR, PROMPTS, NEW)
    finally:
        model.generation_config.eos_token_id = before
    assert ended != free
    assert all(whole.startswith(part.rstrip("\ufffd")) for whole, part in zip(free, ended, strict=True))
    assert ended[0] == TOKENIZER.decode(ids[: ids.index(ids[2]) + 1])


def test_the_mode_of_the_model_is_left_as_it_was(model):
    model.train()
    assert generate(model, PROCESSOR, PROMPTS[:2], 2)
    assert model.training
    model.eval()
    assert generate(model, PROCESSOR, [], 2) == []
    assert not model.training


def test_exact_match():
    assert exact_match([" 7\n", "odd", "Odd", "12"], ["7", "odd ", "odd", "1 2"]) == 0.5
    assert math.isnan(exact_match([], []))
    with pytest.raises(ValueError, match="zip"):
        exact_match(["1"], [])
