"""The prompt that Qwen-Image's text encoder reads, as text and as tokens.

    template.text("make it red", 2)                    # what diffusers' pipelines build
    template.tokens("make it red", (196, 180), tokenizer)

    <|im_start|>system\\n{system}<|im_end|>\\n<|im_start|>user\\n          dropped: the transformer is not shown it
    Picture 1: <|vision_start|><|image_pad|><|vision_end|>Picture 2: ...  one <|image_pad|> for each token of a picture
    {text}<|im_end|>\\n<|im_start|>assistant\\n

A text is only ever text: what looks like a special token in it is cut into ordinary tokens. It is never shortened (the
pipeline of text to image cuts prompts of more than 1024 tokens).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qvl_core.errors import BadInput

SEEN = "<|image_pad|>"
ENDING = "<|im_end|>\n<|im_start|>assistant\n"


class Tokens(NamedTuple):
    """A prompt of L tokens, the first of which depend on nothing but its pictures.

    ids     (L,) int64
    types   (L,) int64   1 for tokens of pictures, else 0 (`mm_token_type_ids` of transformers)
    shared  how many all texts with the same pictures have in common
    """

    ids: NDArray[np.int64]
    types: NDArray[np.int64]
    shared: int


@dataclass(frozen=True)
class Template:
    """How the prompts of one pipeline are laid out.

    system   text of the system turn
    picture  what stands for a picture, with `{}` for its number
    dropped  tokens that are not shown, as the pipeline has it; None: it counts them itself
    between  what stands between two pictures
    empty    what is said for the empty text
    kept     end of what stands before pictures and text that is shown, too
    """

    system: str
    picture: str
    dropped: int | None = None
    between: str = ""
    empty: str = ""
    kept: str = ""

    @property
    def opening(self) -> str:
        return f"<|im_start|>system\n{self.system}<|im_end|>\n<|im_start|>user\n"

    def text(self, said: str, pictures: int = 0) -> str:
        """The prompt as diffusers writes it."""
        return self.opening + self._shown(pictures) + (said or self.empty) + ENDING

    def tokens(self, said: str, pictures: Sequence[int], tokenizer: Any) -> Tokens:
        """The prompt's tokens.

        said      the instruction
        pictures  tokens of each picture
        """
        # A tokenizer works on what stands between two special tokens, so the text goes with the words before it.
        start, mark, before = (self.opening + self._shown(len(pictures))).rpartition("|>")
        shared = _ids(start + mark, tokenizer)
        seen = shared == tokenizer.convert_tokens_to_ids(SEEN)
        times = np.ones(len(shared), np.int64)
        times[seen] = pictures
        shared = np.repeat(shared, times)
        text = _ids(before + (said or self.empty), tokenizer, split_special_tokens=True)
        ids = np.concatenate([shared, text, _ids(ENDING, tokenizer)])
        types = np.zeros(len(ids), np.int64)
        types[: len(shared)] = np.repeat(seen, times)
        return Tokens(ids, types, len(shared))

    def unshown(self, tokenizer: Any) -> int:
        """How many tokens are dropped before the transformer is shown the rest."""
        return len(_ids(self.opening.removesuffix(self.kept), tokenizer))

    def length(self, said: str, pictures: int, tokenizer: Any) -> int:
        """Tokens that are shown of a text with so many pictures, but for those of the pictures."""
        return len(self.tokens(said, [0] * pictures, tokenizer).ids) - self.unshown(tokenizer)

    def gaps(self, pictures: int, tokenizer: Any) -> tuple[int, ...]:
        """Tokens that are shown before each of so many pictures: behind the one before it, or from the beginning."""
        seen = self.tokens("", [1] * pictures, tokenizer).types[self.unshown(tokenizer) :]
        return tuple((np.diff(np.flatnonzero(seen), prepend=-1) - 1).tolist())

    def check(self, tokenizer: Any) -> None:
        """Raise BadInput for a tokenizer with which another number of tokens would have to be dropped."""
        dropped, found = self.dropped, self.unshown(tokenizer)
        if dropped is None and tokenizer.chat_template:  # which the pipeline asks
            turn = [{"role": "system", "content": [{"type": "text", "text": self.system}]}]
            dropped = len(tokenizer.apply_chat_template(turn, return_dict=True)["input_ids"])
        if dropped is not None and found != dropped:
            raise BadInput(
                f"tokenizer: makes {found} tokens of the system turn, and the pipeline drops {dropped}; use the "
                "tokenizer that the checkpoint came with."
            )

    def _shown(self, pictures: int) -> str:
        return self.between.join(self.picture.format(number) for number in range(1, pictures + 1))


def _ids(text: str, tokenizer: Any, **how: Any) -> NDArray[np.int64]:
    return np.array(tokenizer(text, add_special_tokens=False, **how)["input_ids"], np.int64)
