"""A sample as the tokens, labels and pixels that Qwen3-VL is trained on.

The processor's own chat template lays the conversation out; token ids equal `processor.apply_chat_template(messages,
tokenize=True)`. What is learned from follows from the turns: only the template can write `<|im_start|>` and
`<|im_end|>`, because special tokens typed in the data's text are cut into ordinary tokens. So the k-th assistant turn
in the tokens is the k-th assistant message, and its labels cover the answer and its `<|im_end|>`, nothing else.

A Thinking checkpoint is known by its template, which opens answers with `<think>`. What is learned is what the template
shows: the reasoning of the last answer (and of the tool calls that led to it), which begins after the `<think>` that
the model is given; earlier answers without the reasoning that the template takes out of them. Where an answer has no
reasoning the template writes an empty one, which is given and not learned: it would teach the model not to reason.

No torch and no transformers are imported here; the processor is handed in.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.encoded import IGNORE, Encoded, first_media, runs

from .clips import Pictures, Shown
from .errors import BadSample, TooLong, placed
from .grounding import as_text, space_of
from .sample import Message, Sample
from .template import ANSWER, END, START, Template
from .tokens import check_frames, check_ratio

TrainOn = Literal["all", "last", "none"]

_SHORTEN = "raise batch.max_length, make its pictures smaller (media.max_pixels), or set batch.too_long to drop"
_NOTHING = (
    "no assistant turn to learn from; add an answer or remove the sample",
    "no answer is marked to be learned, and train_on is none; give one `train: true`, or set data.train_on to all",
)


def encode(
    sample: Sample,
    processor: Any,
    *,
    max_length: int | None = None,
    too_long: Literal["error", "drop", "cut"] = "error",
    train_on: TrainOn = "all",
    prompts: bool = False,
    empty_answers: bool = True,
    images: Sequence[Image.Image | None] | None = None,
    pixels_of: Encoded | None = None,
) -> Encoded:
    """Tokens, labels and pixels of one sample; `processor` is a transformers Qwen3VLProcessor.

    max_length  longest result in tokens. What is longer raises TooLong (`error`, `drop`: the caller tells them apart),
                or loses its oldest exchanges (`cut`: the system turn stays, media are never cut; if only an exchange
                that is still too long is left, or none with a learned answer, raises TooLong)
    train_on    learn from all answers, or the last one, that the data does not leave out (`train: false`, weight 0);
                `none`: only from those that it marks itself (`train: true`, or a weight above 0)
    prompts     learn the text of user and system turns before the last learned answer as well, but nothing that the
                template writes
    empty_answers
                let answers without text be learned: an end, and nothing before it
    images      opened RGB pictures, one for each entry of sample.media; default: the sample opens them itself
    pixels_of   the same conversation, or one that goes on from it, encoded before: its pixels are taken, and nothing is
                opened

    Raises BadSample (also: pictures that cannot be opened, counts that do not match, nothing to learn from).
    """
    with placed(sample):
        pictures = Pictures(sample, processor, images) if pixels_of is None else Shown(sample, processor)
        sample = as_text(sample, space_of(processor), pictures.size)
        messages = sample.messages
        weights = answer_weights(messages, train_on)
        layout = _lay_out(sample, messages, weights, processor, pictures, prompts=prompts)
        if not any(weights):
            raise BadSample("nothing_to_learn", f"sample {sample.id}: {_NOTHING[train_on == 'none']}")
        if not empty_answers:
            _check_answers(messages, weights)
        while max_length is not None and len(layout.ids) > max_length:
            shorter = _without_oldest(messages) if too_long == "cut" else None
            weights = answer_weights(shorter or (), train_on)
            if shorter is None or not any(weights):
                problem = f"sample {sample.id}: {len(layout.ids)} tokens is over the limit of {max_length}"
                mend = f", and no more can be cut; {_SHORTEN}" if too_long == "cut" else f"; {_SHORTEN} or cut"
                raise TooLong("too_long", problem + mend)
            messages = shorter
            layout = _lay_out(sample, messages, weights, processor, pictures, prompts=prompts)
        return _encoded(sample, layout, processor, pictures, pixels_of)


def prompt(
    sample: Sample,
    processor: Any,
    *,
    images: Sequence[Image.Image | None] | None = None,
    pixels_of: Encoded | None = None,
) -> tuple[Encoded, str]:
    """The conversation up to its last answer, generation prompt included, and that answer's text.

    images, pixels_of  as `encode` has them

    Raises BadSample.
    """
    with placed(sample):
        answers = [index for index, message in enumerate(sample.messages) if message.role == "assistant"]
        if not answers:
            raise BadSample("no_answer", f"sample {sample.id}: no assistant turn to compare an answer with; add one")
        if answers[-1] == 0:
            raise BadSample("no_question", f"sample {sample.id}: nothing stands before the answer; add a user turn")
        pictures = Pictures(sample, processor, images) if pixels_of is None else Shown(sample, processor)
        sample = as_text(sample, space_of(processor), pictures.size)
        before = sample.messages[: answers[-1]]
        layout = _lay_out(sample, before, [0.0] * len(before), processor, pictures, generate=True)
        return _encoded(sample, layout, processor, pictures, pixels_of), sample.messages[answers[-1]].text


def length(sample: Sample, processor: Any, train_on: TrainOn = "all") -> int:
    """`len(encode(sample, processor))` without decoding a pixel: from the text and the headers of media."""
    return sizes(sample, processor, train_on)[0]


def sizes(sample: Sample, processor: Any, train_on: TrainOn = "all") -> tuple[int, int]:
    """`length`, and how many of those tokens stand for pictures and frames."""
    with placed(sample):
        shown = Shown(sample, processor)
        sample = as_text(sample, space_of(processor), shown.size)
        layout = _lay_out(sample, sample.messages, answer_weights(sample.messages, train_on), processor, shown)
        return len(layout.ids), sum(kind != 0 for kind in layout.types)


def spans(
    sample: Sample, processor: Any, train_on: TrainOn = "all", prompts: bool = False
) -> tuple[int, list[tuple[int, int]]]:
    """`length`, and the bounds of each run of tokens that are learned, without decoding a pixel."""
    with placed(sample):
        shown = Shown(sample, processor)
        sample = as_text(sample, space_of(processor), shown.size)
        weights = answer_weights(sample.messages, train_on)
        layout = _lay_out(sample, sample.messages, weights, processor, shown, prompts=prompts)
    return len(layout.ids), runs(np.array(layout.weights) > 0)


def answer_weights(messages: Sequence[Message], train_on: TrainOn) -> list[float]:
    """Weight of each message in the loss; 0 for those that are not learned from."""
    if train_on not in get_args(TrainOn):
        raise BadInput(f"train_on {train_on!r}: must be one of {', '.join(get_args(TrainOn))}.")
    learned = [message.marked if train_on == "none" else message.trained for message in messages]
    if train_on == "last" and any(learned):
        last = max(index for index, learn in enumerate(learned) if learn)
        learned = [index == last for index in range(len(learned))]
    for message, learn in zip(messages, learned, strict=True):
        if learn and any(part.media is not None for part in message.parts):
            raise BadSample(
                "media_in_answer", "an answer holds a picture, which Qwen3-VL cannot write; set its `train` to false"
            )
    pairs = zip(messages, learned, strict=True)
    return [float(learn) * (1.0 if message.weight is None else message.weight) for message, learn in pairs]


def _check_answers(messages: Sequence[Message], weights: Sequence[float]) -> None:
    """Raise BadSample for an answer without text that would be learned: the model would learn to say nothing."""
    for number, (message, weight) in enumerate(zip(messages, weights, strict=True)):
        if weight and not message.text.strip():
            problem = f'messages[{number}] is an answer without text; give it one, or add "train": false'
            raise BadSample("empty_answer", problem)


@dataclass(frozen=True)
class _Layout:
    """Token ids with media placeholders expanded, the weight of each in the loss, its type, and the media in order."""

    ids: list[int]
    weights: list[float]
    types: list[int]
    images: list[int]
    videos: list[int]

    def put(self, ids: list[int], kind: int = 0, weight: float = 0.0) -> None:
        self.ids.extend(ids)
        self.types.extend([kind] * len(ids))
        self.weights.extend([weight] * len(ids))


def _lay_out(
    sample: Sample,
    messages: Sequence[Message],
    weights: list[float],
    processor: Any,
    shown: Shown,
    generate: bool = False,
    prompts: bool = False,
) -> _Layout:
    """The tokens of `messages`, each of which has its weight; with `generate`, followed by the opening of an answer.

    With `prompts`, the text of user and system turns up to the last learned answer weighs 1.
    """
    if not messages:
        hint = "qvl-edit and qvl-metaquery train on edits" if sample.edit else "remove it"
        raise BadSample("no_answer", f"sample {sample.id}: no conversation to encode; {hint}")
    template = Template.of(processor)
    parts = [part for message in messages for part in message.parts if part.media is not None]
    images = [part.media for part in parts if part.type == "image" and part.media is not None]
    videos = [part.media for part in parts if part.type == "video" and part.media is not None]
    media = {processor.image_token: iter(images), processor.video_token: iter(videos)}
    given = [weight for message, weight in zip(messages, weights, strict=True) if message.role == "assistant"]
    answers = iter(given + [0.0] * generate)
    layout = _Layout([], [], [], images, videos)

    learned = 0  # end of the last answer that is
    opens, weight, closing = False, 0.0, 0.0  # whether the next text opens a turn; the weight of its text and its end
    for piece, ids, special in template.render(processor, messages, generate):
        if special and piece in media:
            for block, kind in _media_tokens(_next(media[piece], "media"), processor, template, shown):
                layout.put(block, kind)
        elif special:
            layout.put(ids, weight=closing if piece == END else 0.0)
            learned = len(layout.ids) if closing and piece == END else learned
            if piece == END:
                weight = closing = 0.0
            opens = piece == START
        elif opens and piece.startswith(ANSWER):
            weight = closing = _next(answers, "answers")
            opening = template.given(piece, ids)
            layout.put(ids[:opening])
            layout.put(ids[opening:], weight=weight)
            opens = False
        elif opens and prompts and (header := template.header(piece, ids)):
            weight = 1.0
            layout.put(ids[:header])
            layout.put(ids[header:], weight=weight)
            opens = False
        else:
            layout.put(ids, weight=weight)
            opens = False

    layout.weights[learned:] = [0.0] * (len(layout.ids) - learned)
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


def _encoded(sample: Sample, layout: _Layout, processor: Any, shown: Shown, pixels_of: Encoded | None) -> Encoded:
    ids = np.array(layout.ids, np.int64)
    if pixels_of is None:
        assert isinstance(shown, Pictures)
        images, image_grid, videos, video_grid = _processed(layout, processor, shown)
    else:
        images, image_grid = first_media(pixels_of.images, pixels_of.image_grid, len(layout.images))
        videos, video_grid = first_media(pixels_of.videos, pixels_of.video_grid, len(layout.videos))
    types = np.array(layout.types, np.int64)
    weights = np.array(layout.weights, np.float32)
    _check_agree(types, 1, image_grid, processor.image_processor.merge_size)
    _check_agree(types, 2, video_grid, processor.video_processor.merge_size)
    return Encoded(
        id=sample.id,
        ids=ids,
        labels=np.where(weights > 0, ids, IGNORE),
        types=types,
        weights=None if np.isin(weights, (0, 1)).all() else weights,
        images=images,
        image_grid=image_grid,
        videos=videos,
        video_grid=video_grid,
    )


def _processed(layout: _Layout, processor: Any, pictures: Pictures) -> tuple[Any, Any, Any, Any]:
    """Pixels and grids of the pictures, and of the videos."""
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
    return images, image_grid, videos, video_grid


def _check_agree(types: NDArray[np.int64], kind: int, grid: NDArray[np.int64] | None, merge: int) -> None:
    """Raise BadSample unless as many tokens stand for the media of a kind as their pixels fill."""
    tokens, filled = int((types == kind).sum()), 0 if grid is None else int(grid.prod(axis=1).sum()) // merge**2
    if tokens != filled:
        problem = f"{tokens} tokens stand for media that fill {filled}; the processor counts otherwise than it resizes"
        raise BadSample("media_size", problem)


def _arrays(pixels: Any, grid: Any) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    return np.asarray(pixels, np.float32), np.asarray(grid, np.int64)


def _without_oldest(messages: Sequence[Message]) -> tuple[Message, ...] | None:
    """The conversation without its oldest exchange (from one user turn up to the next); None if only one is left."""
    system = [message for message in messages[:1] if message.role == "system"]
    body = messages[len(system) :]
    following = (i for i in range(1, len(body)) if body[i].role == "user" and body[i - 1].role != "user")
    start = next(following, None)
    return None if start is None else (*system, *body[start:])
