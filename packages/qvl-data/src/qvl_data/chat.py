"""A sample as the tokens, labels and pixels that Qwen3-VL is trained on.

The processor's own chat template lays the conversation out; token ids equal `processor.apply_chat_template(messages,
tokenize=True)`. What is learned from follows from the turns: only the template can write `<|im_start|>` and
`<|im_end|>`, because special tokens typed in the data's text are cut into ordinary tokens. So the k-th assistant turn
in the tokens is the k-th assistant message, and its labels cover the answer and its `<|im_end|>`, nothing else.

No torch and no transformers are imported here; the processor is handed in.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qvl_core.qwen3vl.encoded import IGNORE, Encoded

from .clips import Pictures, Shown
from .errors import BadSample, TooLong, placed
from .grounding import as_text, space_of
from .sample import Message, Sample
from .template import ANSWER, END, START, Template
from .tokens import check_frames, check_ratio

_SHORTEN = "raise batch.max_length, make its pictures smaller (media.max_pixels), or set batch.too_long to drop or cut"


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
    with placed(sample):
        pictures = Pictures(sample, processor, images)
        sample = as_text(sample, space_of(processor), pictures.size)
        messages = sample.messages
        trained = _trained(messages, train_on)
        layout = _lay_out(sample, messages, trained, processor, pictures)
        while max_length is not None and len(layout.ids) > max_length:
            shorter = _without_oldest(messages) if too_long == "cut" else None
            if shorter is None:
                problem = f"sample {sample.id}: {len(layout.ids)} tokens is over the limit of {max_length}; {_SHORTEN}"
                raise TooLong("too_long", problem)
            messages = shorter
            layout = _lay_out(sample, messages, _trained(messages, train_on), processor, pictures)
        if not any(layout.learn):
            problem = f"sample {sample.id}: no assistant turn to learn from; add an answer or remove the sample"
            raise BadSample("nothing_to_learn", problem)
        return _encoded(sample, layout, processor, pictures)


def prompt(
    sample: Sample, processor: Any, *, images: Sequence[Image.Image | None] | None = None
) -> tuple[Encoded, str]:
    """The conversation up to its last answer, generation prompt included, and that answer's text. Raises BadSample."""
    with placed(sample):
        answers = [index for index, message in enumerate(sample.messages) if message.role == "assistant"]
        if not answers:
            raise BadSample("no_answer", f"sample {sample.id}: no assistant turn to compare an answer with; add one")
        if answers[-1] == 0:
            raise BadSample("no_question", f"sample {sample.id}: nothing stands before the answer; add a user turn")
        pictures = Pictures(sample, processor, images)
        sample = as_text(sample, space_of(processor), pictures.size)
        before = sample.messages[: answers[-1]]
        layout = _lay_out(sample, before, [False] * len(before), processor, pictures, generate=True)
        return _encoded(sample, layout, processor, pictures), sample.messages[answers[-1]].text


def length(sample: Sample, processor: Any) -> int:
    """`len(encode(sample, processor))` without decoding a pixel: from the text and the headers of media."""
    return sizes(sample, processor)[0]


def sizes(sample: Sample, processor: Any) -> tuple[int, int]:
    """`length`, and how many of those tokens stand for pictures and frames."""
    with placed(sample):
        shown = Shown(sample, processor)
        sample = as_text(sample, space_of(processor), shown.size)
        layout = _lay_out(sample, sample.messages, _trained(sample.messages, "all"), processor, shown)
        return len(layout.ids), sum(kind != 0 for kind in layout.types)


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


def _lay_out(
    sample: Sample,
    messages: Sequence[Message],
    trained: list[bool],
    processor: Any,
    shown: Shown,
    generate: bool = False,
) -> _Layout:
    """The tokens of `messages`; with `generate`, followed by the opening of an answer."""
    if not messages:
        hint = "qvl-edit and qvl-metaquery train on edits" if sample.edit else "remove it"
        raise BadSample("no_answer", f"sample {sample.id}: no conversation to encode; {hint}")
    template = Template.of(processor)
    parts = [part for message in messages for part in message.parts if part.media is not None]
    images = [part.media for part in parts if part.type == "image" and part.media is not None]
    videos = [part.media for part in parts if part.type == "video" and part.media is not None]
    media = {processor.image_token: iter(images), processor.video_token: iter(videos)}
    flags = [learn for message, learn in zip(messages, trained, strict=True) if message.role == "assistant"]
    answers = iter(flags + [False] * generate)
    layout = _Layout([], [], [], images, videos)

    opens = learn = False  # whether the next text opens a turn; whether this turn is learned from
    for piece, ids, special in template.render(processor, messages, generate):
        if special and piece in media:
            for block, kind in _media_tokens(_next(media[piece], "media"), processor, template, shown):
                layout.put(block, kind)
        elif special:
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


def _media_tokens(index: int, processor: Any, template: Template, shown: Shown) -> Iterator[tuple[list[int], int]]:
    """What stands for one picture or video in the tokens, as blocks of (ids, type)."""
    video = processor.video_processor
    try:
        if shown.sample.media[index].kind == "image":
            width, height = shown.size(index)
            check_ratio(width, height)
            patches = processor.image_processor.get_number_of_image_patches(height, width, {})
            yield [processor.image_token_id] * (patches // processor.image_processor.merge_size**2), 1
            return
        clip = shown.clip(index)
        check_frames(len(clip.numbers), video.temporal_patch_size)
        check_ratio(clip.width, clip.height)
        patches = video.get_num_of_video_patches(len(clip.numbers), clip.height, clip.width)
    except (ValueError, OverflowError) as error:
        raise BadSample("media_size", str(error), shown.name(index)) from None
    times = clip.times(video.temporal_patch_size)
    pads = [processor.video_token_id] * (patches // len(times) // video.merge_size**2)
    for stamp in template.tokens([f"<{time:.1f} seconds>" for time in times]):
        yield [*stamp, template.special[processor.vision_start_token]], 0
        yield pads, 2
        yield [template.special[processor.vision_end_token]], 0


def _encoded(sample: Sample, layout: _Layout, processor: Any, pictures: Pictures) -> Encoded:
    ids = np.array(layout.ids, np.int64)
    images = videos = image_grid = video_grid = None
    if layout.images:
        done = processor.image_processor([pictures[index] for index in layout.images])
        images, image_grid = _arrays(done["pixel_values"], done["image_grid_thw"])
    if layout.videos:
        clips = [pictures.pixels(index) for index in layout.videos]
        metadata = [pictures.clip(index).metadata for index in layout.videos]
        options = {"do_sample_frames": False, "input_data_format": "channels_last"}
        done = processor.video_processor(clips, video_metadata=metadata, **options)
        videos, video_grid = _arrays(done["pixel_values_videos"], done["video_grid_thw"])
    types = np.array(layout.types, np.int64)
    _check_agree(types, 1, image_grid, processor.image_processor.merge_size)
    _check_agree(types, 2, video_grid, processor.video_processor.merge_size)
    return Encoded(
        id=sample.id,
        ids=ids,
        labels=np.where(np.array(layout.learn, bool), ids, IGNORE),
        types=types,
        images=images,
        image_grid=image_grid,
        videos=videos,
        video_grid=video_grid,
    )


def _check_agree(types: NDArray[np.int64], kind: int, grid: NDArray[np.int64] | None, merge: int) -> None:
    """Raise BadSample unless as many tokens stand for the media of a kind as their pixels fill."""
    tokens, filled = int((types == kind).sum()), 0 if grid is None else int(grid.prod(axis=1).sum()) // merge**2
    if tokens != filled:
        problem = f"{tokens} tokens stand for media that fill {filled}; the processor counts otherwise than it resizes"
        raise BadSample("media_size", problem)


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
