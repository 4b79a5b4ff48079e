"""Embeddings are those of one plain forward, however they are batched, shared, padded or stored."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from qvl_core.errors import BadInput
from qvl_edit.cut import Bucket
from qvl_edit.embed import Embedder, EncoderInput, joined, padded
from qvl_edit.packing import Grid
from qvl_edit.profile import Profile, read_profile

CLOSE = {"rtol": 0, "atol": 1e-5}
TEXTS = ("make it red", "把天空改成日落。" * 3, "", " ")


@pytest.fixture(scope="module")
def embedder(checkpoint: Callable[..., Path]) -> Callable[[str], Embedder]:
    def opened(name: str) -> Embedder:
        return Embedder.open(checkpoint(name), read_profile(checkpoint(name)), torch.float32)

    return opened


@pytest.fixture(scope="module")
def pictures(photo: Image.Image) -> list[Image.Image]:
    return [photo.resize((96, 64)), photo.rotate(90).resize((64, 64)), photo.rotate(180).resize((64, 160))]


def plain(embedder: Embedder, text: str, pictures: Sequence[Image.Image] = (), types: bool = True) -> Tensor:
    """The embedding by one forward of transformers, as diffusers computes it, with or without token types."""
    template = embedder.profile.template(len(pictures))
    read = embedder.pictures(images=list(pictures), return_tensors="pt") if pictures else {}
    seen = [int(grid.prod()) // 4 for grid in read["image_grid_thw"]] if pictures else []
    tokens = template.tokens(text, seen, embedder.tokenizer)
    with torch.no_grad():
        said = embedder.model(
            input_ids=torch.from_numpy(tokens.ids)[None],
            output_hidden_states=True,
            **({"mm_token_type_ids": torch.from_numpy(tokens.types)[None]} if types else {}),
            **read,
        )
    return said.hidden_states[-1][0, template.dropped :]


def test_what_is_shared_is_computed_once_and_changes_nothing(embedder: Any, pictures: Any) -> None:
    edit = embedder("edit-plus")
    sets = [tuple(pictures[:1]), tuple(pictures), (), tuple(pictures[1:]), ()]
    found = edit([EncoderInput(TEXTS[: 1 + number % 4], shown) for number, shown in enumerate(sets)])
    for number, (one, shown) in enumerate(zip(found, sets, strict=True)):
        assert len(one.texts) == 1 + number % 4
        for text in range(len(one.texts)):
            torch.testing.assert_close(one.whole(text), plain(edit, TEXTS[text], shown), **CLOSE)


def test_pictures_are_looked_at_once(embedder: Any, pictures: Any) -> None:
    edit = embedder("edit-plus")
    with patch.object(edit.model.model.visual, "forward", wraps=edit.model.model.visual.forward) as looked:
        edit([EncoderInput(TEXTS, tuple(pictures)), EncoderInput(TEXTS, tuple(pictures[:1]))])
    assert looked.call_count == 1


@pytest.mark.parametrize("name", ["t2i", "edit"])
def test_other_profiles(embedder: Any, pictures: Any, name: str) -> None:
    other = embedder(name)
    shown = tuple(pictures[:1]) if name == "edit" else ()
    (one,) = other([EncoderInput(TEXTS, shown)])
    for number, text in enumerate(TEXTS):
        torch.testing.assert_close(one.whole(number), plain(other, text, shown), **CLOSE)


def test_a_batch_changes_nothing(embedder: Any, pictures: Any) -> None:
    edit = embedder("edit-plus")
    asked = [EncoderInput(TEXTS[:2], tuple(pictures[:count])) for count in (1, 3, 0, 2)]
    for one, alone in zip(edit(asked), [edit([single])[0] for single in asked], strict=True):
        for number in range(2):
            torch.testing.assert_close(one.whole(number), alone.whole(number), **CLOSE)


def test_stored_is_online(embedder: Any, pictures: Any, tmp_path: Path) -> None:
    edit = embedder("edit-plus")
    (one,) = edit([EncoderInput(TEXTS, tuple(pictures))])
    save_file({"shared": one.shared, **{str(n): text for n, text in enumerate(one.texts)}}, tmp_path / "a.safetensors")
    kept = load_file(tmp_path / "a.safetensors")
    (again,) = edit([EncoderInput(TEXTS[:1], tuple(pictures))])
    torch.testing.assert_close(torch.cat([kept["shared"], kept["0"]]), again.whole(0), **CLOSE)


def test_positions_of_pictures_change_the_result(embedder: Any, pictures: Any) -> None:
    """Without token types transformers counts through, which is what diffusers' pipelines have."""
    edit = embedder("edit-plus")
    (one,) = edit([EncoderInput(TEXTS[:1], tuple(pictures))])
    without = plain(edit, TEXTS[0], pictures, types=False)
    assert (one.whole(0) - without).abs().max() > 1e-2
    (alone,) = edit([EncoderInput(TEXTS[:1])])
    torch.testing.assert_close(alone.whole(0), plain(edit, TEXTS[0], types=False), **CLOSE)


@pytest.mark.parametrize(("name", "count"), [("t2i", 0), ("edit", 1), ("edit-plus", 1), ("edit-plus", 3)])
def test_the_pipeline_says_the_same_if_it_passes_token_types(
    embedder: Any, pipeline: Callable[[str], Any], pictures: Any, name: str, count: int
) -> None:
    ours, theirs = embedder(name), pipeline(name)
    shown = pictures[:count]
    image = {"image": shown} if count else {}
    (one,) = ours([EncoderInput(TEXTS[:1], tuple(shown))])
    without, _ = theirs.encode_prompt(TEXTS[0], **image)
    forward, seen = theirs.text_encoder.forward, ours.tokenizer.convert_tokens_to_ids("<|image_pad|>")

    def typed(**given: Any) -> Any:
        return forward(**given, mm_token_type_ids=(given["input_ids"] == seen).long())

    with patch.object(theirs.text_encoder, "forward", typed), torch.no_grad():
        states, mask = theirs.encode_prompt(TEXTS[0], **image)
    assert mask is None
    torch.testing.assert_close(states[0], one.whole(0), **CLOSE)
    assert torch.allclose(without[0], one.whole(0), **CLOSE) == (count == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_are_joined_in_the_memory_of_the_batch(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    rows = [[torch.randn(n, 8, generator=rng).to(dtype) for n in lengths] for lengths in ((3, 2), (4,), (0, 1, 6))]
    wholes = [torch.cat(pieces) for pieces in rows]
    states, mask = joined(rows)
    assert mask is not None
    assert torch.equal(states, pad_sequence(wholes, batch_first=True))
    assert all(map(torch.equal, padded(wholes), (states, mask)))
    assert mask.sum(1).tolist() == [5, 4, 7]
    alone, none = joined([rows[1]])
    assert none is None
    alone.zero_()  # as stored ones are mapped files
    assert torch.equal(rows[1][0], wholes[1])
    assert bool(wholes[1].any())


@pytest.mark.parametrize("name", ["edit-plus", "edit-2511"])
def test_the_transformer_sees_no_padding(
    embedder: Any, pipeline: Callable[[str], Any], pictures: Any, name: str
) -> None:
    edit, transformer = embedder(name), pipeline(name).transformer
    (one,) = edit([EncoderInput(TEXTS[:2], tuple(pictures[:1]))])
    states, mask = padded([one.whole(0), one.whole(1)])
    assert mask.sum(1).tolist() == [len(one.whole(0)), len(one.whole(1))]
    bucket = Bucket((32, 32), ((32, 32),))
    noisy = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0))

    def told(rows: slice, states: Tensor, mask: Tensor | None) -> Tensor:
        count = len(noisy[rows])
        with torch.no_grad():
            said = transformer(
                hidden_states=noisy[rows],
                encoder_hidden_states=states,
                encoder_hidden_states_mask=mask,
                timestep=torch.full((count,), 0.5),
                img_shapes=[[(1, *Grid().blocks(size)) for size in bucket.sizes]] * count,
                return_dict=False,
            )
        return said[0]

    both = told(slice(0, 2), states, mask)
    for number in range(2):
        alone = told(slice(number, number + 1), one.whole(number)[None], None)
        torch.testing.assert_close(both[number : number + 1], alone, **CLOSE)
    assert (told(slice(0, 2), states, None)[0] - both[0]).abs().max() > 1e-3


def test_a_checkpoint_that_does_not_belong_together_is_refused(
    checkpoint: Callable[..., Path], tmp_path: Path, profile: Callable[[str], Profile]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("edit"), folder)
    weights = folder / "text_encoder" / "model.safetensors"
    kept = load_file(weights)
    save_file({name: value for name, value in kept.items() if "layers.1.mlp.up" not in name}, weights)
    with pytest.raises(BadInput, match=r"1 weights are missing, such as .*; copy weights and config.json"):
        Embedder.open(folder, profile("edit"), torch.float32)
    for part in ("processor", "tokenizer"):
        shutil.rmtree(folder / part)
        with pytest.raises(BadInput, match=rf"{part}: cannot be read \(.*\); copy it again"):
            Embedder.open(folder, profile("edit"), torch.float32)
