"""Samples that ask for pictures: by a text alone, of a picture, of two; in a file that a recipe names. And a small
autoencoder for them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderDC

from qvl_data.convert import write_samples
from qvl_data.example.digits import arrays, digit_media
from qvl_data.sample import Edit, Media, Message, Part, Sample

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def drawn(index: int, text: str | None = None, shown: Sequence[Media] = ()) -> Sample:
    """Digit `index` of the set, asked for by its name, or by `text` and the pictures that are `shown`."""
    text = f"a handwritten {NAMES[int(arrays()[1][index])]}" if text is None else text
    parts = [*(Part(type="image", media=number) for number in range(len(shown))), Part(type="text", text=text)]
    return Sample(
        id=f"drawn-{index}",
        task="t2i",
        media=(*shown, digit_media(index)),
        messages=(
            Message(role="user", parts=tuple(parts)),
            Message(role="assistant", parts=(Part(type="image", media=len(shown)),)),
        ),
    )


def edited(index: int, text: str = "the next one", sources: Sequence[Media] | None = None) -> Sample:
    """Digit `index` + 1, made of digit `index` or of `sources`."""
    sources = [digit_media(index)] if sources is None else sources
    return Sample(
        id=f"edited-{index}",
        task="edit",
        media=(*sources, digit_media(index + 1)),
        edit=Edit(sources=tuple(range(len(sources))), target=len(sources), instruction={"en": text}),
    )


def said(index: int) -> Sample:
    """A chat, in which nothing is drawn."""
    turns = [Message(role=role, parts=(Part(type="text", text="One?"),)) for role in ("user", "assistant")]
    return Sample(id=f"said-{index}", task="chat", messages=tuple(turns))


def mixed() -> list[Sample]:
    """Texts alone, one of them empty and one given twice, and edits of one and of two pictures."""
    two = [digit_media(20), digit_media(21)]
    texts = [drawn(0), drawn(1), drawn(2, "a seven"), drawn(3, "a seven"), drawn(4, "")]
    return [*texts, edited(5), edited(6, "the same, inverted"), edited(7, "both", two)]


def written(file: Path, samples: Iterable[Sample]) -> Path:
    """A file of samples."""
    write_samples(samples, file)
    return file


def autoencoder() -> AutoencoderDC:
    """A random one: latents of 8 channels, half as wide and high as pictures, whose scale is 0.25."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoencoderDC(
            latent_channels=8,
            encoder_block_types="ResBlock",
            decoder_block_types="ResBlock",
            encoder_block_out_channels=(16, 32),
            decoder_block_out_channels=(16, 32),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), ()),
            decoder_qkv_multiscales=((), ()),
            scaling_factor=0.25,
        ).eval()
