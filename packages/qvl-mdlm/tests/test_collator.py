"""The collator: which tokens may be masked, from rows of every kind, and back to single samples."""

from base64 import b64encode
from typing import Any

import numpy as np
import pytest
import torch
from asking import digits
from conversations import parts, picture, row, rows
from datasets import Dataset

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.encoded import IGNORE
from qvl_data.chat import encode
from qvl_data.row import read_row
from qvl_mdlm.collator import create_qwen3_vl_collator, split
from qvl_mdlm.config import masked_config

END = "<|im_end|>"


@pytest.fixture(scope="module")
def config(processor: Any) -> Any:
    from qvl_core.qwen3vl.tiny import tiny_config

    return masked_config(tiny_config(processor.tokenizer), processor.tokenizer)


def learned(processor: Any, batch: dict[str, torch.Tensor], number: int = 0) -> str:
    """The tokens of a row that may be masked, as text."""
    labels = batch["labels"][number]
    return str(processor.tokenizer.decode(labels[labels != IGNORE]))


TURNS = ("Is it odd?", "Yes.", "Why?", "It is not even.")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, f"Yes.{END}It is not even.{END}"),
        ({"train_on": "last"}, f"It is not even.{END}"),
        ({"mask_prompt_loss": False}, f"Is it odd?Yes.{END}Why?It is not even.{END}"),
    ],
)
def test_labels_are_the_answers_and_their_ends(processor: Any, options: dict[str, Any], text: str) -> None:
    batch = create_qwen3_vl_collator(processor, **options)([row(*TURNS, image=picture()), rows(2)[1]])
    assert learned(processor, batch) == text
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORE).all()
    assert (batch["labels"][batch["mm_token_type_ids"] != 0] == IGNORE).all()
    given = batch["labels"] != IGNORE
    assert torch.equal(batch["labels"][given], batch["input_ids"][given])


def test_a_system_turn_and_a_turn_that_is_left_out_are_not_learned(processor: Any) -> None:
    chat = row(*TURNS)
    chat["messages"].insert(0, {"role": "system", "content": "Be brief."})
    chat["messages"][2]["train"] = False
    assert learned(processor, create_qwen3_vl_collator(processor)([chat])) == f"It is not even.{END}"


def test_weights_of_answers_are_kept(processor: Any) -> None:
    chat = row(*TURNS)
    chat["messages"][1]["weight"] = 0.5
    batch = create_qwen3_vl_collator(processor)([chat, row("2", "3")])
    assert batch["weights"][batch["labels"] != IGNORE].unique().tolist() == [0.5, 1]


QUESTION = {"type": "text", "text": "Which digit is this?"}
FRAMES = ["data:image/png;base64," + b64encode(digits(2, "train")[i].media[0].bytes or b"").decode() for i in range(2)]


@pytest.mark.parametrize(
    "chat",
    [
        row("Which digit is this?", "Seven", image=picture()),
        row("Which digit is this?", "Seven", images=[picture()]),
        row("<image>Which digit is this?", "Seven", images=[picture()]),
        parts({"type": "image", "image": picture()}, QUESTION),
        {**parts({"type": "image"}, QUESTION), "images": [picture()]},
    ],
)
def test_a_picture_stands_beside_the_messages_or_among_them(processor: Any, chat: dict[str, Any]) -> None:
    collate = create_qwen3_vl_collator(processor)
    one, usual = collate([chat]), collate([row("Which digit is this?", "Seven", image=picture())])
    assert one.keys() == usual.keys()
    assert all(torch.equal(one[name], usual[name]) for name in usual)


def test_a_video_is_a_list_of_frames(processor: Any) -> None:
    clip = {"type": "video", "video": FRAMES, "fps": 2}
    batch = create_qwen3_vl_collator(processor)([parts(clip, QUESTION), rows(1)[0]])
    assert (batch["mm_token_type_ids"] == 2).any()
    assert batch["video_grid_thw"].shape == batch["image_grid_thw"].shape == (1, 3)


def test_a_dataset_gives_what_a_list_gives(processor: Any) -> None:
    collate = create_qwen3_vl_collator(processor)
    listed, loaded = collate(rows()), collate([Dataset.from_list(rows())[i] for i in range(4)])
    assert all(torch.equal(listed[name], loaded[name]) for name in listed)


def test_a_chat_that_is_too_long_loses_its_oldest_turns_and_no_picture(processor: Any) -> None:
    chat = row(*TURNS)
    chat["messages"][2]["content"] = [{"type": "image", "image": picture()}, {"type": "text", "text": "Why?"}]
    whole = create_qwen3_vl_collator(processor)([chat])
    length = whole["input_ids"].shape[1]
    cut = create_qwen3_vl_collator(processor, max_seq_length=length - 1)([chat])
    assert learned(processor, cut) == f"It is not even.{END}"
    assert torch.equal(cut["pixel_values"], whole["pixel_values"])
    with pytest.raises(BadInput, match=r"row 0 of the batch: more than max_seq_length 8 .* raise max_seq_length"):
        create_qwen3_vl_collator(processor, max_seq_length=8)([chat])


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        (row("Is it odd?", " "), r"messages\[1\] is an answer without text"),
        (row("Is it odd?"), "no assistant turn to learn from"),
        ({"text": "Is it odd?"}, "no known format"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(processor: Any, chat: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=rf"^row 1 of the batch: .*{said}"):
        create_qwen3_vl_collator(processor)([row("2", "3"), chat])


def test_an_empty_answer_that_is_left_out_is_none(processor: Any) -> None:
    chat = row("Is it odd?", "", "Is it?", "Yes.")
    chat["messages"][1]["train"] = False
    assert learned(processor, create_qwen3_vl_collator(processor)([chat])) == f"Yes.{END}"


@pytest.mark.parametrize("left_out", [(), ("mm_token_type_ids",)])
def test_a_batch_comes_apart_as_it_was_put_together(processor: Any, config: Any, left_out: tuple[str, ...]) -> None:
    two = parts({"type": "image", "image": picture(2)}, {"type": "image", "image": picture(3)}, QUESTION)
    clip = parts({"type": "video", "video": FRAMES, "fps": 2}, QUESTION)
    chats = [*rows(2), row("2", "3"), two, clip]
    batch = create_qwen3_vl_collator(processor)(chats)
    found = split({name: value for name, value in batch.items() if name not in left_out}, config)
    for sample, chat in zip(found, chats, strict=True):
        wanted = encode(read_row(chat, "here"), processor)
        for name in ("ids", "labels", "types", "images", "image_grid", "videos", "video_grid"):
            np.testing.assert_array_equal(getattr(sample, name), getattr(wanted, name))


def test_words_alone_need_no_pixels_and_no_mask(processor: Any, config: Any) -> None:
    batch = create_qwen3_vl_collator(processor)([row("2", "3")])
    assert batch.keys() == {"input_ids", "labels", "attention_mask", "mm_token_type_ids"}
    (sample,) = split({name: batch[name] for name in ("input_ids", "labels")}, config)
    assert sample.images is None
    assert len(sample) == batch["input_ids"].shape[1]


def without(batch: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name not in names}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda batch: without(batch, "labels"), r"gave input_ids, .*needs input_ids and labels"),
        (lambda batch: {**batch, "labels": batch["labels"][:, 1:]}, "needs input_ids and labels"),
        (lambda batch: without(batch, "pixel_values"), "images need both pixels and grid"),
        (lambda batch: without(batch, "pixel_values", "image_grid_thw"), r"image tokens stand in a row"),
        (
            lambda batch: {**batch, **{name: batch[name][:, 12:] for name in ("input_ids", "labels")}},
            "do not cut ids after the processor",
        ),
    ],
)
def test_what_another_collator_does_wrong_is_said(processor: Any, config: Any, spoil: Any, said: str) -> None:
    batch = without(create_qwen3_vl_collator(processor)(rows(2)), "attention_mask", "mm_token_type_ids")
    split(batch, config)
    with pytest.raises(BadInput, match=said):
        split(spoil(batch), config)


def test_settings_that_cannot_be_meant_are_refused(processor: Any) -> None:
    with pytest.raises(BadInput, match="knows no pictures"):
        create_qwen3_vl_collator(processor.tokenizer)
    with pytest.raises(BadInput, match="must be all or last"):
        create_qwen3_vl_collator(processor, train_on="first")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="at least 1"):
        create_qwen3_vl_collator(processor, pad_to=0)
