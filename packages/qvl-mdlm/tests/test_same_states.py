"""What is trained on is what is sampled: at the masks of a last answer a model has the same states in both.

The Thinking template and turns of a tool among them: there the prompt of sampling is not simply the chat cut short.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import digits, talk
from torch import Tensor
from transformers import AutoProcessor

from qvl_core.qwen3vl.encoded import IGNORE, Encoded, runs
from qvl_core.qwen3vl.tiny import tiny
from qvl_data.chat import encode, prompt
from qvl_data.sample import Sample
from qvl_data.template import Template
from qvl_mdlm.batch import collation, noised
from qvl_mdlm.layout import shape_of, upto
from qvl_mdlm.model import Qwen3VLForMaskedLM
from qvl_mdlm.sample import sample as write
from qvl_mdlm.sampling import Sampling

PATTERNS: dict[str, dict[str, Any]] = {
    "full": {"attention": "full"},
    "prefix": {"attention": "prefix"},
    "block": {"attention": "block", "block_size": 4},
}


@pytest.fixture(scope="module", params=[False, True], ids=["instruct", "thinking"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("states") / "model", thinking=request.param)


def chats(thinking: bool) -> dict[str, Sample]:
    """The last answer begins with reasoning where the template opens one: else the chat has an empty one there."""
    said = "<think>\nI see.\n</think>\n\n" if thinking else ""
    picture = digits(1)[0].media[0]
    asked = ("user", picture, "Which digit is this?")
    return {
        "one answer": talk("one", asked, ("assistant", f"{said}It is a seven.")),
        "two answers": talk(
            "two", asked, ("assistant", "A seven."), ("user", "Is it odd?"), ("assistant", f"{said}Yes.")
        ),
        "a tool": talk(
            "tool",
            ("system", "Be brief."),
            ("user", "What is one and two?"),
            ("assistant", "Let me see."),
            ("tool", "3"),
            ("assistant", f"{said}Three."),
        ),
    }


def seen(model: Any, run: Any) -> Tensor:
    """(M, D) what the head was given first while `run` ran."""
    found: list[Tensor] = []
    hook = model.lm_head.register_forward_pre_hook(lambda _, given: found.append(given[0].detach()))
    try:
        with torch.no_grad():
            run()
    finally:
        hook.remove()
    return found[0].flatten(0, -2)


@pytest.mark.parametrize("kind", ["one answer", "two answers", "a tool"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_masked_answer_is_read_alike_in_training_and_in_sampling(pattern: str, kind: str, folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    model = Qwen3VLForMaskedLM.from_pretrained(folder, dtype=torch.float64, **PATTERNS[pattern]).eval()
    asked = chats(Template.of(processor).thinks)[kind]
    chat = encode(asked, processor)
    start, stop = runs(chat.labels != IGNORE)[-1]
    shape = shape_of(model.config, processor.tokenizer, 4)
    laid = shape.lay_out(chat)
    last = laid.segments == laid.segments.max() if pattern != "block" else laid.segments >= first_segment(chat, 4)
    masked = last & (np.cumsum(last) > last.sum() - (stop - start + (start - stop) % 4))
    batch = collation(processor, True, pattern != "full")([noised(laid, masked, masked.astype(float), mask_of(model))])
    rows = torch.from_numpy(np.flatnonzero(masked))

    def learn() -> None:
        model.lm_head(model.model(**doubled(batch.inputs())).last_hidden_state[0, rows])

    length = len(rows)
    shown = upto(chat, start, processor.image_processor.merge_size)
    (question, *_) = prompt(asked, processor)
    np.testing.assert_array_equal(question.ids, shown.ids)
    how = Sampling(max_new_tokens=length, steps=length, block=4 if pattern == "block" else None)
    trained, sampled = seen(model, learn), seen(model, lambda: write(model, processor, [question], how))
    assert len(sampled) == (4 if pattern == "block" else length)
    assert (trained[: len(sampled)] - sampled).abs().max() < 1e-9


def first_segment(chat: Encoded, size: int) -> int:
    """Number of the last answer's first block."""
    return sum(-(-(stop - start) // size) for start, stop in runs(chat.labels != IGNORE)[:-1])


def mask_of(model: Any) -> int:
    return int(model.config.mask_token_id)


def doubled(inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
