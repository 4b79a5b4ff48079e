"""Answers with gaps: `It is a [4] of [2].` has gaps of 4 and of 2 tokens, and the rest of it is given.

Given text is cut into tokens piece by piece. A word's token begins with the space before it, so a space before a gap is
not a token of its own: the first token of the gap begins with it. `\\[4]` is no gap but these letters.

Shapes: N tokens of the canvas, k gaps behind a space.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvl_core.errors import BadInput
from qvl_data.template import Template

MOST = 65_536  # tokens of all gaps: far above what a model has places for
_GAP = re.compile(r"(?<!\\)\[(\d+)\]")
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Form:
    """An answer with gaps as a canvas.

    texts   what is given: before, between and behind the gaps, one more than there are gaps
    ids     (N,) with mask tokens in the gaps, then the end token and what fills the canvas up
    gaps    first and last place, exclusive, of each gap
    spaced  (k,) places whose token has to begin with the space that the text before them ends with
    """

    texts: tuple[str, ...]
    ids: Ids
    gaps: tuple[tuple[int, int], ...]
    spaced: Ids

    def filled(self, ids: Ids, tokenizer: Any) -> tuple[str, tuple[str, ...]]:
        """The whole text of a canvas that was written, and what stands in its gaps. What was given is as it was."""
        words, text = [], self.texts[0]
        for (start, stop), behind in zip(self.gaps, self.texts[1:], strict=True):
            word = tokenizer.decode(ids[start:stop], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            words.append(word[1:] if start in self.spaced else word)
            text += words[-1] + behind
        return text, tuple(words)


def read_form(answer: str, processor: Any, mask_token_id: int, fill: int | None) -> Form:
    """The canvas of an answer with gaps.

    fill  the canvas is filled up to a multiple of so many tokens, as in training; None: it is not

    Raises BadInput if there is no gap, one of no tokens, or more tokens in them than any model writes.
    """
    parts = _GAP.split(answer)
    texts, counts = [text.replace("\\[", "[") for text in parts[::2]], [int(count) for count in parts[1::2]]
    if not counts or 0 in counts:
        raise BadInput(f"answer {answer!r}: has no gap to fill; write one as [4], for 4 tokens.")
    if sum(counts) > MOST:
        raise BadInput(f"answer {answer!r}: has gaps of {sum(counts):,} tokens; a canvas has {MOST:,} at most.")
    before = [text.removesuffix(" ") if number < len(counts) else text for number, text in enumerate(texts)]
    given = Template.of(processor).tokens(before)
    ids: list[int] = []
    gaps, spaced = [], []
    for number, count in enumerate(counts):
        ids += given[number]
        if before[number] != texts[number]:
            spaced.append(len(ids))
        gaps.append((len(ids), len(ids) + count))
        ids += [mask_token_id] * count
    tokenizer = processor.tokenizer
    ids += [*given[-1], tokenizer.eos_token_id]
    ids += [tokenizer.pad_token_id] * (-len(ids) % fill if fill else 0)
    return Form(tuple(texts), np.array(ids, np.int64), tuple(gaps), np.array(spaced, np.int64))
