"""Talk to a model about pictures and videos. The answer appears as it is written.

    from qvl_sft import Chat, load_trained

    chat = Chat(*load_trained("runs/mine"))
    print(chat.ask("What is this?", ["photo.jpg"]))
    print(chat.ask("And what colour?"))

Every answer is computed from the whole conversation: cached keys of earlier turns would be those of the tokens that the
model wrote, which need not be the tokens that its text has.
"""

import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import TextStreamer

from qvl_core.errors import BadInput
from qvl_core.printable import printable
from qvl_core.qwen3vl.budgets import apply_media
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.generate import Sampling, inputs_of
from qvl_core.recipe import blocks
from qvl_core.training.seeds import reseed
from qvl_data.asked import Showable, media_file, says, showable
from qvl_data.chat import prompt as encode_prompt
from qvl_data.sample import Media, Message, Part, Sample
from qvl_data.template import Template
from qvl_data.writers import write as write_samples
from qvl_sft.trained import load_trained

Write = Callable[[str], None]

THINK, THOUGHT = "<think>", "</think>"
COMMANDS = {
    "/image FILE": "adds a picture to the next question",
    "/video FILE": "adds a video",
    "/system TEXT": "sets the system message (without TEXT: none)",
    "/save FILE": "writes the conversation as training data (.jsonl, .parquet)",
    "/reset": "starts anew",
    "/quit": "ends",
}


class Chat:
    """One conversation with a model. Its messages and media grow with every question.

    thinks  whether the chat template opens answers with <think> (the Thinking models): answers are then the reasoning,
            </think>, and what is said
    """

    def __init__(self, model: Any, processor: Any, system: str | None = None) -> None:
        self.model, self.processor, self.system = model, processor, system
        self.thinks = Template.of(processor).thinks
        self._saved: set[Path] = set()
        self.reset()

    def reset(self) -> None:
        """Forget what was said and shown; the system message stays."""
        self.media: list[Media] = []
        self.messages: list[Message] = []

    def ask(
        self,
        question: str,
        media: Sequence[Showable] = (),
        write: Write | None = None,
        *,
        max_new_tokens: int = 512,
        sampling: Sampling = Sampling(),  # noqa: B008 (immutable)
    ) -> str:
        """The answer to `question` about `media`; `write` gets it piece by piece.

        Raises BadInput for a picture or video that cannot be read; the conversation then stands as before, as it does
        when the answer is interrupted.
        """
        shown = [*self.media, *map(showable, media)]
        parts = [Part(type=one.kind, media=len(self.media) + i) for i, one in enumerate(shown[len(self.media) :])]
        asked = Message(role="user", parts=(*parts, Part(type="text", text=question)))
        # The encoder lays out what stands before the last answer; this one is not looked at.
        sample = self._sample("chat", shown, [*self.messages, asked, says("assistant", "-")])
        answer = self._answer(encode_prompt(sample, self.processor)[0], write, max_new_tokens, sampling)
        said = says("assistant", f"{THINK}\n{answer}" if self.thinks else answer)
        self.media, self.messages = shown, [*self.messages, asked, said]
        return answer

    def save(self, file: Path) -> None:
        """Write the conversation as a data file of one sample, whose answers can be trained on.

        Pictures and videos are laid beside a .jsonl file. Raises BadInput if there is nothing to save, or the file was
        there before this conversation.
        """
        if not self.messages:
            raise BadInput(f"{file}: there is nothing to save yet; ask something first.")
        if file.exists() and file.resolve() not in self._saved:
            raise BadInput(f"{file}: is already there; name another file.")
        media = [one.model_copy(update={"origin": Path(one.origin).name if one.origin else None}) for one in self.media]
        write_samples([self._sample("", media, self.messages)], file)
        self._saved.add(file.resolve())

    def _sample(self, name: str, media: Sequence[Media], messages: Sequence[Message]) -> Sample:
        system = [says("system", self.system)] if self.system else []
        return Sample(id=name, task="chat", media=tuple(media), messages=(*system, *messages))

    @torch.inference_mode()
    def _answer(self, encoded: Encoded, write: Write | None, max_new_tokens: int, sampling: Sampling) -> str:
        tokenizer = self.processor.tokenizer
        tokens = self.model.generate(
            **inputs_of(self.model, tokenizer, [encoded]),
            **sampling.options(self.model.generation_config),
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            streamer=_Stream(tokenizer, write) if write else None,
        )
        return str(tokenizer.decode(tokens[0, len(encoded) :], skip_special_tokens=True))


def chat(
    name: str,
    question: str | None,
    images: Sequence[Path],
    videos: Sequence[Path],
    *,
    base: str | None,
    system: str | None,
    quantization: str | None,
    spread: bool,
    budgets: blocks.Media,
    max_new_tokens: int,
    sampling: Sampling,
    seed: int,
) -> None:
    """Answer one question, or hold a conversation on the terminal until it is ended."""
    # Before the model is loaded: what is wrong with them is known at once.
    media = [*(media_file(path, "image") for path in images), *(media_file(path, "video") for path in videos)]
    model, processor = load_trained(name, base, quantization=quantization, spread=spread)
    apply_media(processor, budgets)
    conversation = Chat(model, processor, system=system)
    reseed(seed, "chat")
    ask = partial(conversation.ask, max_new_tokens=max_new_tokens, sampling=sampling)
    if question is not None:
        ask(question, media, Screen(conversation.thinks))
        print()
        return
    _converse(conversation, ask, media)


def _converse(chat: Chat, ask: Callable[..., str], waiting: list[Media]) -> None:
    """`waiting` are the pictures and videos that belong to the next question."""
    if sys.stdin.isatty():  # else another program reads the answers
        print("Ask away.", ", ".join(f"{command} {what}" for command, what in COMMANDS.items()) + ".")
    while (line := _typed()) not in (None, "/quit"):
        command, _, rest = line.partition(" ")
        try:
            if command in ("/image", "/video", "/save") and not rest.strip():
                print(f"{command}: name a file.")
            elif command in ("/image", "/video"):
                file = Path(rest.strip()).expanduser()
                waiting.append(media_file(file, "image" if command == "/image" else "video"))
                print(f"({len(waiting)} for the next question)", file=sys.stderr)
            elif command == "/system":
                chat.system = rest.strip() or None
            elif command == "/save":
                chat.save(Path(rest.strip()).expanduser())
                print(f"({rest.strip()}: written)", file=sys.stderr)
            elif command == "/reset":
                chat.reset()
                waiting.clear()
            elif re.fullmatch("/[a-z]+", command):
                print(f"There is no {command}; there are {', '.join(COMMANDS)}.")
            elif line:
                _ask(chat, ask, line, waiting)
        except BadInput as error:
            print(error)


def _ask(chat: Chat, ask: Callable[..., str], question: str, waiting: list[Media]) -> None:
    screen = Screen(chat.thinks)
    try:
        ask(question, waiting, screen)
    except KeyboardInterrupt:  # the answer is broken off, the conversation goes on
        print("\n(broken off; the question does not count)")
        return
    except BadInput:
        waiting.clear()  # what cannot be read is not shown again
        raise
    print()
    waiting.clear()


def _typed() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None


class Screen:
    """Shows an answer on the terminal as it comes, its thinking dimmed."""

    def __init__(self, thinking: bool) -> None:
        self._console, self._thinking = Console(highlight=False), thinking

    def __call__(self, text: str) -> None:
        for piece in re.split(f"({THINK}|{THOUGHT})", text):
            self._thinking = self._thinking or piece == THINK
            if piece:
                style = "dim" if self._thinking else None
                self._console.out(printable(piece, "\n\t"), style=style, end="")
            self._thinking = self._thinking and piece != THOUGHT
        self._console.file.flush()


class _Stream(TextStreamer):
    """Hands text on as soon as whole words are known."""

    def __init__(self, tokenizer: Any, write: Write) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.write(text)
