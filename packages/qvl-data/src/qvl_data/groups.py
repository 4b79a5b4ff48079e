"""Rows that are lists of rows, as the `pack_data.py` of Qwen's fine-tuning scripts packs short conversations together.

    [{"image": "a.jpg", "conversations": [...]}, {"image": "b.jpg", "conversations": [...]}]

Each member is a sample of its own; which were packed together stays in its place (`packed.jsonl:7 (row 2 of 3)`, kept
in `meta.locator`), so that a writer of lines can group them again.
"""

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import BadSample
from .sample import Sample

if TYPE_CHECKING:
    from . import json_lines
    from .dataset import Rows

_MEMBER = re.compile(r" \(row \d+ of \d+\)$", re.ASCII)


SEARCHED = 100
"""Rows among which a group is looked for."""


def unpacked(rows: "json_lines.Rows") -> "Rows":
    """The rows of a file, or their members if one of the first is a group; only then the whole file is read."""
    return Members(rows) if any(_starts_group(rows, number) for number in range(min(len(rows), SEARCHED))) else rows


def _starts_group(rows: "json_lines.Rows", number: int) -> bool:
    try:
        return rows.begins_list(number) and _is_group(rows[number])
    except BadSample:  # told by whoever reads it
        return False


def group_of(sample: Sample, format: str) -> str | None:
    """What the members of one group have in common when they are written in the format they were read from."""
    locator = sample.meta.locator or ""
    return locator[: found.start()] if sample.meta.format == format and (found := _MEMBER.search(locator)) else None


class Members:
    """The members of all groups by number; a row that is no group, or an empty one, is a row like any other."""

    format: str | None = None

    def __init__(self, groups: "Rows") -> None:
        self._groups = groups
        self._counts = np.array([self._count(number) for number in range(len(groups))], np.int64)  # 0: no group
        self._ends = np.maximum(self._counts, 1).cumsum()
        self._last: tuple[int, Any] = (-1, None)  # members are mostly read one after the other

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Any:
        number, member = self._find(index)
        held, row = self._last  # taken together: another thread may be at another group
        if held != number:
            row = self._groups[number]
            self._last = number, row
        return row[member] if self._counts[number] else row

    def outline(self, index: int) -> Any:
        """The row; in a line nothing can be skipped."""
        return self[index]

    def raw(self, index: int) -> bytes | None:
        """A row that is no group as it stands in the file; None for a member, which is no line of its own."""
        number, _ = self._find(index)
        raw: bytes | None = None if self._counts[number] else getattr(self._groups, "raw", lambda _: None)(number)
        return raw

    def place(self, index: int) -> str:
        number, member = self._find(index)
        place, count = self._groups.place(number), int(self._counts[number])
        return f"{place} (row {member + 1} of {count})" if count else place

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": (-1, None)}

    def _find(self, index: int) -> tuple[int, int]:
        """Number of the group, and of the member in it."""
        number = int(np.searchsorted(self._ends, index, "right"))
        return number, index - int(self._ends[number - 1] if number else 0)

    def _count(self, number: int) -> int:
        try:
            group = self._groups[number]
        except BadSample:  # told by whoever reads it
            return 0
        return len(group) if isinstance(group, list) else 0


def _is_group(row: Any) -> bool:
    """Whether a row is a list of chats (not one of turns, which are objects too)."""
    return (
        isinstance(row, list)
        and bool(row)
        and all(
            isinstance(member, dict) and any(isinstance(member.get(key), list) for key in ("conversations", "messages"))
            for member in row
        )
    )
