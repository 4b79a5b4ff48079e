"""The processor's chat template, read so that every token is known to come from the template or from the data.

Special tokens typed in the data's text are broken up before the template sees them and come out as ordinary tokens. So
every special token in the rendered conversation was written by the template, and between them stands plain text.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from qvl_core.errors import BadInput

from .errors import BadSample
from .sample import Message

START, END, ANSWER = "<|im_start|>", "<|im_end|>", "assistant\n"
PROMPTS = ("user\n", "system\n")


class Piece(NamedTuple):
    """A special token that the template wrote, or a text between two, which may spell one; with its ids."""

    text: str
    ids: list[int]
    special: bool


class Template:
    """What is fixed for one processor: its special tokens, how it opens an answer, and the tokens of short texts."""

    def __init__(self, processor: Any) -> None:
        self._made_from = (processor.chat_template, processor.tokenizer)
        self._tokenizer = processor.tokenizer
        self._known: dict[str, list[int]] = {}
        added = self._tokenizer.added_tokens_decoder.items()
        self.special = {token.content: index for index, token in added if token.special}
        longest_first = sorted(self.special, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)))
        question = [{"role": "user", "content": "?"}]
        asked = processor.apply_chat_template(question, tokenize=False)
        opened = processor.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
        opening = opened.removeprefix(asked).removeprefix(START)
        if not {START, END} <= set(self.special) or not opening.startswith(ANSWER) or self.pattern.search(opening):
            raise BadInput(f"the chat template does not open answers with {START}assistant; use Qwen3-VL's own.")
        self.opening = opening
        """How the template opens an answer that is asked for: that of the Thinking models goes on with <think>."""
        self._empty = re.compile(f"{re.escape(opening)}\\s*</think>\\n*")

    @staticmethod
    def of(processor: Any) -> "Template":
        """The template of `processor`, made once. Raises BadInput if it is not Qwen's layout."""
        known = _templates.get(processor)
        if known is None or known._made_from != (processor.chat_template, processor.tokenizer):
            known = _templates[processor] = Template(processor)
        return known

    @property
    def thinks(self) -> bool:
        """Whether answers begin with reasoning: the template of a Thinking checkpoint."""
        return "<think>" in self.opening

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, in which no special token is recognised. Short texts come again and are remembered."""
        if len(self._known) > 10_000:
            self._known.clear()
        new = list(dict.fromkeys(text for text in texts if text not in self._known))
        fresh: dict[str, list[int]] = {}
        if new:
            options = {"add_special_tokens": False, "split_special_tokens": True, "return_attention_mask": False}
            fresh = dict(zip(new, self._tokenizer(new, **options)["input_ids"], strict=True))
            self._known.update((text, ids) for text, ids in fresh.items() if len(text) <= 100)
        return [fresh[text] if text in fresh else self._known[text] for text in texts]

    def given(self, text: str, ids: list[int]) -> int:
        """How many of an answer's first tokens are its opening, which the model is given and does not learn.

        An empty reasoning belongs to it; earlier turns, without their reasoning, open as those of other models do.
        """
        empty = self._empty.match(text) if self.thinks else None
        return self._first(empty[0] if empty else self.opening if text.startswith(self.opening) else ANSWER, ids)

    def header(self, text: str, ids: list[int]) -> int:
        """How many of the first tokens name the role of a user or system turn; 0 for other turns, such as tools'."""
        role = next((role for role in PROMPTS if text.startswith(role)), None)
        tool = role is not None and text.startswith("<tool_response>", len(role))
        return 0 if role is None or tool else self._first(role, ids)

    def _first(self, start: str, ids: list[int]) -> int:
        """How many of `ids` belong to the text `start` that they begin with."""
        opening = self.tokens([start])[0]
        if ids[: len(opening)] == opening:
            return len(opening)
        same = next((i for i, token in enumerate(opening[: len(ids)]) if ids[i] != token), len(ids) - 1)
        return same + 1  # the token that straddles the border belongs to the opening

    def render(self, processor: Any, messages: Sequence[Message], generate: bool) -> list[Piece]:
        """The conversation as the template writes it: special tokens, and the texts between them.

        With `generate`, it is followed by the opening of an answer. Raises BadSample.
        """
        chat, mark = _chat(messages, self.pattern)
        try:
            written = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=generate)
        except Exception as error:  # jinja2's errors, and whatever the template itself raises
            raise BadSample("template", f"the chat template refuses this conversation: {error}") from None
        pieces = [piece for piece in re.split(f"({self.pattern.pattern})", written) if piece]
        texts = [piece.replace(mark, "") if mark else piece for piece in pieces if piece not in self.special]
        tokens = self.tokens(texts)
        if mark and not set(self.special.values()).isdisjoint(token for ids in tokens for token in ids):
            raise BadSample("special_token", "special tokens typed in the text cannot be kept apart; remove them")
        between = iter(zip(texts, tokens, strict=True))
        return [
            Piece(piece, [self.special[piece]], True) if piece in self.special else Piece(*next(between), False)
            for piece in pieces
        ]


_templates: WeakKeyDictionary[Any, Template] = WeakKeyDictionary()


def _chat(messages: Sequence[Message], special: re.Pattern[str]) -> tuple[list[dict[str, Any]], str]:
    """Messages for the template. Special tokens in the data's text are broken up by the returned mark ("" if none)."""
    everything = "".join(part.text or "" for message in messages for part in message.parts)
    mark = ""
    if special.search(everything):
        mark = next(char for char in map(chr, range(0xE000, 0xF900)) if char not in everything)  # private use

    def safe(text: str) -> str:
        return special.sub(lambda token: token[0][0] + mark + token[0][1:], text) if mark else text

    chat = []
    for message in messages:
        content: list[dict[str, str]] = []
        for part in message.parts:
            if part.text is None:
                content.append({"type": part.type})
            elif content and content[-1]["type"] == "text":  # joined, so that no special token hides across parts
                content[-1]["text"] += part.text
            else:
                content.append({"type": "text", "text": part.text})
        for entry in content:
            if "text" in entry:
                entry["text"] = safe(entry["text"])
        only_text = all(entry["type"] == "text" for entry in content)
        chat.append({"role": message.role, "content": "".join(e["text"] for e in content) if only_text else content})
    return chat, mark
