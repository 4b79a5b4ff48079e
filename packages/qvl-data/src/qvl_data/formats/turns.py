"""The one reader and the one writer of chats as lists of turns; each format is a `Dialect` of them.

    {"messages": [{"role": ..., "content": text or parts}, ...], "images": [...]}          role and content
    {"conversations": [{"from": ..., "value": text}, ...], "image": ...}                   from and value

What the sample has no field for (other keys, how a thing was spelt, where it stood) is kept in `extra.layout` and
`extra.fields`. A hint is used only if it still fits the sample: `read(write(sample))` says what the sample says.

    layout: {"messages": [hint of each turn], "image": hint of the column, "system": ..., "tools": ..., "placed": [...],
             "objects": as they stood, "grounded": where texts with their tags stood}
    turn:   {"role": as it was spelt, "fields": other keys, "said": call as it stood, "content": string | parts | null,
             "parts": [hint of each part], "reasoning_content": ..., "tool_calls": ..., "function_call": ...}
    part:   {"at": keys of the value, "part": the rest of it, "n": parts of the sample that a text became}
"""

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from pydantic import ValidationError

from ..errors import BadSample
from ..sample import Media, Message, Part, Region, Role, Sample, Video, sentence
from .common import build, not_expressible, unpack_extra, write_id
from .gallery import Embedded, Gallery, below, clip_of, cut_keys, is_empty, without_cut, written
from .objects import ground, unground
from .tags import KINDS, Kind, join, split
from .tools import calls_text, said_call, think_text, tools_text

ROLES: dict[str, Role] = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt", "bard", "bing"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "observation", "function", "tool_response", "function_response", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
}
_CALLS = ("function_call", "tool_call")
_COLUMNS = ("image", "images", "video", "videos")
_SOUND = dict.fromkeys(("audio", "audios"), "sound is not supported")
_UNREAD_IN_ROWS = {"functions": 'rename it to "tools"', **_SOUND}
_UNREAD_IN_TURNS = dict.fromkeys(("reasoning", "thinking"), 'rename it to "reasoning_content"') | _SOUND
# type of a part -> what it becomes, and the keys under which its value may stand
_PARTS: dict[str, tuple[Literal["text", "image", "video"], tuple[tuple[str, ...], ...]]] = {
    "text": ("text", (("text",),)),
    "input_text": ("text", (("text",),)),
    "output_text": ("text", (("text",),)),
    "image_url": ("image", (("image_url", "url"), ("image_url",))),
    "input_image": ("image", (("image_url",),)),
    "image": ("image", (("image",), ("path",), ("url",), ("image_url", "url"), ("image_url",))),
    "video": ("video", (("video",), ("path",), ("url",))),
}
PART_TYPES = tuple(_PARTS)


@dataclass(frozen=True)
class Dialect:
    """What tells one format of turns from another."""

    name: str
    messages: str = "messages"
    role: str = "role"
    content: str = "content"
    roles: dict[Role, str] = field(
        default_factory=lambda: {role: role for role in ("system", "user", "assistant", "tool")}
    )
    """How a role is written."""
    columns: dict[Kind, str] | None = None
    """Columns that media are written to, shown by tags and by parts without a value; None: media stand in the parts."""
    lists: bool = True
    """Whether content may be a list of parts."""
    usual: Callable[[tuple[Part, ...]], Literal["string", "parts"]] = lambda parts: "string"
    """Whether content is written as a text or as parts."""
    place_first: bool = False
    """Whether media that nothing shows come first in the first user turn, instead of being an error."""
    loss: Literal["weight", "loss"] | None = None
    """Key that says which turns are learned from."""
    embedded: Literal["cell", "url"] | None = None
    """How embedded media are written: `{bytes, path}`, a data URL, or not at all."""
    system: bool = False
    """Whether the system turn is written as a key of the row, wherever it stood."""
    objects: bool = False
    """Whether `objects` hold the names and boxes that tags in the texts stand for."""
    data_path: bool = False
    """Whether the paths of a row start from its `data_path`."""


def is_chat(row: Any, messages: str, role: str) -> bool:
    """Whether a row has a list of turns under this key, the first of which names its role under that."""
    turns = row.get(messages) if isinstance(row, dict) else None
    return isinstance(turns, list) and bool(turns) and all(isinstance(turn, dict) and role in turn for turn in turns)


def read_turns(dialect: Dialect, row: Any, place: str, layout: dict[str, Any] | None = None) -> Sample:
    """The sample of one row; `layout` is kept beside what is found here. Raises BadSample."""
    try:
        return _Reader(dialect, place).read(row, layout or {})
    except ValidationError as error:
        raise BadSample("schema", sentence(error), place) from None


def write_turns(dialect: Dialect, sample: Sample) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row of one sample, and its layout. Raises BadSample."""
    with fitting(sample):
        return _Writer(dialect, sample).row()


@contextmanager
def fitting(sample: Sample) -> Iterator[None]:
    """Turn what a layout that was tampered with breaks into an error of the sample."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        problem = f"`extra.layout` does not fit the sample ({type(error).__name__}: {error}); remove it"
        raise BadSample("layout", problem, sample.place, sample.id) from None


class _Reader:
    """Reads one row, collecting its media on the way."""

    def __init__(self, dialect: Dialect, place: str) -> None:
        self.dialect, self.place = dialect, place
        self.gallery = Gallery(place)

    def read(self, row: Any, layout: dict[str, Any]) -> Sample:
        dialect = self.dialect
        if not isinstance(row, dict) or not isinstance(row.get(dialect.messages), list):
            raise self.bad(f'expected an object with a list "{dialect.messages}"{_similar(dialect.messages, row)}')
        self.refuse_unread(row, "")
        layout = dict(layout)
        taken = {dialect.messages}
        if dialect.columns is not None:
            base = row.get("data_path") if dialect.data_path else None
            self.gallery.base = base if isinstance(base, str) else ""
            keys, columns = self.gallery.columns(row, dialect.columns)
            taken |= keys
            layout |= columns
        messages, hints = [], []
        if isinstance(system := row.get("system"), str) and system:
            messages.append(Message(role="system", parts=self.text(system, "system", '"system"')))
            layout["system"] = "key"
            taken.add("system")
        elif system:
            raise self.bad('"system" is no text')
        for index, turn in enumerate(row[dialect.messages]):
            message, hint = self.turn(turn, f"{dialect.messages}[{index}]")
            messages.append(message)
            hints.append(hint)
        if row.get("tools") and (tools := self.said(tools_text, row["tools"], '"tools"')):
            self.list_tools(messages, tools)
            layout["tools"] = row["tools"]
            taken.add("tools")
        if [message.role for message in messages[:2]] == ["system"] * 2 and "system" in layout:
            raise self.bad('"system" is given, and a system turn too; keep one')
        if placed := self.place_first(messages):
            layout["placed"] = placed
        regions: list[Region] = []
        if dialect.objects and row.get("objects"):
            pictures = self.gallery.waiting["image"]
            messages, regions, stood = ground(messages, row["objects"], pictures, self.place)
            layout |= {"objects": row["objects"], "grounded": stood}
            taken.add("objects")
        if any(hints):
            layout["messages"] = hints
        fields = {key: value for key, value in row.items() if key not in taken}
        media = self.gallery.media
        return build(dialect.name, self.place, row, fields, layout, media, messages, regions=tuple(regions))

    def turn(self, turn: Any, where: str) -> tuple[Message, dict[str, Any]]:
        dialect = self.dialect
        if not isinstance(turn, dict):
            raise self.bad(f'{where} is no object with "{dialect.role}" and "{dialect.content}"')
        name, content = turn.get(dialect.role), turn.get(dialect.content)
        if not isinstance(name, str) or name not in ROLES:
            known = ", ".join(dict.fromkeys(dialect.roles.values()))
            similar = _similar(dialect.role, turn) if name is None else ""
            raise self.bad(f'{where}: "{dialect.role}" is {name!r:.60}; use one of {known}{similar}')
        role = ROLES[name]
        fields = {key: value for key, value in turn.items() if key not in (dialect.role, dialect.content)}
        self.refuse_unread(fields, where)
        hint: dict[str, Any] = {"role": name} if name != dialect.roles[role] else {}
        train, weight = self.learned(role, fields, where)
        before = self.moved("reasoning_content", think_text, fields, hint, where)
        key = "tool_calls" if fields.get("tool_calls") else "function_call"
        after = self.moved(key, _calls_of, fields, hint, where)
        if name in _CALLS:
            parts = self.call(content, hint, where)
        elif content is None and (before or after):
            parts, hint["content"] = (), "null" if dialect.content in turn else "missing"
        else:
            parts = self.content(content, role, hint, where)
        if after and _says(parts):
            after = (Part(type="text", text="\n" + (after[0].text or "")),)
        if fields:
            hint["fields"] = fields
        return Message(role=role, parts=(*before, *parts, *after), train=train, weight=weight), hint

    def learned(self, role: Role, fields: dict[str, Any], where: str) -> tuple[bool | None, float | None]:
        """Whether a turn is learned from, and with which weight; None where it does not say. The keys stay."""
        train = False if role == "assistant" and fields.get("loss", True) in (False, 0) else None
        weight = fields.get("weight")
        if weight is None:
            return train, None
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
            raise self.bad(f"{where}: weight {weight!r:.60} is no number from 0 up")
        return train, float(weight) if role == "assistant" else None

    def moved(
        self, key: str, say: Callable[[Any], str], fields: dict[str, Any], hint: dict[str, Any], where: str
    ) -> tuple[Part, ...]:
        """What a key beside the content says, as text of the turn; the key is kept as it stood."""
        if not fields.get(key):
            return ()
        hint[key] = fields.pop(key)
        return (Part(type="text", text=self.said(say, hint[key], f'{where}: "{key}"')),)

    def call(self, content: Any, hint: dict[str, Any], where: str) -> tuple[Part, ...]:
        """What a turn says that calls a function; the call is kept as it stood."""
        if not isinstance(content, str):
            raise self.bad(f"{where}: a call is the JSON text of its name and arguments")
        hint["said"] = content
        return (Part(type="text", text=self.said(said_call, content, where)),)

    def content(self, content: Any, role: Role, hint: dict[str, Any], where: str) -> tuple[Part, ...]:
        parts: tuple[Part, ...]
        if isinstance(content, str):
            form, parts = "string", self.text(content, role, where)
        elif isinstance(content, list) and self.dialect.lists:
            read = [self.part(part, role, f"{where}.{self.dialect.content}[{i}]") for i, part in enumerate(content)]
            form, parts = "parts", tuple(part for group, _ in read for part in group)
            if any(part_hint for _, part_hint in read):
                hint["parts"] = [part_hint for _, part_hint in read]
        else:
            expected = "neither a text nor a list of parts" if self.dialect.lists else "no text"
            raise self.bad(f'{where}: "{self.dialect.content}" is {expected}')
        if form != self.dialect.usual(parts):
            hint["content"] = form
        return parts

    def text(self, text: str, role: Role, where: str) -> tuple[Part, ...]:
        """A text as parts, its tags replaced by what stands in the columns."""
        if self.dialect.columns is None:
            return (Part(type="text", text=text),)
        parts = []
        for kind, said in split(text):
            if kind == "text":
                parts.append(Part(type="text", text=said))
                continue
            if role == "assistant":
                problem = f"{where} is an answer and holds <{kind}> (media_tag_in_answer)"
                problem = rf"{problem}; remove it, or write \<{kind}> for the text"
                raise BadSample("media_tag_in_answer", problem, self.place)
            if (index := self.gallery.next(kind)) is not None:  # too many are reported once all are counted
                parts.append(Part(type=kind, media=index))
        return tuple(parts) or (Part(type="text", text=""),)

    def part(self, part: Any, role: Role, where: str) -> tuple[tuple[Part, ...], dict[str, Any]]:
        """What one part of a list becomes, and what is needed for writing it back."""
        if not isinstance(part, dict):
            raise self.bad(f"{where} is no object with a type")
        name = part.get("type")
        if name is None:
            name = next((key for key in ("text", "image", "video") if part.get(key) is not None), None)
        if not isinstance(name, str) or name not in _PARTS:
            raise self.bad(f"{where}: part type {name!r:.60} is unknown; known are {', '.join(_PARTS)}")
        kind, places = _PARTS[name]
        keys, value = next(((keys, value) for keys in places if (value := _value(part, keys)) is not None), ((), None))
        rest = _without(part, keys)
        read: tuple[Part, ...]
        if kind == "text":
            if not isinstance(value, str):
                raise self.bad(f"{where}: no text in this {name} part")
            read = self.text(value, role, where)
            n = {"n": len(read)} if [part.type for part in read] != ["text"] else {}
            return read, {} if (keys, rest, n) == (*_usual("text", False), {}) else {"at": list(keys), "part": rest} | n
        video = clip_of(rest, self.place, where) if kind == "video" else None
        cell = None
        if keys:
            if isinstance(value, list) and kind == "image":
                raise self.bad(f"{where}: a list in a part of type {name}; only videos are lists (of frames)")
            index, cell = self.gallery.add(value, kind, where, video)
            read = (Part(type=kind, media=index),)
        elif self.dialect.columns is None:
            problem = f"{where}: no path or address in this {name} part"
            raise self.bad(f"{problem}; where pictures stand in a column, name the format hf (--from-format hf)")
        else:
            shown = self.gallery.next(kind, video)
            read = () if shown is None else (Part(type=kind, media=shown),)
        usual = (keys, rest) == _usual(kind, self.dialect.columns is not None)
        return read, {} if usual and cell is None else {"at": list(keys), "part": rest} | (
            {"cell": cell} if cell else {}
        )

    def list_tools(self, messages: list[Message], tools: str) -> None:
        """Put the tools at the end of the system turn, as Qwen's template does."""
        if messages and messages[0].role == "system":
            told = Part(type="text", text="\n\n" + tools)
            messages[0] = messages[0].model_copy(update={"parts": (*messages[0].parts, told)})
        else:
            messages.insert(0, Message(role="system", parts=(Part(type="text", text=tools),)))

    def place_first(self, messages: list[Message]) -> list[Kind]:
        """Check that everything in the columns is shown; kinds that nothing shows go first in the first user turn."""
        placed: list[Kind] = []
        first = next((i for i, message in enumerate(messages) if message.role == "user"), None)
        leading: list[Part] = []
        for kind in KINDS:
            there, shown = self.gallery.waiting[kind], self.gallery.shown[kind]
            if there and not shown and self.dialect.place_first:
                if any(part.type == kind for message in messages for part in message.parts) or first is None:
                    problem = f'pictures of the column "{kind}" are shown by no part, beside parts with their own'
                    problem = problem if first is not None else f'no user turn that could show "{kind}"'
                    raise BadSample("media_count", f"{problem}; add the place of each", self.place)
                leading += [Part(type=kind, media=index) for index in there]
                placed.append(kind)
            elif shown != len(there):
                raise BadSample("media_count", self.miscounted(kind, shown, len(there)), self.place)
        if leading and first is not None:
            messages[first] = messages[first].model_copy(update={"parts": (*leading, *messages[first].parts)})
        return placed

    def miscounted(self, kind: Kind, tags: int, there: int) -> str:
        key = (self.dialect.columns or {}).get(kind, kind)
        found = f"{tags} <{kind}> tag{'s' * (tags != 1)} but {there} {kind}{'s' * (there != 1)}"
        if tags > there:
            return f'{found}; add the missing {"path" if tags - there == 1 else "paths"} to "{key}" or remove a tag'
        human = self.dialect.roles["user"]
        return f'{found}; add the missing <{kind}> to a {human} turn or remove a path from "{key}"'

    def refuse_unread(self, fields: dict[str, Any], where: str) -> None:
        """Refuse keys that say something the sample would lose in silence."""
        unread, where = (_UNREAD_IN_TURNS, f"{where}: ") if where else (_UNREAD_IN_ROWS, "")
        for key, fix in unread.items():
            if fields.get(key):
                raise self.bad(f'{where}"{key}" is not read; {fix}')
        if where or self.dialect.columns is None:
            for key in _COLUMNS:
                if not is_empty(fields.get(key)):
                    fix = 'put each into the content as a part, such as {"type": "image", "image": "photos/1.jpg"}'
                    column = "" if where else ", or name the format that has columns (--from-format sharegpt, or hf)"
                    raise self.bad(f'{where}"{key}" is not read; {fix}{column}')

    def said(self, say: Callable[[Any], str], value: Any, where: str) -> str:
        try:
            return say(value)
        except ValueError as error:
            raise self.bad(f"{where} {error}") from None
        except TypeError as error:  # a table holds what JSON has no words for
            raise self.bad(f"{where} is no JSON: {error}") from None

    def bad(self, problem: str) -> BadSample:
        return BadSample(self.dialect.name, problem, self.place)


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
        self.check_fields()
        row = {**write_id(sample, self.layout), **self.fields}
        messages, hints = self.with_tags(row), list(self.layout.get("messages") or ())
        inserted = self.unlist_tools(messages, row) + self.system_key(messages, row)
        hints = [{}] * (len(messages) - len(hints) if inserted else 0) + hints
        self.unplace(messages)
        turns = [self.turn(message, hints[i] if i < len(hints) else {}) for i, message in enumerate(messages)]
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
        name = name if ROLES.get(name) == message.role and name not in _CALLS else dialect.roles[message.role]
        parts = message.parts
        row: dict[str, Any] = {}
        if (raw := hint.get("reasoning_content")) and parts and parts[0].text == think_text(raw):
            parts, row["reasoning_content"] = parts[1:], raw
        for key in ("tool_calls", "function_call"):
            raw = hint.get(key)
            if raw and parts and parts[-1].text == ("\n" if _says(parts[:-1]) else "") + _calls_of(raw):
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
        said = fields.get("loss", True) not in (False, 0), fields.get("weight")
        if said == (message.train is not False, message.weight):
            return fields
        fields = {key: value for key, value in fields.items() if key not in ("loss", "weight")}
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
            if (
                dialect.columns is not None
                and message.role == "assistant"
                and any(part.media is not None for part in parts)
            ):
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
        keys, rest = (tuple(hint["at"]), hint["part"]) if hint.get("at") is not None else _usual(kind, columns)
        if _PARTS.get(rest.get("type") or keys[0], ("",))[0] != kind:
            keys, rest = _usual(kind, columns)
        row = dict(rest)
        if kind == "text":
            return _with(row, keys, self.joined(parts) if columns else parts[0].text)
        index = parts[0].media or 0
        media = self.sample.media[index]
        if kind == "video":
            inherited = self.cut_of(self.fields) if not keys and columns else None
            if (self.cut_of(row) or inherited) != _cut(media):
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
        for kind in KINDS:
            if not (used := self.used[kind]):
                continue
            hint = self.layout.get(kind) or {}
            key = hint.get("key", self.dialect.columns[kind])
            form = hint.get("form", "list" if key.endswith("s") else "one")
            cells = hint.get("cells") or []
            cells = cells if len(cells) == len(used) else [None] * len(used)
            values = [self.written(index, cell, self.dialect.embedded) for index, cell in zip(used, cells, strict=True)]
            short = below(values, base, cells) if isinstance(base, str) and base else None
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
        columns = _COLUMNS if self.dialect.columns is not None else ()
        for key in (self.dialect.messages, "system", *columns, *_UNREAD_IN_ROWS):
            if self.fields.get(key) and not (key in columns and is_empty(self.fields[key])):
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


def _calls_of(value: Any) -> str:
    return calls_text([value] if isinstance(value, dict) else value)


def _says(parts: tuple[Part, ...]) -> bool:
    """Whether parts are more than empty texts."""
    return any(part.text != "" for part in parts)


def _is_only_text(parts: tuple[Part, ...]) -> bool:
    return all(part.type == "text" for part in parts)


def _cut(media: Media) -> Video | None:
    """How a video is cut, whatever it is made of."""
    cut = media.video and media.video.model_copy(update={"frames": None})
    return cut if cut and cut != Video() else None


def _usual(kind: str, columns: bool) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Where the value of a part stands, and the rest of it, unless a hint says otherwise."""
    if kind == "text":
        return ("text",), {"type": "text"}
    if columns:
        return (), {"type": kind}
    if kind == "image":
        return ("image_url", "url"), {"type": "image_url", "image_url": {}}
    return ("video",), {"type": "video"}


def _value(part: dict[str, Any], keys: tuple[str, ...]) -> Any:
    value: Any = part
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _without(part: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """A part without its value; `_with` puts it back."""
    rest = {key: value for key, value in part.items() if not keys or key != keys[0]}
    if len(keys) == 2:
        rest[keys[0]] = {key: value for key, value in part[keys[0]].items() if key != keys[1]}
    return rest


def _with(rest: dict[str, Any], keys: tuple[str, ...], value: Any) -> dict[str, Any]:
    return {**rest, keys[0]: {**rest[keys[0]], keys[1]: value} if len(keys) == 2 else value}


def _similar(key: str, row: Any) -> str:
    """A hint at a key of the row that may be meant."""
    others = [other for other in islice(row, 100) if isinstance(other, str)] if isinstance(row, dict) else []
    close = difflib.get_close_matches(key, others, 1, 0.75)
    return f'; rename "{close[0]}" to it' if close else ""
