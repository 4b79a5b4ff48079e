"""Errors about one sample. Each carries a reason code, so that callers can count and list what they leave out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Self

from qvl_core.errors import BadInput

if TYPE_CHECKING:
    from .sample import Sample

REASONS = {
    "alpaca": "a row that is not sound in the format alpaca",
    "coco": "a row that is not sound in the format coco",
    "column": "a column that is not there",
    "coordinates": "coordinates in a text that cannot be read in their space",
    "data_file": "a data file, or a part of it, that cannot be read at all",
    "data_url": "a data: URL that is no sound base64",
    "duplicate_id": "an id that an earlier sample has",
    "duplicate_sample": "the same text and pictures as an earlier sample of the split",
    "edit": "a row that is not sound in the format edit",
    "edit_shape": "a picture of an edit that would be stretched too far",
    "edit_unchanged": "an edit whose target is the same picture as a source",
    "empty_answer": "an answer without text",
    "empty_question": "a user turn, or an instruction, without text and pictures",
    "flat": "a row that is not sound in the format flat",
    "format": "a row in no known format",
    "hf": "a row that is not sound in the format hf",
    "image_animated": "a picture of several frames where these are refused",
    "image_format": "no picture, or one of a kind that is not read",
    "image_too_large": "a picture over the limit of pixels or bytes",
    "image_truncated": "a picture that is cut off or damaged",
    "json": "a line that is not strict JSON in UTF-8, too long, or nested too deep",
    "kodoc": "a row that is not sound in the format kodoc",
    "layout": "layout hints that do not fit their sample",
    "license_missing": "samples that state no licence",
    "llava": "a row that LLaVA's scripts do not take",
    "lost_characters": "text with U+FFFD, left by a wrong encoding",
    "media_columns": "two columns of media where one is needed",
    "media_count": "tags and media that do not match in number",
    "media_in_answer": "a picture in an answer that is to be learned",
    "media_kind": "a video where a picture is needed, or the other way round",
    "media_missing": "a file that is not there or cannot be read",
    "media_path": "a path that leaves the media root, or is no regular file",
    "media_remote": "an address; data is never fetched while it is read",
    "media_root": "a relative path without a media root",
    "media_size": "a picture or video that the processor refuses for its shape",
    "media_stated_size": "a picture or video that has not the size that the sample states",
    "media_tag_in_answer": "an <image> or <video> tag in an answer",
    "media_tag_in_text": "an <image> or <video> tag that is plain text",
    "media_value": "something else where a picture or video should be",
    "metaquery": "a row that is not sound in the format metaquery",
    "mimic": "a row that is not sound in the format mimic",
    "mmc4": "a row that is not sound in the format mmc4",
    "no_answer": "a conversation without an answer where one is needed",
    "no_caption": "a picture without a caption",
    "no_instruction": "an edit, or text to image, without a text that says something",
    "no_question": "an answer without a question",
    "no_regions": "a picture without a box to ask about",
    "not_expressible": "a sample that the target format has no words for",
    "nothing_to_learn": "no answer that is learned from",
    "obelics": "a row that is not sound in the format obelics",
    "omnicorpus": "a row that is not sound in the format omnicorpus",
    "omniedit": "a row that is not sound in the format omniedit",
    "openai": "a row that is not sound in the format openai",
    "qwenvl": "a row that is not sound in the format qwenvl",
    "region_beyond": "a region that reaches over the border of its picture",
    "region_empty": "a region without area",
    "region_outside": "a box, point or polygon of which nothing lies in its picture",
    "regions": "regions that cannot be written out",
    "report_missing": "a study without a report",
    "report_section": "a report without the section that is asked for",
    "report_views": "a study without the views that are asked for",
    "schema": "a sample that is not sound qvl.sample/1",
    "sharegpt": "a row that is not sound in the format sharegpt",
    "special_token": "special tokens typed in the text that cannot be kept apart",
    "special_token_in_text": "special tokens such as <|im_start|> typed in the text; they are taken for text",
    "split_leak": "a picture, or a whole sample, that also stands in another split",
    "table": "a row of a table with too few or too many cells, an unclosed quote, or text that is no UTF-8",
    "tar_double": "a key or a member that comes twice in a tar archive",
    "tar_member": "a member of a tar archive that is a link or a device, leads out of it, or is of a kind not read",
    "template": "a conversation that the chat template refuses",
    "too_long": "more tokens than the limit",
    "unexpected": "a sample at which a check itself failed; please report it",
    "video_count": "a video file that holds more or fewer frames than it states",
    "video_cut": "a start and end between which a video shows nothing",
    "video_format": "no video file, or one of a kind that is not read",
    "video_fps": "a video, or frames, without a frame rate",
    "video_frames": "a video without frames, or with frames of different sizes",
    "video_stream": "a video file that holds only sound",
    "video_too_large": "a video file over the limit of bytes, frames, seconds or pixels",
    "video_truncated": "a video file that is cut off or damaged",
    "wds": "a row that is not sound in the format wds",
}
"""Every reason code with what it means; `validate` counts by them, and the documentation lists them. Sorted."""

Severity = Literal["error", "warning", "note"]
SEVERITY: dict[str, Severity] = {
    "duplicate_sample": "warning",
    "edit_unchanged": "warning",
    "empty_question": "warning",
    "license_missing": "note",
    "lost_characters": "warning",
    "media_tag_in_text": "warning",
    "no_question": "warning",
    "region_beyond": "warning",
    "special_token_in_text": "warning",
    "split_leak": "warning",
}
"""Reason codes that are no error: the sample can be used, but is seldom meant that way."""


def severity(reason: str) -> Severity:
    """How bad a reason is: `error` (the sample cannot be used), `warning` or `note`."""
    return SEVERITY.get(reason, "error")


class BadSample(BadInput):
    """One sample cannot be used.

    reason     code to count by (`image_truncated`, `media_count`, `too_long`, ...)
    problem    one sentence: what is wrong and how to fix it
    place      where it stands (`data.jsonl:1204`, or a file name); empty while unknown
    sample_id  id of the sample; empty while unknown
    """

    def __init__(self, reason: str, problem: str, place: str = "", sample_id: str = "") -> None:
        super().__init__(reason, problem, place, sample_id)  # all arguments, so that the error survives pickling
        self.reason, self.problem, self.place, self.sample_id = reason, problem, place, sample_id

    def __str__(self) -> str:
        sentence = self.problem if self.problem.endswith((".", "?")) else f"{self.problem}."
        return f"{self.place}: {sentence}" if self.place else sentence

    def at(self, place: str, sample_id: str) -> Self:
        """The same error with its sample named: the place goes in front of the file that is already named."""
        if self.sample_id:
            return self
        where = ": ".join(part for part in (place, self.place) if part)
        return type(self)(self.reason, self.problem, where, sample_id)


class TooLong(BadSample):
    """A sample is longer than the limit; under `too_long: drop` the caller leaves it out and counts it."""


@contextmanager
def placed(sample: "Sample") -> Iterator[None]:
    """Name the sample in every BadSample that passes through."""
    try:
        yield
    except BadSample as error:
        raise error.at(sample.place or sample.meta.locator or "", sample.id) from None
