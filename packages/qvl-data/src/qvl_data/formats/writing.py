"""Writing a sample as a row of turns, as the dialect says (see `dialect`), with the hints that still fit it."""

from collections.abc import Iterator
from typing import Any

from ..errors import BadSample
from ..sample import Media, Message, Part, Sample, Video
from .common import fitting, not_expressible, unpack_extra, write_id
from .dialect import (
    CALLS,
    COLUMNS,
    LEARNED,
    PARTS,
    ROLES,
    UNREAD_IN_ROWS,
    Dialect,
    calls_of,
    is_left_out,
    says,
    usual_part,
)
from .gallery import Embedded, below, clip_of, cut_keys, is_empty, without_cut, written
from .objects import ground, unground
from .tags import KINDS, Kind, join
from .tools import said_call, think_text, tools_text


def write_turns(dialect: Dialect, sample: Sample) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row of one sample, and its layout. Raises BadSample."""
    with fitting(sample):
        return _Writer(dialect, sample).row()


class _Writer:
    """Writes one sample, collecting the media of its columns on the way."""

    def __init__(self, dialect: Dialect, sample: Sample) -> None:
        self.dialect, self.sample = dialect, sample
        self.fields, self.layout = unpack_extra(sample, dialect.name)
        self.used: dict[Kind, list[int]] = {kind: [] for kind in KINDS}
        self.tagged: list[int] = []

    def row(self) -> tuple[dict[str, Any], dict[str, Any]]:
        sample, dialect = self.sample, self.dialect
        if sample.edit is not None:
            raise self.cannot("an edit")
        if sample.task not in ("chat", "text"):  # would be read as a chat
            raise self.cannot(f"the task {sample.task}")
        self.check_fields()
        row = {**write_id(sample, self.layout), **self.fields}
        messages, hints = self.with_tags(row), list(self.layout.get("messages") or ())
        inserted = self.unlist_tools(messages, row) + self.system_key(messages, row)
        hints = [{}] * (len(messages) - len(hints) if inserted else 0) + hints
        if len(hints) != len(messages):  # turns came or went: which hint is whose is not known any more
            hints = [{}] * len(messages)
        self.unplace(messages)
        turns = [self.turn(message, hint) for message, hint in zip(messages, hints, strict=True)]
        row |= self.columns(row)
        self.cut(row)
        return {**row, dialect.messages: turns}, self.layout

    def with_tags(self, row: dict[str, Any]) -> list[Message]:
        """The messages, with tags in place of regions and the objects beside them if they still are what was read."""
        messages = list(self.sample.messages)
        if not (objects := self.layout.get("objects")):
            return messages
        tagged = unground(messages, self.layout["grounded"])
        pictures = [part.media for m in tagged for part in m.parts if part.type == "image" and part.media is not None]
        grounded, regions, _ = ground(tagged, objects, pictures, self.sample.place)
        if grounded != messages or tuple(regions) != self.sample.regions:
            return messages
        row["objects"] = objects
        return tagged

    def unlist_tools(self, messages: list[Message], row: dict[str, Any]) -> bool:
        """Take the list of tools out of the system turn; returns whether a turn was there for it alone and still is."""
        if not (tools := self.layout.get("tools")):
            return False
        told = tools_text(tools)
        if messages and messages[0].role == "system" and messages[0].parts:
            *parts, last = messages[0].parts
            if parts and last.text == "\n\n" + told:
                messages[0] = messages[0].model_copy(update={"parts": tuple(parts)})
                row["tools"] = tools
                return False
            if not parts and last.text == told:
                del messages[0]
                row["tools"] = tools
                return False
        return True

    def system_key(self, messages: list[Message], row: dict[str, Any]) -> bool:
        """Take the system turn out of the messages; returns whether it came from the key and still is there."""
        if self.layout.get("system") != "key" and not self.dialect.system:
            return False
        parts = messages[0].parts if messages and messages[0].role == "system" else ()
        text = self.joined(parts) if self.dialect.columns is not None or _is_only_text(parts) else ""
        if not text:
            return True
        row["system"] = text
        del messages[0]
        return False

    def unplace(self, messages: list[Message]) -> None:
        """Take the media that nothing showed out of the first user turn."""
        placed = self.layout.get("placed") or ()
        first = next((i for i, message in enumerate(messages) if message.role == "user"), None)
        if not placed or first is None:
            return
        parts = messages[first].parts
        leading = 0
        while leading < len(parts) and parts[leading].type in placed:
            leading += 1
        everywhere = [part for message in messages for part in message.parts if part.type in placed]
        if len(everywhere) != leading:
            return
        for part in parts[:leading]:
            self.use(part)
        messages[first] = messages[first].model_copy(update={"parts": parts[leading:]})

    def turn(self, message: Message, hint: dict[str, Any]) -> dict[str, Any]:
        dialect, fields = self.dialect, dict(hint.get("fields", {}))
        name = hint.get("role", dialect.roles[message.role])
        name = name if ROLES.get(name) == message.role and name not in CALLS else dialect.roles[message.role]
        parts = message.parts
        row: dict[str, Any] = {}
        if (raw := hint.get("reasoning_content")) and parts and parts[0].text == think_text(raw):
            parts, row["reasoning_content"] = parts[1:], raw
        for key in ("tool_calls", "function_call"):
            raw = hint.get(key)
            if raw and parts and parts[-1].text == ("\n" if says(parts[:-1]) else "") + calls_of(raw):
                parts, row[key] = parts[:-1], raw
        if "said" in hint and len(parts) == 1 and parts[0].text == said_call(hint["said"]):
            name, content = hint["role"], {dialect.content: hint["said"]}
        else:
            content = self.content(message, parts, hint, optional=bool(row))
        return {dialect.role: name, **content, **row, **self.learned(message, fields)}

    def learned(self, message: Message, fields: dict[str, Any]) -> dict[str, Any]:
        """The other keys of a turn, among them whether it is learned from, as the message has it."""
        if message.role != "assistant":
            return fields
        said = not is_left_out(fields), fields.get("weight")
        if said == (message.train is not False, message.weight):
            return fields
        fields = {key: value for key, value in fields.items() if key not in (*LEARNED, "weight")}
        if message.train is False:
            fields |= {"loss": False} if self.dialect.loss == "loss" else {"weight": 0}
        elif message.weight is not None:
            fields["weight"] = message.weight
        if self.dialect.loss is None and {"loss", "weight"} & fields.keys():
            raise self.cannot("which turns are learned from")
        return fields

    def content(
        self, message: Message, parts: tuple[Part, ...], hint: dict[str, Any], optional: bool
    ) -> dict[str, Any]:
        dialect = self.dialect
        form = hint.get("content", dialect.usual(parts))
        if form in ("null", "missing"):
            if optional and not parts:
                return {dialect.content: None} if form == "null" else {}
            form = dialect.usual(parts)
        if form == "string" and (dialect.columns is not None or _is_only_text(parts)):
            if message.role == "assistant" and any(part.media is not None for part in parts):
                raise self.cannot("a picture in an answer")
            return {dialect.content: self.joined(parts)}
        if not dialect.lists:
            raise self.cannot("a list of parts")
        return {dialect.content: list(self.listed(parts, hint.get("parts") or ()))}

    def joined(self, parts: tuple[Part, ...]) -> str:
        """Parts as one text, with tags for what goes into the columns."""
        for part in parts:
            if part.type == "regions":
                raise self.cannot("regions")
            self.use(part)
        if self.dialect.columns is None:
            return "".join(part.text or "" for part in parts)
        return join((part.type, part.text) for part in parts)

    def use(self, part: Part) -> None:
        """Note that a part is shown from the columns, where nothing but the row says how a video is cut."""
        if part.media is not None and part.type in ("image", "video"):
            self.used[part.type].append(part.media)
            self.tagged += [part.media] if part.type == "video" else []

    def listed(self, parts: tuple[Part, ...], hints: Any) -> Iterator[dict[str, Any]]:
        """Parts as a list, with hints if they fit."""
        if sum(hint.get("n", 1) for hint in hints) != len(parts):
            hints = [{}] * len(parts)
        at = 0
        for hint in hints:
            group = parts[at : at + hint.get("n", 1)]
            at += len(group)
            yield self.part(group, hint)

    def part(self, parts: tuple[Part, ...], hint: dict[str, Any]) -> dict[str, Any]:
        columns = self.dialect.columns is not None
        kind: Any = "text" if "n" in hint else parts[0].type
        if kind == "regions":
            raise self.cannot("regions")
        keys, rest = (tuple(hint["at"]), hint["part"]) if hint.get("at") is not None else usual_part(kind, columns)
        if PARTS.get(rest.get("type") or keys[0], ("",))[0] != kind:
            keys, rest = usual_part(kind, columns)
        row = dict(rest)
        if kind == "text":
            return _with(row, keys, self.joined(parts) if columns else parts[0].text)
        index = parts[0].media or 0
        media = self.sample.media[index]
        if kind == "video":
            inherited = self.cut_of(self.fields) if not keys and columns else None
            if (self.cut_of(row) or inherited) != _cut(media):
                if inherited and not cut_keys(media.video):
                    raise self.cannot("a whole video beside fields of a cut one")
                row = {**without_cut(row), **cut_keys(media.video)}
        if not keys and columns:
            self.used[parts[0].type].append(index)  # type: ignore[index]
            return row
        return _with(row, keys, self.written(index, hint.get("cell"), self.dialect.embedded or "url"))

    def columns(self, row: dict[str, Any]) -> dict[str, Any]:
        """The columns into which something goes; paths as `data_path` has them, which is dropped where it cannot be."""
        if self.dialect.columns is None:
            return {}
        columns: dict[str, Any] = {}
        shortened: dict[str, Any] = {}
        base = row.get("data_path") if self.dialect.data_path else None
        base = base if isinstance(base, str) else ""
        for kind in KINDS:
            if not (used := self.used[kind]):
                continue
            hint = self.layout.get(kind) or {}
            key = hint.get("key", self.dialect.columns[kind])
            form = hint.get("form", "list" if key.endswith("s") else "one")
            cells = hint.get("cells") or []
            cells = cells if len(cells) == len(used) else [None] * len(used)
            values = [self.written(index, cell, self.dialect.embedded) for index, cell in zip(used, cells, strict=True)]
            short = below(values, base, cells) if base else None
            alone = len(values) == 1 and form == "one" and not isinstance(values[0], list)  # frames
            columns[key] = values[0] if alone else values
            shortened[key] = short[0] if short is not None and alone else short
        if None not in shortened.values():
            return shortened
        if base:
            row.pop("data_path", None)
        return columns

    def cut(self, row: dict[str, Any]) -> None:
        """Say in the row how its videos are cut, where no part says it."""
        cuts = {_cut(self.sample.media[index]) for index in self.tagged}
        if not cuts or cuts == {self.cut_of(row)}:
            return
        if len(cuts) > 1 or self.cut_of(row) is not None:
            raise self.cannot("videos that are cut in different ways")
        row |= cut_keys(next(iter(cuts)))

    def cut_of(self, fields: dict[str, Any]) -> Video | None:
        return clip_of(fields, self.sample.place, f"sample {self.sample.id}")

    def check_fields(self) -> None:
        """Refuse fields of another format that this one would read as something else."""
        for key in (self.dialect.messages, "system", *COLUMNS, *UNREAD_IN_ROWS):
            if self.fields.get(key) and not (key in COLUMNS and is_empty(self.fields[key])):
                raise self.cannot(f'the field "{key}" of its original')
        if self.fields.get("tools") and tools_text(self.fields["tools"]):
            raise self.cannot('the field "tools" of its original')

    def written(self, index: int, cell: Any, embedded: str | None) -> Any:
        try:
            return written(self.sample, index, cell, embedded)
        except Embedded:
            raise self.cannot("an embedded picture") from None

    def cannot(self, what: str) -> BadSample:
        return not_expressible(self.dialect.name, what, self.sample)


def _is_only_text(parts: tuple[Part, ...]) -> bool:
    return all(part.type == "text" for part in parts)


def _cut(media: Media) -> Video | None:
    """How a video is cut, whatever it is made of."""
    cut = media.video and media.video.model_copy(update={"frames": None})
    return cut if cut and cut != Video() else None


def _with(rest: dict[str, Any], keys: tuple[str, ...], value: Any) -> dict[str, Any]:
    return {**rest, keys[0]: {**rest[keys[0]], keys[1]: value} if len(keys) == 2 else value}
