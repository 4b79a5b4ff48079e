"""Fill the gaps of an answer: what is given stays to the letter.

    from qvl_mdlm import infill, open_masked

    model, processor = open_masked("runs/mine")
    print(infill(model, processor, "What is this?", "It is a [4] of [2].", ["photo.jpg"]).text)

Importing this loads no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qvl_data.asked import Showable
    from qvl_mdlm.form import Form
    from qvl_mdlm.sample import Writer
    from qvl_mdlm.sampling import Sampling


@dataclass(frozen=True)
class Filled:
    """An answer whose gaps are filled.

    text      all of it
    gaps      what stands in each gap
    tokens    that were written
    forwards  forward passes that took
    """

    text: str
    gaps: tuple[str, ...]
    tokens: int
    forwards: int


def infill(
    model: Any,
    processor: Any,
    question: str,
    answer: str,
    media: "Sequence[Showable]" = (),
    sampling: "Sampling | None" = None,
) -> Filled:
    """The answer to a question about media, whose gaps ([4] for 4 tokens) the model fills.

    sampling  how; the length of the canvas is that of the answer

    Raises BadInput for an answer without a gap, and for media that cannot be read.
    """
    writer, form = begin(model, processor, question, answer, media, sampling)
    for _ in writer.steps():
        pass
    return filled(writer, form)


def begin(
    model: Any,
    processor: Any,
    question: str,
    answer: str,
    media: "Sequence[Showable]" = (),
    sampling: "Sampling | None" = None,
) -> "tuple[Writer, Form]":
    """What `infill` writes with, before its first step."""
    from qvl_data.asked import asked
    from qvl_data.chat import prompt
    from qvl_mdlm.form import read_form
    from qvl_mdlm.sample import Writer
    from qvl_mdlm.sampling import Sampling

    config = model.config
    form = read_form(answer, processor, config.mask_token_id, config.block_size or config.pad_to)
    how = sampling or Sampling()
    never = tuple(processor.tokenizer.all_special_ids)  # an end in a gap would cut off what is given
    how = replace(how, max_new_tokens=len(form.ids), suppress=(*how.suppress, *never), early_stop=False)
    encoded, _ = prompt(asked(question, media), processor)
    return Writer(model, processor, [encoded], how, [form.ids], [form.spaced]), form


def filled(writer: "Writer", form: "Form") -> Filled:
    """The answer of a writer that is done."""
    (written,) = writer.results()
    text, words = form.filled(written.ids, writer.processor.tokenizer)
    return Filled(text, words, sum(stop - start for start, stop in form.gaps), written.forwards)
