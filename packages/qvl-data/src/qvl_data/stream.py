"""The endless order of encoded chats that the training loop asks for: mixture, chat encoding, and what was left out.

Every method that trains on chats uses this; position p is the same sample with the same augmentation in every run.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.training.samples import LeftOut

from .chat import TrainOn, encode, length, prompt, spans
from .errors import BadSample, TooLong
from .sample import Media, Message, Part, Sample
from .sources import Item, Mixture


@dataclass
class ChatSamples:
    """`qvl_core.training.samples.Samples` over a mixture of chats."""

    mixture: Mixture
    processor: Any
    seed: int
    max_length: int
    too_long: Literal["drop", "error", "cut"] = "error"
    train_on: TrainOn = "all"
    prompts: bool = False
    """Learn the text of prompts as well (see `chat.encode`)."""
    empty_answers: bool = True
    """Let answers without text be learned; else such samples cannot be used."""
    taken: Callable[[int, list[tuple[int, int]]], int] | None = None
    """Tokens that a method makes of a sample of so many, from where what is learned stands; default: as many."""
    _lengths: dict[int, NDArray[np.int32]] = field(default_factory=dict, init=False, repr=False)
    """Of each source's samples, in 4 bytes each; -1: not known yet, or not the same in every pass."""

    def __len__(self) -> int:
        return len(self.mixture)

    def length(self, position: int) -> int:
        """Tokens of the sample at `position`, from its text and the sizes of its pictures; 0 if it cannot be used."""
        item = self.mixture.locate(self.seed, position)
        if item.source not in self._lengths:
            self._lengths[item.source] = np.full(len(self.mixture.datasets[item.source]), -1, np.int32)
        known = self._lengths[item.source]
        if known[item.index] >= 0:
            return int(known[item.index])
        try:
            sample = self.mixture.outline(item)
            fixed = self.mixture.keeps_length(item, sample)
            tokens = self._length(sample)
        except BadSample:
            return 0
        if tokens > self.max_length:
            tokens = self.max_length if self.too_long == "cut" else 0
        if fixed:  # another pass may show a smaller picture
            known[item.index] = tokens
        return tokens

    def _length(self, sample: Sample) -> int:
        if self.taken is None:
            return length(sample, self.processor, self.train_on)
        return self.taken(*spans(sample, self.processor, self.train_on, self.prompts))

    def encode(self, position: int) -> Encoded:
        """The sample at `position`. Raises LeftOut if it cannot be used."""
        return self.encode_item(self.mixture.locate(self.seed, position))

    def encode_item(self, item: Item) -> Encoded:
        """One draw of the mixture. Raises LeftOut if it cannot be used."""
        try:
            return encode(
                self.mixture.sample(item),
                self.processor,
                max_length=self.max_length,
                too_long=self.too_long,
                train_on=self.train_on,
                prompts=self.prompts,
                empty_answers=self.empty_answers,
            )
        except BadSample as error:
            tolerated = isinstance(error, TooLong) and self.too_long == "drop"
            raise LeftOut(self.mixture.bad(item, error, tolerated)) from None


def witness(processor: Any) -> Encoded:
    """A sample with one small picture and nothing to learn (see `qvl_core.training.batches.SampleBatches`)."""
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "white").save(picture, "PNG")
    sample = Sample(
        id="witness",
        task="chat",
        media=(Media(kind="image", bytes=picture.getvalue()),),
        messages=(
            Message(role="user", parts=(Part(type="image", media=0),)),
            Message(role="assistant", parts=(Part(type="text", text="-"),)),
        ),
    )
    return prompt(sample, processor)[0]
