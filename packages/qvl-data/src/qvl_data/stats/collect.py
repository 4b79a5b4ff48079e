"""The figures of one step of samples, and how those of several steps become one."""

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..dataset import Dataset
from ..errors import BadSample
from ..media import Opener, locate
from ..sample import CHATS, Media, Sample
from ..tokens import Images
from ..walk import Step
from .script import script
from .sketch import Distribution, Tally

_IMAGES = Images()
_STARTS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
LONGEST = 200
"""Characters of an answer that are kept; longer ones are told apart by a hash of the rest."""


@dataclass
class Collector:
    """Figures by name, collected from `sets`."""

    sets: Mapping[str, Dataset]
    processor: Any = None
    numbers: defaultdict[str, Distribution] = field(default_factory=lambda: defaultdict(Distribution))
    counts: defaultdict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    texts: "array[int]" = field(default_factory=lambda: array("Q"))
    """A hash of the text of each sample."""

    def collect(self, step: Step) -> "Collector":
        """The figures of the samples of one step alone."""
        part = Collector({})
        data = self.sets[step.split]
        for index in range(step.start, step.end):
            try:
                sample = data.outline(index)
            except BadSample as error:
                part.counts["unread"].add(error.reason)
                continue
            part.counts["split"].add(step.split)
            part.add(sample, self.processor)
        return part

    def merge(self, other: "Collector") -> None:
        for name, distribution in other.numbers.items():
            self.numbers[name].merge(distribution)
        for name, tally in other.counts.items():
            self.counts[name].merge(tally)
        self.texts.extend(other.texts)

    def add(self, sample: Sample, processor: Any) -> None:
        self.counts["task"].add(sample.task)
        self.counts["dataset"].add(sample.meta.dataset or "(not said)")
        self.counts["license"].add(sample.meta.license or "(not said)")
        self.numbers["regions"].add(len(sample.regions))
        for region in sample.regions:
            self.counts["region_label"].add(shortened(region.label or "(none)"))
        self._text(sample)
        self._media(sample)
        if processor is not None and sample.task in CHATS:
            self._tokens(sample, processor)

    def _text(self, sample: Sample) -> None:
        self.numbers["turns"].add(len(sample.messages))
        # An answer of regions alone is none in words.
        worded = [m for m in sample.messages if m.text or all(part.type != "regions" for part in m.parts)]
        said = [(message.role, message.text) for message in worded]
        if sample.edit is not None:
            said += [("user", text) for text in sample.edit.instruction.values()]
        asked = 0
        for role, text in said:
            self.counts["role"].add(role)
            if role == "assistant":
                self.numbers["answer_characters"].add(len(text))
                self.counts["answer"].add(shortened(text))
                self.counts["first_word"].add(shortened(text.split(maxsplit=1)[0] if text.strip() else ""))
            else:
                asked += len(text)
        self.numbers["question_characters"].add(asked)
        whole = "\n".join(f"{role}: {text}" for role, text in said)
        self.counts["script"].add(script("\n".join(text for _, text in said)))
        digest = hashlib.blake2b(whole.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self.texts.frombytes(digest)

    def _media(self, sample: Sample) -> None:
        frames = {frame for media in sample.media if media.video for frame in media.video.frames or ()}
        images = [i for i, media in enumerate(sample.media) if media.kind == "image" and i not in frames]
        self.numbers["images"].add(len(images))
        self.numbers["videos"].add(sum(media.kind == "video" for media in sample.media))
        tokens = 0
        for index in images:
            try:
                tokens += self._picture(sample, sample.media[index])
            except BadSample as error:
                self.counts["unread"].add(error.reason)
        if images:
            self.numbers["sample_image_tokens"].add(tokens)

    def _picture(self, sample: Sample, media: Media) -> int:
        """Tokens of a picture; its figures are added."""
        width, height = sample.opener.size(media)
        self.numbers["width"].add(width)
        self.numbers["height"].add(height)
        self.numbers["megapixels"].add(float(f"{width * height / 1e6:.3g}"))
        self.numbers["aspect"].add(round(max(width, height) / min(width, height), 2))
        kind, length = file_of(media, sample.opener)
        self.counts["picture_format"].add(kind)
        if length:
            self.numbers["picture_bytes"].add(length)
        try:
            tokens = _IMAGES.tokens(width, height)
        except ValueError:
            raise BadSample("media_size", "an aspect ratio that Qwen3-VL does not take") from None
        self.numbers["image_tokens"].add(tokens)
        return tokens

    def _tokens(self, sample: Sample, processor: Any) -> None:
        from ..chat import length

        try:
            self.numbers["tokens"].add(length(sample, processor))
        except BadSample as error:
            self.counts["unread"].add(error.reason)


def file_of(media: Media, opener: Opener) -> tuple[str, int]:
    """Format of a picture's file by its first bytes, and its length (0: embedded, and not read).

    What is embedded in a table is not read; then the format is what the sample states. Raises BadSample.
    """
    if media.bytes:
        return _format(media.bytes[:12]), len(media.bytes)
    if media.path is None:
        return (media.mime or "not stated").removeprefix("image/").upper(), 0
    path = locate(media.path, opener.root, opener.allow_root)
    with path.open("rb") as file:
        return _format(file.read(12)), path.stat().st_size


def _format(head: bytes) -> str:
    if head[8:12] == b"WEBP":
        return "WEBP"
    return next((name for start, name in _STARTS.items() if head.startswith(start)), "other")


def shortened(text: str) -> str:
    """A text that takes little memory and is still told apart from others."""
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}… ({hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=4).hexdigest()})"
