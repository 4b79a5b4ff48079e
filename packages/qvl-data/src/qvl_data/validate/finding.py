"""What a validation finds: a reason code, where, in which sample, and one sentence with the fix."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import BadSample, Severity, severity


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth a look.

    reason    code, one of `errors.REASONS`
    problem   one sentence with the fix; names the file inside the sample, where there is one
    place     `file:line` of the sample; the file alone for what concerns all of it
    id        of the sample; empty if it could not be read
    split     split of the sample
    index     number of the sample in its split, from 0; -1 for what concerns the whole file
    """

    reason: str
    problem: str
    place: str
    id: str = ""
    split: str = ""
    index: int = -1

    @staticmethod
    def of(error: BadSample, place: str, sample_id: str, split: str, index: int) -> "Finding":
        """What was found in a sample. The place of its sample is not repeated in the sentence."""
        told = str(error).removeprefix(f"{place}: ")
        return Finding(error.reason, told, place, sample_id or error.sample_id, split, index)

    @property
    def severity(self) -> Severity:
        return severity(self.reason)

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}"

    def to_dict(self) -> dict[str, Any]:
        return {"severity": self.severity, **asdict(self)}


def to_line(finding: Finding) -> bytes:
    """One line of findings.jsonl."""
    return json.dumps(finding.to_dict(), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def read_findings(file: Path) -> Iterator[Finding]:
    """The findings of a findings.jsonl, in its order."""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            fields = json.loads(line)
            del fields["severity"]
            yield Finding(**fields)


def write_findings(findings: Iterable[Finding], file: Path) -> None:
    with file.open("wb") as out:
        out.writelines(map(to_line, findings))
