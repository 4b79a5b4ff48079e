"""A sample as the tokens, labels and pixels that Qwen3-VL is trained on.

The processor's own chat template lays the conversation out; token ids equal `processor.apply_chat_template(messages,
tokenize=True)`. What is learned from follows from the turns: only the template can write `<|im_start|>` and
`<|im_end|>`, because special tokens typed in the data's text are cut into ordinary tokens. So the k-th assistant turn
in the tokens is the k-th assistant message, and its labels cover the answer and its `<|im_end|>`, nothing else.

No torch and no transformers are imported here; the processor is handed in.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.encoded import IGNORE, Encoded

from .errors import BadSample, TooLong
from .media import media_name
from .sample import Media, Message, Sample

START, END, ANSWER = "<|im_start|>", "<|im_end|>", "assistant\n"
_SHORTEN = "raise batch.max_length, make its pictures smaller (media.max_pixels), or set batch.too_long to drop or cut"
Size = Callable[[int], tuple[int, int]]  # media index -> width, height


def encode(
    sample: Sample,
    processor: Any,
    *,
    max_length: int | None = None,
    too_long: Literal["error", "drop", "cut"] = "error",
    train_on: Literal["all", "last"] = "all",
    images: Sequence[Image.Image | None] | None = None,
) -> Encoded:
    """Tokens, labels and pixels of one sample; `processor` is a transformers Qwen3VLProcessor.

    max_length  longest result in tokens. What is longer raises TooLong (`error`, `drop`: the caller tells them apart),
                or loses its oldest exchanges (`cut`: the system turn stays, media are never cut; a last exchange that
                is still too long raises TooLong)
    train_on    learn from all assistant turns, or from the last one
    images      opened RGB pictures, one for each entry of sample.media; default: the sample opens them itself

    Raises BadSample (also: pictures that cannot be opened, counts that do not match, nothing to learn from).
    """
    with _placed(sample):
        pictures = _Pictures(sample, images)
        messages = sample.messages
        trained = _trained(messages, train_on)
        layout = _lay_out(sample, messages, trained, processor, pictures.size)
        while max_length is not None and len(layout.ids) > max_length:
            shorter = _without_oldest(messages) if too_long == "cut" else None
            if shorter is None:
                problem = f"sample {sample.id}: {len(layout.ids)} tokens is over the limit of {max_length}; {_SHORTEN}"
                raise TooLong("too_long", problem)
            messages = shorter
            layout = _lay_out(sample, messages, _trained(messages, train_on), processor, pictures.size)
        if not any(layout.learn):
            problem = f"sample {sample.id}: no assistant turn to learn from; add an answer or remove the sample"
            raise BadSample("nothing_to_learn", problem)
        return _encoded(sample, layout, processor, pictures)


def prompt(
    sample: Sample, processor: Any, *, images: Sequence[Image.Image | None] | None = None
) -> tuple[Encoded, str]:
    """The conversation up to its last answer, generation prompt included, and that answer's text. Raises BadSample."""
    with _placed(sample):
        answers = [index for index, message in enumerate(sample.messages) if message.role == "assistant"]
        if not answers:
            raise BadSample("no_answer", f"sample {sample.id}: no assistant turn to compare an answer with; add one")
        if answers[-1] == 0:
            raise BadSample("no_question", f"sample {sample.id}: nothing stands before the answer; add a user turn")
        pictures = _Pictures(sample, images)
        before = sample.messages[: answers[-1]]
        layout = _lay_out(sample, before, [False] * len(before), processor, pictures.size, generate=True)
        return _encoded(sample, layout, processor, pictures), sample.messages[answers[-1]].text


def length(sample: Sample, processor: Any) -> int:
    """`len(encode(sample, processor))` without decoding a pixel: from the text and the pictures' headers."""
    opener = sample.opener
    with _placed(sample):
        trained = _trained(sample.messages, "all")
        return len(_lay_out(sample, sample.messages, trained, processor, lambda i: opener.size(sample.media[i])).ids)


@dataclass(frozen=True)
class _Layout:
    """Token ids with media placeholders expanded, whether each is learned, its type, and the media in order."""

    ids: list[int]
    learn: list[bool]
    types: list[int]
    images: list[int]
    videos: list[int]

    def put(self, ids: list[int], kind: int = 0, learned: bool = False) -> None:
        self.ids.extend(ids)
        self.types.extend([kind] * len(ids))
        self.learn.extend([learned] * len(ids))


class _Template:
    """What is fixed for one processor: its special tokens, how it opens an answer, and the tokens of short texts."""

    def __init__(self, processor: Any) -> None:
        self.source = processor.chat_template
        self._tokenizer = processor.tokenizer
        self._known: dict[str, list[int]] = {}
        added = self._tokenizer.added_tokens_decoder.items()
        self.special = {token.content: index for index, token in added if token.special}
        self.ids = frozenset(self.special.values())
        longest_first = sorted(self.special, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)))
        question = [{"role": "user", "content": "?"}]
        asked = processor.apply_chat_template(question, tokenize=False)
        opened = processor.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
        opening = opened.removeprefix(asked).removeprefix(START)
        if not {START, END} <= set(self.special) or not opening.startswith(ANSWER) or self.pattern.search(opening):
            raise BadInput(f"the chat template does not open answers with {START}assistant; use Qwen3-VL's own.")
        self._openings = (opening, ANSWER)  # that of the Thinking models goes on with <think>, but not in earlier turns

    @staticmethod
    def of(processor: Any) -> "_Template":
        known = _templates.get(processor)
        if known is None or known.source is not processor.chat_template:
            known = _templates[processor] = _Template(processor)
        return known

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
        """How many of an answer's first tokens are its opening, which the model is given and does not learn."""
        start = next(opening for opening in self._openings if text.startswith(opening))
        opening = self.tokens([start])[0]
        if ids[: len(opening)] == opening:
            return len(opening)
        same = next(i for i, token in enumerate(opening) if ids[i] != token)
        return same + 1  # the token that straddles the border belongs to the opening


_templates: WeakKeyDictionary[Any, _Template] = WeakKeyDictionary()


def _lay_out(
    sample: Sample, messages: Sequence[Message], trained: list[bool], processor: Any, size: Size, generate: bool = False
) -> _Layout:
    """The tokens of `messages`; with `generate`, followed by the opening of an answer."""
    template = _Template.of(processor)
    pieces = _render(messages, processor, template, generate)
    parts = [part for message in messages for part in message.parts if part.media is not None]
    images = [part.media for part in parts if part.type == "image" and part.media is not None]
    videos = [part.media for part in parts if part.type == "video" and part.media is not None]
    media = {processor.image_token: iter(images), processor.video_token: iter(videos)}
    flags = [learn for message, learn in zip(messages, trained, strict=True) if message.role == "assistant"]
    answers = iter(flags + [False] * generate)
    layout = _Layout([], [], [], images, videos)

    opens = learn = False  # whether the next text opens a turn; whether this turn is learned from
    for piece, ids in pieces:
        if piece in media:
            for block, kind in _media_tokens(sample, _next(media[piece], "media"), processor, template, size):
                layout.put(block, kind)
        elif piece in template.special:
            layout.put(ids, learned=learn and piece == END)
            opens, learn = piece == START, learn and piece != END
        elif opens and piece.startswith(ANSWER):
            learn = _next(answers, "answers")
            given = template.given(piece, ids)
            layout.put(ids[:given])
            layout.put(ids[given:], learned=learn)
            opens = False
        else:
            layout.put(ids, learned=learn)
            opens = False

    for waiting, what in ((answers, "answers"), *((waiting, "media") for waiting in media.values())):
        if next(waiting, None) is not None:
            raise BadSample("template", f"the chat template shows fewer {what} than sample {sample.id} has")
    return layout


def _next(waiting: Iterator[Any], what: str) -> Any:
    for value in waiting:
        return value
    raise BadSample("template", f"the chat template shows more {what} than the conversation has")


def _render(
    messages: Sequence[Message], processor: Any, template: _Template, generate: bool
) -> list[tuple[str, list[int]]]:
    """The conversation as the template writes it: special tokens, and the texts between them, each with its ids."""
    chat, mark = _chat(messages, template.pattern)
    try:
        written = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=generate)
    except Exception as error:  # jinja2's errors, and whatever the template itself raises
        raise BadSample("template", f"the chat template refuses this conversation: {error}") from None
    pieces = [piece for piece in re.split(f"({template.pattern.pattern})", written) if piece]
    texts = [piece.replace(mark, "") if mark else piece for piece in pieces if piece not in template.special]
    tokens = template.tokens(texts)
    if mark and not template.ids.isdisjoint(token for ids in tokens for token in ids):
        raise BadSample("special_token", "special tokens typed in the text cannot be kept apart; remove them")
    between = iter(zip(texts, tokens, strict=True))
    return [(piece, [template.special[piece]]) if piece in template.special else next(between) for piece in pieces]


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
            if part.type == "regions":
                raise BadSample("regions", "parts of type regions cannot be encoded yet; write them out as text")
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


def _media_tokens(
    sample: Sample, index: int, processor: Any, template: _Template, size: Size
) -> Iterator[tuple[list[int], int]]:
    """What stands for one picture or video in the tokens, as blocks of (ids, type)."""
    media = sample.media[index]
    try:
        if media.kind == "image":
            width, height = size(index)
            patches = processor.image_processor.get_number_of_image_patches(height, width, {})
            yield [processor.image_token_id] * (patches // processor.image_processor.merge_size**2), 1
            return
        video = processor.video_processor
        frames, fps = _frames(media)
        width, height = size(frames[0])
        patches = video.get_num_of_video_patches(len(frames), height, width)
    except ValueError as error:  # extreme aspect ratios, a single frame
        raise BadSample("media_size", f"the processor refuses this {media.kind}: {error}", media_name(media)) from None
    group = video.temporal_patch_size
    times = [i / fps for i in range(len(frames))]
    times += times[-1:] * (-len(frames) % group)
    middles = [(times[i] + times[i + group - 1]) / 2 for i in range(0, len(times), group)]
    pads = [processor.video_token_id] * (patches // len(middles) // video.merge_size**2)
    for stamp in template.tokens([f"<{middle:.1f} seconds>" for middle in middles]):
        yield [*stamp, template.special[processor.vision_start_token]], 0
        yield pads, 2
        yield [template.special[processor.vision_end_token]], 0


def _frames(media: Media) -> tuple[tuple[int, ...], float]:
    """Frames of a video by media index, and how many of them make a second."""
    if media.video is None or media.video.frames is None:
        problem = "is a video file; give its frames as pictures (`video.frames`) until qvl-data reads video files"
        raise BadSample("video_file", problem, media_name(media))
    if media.video.fps is None:
        raise BadSample("video_fps", "a video given as frames needs `fps`, the frames per second", media_name(media))
    return media.video.frames, media.video.fps


class _Pictures:
    """The pictures of a sample, each opened once."""

    def __init__(self, sample: Sample, given: Sequence[Image.Image | None] | None) -> None:
        if given is not None and len(given) != len(sample.media):
            raise BadSample(
                "media_count", f"{len(given)} opened pictures for {len(sample.media)} media; give one for each"
            )
        self._sample = sample
        self._opened = {i: picture for i, picture in enumerate(given or ()) if picture is not None}

    def __getitem__(self, index: int) -> Image.Image:
        if index not in self._opened:
            self._opened[index] = self._sample.opener.open(self._sample.media[index])
        return self._opened[index]

    def size(self, index: int) -> tuple[int, int]:
        return self[index].size


def _encoded(sample: Sample, layout: _Layout, processor: Any, pictures: _Pictures) -> Encoded:
    ids = np.array(layout.ids, np.int64)
    images = videos = image_grid = video_grid = None
    if layout.images:
        done = processor.image_processor([pictures[index] for index in layout.images])
        images, image_grid = _arrays(done["pixel_values"], done["image_grid_thw"])
    if layout.videos:
        clips, metadata = [], []
        for index in layout.videos:
            frames, fps = _frames(sample.media[index])
            clips.append(_clip([pictures[frame] for frame in frames], sample.media[index]))
            metadata.append({"total_num_frames": len(frames), "fps": fps, "frames_indices": list(range(len(frames)))})
        done = processor.video_processor(clips, video_metadata=metadata, do_sample_frames=False)
        videos, video_grid = _arrays(done["pixel_values_videos"], done["video_grid_thw"])
    return Encoded(
        id=sample.id,
        ids=ids,
        labels=np.where(np.array(layout.learn, bool), ids, IGNORE),
        types=np.array(layout.types, np.int64),
        images=images,
        image_grid=image_grid,
        videos=videos,
        video_grid=video_grid,
    )


def _clip(frames: list[Image.Image], media: Media) -> NDArray[np.uint8]:
    """(T, H, W, 3)"""
    if len({frame.size for frame in frames}) > 1:
        raise BadSample("video_frames", "the frames of a video must have one size; resize them", media_name(media))
    return np.stack([np.asarray(frame) for frame in frames])


def _arrays(pixels: Any, grid: Any) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    return np.asarray(pixels, np.float32), np.asarray(grid, np.int64)


def _trained(messages: Sequence[Message], train_on: str) -> list[bool]:
    """Which messages are learned from."""
    trained = [message.trained for message in messages]
    if train_on == "last" and any(trained):
        last = max(index for index, learn in enumerate(trained) if learn)
        trained = [index == last for index in range(len(trained))]
    for message, learn in zip(messages, trained, strict=True):
        if learn and any(part.media is not None for part in message.parts):
            raise BadSample(
                "media_in_answer", "an answer holds a picture, which Qwen3-VL cannot write; set its `train` to false"
            )
        if learn and message.weight not in (None, 1):
            raise BadSample("weight", f"an answer has weight {message.weight:g}; only 0 and 1 are supported")
    return trained


def _without_oldest(messages: Sequence[Message]) -> tuple[Message, ...] | None:
    """The conversation without its oldest exchange (from one user turn up to the next); None if only one is left."""
    system = [message for message in messages[:1] if message.role == "system"]
    body = messages[len(system) :]
    following = (i for i in range(1, len(body)) if body[i].role == "user" and body[i - 1].role != "user")
    start = next(following, None)
    return None if start is None else (*system, *body[start:])


@contextmanager
def _placed(sample: Sample) -> Iterator[None]:
    """Name the sample in every BadSample that passes through."""
    try:
        yield
    except BadSample as error:
        raise error.at(sample.meta.locator or "", sample.id) from None
