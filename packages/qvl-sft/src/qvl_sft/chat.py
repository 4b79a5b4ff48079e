"""Talk to a model about pictures. The answer appears as it is written.

In a conversation, `/image FILE` adds a picture to the next question, `/reset` starts anew, `/quit` (or Ctrl-D) ends.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TextStreamer

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.training.seeds import reseed
from qvl_data.chat import prompt as encode_prompt
from qvl_data.sample import Media, Message, Part, Sample
from qvl_sft.trained import load_trained

Write = Callable[[str], None]


class Chat:
    """One conversation with a model. Its messages and pictures grow with every question."""

    def __init__(self, model: Any, processor: Any, system: str | None = None) -> None:
        self.model, self.processor, self.system = model, processor, system
        self.reset()

    def reset(self) -> None:
        self.media: list[Media] = []
        self.messages = [_says("system", self.system)] if self.system else []

    def ask(
        self,
        question: str,
        images: Sequence[Media] = (),
        write: Write | None = None,
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
    ) -> str:
        """The answer to `question` about `images`; `write` gets it piece by piece.

        temperature 0 takes the likeliest token; above 0, torch's generator decides. Raises BadInput for a picture that
        cannot be read; the conversation then stands as before.
        """
        media = [*self.media, *images]
        shown = [Part(type="image", media=index) for index in range(len(self.media), len(media))]
        asked = Message(role="user", parts=(*shown, Part(type="text", text=question)))
        answer = self._answer(self._encode(media, [*self.messages, asked]), write, max_new_tokens, temperature)
        self.media, self.messages = media, [*self.messages, asked, _says("assistant", answer)]
        return answer

    def _encode(self, media: list[Media], messages: list[Message]) -> Encoded:
        # The encoder lays out what stands before the last answer; this one is not looked at.
        messages = [*messages, _says("assistant", "-")]
        sample = Sample(id="chat", task="chat", media=tuple(media), messages=tuple(messages))
        return encode_prompt(sample, self.processor)[0]

    @torch.inference_mode()
    def _answer(self, encoded: Encoded, write: Write | None, max_new_tokens: int, temperature: float) -> str:
        tokenizer, device = self.processor.tokenizer, self.model.device
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        tokens = self.model.generate(
            **{name: tensor.to(device) for name, tensor in _inputs(encoded).items()},
            **sampling,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            streamer=_Stream(tokenizer, write) if write else None,
        )
        return str(tokenizer.decode(tokens[0, len(encoded) :], skip_special_tokens=True))


def chat(
    model: str,
    question: str | None,
    images: Sequence[Path],
    base: str | None,
    system: str | None,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> None:
    """Answer one question, or hold a conversation on the terminal until it is ended."""
    pictures = [_picture(path) for path in images]  # before the model is loaded
    conversation = Chat(*load_trained(model, base), system=system)
    reseed(seed, "chat")
    ask = partial(conversation.ask, write=_print, max_new_tokens=max_new_tokens, temperature=temperature)
    if question is not None:
        ask(question, pictures)
        print()
        return
    _converse(conversation, ask, pictures)


def _converse(conversation: Chat, ask: Callable[..., str], pictures: list[Media]) -> None:
    print("Ask away. /image FILE adds a picture, /reset starts anew, /quit ends.")
    while (line := _typed()) not in (None, "/quit"):
        try:
            if line == "/reset":
                conversation.reset()
                pictures = []
            elif line.startswith("/image "):
                pictures.append(_picture(Path(line.removeprefix("/image ").strip())))
                print(f"({len(pictures)} picture{'s' * (len(pictures) > 1)} for the next question)")
            elif line:
                ask(line, pictures)
                pictures = []
                print()
        except BadInput as error:
            print(error)
            pictures = []
        except KeyboardInterrupt:
            print()  # the answer is broken off, the conversation goes on


def _typed() -> str | None:
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        return None


class _Stream(TextStreamer):
    """Hands text on as soon as whole characters are known."""

    def __init__(self, tokenizer: Any, write: Write) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.write(text)


def _inputs(encoded: Encoded) -> dict[str, torch.Tensor]:
    arrays = {
        "input_ids": encoded.ids[None],
        "mm_token_type_ids": encoded.types[None],
        "pixel_values": encoded.images,
        "image_grid_thw": encoded.image_grid,
    }
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items() if array is not None}
    return inputs | {"attention_mask": torch.ones_like(inputs["input_ids"])}


def _says(role: str, text: str) -> Message:
    return Message.model_validate({"role": role, "parts": [{"type": "text", "text": text}]})


def _picture(path: Path) -> Media:
    if not path.is_file():
        raise BadInput(f"{path}: there is no such picture.")
    return Media(kind="image", bytes=path.read_bytes(), origin=str(path))


def _print(text: str) -> None:
    print(text, end="", flush=True)
