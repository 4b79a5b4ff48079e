"""`qvl.sample/1`: one conversation with its pictures and videos, the form every format is read into.

The order of messages and parts is authoritative and their white space is kept. Media are named by index, so that a
picture may be shown twice. Boxes are absolute pixels of the decoded, upright picture.
"""

import base64
import binascii
import hashlib
import json
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from .errors import BadSample

if TYPE_CHECKING:
    from .media import Opener

SCHEMA = "qvl.sample/1"

Role = Literal["system", "user", "assistant", "tool"]
Task = Literal["chat", "t2i", "edit", "interleaved", "text"]
CHATS: tuple[Task, ...] = ("chat", "text", "interleaved")
"""Tasks that a chat template lays out as tokens."""


def _from_base64(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("not valid base64") from error


Bytes = Annotated[
    bytes,
    BeforeValidator(_from_base64),
    PlainSerializer(lambda value: base64.b64encode(value).decode(), return_type=str, when_used="json"),
]
Index = Annotated[int, Field(strict=True, ge=0)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class Record(BaseModel):
    """Immutable, without unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Video(Record):
    """How a video is cut, or which pictures are its frames."""

    fps: Annotated[Number, Field(gt=0)] | None = None
    """Frames per second: of the listed frames, or to take of a video file (default: the processor's)."""
    start: Annotated[Number, Field(ge=0)] | None = None
    """First second that is shown."""
    end: Annotated[Number, Field(gt=0)] | None = None
    """Last second that is shown."""
    frames: tuple[Index, ...] | None = None
    """Media indices of the frames, when the video is given as pictures."""


class Media(Record):
    """A picture or a video: exactly one of path, url, bytes (a video given as frames has none of them)."""

    kind: Literal["image", "video"]
    path: str | None = None
    """POSIX path below the media root; an absolute one is opened only below an allowed root."""
    url: str | None = None
    """Address (`http`, `https`, `file`) or `data:` URL."""
    bytes: Bytes | None = None
    """The encoded file itself; base64 in JSON."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    mime: str | None = None
    width: Annotated[int, Field(strict=True, ge=1)] | None = None
    """Pixels of the upright picture, as are those of `height`; checked when it is opened."""
    height: Annotated[int, Field(strict=True, ge=1)] | None = None
    origin: str | None = None
    """Path or URL that embedded bytes came from."""
    video: Video | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("path", "url", "bytes") if getattr(self, name) is not None]
        frames = self.video is not None and self.video.frames is not None
        if self.video is not None and self.kind != "video":
            raise ValueError('`video` belongs to media of kind "video"')
        if frames and given:
            raise ValueError(f"a video is given as frames or as `{given[0]}`, not both")
        if not frames and len(given) != 1:
            raise ValueError(f"exactly one of `path`, `url`, `bytes` must be given, found {len(given)}")
        if self.path is not None:
            check_path(self.path)
        return self


def check_path(path: str) -> None:
    """Raise ValueError unless `path` is a clean POSIX path: no `..`, backslash, NUL or empty name."""
    if not path or "\0" in path:
        raise ValueError(f"path {path!r} is empty or holds a NUL character")
    if "\\" in path:
        raise ValueError(f"path {path!r} holds a backslash; write folders with /")
    if ".." in path.split("/"):
        raise ValueError(
            f"path {path!r} leaves its folder through ..; move the file below the media root, or set --media-root to a"
            " folder above it, or write it absolute and allow its folder with --allow-root"
        )


class Part(Record):
    """A piece of a message, shown in order."""

    type: Literal["text", "image", "video", "regions"]
    text: str | None = None
    media: Index | None = None
    """Index into the sample's media."""
    regions: tuple[Index, ...] | None = None
    """Indices into the sample's regions."""
    template: str | None = None
    """How regions are written out as text."""

    @model_validator(mode="after")
    def _fields_of_its_type(self) -> Self:
        needed = {"text": "text", "image": "media", "video": "media", "regions": "regions"}[self.type]
        allowed = {needed, "template"} if self.type == "regions" else {needed}
        for name in ("text", "media", "regions", "template"):
            given = getattr(self, name) is not None
            if name == needed and not given:
                raise ValueError(f"a part of type {self.type} needs `{needed}`")
            if given and name not in allowed:
                raise ValueError(f"a part of type {self.type} has no `{name}`")
        return self


class Message(Record):
    """One turn."""

    role: Role
    parts: tuple[Part, ...]
    train: Annotated[bool, Field(strict=True)] | None = None
    """Whether an assistant turn is learned from; default: as the recipe says (data.train_on)."""
    weight: Annotated[Number, Field(ge=0)] | None = None
    """Factor of the turn's labels in the loss; 0 leaves it out."""

    @model_validator(mode="after")
    def _only_answers_are_learned(self) -> Self:
        if self.role != "assistant" and (self.train or self.weight):
            raise ValueError(
                f"only assistant turns are learned from; remove `train`/`weight` from the {self.role} turn"
            )
        return self

    @property
    def trained(self) -> bool:
        """An answer that the data does not leave out."""
        return self.role == "assistant" and self.train is not False and self.weight != 0

    @property
    def marked(self) -> bool:
        """An answer that the data itself says is learned, by `train: true` or a weight above 0."""
        return self.trained and (self.train is True or self.weight is not None)

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.parts if part.text is not None)


class Edit(Record):
    """A picture edit: sources, target, and the instruction by language (`en`, `zh`, `ko`, ...)."""

    sources: tuple[Index, ...]
    target: Index
    instruction: dict[str, str]
    inverse: dict[str, str] | None = None


class Region(Record):
    """A place in a picture, in absolute pixels of the upright picture; boxes are x1, y1, x2, y2."""

    media: Index
    kind: Literal["box", "point", "polygon"]
    xy: tuple[Number, ...]
    label: str | None = None
    score: Number | None = None
    crowd: Annotated[bool, Field(strict=True)] | None = None

    @model_validator(mode="after")
    def _coordinates(self) -> Self:
        if self.kind == "box":
            if len(self.xy) != 4:
                raise ValueError(f"a box has 4 coordinates, found {len(self.xy)}")
            x1, y1, x2, y2 = self.xy
            if x1 >= x2 or y1 >= y2:
                raise ValueError(f"box {list(self.xy)} is empty or inverted; write x1, y1, x2, y2")
        elif self.kind == "point" and len(self.xy) != 2:
            raise ValueError(f"a point has 2 coordinates, found {len(self.xy)}")
        elif self.kind == "polygon" and (len(self.xy) < 6 or len(self.xy) % 2):
            raise ValueError(f"a polygon has at least 3 pairs of coordinates, found {len(self.xy)} numbers")
        return self


class Meta(Record):
    """Where a sample comes from."""

    dataset: str | None = None
    format: str | None = None
    locator: str | None = None
    """`file:line` in the original data."""
    license: str | None = None
    url: str | None = None
    split: str | None = None


class Sample(Record):
    """One training example; see the module's docstring."""

    schema_: Literal["qvl.sample/1"] = Field(default="qvl.sample/1", alias="schema")
    id: str = ""
    """Unique in its dataset; default: a hash of the content."""
    task: Task
    media: tuple[Media, ...] = ()
    messages: tuple[Message, ...] = ()
    edit: Edit | None = None
    regions: tuple[Region, ...] = ()
    meta: Meta = Meta()
    extra: str | None = None
    """JSON object: unknown fields of the original (`fields`), hints for writing it back (`layout`), `coord_space`."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True, validate_by_alias=True)
    _opener: Any = PrivateAttr(default=None)
    _place: str = PrivateAttr(default="")

    @field_validator("extra")
    @classmethod
    def _json_object(cls, extra: str | None) -> str | None:
        try:
            sound = extra is None or isinstance(json.loads(extra), dict)
        except (ValueError, RecursionError):
            sound = False
        if not sound:
            raise ValueError("not a JSON object; correct or remove it")
        return extra

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_task(self)
        _check_references(self)
        if not self.id:
            object.__setattr__(self, "id", content_id(self))  # frozen for everyone else
        return self

    @property
    def opener(self) -> "Opener":
        """How this sample's pictures are opened (media root, limits, augmentation); set by whoever read the sample."""
        found = (self.__pydantic_private__ or {}).get("_opener")  # `self._opener` takes ten times as long
        if found is None:
            from .media import Opener

            return Opener()
        opener: Opener = found
        return opener

    @property
    def place(self) -> str:
        """Where it was read (`data/train.jsonl:12`), for error messages; empty if it was not read from a file."""
        return self._place

    def read_from(self, opener: "Opener", place: str) -> Self:
        """The same sample, its pictures opened by `opener`, its errors naming `place`."""
        sample = self.model_copy()
        sample._opener, sample._place = opener, place
        return sample

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, without empty fields."""
        return self.model_dump(mode="json", exclude_none=True, exclude_defaults=False)


def read_sample(data: Any, place: str = "") -> Sample:
    """Validate one JSON object of `qvl.sample/1`; errors name the place and the field."""
    if not isinstance(data, dict):
        raise BadSample("schema", f"a sample is a JSON object, found {type(data).__name__}", place)
    try:
        return Sample.model_validate(data)
    except ValidationError as error:
        identity = data.get("id")
        raise BadSample("schema", sentence(error), place, identity if isinstance(identity, str) else "") from None


def sentence(error: ValidationError) -> str:
    """The first problem of a validation, with the field it is about."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = re.sub(r"\.(\d+)", r"[\1]", ".".join(str(key) for key in first["loc"]))
    problem = first["msg"].removeprefix("Value error, ")
    return f"{where}: {problem}" if where else problem


def content_id(sample: Sample) -> str:
    """`sha256:<32 hex>` of what the sample says (not of where it comes from).

    Media count by the hash of their bytes where those are at hand (embedded, or a given sha256), else by path or URL.
    """
    content = sample.model_dump(mode="json", exclude_none=True, exclude={"id", "meta", "extra", "media"})
    content["media"] = [
        {
            "kind": media.kind,
            "source": media.sha256
            or (hashlib.sha256(media.bytes).hexdigest() if media.bytes is not None else media.path or media.url),
            "video": media.video.model_dump() if media.video else None,
        }
        for media in sample.media
    ]
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()[:32]


def _check_references(sample: Sample) -> None:
    used: set[int] = set()

    def use(index: int, where: str, kind: str | None = "image") -> None:
        if index >= len(sample.media):
            raise ValueError(f"{where} names media {index}, but there are {len(sample.media)}")
        if kind is not None and sample.media[index].kind != kind:
            raise ValueError(f"{where} names media {index} as {kind}, but it is {sample.media[index].kind}")
        used.add(index)

    for m, message in enumerate(sample.messages):
        for p, part in enumerate(message.parts):
            where = f"messages[{m}].parts[{p}]"
            if part.media is not None:
                use(part.media, where, part.type)
            for region in part.regions or ():
                if region >= len(sample.regions):
                    raise ValueError(f"{where} names region {region}, but there are {len(sample.regions)}")
    for r, place in enumerate(sample.regions):
        use(place.media, f"regions[{r}]")
    for i, media in enumerate(sample.media):
        for frame in (media.video and media.video.frames) or ():
            use(frame, f"media[{i}].video.frames")
    if sample.edit is not None:
        for source in sample.edit.sources:
            use(source, "edit.sources")
        use(sample.edit.target, "edit.target")
    if unused := sorted(set(range(len(sample.media))) - used):
        raise ValueError(f"media {unused[0]} is shown nowhere; add a part for it or remove it")


def _check_task(sample: Sample) -> None:
    """The declared task must fit the content; it is never guessed."""
    shown = [part.type for message in sample.messages for part in message.parts]
    drawn = [part.type for message in sample.messages if message.role == "assistant" for part in message.parts]
    if (sample.task == "edit") != (sample.edit is not None):
        raise ValueError("task `edit` and the field `edit` belong together")
    if sample.task != "edit" and not sample.messages:
        raise ValueError(f"task `{sample.task}` needs messages")
    if sample.task == "text" and sample.media:
        raise ValueError("task `text` has no media; use `chat`")
    if sample.task == "t2i" and "image" not in drawn:
        raise ValueError("task `t2i` needs a picture in an assistant turn")
    if sample.task == "interleaved" and not {"image", "video"} & set(shown):
        raise ValueError("task `interleaved` needs pictures among the text")
