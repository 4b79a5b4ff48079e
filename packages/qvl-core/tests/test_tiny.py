"""The tiny model is a real checkpoint: it reloads bit-equal, keeps Qwen's chat layout, takes any text and picture."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen3VLForConditionalGeneration
from transformers.video_utils import VideoMetadata

from qvl_core.qwen3vl.tiny import MARKER_TOKENS, MERGES, ROWS, SPECIAL_TOKENS, tiny, tiny_model, tiny_processor

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
VISION = "<|vision_start|><|image_pad|><|vision_end|>"
CLIP = "<|vision_start|><|video_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def processor(folder: Path):
    return AutoProcessor.from_pretrained(folder)


def ask(*parts) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]


def test_reloads_bit_equal_through_the_auto_classes(folder: Path, processor):
    made = tiny_model(tiny_processor().tokenizer)
    for kind in (AutoModelForImageTextToText, Qwen3VLForConditionalGeneration):
        loaded = kind.from_pretrained(folder)
        assert type(loaded) is Qwen3VLForConditionalGeneration
        assert loaded.dtype == torch.float32
        for (name, a), (_, b) in zip(made.state_dict().items(), loaded.state_dict().items(), strict=True):
            assert torch.equal(a, b), name
    fresh = tiny_processor()
    text = "图 7 <think>\n" + VISION
    a = fresh(text=[text], images=[PICTURE], return_tensors="pt")
    b = processor(text=[text], images=[PICTURE], return_tensors="pt")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert fresh.chat_template == processor.chat_template
    assert not list(folder.glob("*.bin"))


def test_the_seed_decides_every_byte(folder: Path, tmp_path: Path):
    def weights(path: Path) -> bytes:
        return (path / "model.safetensors").read_bytes()

    before = torch.get_rng_state()
    assert weights(tiny(tmp_path / "same")) == weights(folder)
    assert weights(tiny(tmp_path / "other", seed=1)) != weights(folder)
    assert torch.equal(before, torch.get_rng_state())


def test_size_and_shape():
    tokenizer = tiny_processor().tokenizer
    tied, untied = tiny_model(tokenizer), tiny_model(tokenizer, tied=False)
    assert sum(p.numel() for p in tied.parameters()) == 1_691_648
    assert tied.lm_head.weight is tied.model.language_model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.language_model.embed_tokens.weight
    assert len(tokenizer) < 256 + MERGES + len(SPECIAL_TOKENS + MARKER_TOKENS) < ROWS


def test_token_ids(folder: Path, processor):
    tokenizer = processor.tokenizer
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS + MARKER_TOKENS))
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    assert all(len(tokenizer(token).input_ids) == 1 for token in SPECIAL_TOKENS + MARKER_TOKENS)
    config = Qwen3VLForConditionalGeneration.from_pretrained(folder)
    assert config.generation_config.eos_token_id == [tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert config.generation_config.pad_token_id == tokenizer.pad_token_id
    shown = tokenizer.decode(tokenizer("<think>a</think><|im_end|>").input_ids, skip_special_tokens=True)
    assert shown == "<think>a</think>"  # as released: thinking and tool calls stay visible


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_any_text_round_trips(text: str, processor):
    text = unicodedata.normalize("NFC", text)  # Qwen's tokenizer normalises so
    assert processor.tokenizer.decode(processor.tokenizer(text).input_ids) == text


@pytest.mark.parametrize("word", ["system", "user", "assistant", "tool", " digit", " seven"])
def test_words_of_every_chat_are_single_tokens(processor, word: str):
    assert len(processor.tokenizer(word).input_ids) == 1


def test_words_of_the_texts_become_single_tokens():
    tokenizer = tiny_processor(["What digit is this?", "seven"] * 3).tokenizer
    assert len(tokenizer("What digit is this?").input_ids) == 5
    assert len(tokenizer("seven").input_ids) == 1


def test_chat_layout(processor):
    def render(messages: list[dict], **options) -> str:
        return processor.apply_chat_template(messages, **options)

    assert render(ask({"type": "text", "text": " hi\n"})) == "<|im_start|>user\n hi\n<|im_end|>\n"
    assert (
        render([{"role": "system", "content": "S"}, {"role": "user", "content": "U"}], add_generation_prompt=True)
        == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    )
    media = [
        {"type": "image"},
        {"image": "a.png"},
        {"type": "image_url", "image_url": {"url": "b.png"}},
        {"type": "text", "text": "and"},
        {"type": "video"},
        {"video": "c.mp4"},
    ]
    assert render(ask(*media)) == f"<|im_start|>user\n{VISION * 3}and{CLIP * 2}<|im_end|>\n"
    numbered = render([*ask({"type": "image"}), *ask({"type": "image"}, {"type": "video"})], add_vision_id=True)
    assert numbered == (
        f"<|im_start|>user\nPicture 1: {VISION}<|im_end|>\n"
        f"<|im_start|>user\nPicture 2: {VISION}Video 1: {CLIP}<|im_end|>\n"
    )


def test_chat_layout_of_tools(processor):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "二"}}}
    messages = [
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "", "tool_calls": [call, {"name": "now", "arguments": "{}"}]},
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": [{"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "done"}], "tool_calls": [call]},
    ]
    adds = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "二"}}\n</tool_call>'
    assert processor.apply_chat_template(messages) == (
        "<|im_start|>user\nU<|im_end|>\n"
        f'<|im_start|>assistant\n{adds}\n<tool_call>\n{{"name": "now", "arguments": {{}}}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n3\n</tool_response>"
        f"\n<tool_response>\n{VISION}\n</tool_response><|im_end|>\n"
        f"<|im_start|>assistant\ndone\n{adds}<|im_end|>\n"
    )
    tool = {"type": "function", "function": {"name": "now", "description": "时间", "parameters": {}}}
    listed = processor.apply_chat_template(
        [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}], tools=[tool]
    )
    assert listed.startswith("<|im_start|>system\nS\n\n# Tools\n\n")
    described = '{"type": "function", "function": {"name": "now", "description": "时间", "parameters": {}}}'
    assert f"XML tags:\n<tools>\n{described}\n</tools>\n\nFor each" in listed
    assert listed.endswith("</tool_call><|im_end|>\n<|im_start|>user\nU<|im_end|>\n")


@pytest.mark.parametrize(
    ("size", "grid"), [((64, 64), (4, 4)), ((8, 8), (4, 4)), ((96, 64), (4, 6)), ((1000, 500), (10, 22))]
)
def test_picture_budget(processor, size: tuple[int, int], grid: tuple[int, int]):
    out = processor.image_processor([PICTURE.resize(size)], return_tensors="np")
    assert out["image_grid_thw"].tolist() == [[1, *grid]]
    assert out["pixel_values"].shape == (grid[0] * grid[1], 3 * 2 * 16 * 16)


def test_answers_about_pictures_and_video(folder: Path, processor):
    model = AutoModelForImageTextToText.from_pretrained(folder)
    frames = np.stack([np.asarray(PICTURE)] * 4)  # (T, H, W, 3)
    inputs = processor(
        text=[processor.apply_chat_template(ask({"type": "image"}, {"type": "video"}), add_generation_prompt=True)],
        images=[PICTURE],
        videos=[frames],
        video_metadata=[VideoMetadata(total_num_frames=4, fps=2.0, frames_indices=[0, 1, 2, 3])],
        do_sample_frames=False,
        return_tensors="pt",
    )
    assert (inputs["mm_token_type_ids"] == 1).sum() == 4
    assert (inputs["mm_token_type_ids"] == 2).sum() == 8  # two frames share one token
    answer = model.generate(**inputs, max_new_tokens=3)
    assert answer.shape[1] > inputs["input_ids"].shape[1]
