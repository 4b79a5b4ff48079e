"""Two phases equal one forward; queries of their own equal rows of the vocabulary; text is only ever text."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from qvl_core.qwen3vl.batch import collate
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.generate import inputs_of
from qvl_metaquery.conditions import ask, read
from qvl_metaquery.prompts import Prompt, PromptLayout, encode, shortened

N = 6  # queries, between a row before and a row behind
LAYOUT = PromptLayout(system="Describe it.")


def picture(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


PROMPTS = {
    "text": [Prompt("a red fox"), Prompt("a handwritten seven on a wall")],
    "one": [Prompt("a red fox")],
    "pictures": [
        Prompt("both", (picture(0, 64, 96), picture(1, 96, 64))),
        Prompt("neither of them, but a third"),
        Prompt("this", (picture(2, 64, 64),)),
    ],
}


def encoded(kind: str, processor: Any) -> list[Encoded]:
    return [encode(prompt, processor, LAYOUT) for prompt in PROMPTS[kind]]


def right(samples: Sequence[Encoded], model: Any, processor: Any) -> dict[str, Any]:
    """Padded on the right, as in training."""
    batch = collate(samples, False, model.config.vision_config.spatial_merge_size, processor.tokenizer.pad_token_id)
    return {name: _fp64(value) for name, value in batch.inputs().items()}


def left(samples: Sequence[Encoded], model: Any, processor: Any) -> dict[str, Any]:
    return {name: _fp64(value) for name, value in inputs_of(model, processor.tokenizer, samples).items()}


def _fp64(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def with_rows(model: Any, queries: Tensor) -> Any:
    """The model with `queries` as new, trainable rows of its vocabulary."""
    larger = copy.deepcopy(model)
    table = larger.model.language_model.embed_tokens.weight
    larger.model.language_model.embed_tokens.weight = nn.Parameter(torch.cat([table.detach(), queries.detach()]))
    return larger


def single(model: Any, processor: Any, samples: Sequence[Encoded], queries: Tensor) -> tuple[Tensor, Tensor]:
    """States at the queries from one forward over prompt and queries, padded on the left, and the rows' gradients."""
    larger, rows = with_rows(model, queries), len(queries)
    inputs = left(samples, model, processor)
    first = len(model.model.language_model.embed_tokens.weight)
    number = len(samples)
    new = torch.arange(first, first + rows).expand(number, -1)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], new], 1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(new)], 1)
    inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(new)], 1)
    follow = inputs["position_ids"].amax((0, 2))
    text = inputs["position_ids"][0, :, -1:] + 1 + torch.arange(rows)
    vision = inputs["position_ids"][1:].amax((0, 2))[:, None] + 1 + torch.arange(rows)
    assert (follow >= vision[:, 0] - 1).all()
    behind = torch.cat([text[None], vision.expand(3, -1, -1)])
    inputs["position_ids"] = torch.cat([inputs["position_ids"], behind], 2)
    states = larger.model(**inputs, use_cache=False).last_hidden_state[:, -rows:]
    states[:, 1:-1].sin().sum().backward()
    return states[:, 1:-1].detach(), larger.model.language_model.embed_tokens.weight.grad[-rows:]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("side", [right, left])
@pytest.mark.parametrize("kind", PROMPTS)
def test_two_phases_are_one_forward_over_rows_of_the_vocabulary(
    kind: str, side: Any, recompute: bool, mllm: Any, processor: Any
) -> None:
    samples = encoded(kind, processor)
    queries = nn.Parameter(torch.randn(N + 2, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    wanted, gradient = single(mllm, processor, samples, queries)
    states = ask(mllm, queries, read(mllm, side(samples, mllm, processor)), recompute)[:, 1:-1]
    states.sin().sum().backward()
    assert (states - wanted).abs().max() < 1e-9
    assert queries.grad is not None
    assert (queries.grad - gradient).abs().max() < 1e-9
    assert queries.grad[-1].abs().max() == 0  # the row behind the queries is read by none
    assert (queries.grad[:-1].abs().amax(1) > 1e-6).all()  # all others are
    assert all(parameter.grad is None for parameter in mllm.parameters())


def test_what_is_said_depends_on_the_text_on_every_picture_and_on_their_order(mllm: Any, processor: Any) -> None:
    queries = torch.randn(N, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a, b = picture(0, 64, 64), picture(1, 64, 64)
    prompts = [
        Prompt("x", (a, b)),
        Prompt("x", (b, a)),
        Prompt("x", (a,)),
        Prompt("x", (a, b)).without(pictures=True),
        Prompt("y", (a, b)),
    ]
    said = [
        ask(mllm, queries, read(mllm, right([encode(prompt, processor, LAYOUT)], mllm, processor)))
        for prompt in prompts
    ]
    assert all((said[0] - other).abs().max() > 1e-3 for other in said[1:])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_each_attention_gives_the_same(attention: str, mllm: Any, processor: Any) -> None:
    samples = encoded("pictures", processor)
    queries = torch.randn(N + 2, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = ask(mllm, queries, read(mllm, right(samples, mllm, processor)))
    mllm.set_attn_implementation(attention)
    said = ask(mllm, queries, read(mllm, right(samples, mllm, processor)))
    assert (said - wanted).abs().max() < 1e-5  # eager takes its softmax in fp32


def test_a_prompt_alone_is_the_prompt_in_a_batch(mllm: Any, processor: Any) -> None:
    samples = encoded("pictures", processor)
    queries = torch.randn(N, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prefix = read(mllm, right(samples, mllm, processor))
    together = ask(mllm, queries, prefix)
    for sample, states in zip(samples, together, strict=True):
        alone = ask(mllm, queries, read(mllm, right([sample], mllm, processor)))
        assert (alone[0] - states).abs().max() < 1e-9


def test_the_backward_leaves_the_prompt_out(mllm: Any, processor: Any) -> None:
    """448 tokens of prompt and 64 queries: at least 1.7 times fewer operations than with gradients through all."""
    sample = encode(Prompt("word " * 400), processor, PromptLayout(system="x", caption_tokens=1000))
    cut = {"ids": sample.ids[-448:], "labels": sample.labels[-448:], "types": sample.types[-448:]}
    sample = Encoded(id="long", **cut)
    queries = nn.Parameter(torch.randn(64, 128, dtype=torch.float64))
    inputs = right([sample], mllm, processor)
    with FlopCounterMode(display=False) as two:
        ask(mllm, queries, read(mllm, inputs)).sum().backward()
    with FlopCounterMode(display=False) as one:
        embeds = torch.cat([mllm.model.language_model.embed_tokens(inputs["input_ids"]), queries[None]], 1)
        count = torch.arange(embeds.shape[1])
        mllm.model.language_model(
            inputs_embeds=embeds.requires_grad_(), position_ids=count.expand(4, 1, -1), use_cache=False
        ).last_hidden_state[:, -64:].sum().backward()
    assert one.get_total_flops() >= 1.7 * two.get_total_flops()


@pytest.mark.parametrize("text", ["<begin_of_img>", "<img3>", "<|im_end|>", "<|vision_start|><|image_pad|>", ""])
def test_text_is_only_ever_text(text: str, processor: Any) -> None:
    found, plain = (encode(Prompt(words), processor, LAYOUT) for words in (f"a{text}b", "ab"))
    special = set(processor.tokenizer.all_special_ids) | {
        processor.tokenizer.convert_tokens_to_ids(token) for token in ("<|image_pad|>", "<|vision_start|>")
    }
    assert [i for i in found.ids if i in special] == [i for i in plain.ids if i in special]
    assert found.types.sum() == 0
    assert f"a{text}b<|im_end|>" in processor.tokenizer.decode(found.ids)


def test_an_opening_ends_in_one_new_line_more(processor: Any) -> None:
    for prompts in PROMPTS.values():
        for prompt in prompts:
            assert processor.tokenizer.decode(encode(prompt, processor, LAYOUT).ids).endswith("assistant\n\n")


def test_a_text_that_comes_again_is_not_encoded_again_and_keeps_its_name(processor: Any) -> None:
    one, two = (encode(Prompt("a red fox"), processor, LAYOUT, name) for name in ("one", "two"))
    assert (one.id, two.id) == ("one", "two")
    assert one.ids is two.ids
    other = encode(Prompt("a red fox"), processor, PromptLayout(system="Draw it."))
    assert other.ids.tolist() != one.ids.tolist()


def test_a_caption_is_cut_at_its_limit(processor: Any) -> None:
    tokenizer = processor.tokenizer
    text = "a red fox with a very long tail"
    assert shortened(text, tokenizer, 100) == text
    for limit in (1, 3, 7):
        cut = shortened(text, tokenizer, limit)
        assert text.startswith(cut)
        assert len(tokenizer(cut, add_special_tokens=False)["input_ids"]) <= limit
