"""What was said about samples: accepted, rejected, a comment. Kept in a file that only grows, a line at a time.

A line is on disk before it counts, so that nothing is lost when the machine goes down. The last line about a sample
holds.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from qvl_core.errors import BadInput
from qvl_core.files import writing

Verdict = Literal["accept", "reject", ""]
COMMENT = 10_000
"""Most characters of a comment."""


@dataclass(frozen=True)
class Mark:
    """What is said about sample `index`, whose id was `id`; `mark` is empty while nothing is decided."""

    index: int
    id: str
    mark: Verdict = ""
    comment: str = ""


class Marks:
    """The marks of one data file, by sample number; kept in `file`.

    Raises BadInput if the file holds something else.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._marks: dict[int, Mark] = {}
        for number, line in enumerate(self._lines(), start=1):
            try:
                mark = _read(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise BadInput(f"{file}:{number}: is no mark ({error}); move the file away or mend it.") from None
            self._marks[mark.index] = mark

    def __getitem__(self, index: int) -> Mark:
        return self._marks.get(index, Mark(index, ""))

    def __iter__(self) -> Iterator[Mark]:
        return (self._marks[index] for index in sorted(self._marks))

    def set(self, mark: Mark) -> None:
        """Append one line and sync it."""
        line = json.dumps(asdict(mark), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        with writing(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        self._marks[mark.index] = mark

    def counts(self) -> dict[str, int]:
        """Samples accepted, rejected and commented on."""
        found = Counter(mark.mark for mark in self._marks.values())
        said = sum(bool(mark.comment) for mark in self._marks.values())
        return {"accept": found["accept"], "reject": found["reject"], "comment": said}

    def _lines(self) -> list[bytes]:
        """All lines; one that was cut off while it was written is removed."""
        data = self.file.read_bytes() if self.file.is_file() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with writing(self.file), self.file.open("rb+") as file:
                file.truncate(len(whole))
        return whole.splitlines()


def _read(data: Any) -> Mark:
    if not isinstance(data, dict) or set(data) != {"index", "id", "mark", "comment"}:
        raise ValueError("it needs index, id, mark and comment")
    index, identity, verdict, comment = (data[key] for key in ("index", "id", "mark", "comment"))
    if type(index) is not int or index < 0:
        raise ValueError("its index is no number of a sample")
    if not isinstance(identity, str) or not isinstance(comment, str):
        raise ValueError("its id and comment are texts")
    if verdict not in ("accept", "reject", ""):
        raise ValueError("its mark is accept, reject or nothing")
    return Mark(index, identity, verdict, comment)
