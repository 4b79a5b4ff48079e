"""Reading a row of turns, as its dialect says (see `dialect`)."""

import difflib
from collections.abc import Callable
from itertools import islice
from typing import Any

from pydantic import ValidationError

from ..errors import BadSample
from ..sample import Message, Part, Region, Role, Sample, sentence
from .common import build
from .dialect import (
    CALLS,
    COLUMNS,
    LEARNED,
    PARTS,
    ROLES,
    UNREAD_IN_ROWS,
    UNREAD_IN_TURNS,
    Dialect,
    calls_of,
    is_left_out,
    says,
    usual_part,
)
from .gallery import Gallery, clip_of, is_empty
from .objects import ground
from .tags import KINDS, Kind, split
from .tools import said_call, think_text, tools_text


def read_turns(dialect: Dialect, row: Any, place: str, layout: dict[str, Any] | None = None) -> Sample:
    """The sample of one row; `layout` is kept beside what is found here. Raises BadSample."""
    try:
        return _Reader(dialect, place).read(row, layout or {})
    except ValidationError as error:
        raise BadSample("schema", sentence(error), place) from None


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
        after = self.moved(key, calls_of, fields, hint, where)
        if name in CALLS:
            parts = self.call(content, hint, where)
        elif content is None and (before or after):
            parts, hint["content"] = (), "null" if dialect.content in turn else "missing"
        else:
            parts = self.content(content, role, hint, where)
        if after and says(parts):
            after = (Part(type="text", text="\n" + (after[0].text or "")),)
        if fields:
            hint["fields"] = fields
        return Message(role=role, parts=(*before, *parts, *after), train=train, weight=weight), hint

    def learned(self, role: Role, fields: dict[str, Any], where: str) -> tuple[bool | None, float | None]:
        """Whether a turn is learned from, and with which weight; None where it does not say. The keys stay."""
        train = None
        if role == "assistant" and any(fields.get(key) is not None for key in LEARNED):
            train = not is_left_out(fields)
        for key in LEARNED:
            if role == "assistant" and fields.get(key) not in (None, False, True):
                raise self.bad(f'{where}: "{key}" is {fields[key]!r:.60}; use true or false')
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
        if not isinstance(name, str) or name not in PARTS:
            raise self.bad(f"{where}: part type {name!r:.60} is unknown; known are {', '.join(PARTS)}")
        kind, places = PARTS[name]
        keys, value = next(((keys, value) for keys in places if (value := _value(part, keys)) is not None), ((), None))
        rest = _without(part, keys)
        read: tuple[Part, ...]
        if kind == "text":
            if not isinstance(value, str):
                raise self.bad(f"{where}: no text in this {name} part")
            read = self.text(value, role, where)
            n = {"n": len(read)} if [part.type for part in read] != ["text"] else {}
            usual = not n and (keys, rest) == usual_part("text", False)
            return read, {} if usual else {"at": list(keys), "part": rest, **n}
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
        usual = (keys, rest) == usual_part(kind, self.dialect.columns is not None)
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
        unread, where = (UNREAD_IN_TURNS, f"{where}: ") if where else (UNREAD_IN_ROWS, "")
        for key, fix in unread.items():
            if fields.get(key):
                raise self.bad(f'{where}"{key}" is not read; {fix}')
        if where or self.dialect.columns is None:
            for key in COLUMNS:
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


def _similar(key: str, row: Any) -> str:
    """A hint at a key of the row that may be meant."""
    others = [other for other in islice(row, 100) if isinstance(other, str)] if isinstance(row, dict) else []
    close = difflib.get_close_matches(key, others, 1, 0.75)
    return f'; rename "{close[0]}" to it' if close else ""
