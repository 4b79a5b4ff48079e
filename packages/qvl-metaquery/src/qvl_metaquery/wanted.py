"""What a sample asks for: a prompt, and the picture that is to be drawn.

A sample of the task `t2i` (CC12M and its like) has a caption, and a picture as the answer; one of the task `edit`
(OmniEdit, MetaQuery-Instruct) has sources, an instruction, and a target.
"""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from qvl_data.errors import BadSample
from qvl_data.sample import Sample
from qvl_metaquery.dropout import Task
from qvl_metaquery.prompts import Prompt


@dataclass(frozen=True)
class Wanted:
    """A prompt with its pictures, and how the picture that it asks for is opened."""

    prompt: Prompt
    picture: Callable[[], Image.Image]


def wanted(sample: Sample, task: Task) -> Wanted:
    """The prompt and the picture of a sample. Raises BadSample if nothing is drawn in it, or it cannot be opened.

    `reconstruct` asks for the picture that it shows.
    """
    text, sources, target = _parts(sample)
    sources = [target] if task == "reconstruct" else sources
    opened = tuple(sample.opener.open(sample.media[index]) for index in sources)
    return Wanted(Prompt(text, opened), lambda: sample.opener.open(sample.media[target]))


def target_of(sample: Sample) -> int:
    """Index into `sample.media` of the picture that is to be drawn. Raises BadSample."""
    return _parts(sample)[2]


def _parts(sample: Sample) -> tuple[str, list[int], int]:
    """Text, sources and target, the last two as indices into `sample.media`."""
    if sample.edit is not None:
        said = sample.edit.instruction
        return said.get("en", next(iter(said.values()), "")), list(sample.edit.sources), sample.edit.target
    drawn = [
        part.media
        for message in sample.messages
        if message.role == "assistant"
        for part in message.parts
        if part.type == "image" and part.media is not None
    ]
    if not drawn:
        problem = f"sample {sample.id}: no picture is drawn in it (task {sample.task}); use samples of t2i or edit"
        raise BadSample("no_picture", problem, sample.place, sample.id)
    asked = [message for message in sample.messages if message.role == "user"]
    shown = [part.media for message in asked for part in message.parts if part.media is not None]
    return "\n".join(message.text for message in asked).strip(), shown, drawn[-1]
