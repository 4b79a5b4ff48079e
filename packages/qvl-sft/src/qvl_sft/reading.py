"""One draw of the data as the model reads it, with what was changed, cut, or left out of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.transcript import Turn, read
from qvl_core.training.samples import LeftOut
from qvl_data.augment import Augmentation
from qvl_data.chat import encode
from qvl_data.errors import BadSample
from qvl_data.sources import Item
from qvl_data.stream import ChatSamples


@dataclass(frozen=True)
class Reading:
    """A sample that was drawn.

    sample   what is trained on; of a sample that is left out, what it would be without the limit (None: nothing)
    whole    the same before it was cut; the pictures of its turns are the sample's
    cut      how many of the whole's turns, after the system turn, were cut
    changes  what augmentation did, in words
    problem  why it is left out; empty if it is not
    """

    name: str
    place: str
    turns: tuple[Turn, ...] = ()
    sample: Encoded | None = None
    whole: Encoded | None = None
    cut: range = range(0)
    changes: tuple[str, ...] = ()
    problem: str = ""

    @property
    def kept(self) -> list[Turn]:
        """The turns that are trained on."""
        return [] if self.problem else [turn for place, turn in enumerate(self.turns) if place not in self.cut]


def read_draw(samples: ChatSamples, item: Item) -> Reading:
    """The sample of one draw, in full where it was cut or is too long."""
    place, tokenizer = samples.mixture.place(item), samples.processor.tokenizer
    problem, sample = "", None
    try:
        sample = samples.encode_item(item)
    except LeftOut as error:
        problem = str(error)
    try:
        drawn = samples.mixture.sample(item)
        whole = sample if sample is not None and samples.too_long != "cut" else _in_full(drawn, samples)
    except BadSample as error:
        return Reading(error.sample_id, place, problem=problem or str(error))
    turns = tuple(read(whole, tokenizer))
    cut = range(0)
    if sample is not None and len(sample) < len(whole):
        first = int(turns[0].role == "system")
        cut = range(first, first + len(turns) - len(read(sample, tokenizer)))
    changes = tuple(_changes(drawn.opener.augmentation))
    return Reading(drawn.id, place, turns, sample, whole, cut, changes, problem)


def _in_full(sample: Any, samples: ChatSamples) -> Encoded:
    return encode(sample, samples.processor, train_on=samples.train_on)


def _changes(augmentation: Augmentation | None) -> Iterator[str]:
    if augmentation is None:
        return
    if augmentation.window[2] < 1:
        yield f"cropped to {augmentation.window[2]:.0%} of each side"
    if augmentation.resize != 1:
        yield f"resized × {augmentation.resize:.2f}"
    if augmentation.flip:
        yield "mirrored"
    if augmentation.shift != (0, 0):
        yield "shifted by {:+d}, {:+d} pixels".format(*augmentation.shift)
    for name in ("brightness", "contrast", "saturation"):
        if (factor := getattr(augmentation, name)) != 1:
            yield f"{name} × {factor:.2f}"
