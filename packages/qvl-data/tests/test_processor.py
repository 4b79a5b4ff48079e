"""The processor without torch: the lengths of transformers' own, on any conversation."""

import copy
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qvl_core.errors import BadInput
from qvl_data.chat import encode, length
from qvl_data.processor import open_processor

from .chats import build, picture
from .test_chat import THINKING

pytest.importorskip("tokenizers", reason="needs the extra `tokens`")

PICTURES = [picture(64, 64), picture(200, 90), picture(33, 65)]
WORDS = [
    "assistant",
    "\n",
    " ",
    "7",
    "é",
    "é",
    "数字",
    "<think>",
    "</think>\n\n",
    "<|im_end|>",
    "<|image_pad|>",
    "\r\n",
]
WORDS += [
    "<|im_start|>assistant\n",
    "<0.5 seconds>",
    "<|vision_",
    "start|>",
    "<tool_call>",
    "{{ x }}",
    "'s",
    "İ",
    "\ue000",
]
words = st.lists(st.sampled_from(WORDS), max_size=6).map("".join)
text = st.one_of(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12), words)
video = st.tuples(
    st.sampled_from([0.5, 2.0, 29.97]),
    st.integers(2, 5).map(lambda count: PICTURES[:1] * count),
)
parts = st.lists(st.one_of(text, st.sampled_from(PICTURES), video), min_size=1, max_size=4)
turns = st.lists(
    st.one_of(
        st.tuples(st.just("user"), parts),
        st.tuples(st.sampled_from(["assistant", "tool"]), st.lists(text, min_size=1, max_size=2)),
    ),
    max_size=4,
)
system = st.none() | text


@pytest.fixture(scope="module")
def folder(processor, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processor")
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def light(folder):
    return open_processor(folder)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(system, turns, st.booleans())
def test_lengths_equal_those_of_transformers(processor, light, system, turns, thinking):
    chat = [*([("system", system)] if system is not None else []), *((role, *parts) for role, parts in turns)]
    sample = build(*chat, ("user", "x"), ("assistant", "end"))
    if thinking:
        processor, light = copy.copy(processor), copy.copy(light)
        processor.chat_template = light.chat_template = THINKING
        sample = build(
            *((role, *[p for p in parts if isinstance(p, str)], ".") for role, *parts in chat), ("assistant", "e")
        )
    assert length(sample, light) == length(sample, processor) == len(encode(sample, processor))


def released(folder: Path, copied: Path) -> Path:
    """The same processor in the files of the released models."""
    settings = json.loads((folder / "processor_config.json").read_text("utf-8"))
    settings["image_processor"]["image_processor_type"] = "Qwen2VLImageProcessorFast"
    template = (folder / "chat_template.jinja").read_text("utf-8")
    for name, content in (
        ("preprocessor_config.json", settings["image_processor"]),
        ("video_preprocessor_config.json", settings["video_processor"]),
        ("chat_template.json", {"chat_template": template}),
    ):
        (copied / name).write_text(json.dumps(content), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, copied / name)
    return copied


def test_files_of_the_released_models(processor, folder, tmp_path):
    from transformers import AutoProcessor

    sample = build(("user", *PICTURES, (2.0, PICTURES[:1] * 5), "数字?"), ("assistant", "no"))
    light = open_processor(released(folder, tmp_path))
    config = {"model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    full = AutoProcessor.from_pretrained(tmp_path)
    assert length(sample, light) == length(sample, full) == length(sample, processor)


def test_what_a_template_may_use(processor, light):
    processor, light = copy.copy(processor), copy.copy(light)
    shown = (
        "{%- set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
        "<|im_start|>{{ m.role }}\n{% generation %}{{ {'é<': ns.n} | tojson }}"
        "{{ dict(a=eos_token).a }}{% endgeneration %}"
        "{{ m.content if m.content is string else m.content[-1].text }}<|im_end|>\n"
        "{% if ns.n > 8 %}{% break %}{% endif %}\n  {% endfor %}"
        "{{ '<|im_start|>assistant\n' if add_generation_prompt }}{{ strftime_now('%Y') }}"
    )
    processor.chat_template = light.chat_template = shown
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for generate in (False, True):
        written = light.apply_chat_template(chat, add_generation_prompt=generate)
        assert written == processor.apply_chat_template(chat, add_generation_prompt=generate)
    for hostile in ("{{ ''.__class__.__mro__ }}", "{{ namespace(__class__=1) }}", "{{ raise_exception('no') }}"):
        light.chat_template = hostile
        with pytest.raises(Exception, match=r"unsafe|cannot store|^no$"):
            light.apply_chat_template(chat)


@pytest.mark.parametrize(
    "media",
    [
        {"max_pixels": 16_384},
        {"image_tokens": 9, "min_pixels": 2048},
        {"video_tokens": 12},
        {"frame_tokens": 6},
        {"max_pixels": 6 * 784},
    ],
)
def test_budgets_are_set_as_for_transformers(media, processor, light):
    from qvl_core.qwen3vl.budgets import apply_media
    from qvl_core.recipe.blocks import Media

    sample = build(("user", picture(300, 300), (2.0, [picture(200, 300)] * 6), "?"), ("assistant", "a"))
    both = copy.deepcopy(processor), copy.deepcopy(light)
    before = length(sample, light)
    for each in both:
        apply_media(each, Media.model_validate(media))
    shorter = encode(sample, both[0])
    assert length(sample, both[1]) == length(sample, both[0]) == len(shorter) < before == length(sample, light)
    assert (shorter.types == 1).sum() <= media.get("image_tokens", 64)
    assert (shorter.types == 2).sum() <= media.get("video_tokens", 3 * media.get("frame_tokens", 999))


def test_it_travels_to_worker_processes(light):
    sample = build(("user", PICTURES[1], "digit?"), ("assistant", "7"))
    assert length(sample, pickle.loads(pickle.dumps(light))) == length(sample, light)


def test_it_counts_only(light):
    with pytest.raises(BadInput, match="only counts tokens; open transformers' AutoProcessor"):
        encode(build(("user", PICTURES[1], "digit?"), ("assistant", "7")), light)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tokenizer.json", None, "no tokenizer.json there"),
        ("tokenizer.json", b"{}", r"tokenizer\.json: cannot be read"),
        ("chat_template.jinja", None, "no chat template there"),
        ("processor_config.json", None, "no picture settings there"),
        ("processor_config.json", b"\xff", "cannot be read"),
        ("processor_config.json", b"{", "is not JSON"),
        ("processor_config.json", b"[]", "holds no JSON object"),
        ("processor_config.json", b'{"image_processor": [1]}', "its settings are damaged"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"7": {}}}', "its settings are damaged"),
        ("processor_config.json", b'{"image_processor": {"image_processor_type": "CLIP"}}', "are for CLIP"),
        (
            "tokenizer_config.json",
            b'{"added_tokens_decoder": {"7": {"content": "<|im_end|>", "special": false}}}',
            "disagree about <|im_end|>",
        ),
    ],
)
def test_a_damaged_folder_is_named(folder, tmp_path, file, content, words):
    copied = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copied / file).unlink()
    if content is not None:
        (copied / file).write_bytes(content)
    with pytest.raises(BadInput, match=words):
        open_processor(copied)


def test_another_tokenizer_is_refused(folder, tmp_path):
    copied = Path(shutil.copytree(folder, tmp_path / "copy"))
    tokenizer = json.loads((copied / "tokenizer.json").read_text("utf-8"))
    tokenizer["normalizer"] = {"type": "NFKC"}
    (copied / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(BadInput, match="splits text otherwise than Qwen's"):
        open_processor(copied)
    with pytest.raises(BadInput, match="no such folder"):
        open_processor(tmp_path / "nowhere")


def test_it_needs_no_torch(folder):
    code = (
        "import sys; from qvl_data.processor import open_processor; open_processor(sys.argv[1]); "
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
