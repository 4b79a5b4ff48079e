"""Data sources as one line of text, for recipes and command lines.

    digits                          a registered name, a file or a folder
    digits%50                       half of its samples: a fixed random choice
    digits%250                      each sample 2.5 times per epoch
    digits[train:1000,test:100]     1,000 samples for the train list and 100 others for the test list
    digits[validation]              a split by name
    0.5*digits + receipts*2         several sources with their weights
    'my data/a+b.jsonl'%50          a name with a space or one of + * % [ ] , is quoted ('' in it stands for ')

The text means the same as the block with the fields of `blocks.Source`.
"""

import math
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from qvl_core.errors import BadInput
from qvl_core.recipe.typed import FLOAT

LISTS = ("train", "validation", "test")

_TOKEN = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|[+*%\[\]]|[^\s+*%\[\],'"]+|.""")
_COUNT = re.compile(r"[0-9]+(_[0-9]+)*")


class BadSpec(BadInput, ValueError):
    """Text that names no sources: where it goes wrong, and how to fix it. A ValueError, so that pydantic places it."""


def parse_sources(text: str) -> list[dict[str, Any]]:
    """The fields of `blocks.Source` for each source that `text` names. Raises BadSpec."""
    return _Reader(text).sources()


def spell(source: Mapping[str, Any]) -> str:
    """The text of one source: `parse_sources(spell(s)) == [s]` for what has a text (no format, map, take ...)."""
    text = _quoted(source["source"])
    if parts := source.get("parts"):
        text += "[" + ",".join(f"{name}:{count}" for name, count in parts.items()) + "]"
    elif split := source.get("split"):
        text += f"[{_quoted(split, colon=0)}]"
    if (percent := source.get("percent")) is not None:
        text += f"%{_plain(percent)}"
    weight = source.get("weight", 1.0)
    return text if weight == 1 else f"{_plain(weight)}*{text}"


class _Reader:
    """Reads the text from left to right; `at` is the number of the next token."""

    def __init__(self, text: str) -> None:
        self.text = text
        found = [(match.group(), match.start()) for match in _TOKEN.finditer(text) if not match.group().isspace()]
        self.tokens = [token for token, _ in found]
        self.places = [place for _, place in found] + [len(text)]
        self.at = 0

    def sources(self) -> list[dict[str, Any]]:
        found = [self.source()]
        while self.take("+"):
            found.append(self.source())
        if self.at < len(self.tokens):
            raise self.wrong(self.unexpected())
        return found

    def source(self) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        weight: float | None = None
        while True:
            if (number := self.number()) is not None:
                if weight is not None:
                    raise self.wrong("a second weight; keep one, and quote a name that is a number", -1)
                weight = number
            elif fields:
                raise self.wrong("a number is missing: a weight stands before or after the name, such as 0.5*digits")
            else:
                fields = self.named()
            if not self.take("*"):
                break
        if not fields:
            raise self.wrong("the name of a source is missing (a name that is a number is quoted)")
        return fields if weight is None else {**fields, "weight": weight}

    def named(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"source": self.name("the name of a source is missing")}
        if self.take("["):
            fields |= self.parts()
        if self.take("%"):
            percent = self.number()
            if percent is None:
                raise self.wrong('a number is missing after "%", such as digits%50; quote a name that holds a "%"')
            fields["percent"] = percent
        return fields

    def parts(self) -> dict[str, Any]:
        """What stands between brackets: a split, or samples for each list."""
        parts: dict[str, int] = {}
        while True:
            first, name = self.at, self.name("the name of a split is missing")
            if not parts and (":" not in name or self.text[self.places[first]] in "'\"") and self.take("]"):
                return {"split": name}
            while self.at < len(self.tokens) and self.tokens[self.at] not in "+*%[],":  # spaces around the colon
                name += self.name("")
            name, _, count = name.partition(":")
            back = first - self.at
            if not _COUNT.fullmatch(count) or int(count) == 0:
                raise self.wrong(f'"{name}" needs a number of samples, such as [{name}:1000]', back)
            if name not in LISTS:
                near = get_close_matches(name, LISTS, 1, 0.4)
                meant = f'did you mean "{near[0]}"?' if near else f"the lists are {', '.join(LISTS)}"
                raise self.wrong(f'no list is called "{name}"; {meant}', back)
            if name in parts:
                raise self.wrong(f'"{name}" is there twice; keep one', back)
            parts[name] = int(count)
            if self.take("]"):
                return {"parts": parts}
            if not self.take(","):
                raise self.wrong('"," or "]" is missing')

    def name(self, missing: str) -> str:
        token = self.tokens[self.at] if self.at < len(self.tokens) else ""
        if token in ("", "+", "*", "%", "[", "]", ","):
            raise self.wrong(missing)
        if token in ("'", '"'):
            raise self.wrong(f"the quote {token} is not closed")
        self.at += 1
        if token[0] in "'\"":
            token = token[1:-1].replace(token[0] * 2, token[0])
            if not token:
                raise self.wrong(missing, -1)
        return token

    def number(self) -> float | None:
        if self.at < len(self.tokens) and FLOAT.fullmatch(self.tokens[self.at]):
            if not 0 < float(self.tokens[self.at]) < math.inf:
                raise self.wrong("a weight or percentage is a finite number above 0")
            self.at += 1
            return float(self.tokens[self.at - 1])
        return None

    def take(self, token: str) -> bool:
        found = self.at < len(self.tokens) and self.tokens[self.at] == token
        self.at += found
        return found

    def unexpected(self) -> str:
        token = self.tokens[self.at]
        if token == ",":
            return 'sources are joined by "+", not by ","'
        if token in ("[", "]", "%"):
            return f'"{token}" is out of place; the order is name[train:1000,test:100]%50'
        return f'"{token}" is out of place; quote a name that holds a space, or join sources by "+"'

    def wrong(self, problem: str, back: int = 0) -> BadSpec:
        """The error about the next token, or the one `back` before it."""
        stop = "" if problem.endswith("?") else "."
        return BadSpec(f'"{self.text}", position {self.places[self.at + back] + 1}: {problem}{stop}')


def _quoted(name: str, colon: int = 2) -> str:
    """The name, in quotes where it needs them; a `:` before place `colon` (C:\\data) does not."""
    is_name = _TOKEN.fullmatch(name) and name[0] not in "+*%[],'\"" and not name.isspace()
    bare = is_name and ":" not in name[colon:] and not FLOAT.fullmatch(name)
    return name if bare else "'" + name.replace("'", "''") + "'"


def _plain(number: float) -> str:
    return f"{number:.0f}" if number == int(number) and number < 1e15 else repr(float(number)).replace("e+", "e")
