"""Chest X-ray studies of MIMIC-CXR-JPG (Johnson et al. 2019, arXiv:1901.07042) as chats that ask for the report.

    {"subject_id": "10000032", "study_id": "50414267", "split": "train", "report": "... FINDINGS: ... IMPRESSION: ...",
     "images": [{"dicom_id": "02aa804e", "ViewPosition": "PA", "path": "files/p10/.../02aa804e.jpg"}]}

`mimic_rows` makes such rows from the folder of the data set: one per study. Tables may hold the pictures themselves
(`image` or `images`, as `{bytes, path}`) and the sections in columns of their own (`findings`, `impression`).

The question shows the study's pictures, frontal views (PA, then AP) first; the answer is what the report says:

- `--map section=findings` or `section=impression` asks for that section, `section=findings+impression` (the default)
  for those of the two that are there. A report without them is refused (`report_section`), one that is not there too.
- `--map views=PA+AP` shows only these views; a study without any is refused (`report_views`).

`sections` says how reports are taken apart. Lines are joined, paragraphs kept; `___` is what was made anonymous.
"""

import re
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from qvl_core.errors import BadInput

from ..errors import BadSample
from ..sample import Message, Part, Sample
from . import register
from .cells import cells_of, pictures_in
from .columns import Columns
from .common import build, not_expressible, unpack_extra
from .fitted import fitted

QUESTIONS = {
    ("findings",): "Describe the findings of this chest X-ray study.",
    ("impression",): "Give the impression of this chest X-ray study.",
    ("findings", "impression"): "Write the findings and the impression of this chest X-ray study.",
}
LICENSE = "PhysioNet Credentialed Health Data License 1.5.0"
SPLITS = {"train": "train", "validate": "validation", "test": "test"}

_SECTIONS = ("findings", "impression")
_FRONTAL = ("PA", "AP")
_NAMES = {
    "findings": r"FINDINGS?(?: ?(?:AND|/|&) ?IMPRESSIONS?)?",
    "impression": r"IMPRESSIONS?|CONCLUSIONS?|SUMMARY|OPINION",
    "other": r"EXAM(?:INATION)?S?|STUDY|PROCEDURE|INDICATIONS?|(?:CLINICAL )?(?:HISTORY|INFORMATION|INDICATION)"
    r"|REASON FOR (?:THE )?EXAM(?:INATION)?|COMPARISONS?|REFERENCE EXAM|TECHNIQUES?|RECOMMENDATIONS?"
    r"|RECOMMENDATION\(S\)|NOTIFICATIONS?|(?:FINAL )?ADDENDUM|WET READ",
    "views": r"[A-Z0-9 ,/()&.-]*\b(?:CHEST|RADIOGRAPHS?|VIEWS?)\b[A-Z0-9 ,/()&.-]*",
}
_HEADING = re.compile(
    r"^[ \t]*(?:" + "|".join(f"(?P<{name}>{words})" for name, words in _NAMES.items()) + r")[ \t]*:", re.MULTILINE
)
_TITLES = re.compile(r"^[ \t]*(?:Findings?|Impressions?|Comparisons?|Indications?|Techniques?)[ \t]*:", re.MULTILINE)
_FINAL = re.compile(r"^[ \t_]*FINAL REPORT[ \t_]*$", re.MULTILINE)


@register("mimic")
class Mimic:
    def __init__(self, columns: Mapping[str, str] | None = None) -> None:
        options = Columns("mimic", ("section", "views"), columns).renamed
        self.sections = tuple(options.get("section", "findings+impression").split("+"))
        if self.sections not in QUESTIONS:
            known = ", ".join("+".join(names) for names in QUESTIONS)
            raise BadInput(f"--map section={'+'.join(self.sections)}: use one of {known}.")
        self.views = options["views"].split("+") if "views" in options else None

    def matches(self, row: Any) -> bool:
        if not isinstance(row, dict) or not {"image", "images"} & row.keys():
            return False
        return bool({"report", *_SECTIONS} & row.keys() and {"subject_id", "study_id", "dicom_id"} & row.keys())

    def read(self, row: Any, place: str) -> Sample:
        if not isinstance(row, dict):
            raise BadSample("mimic", f"expected an object with columns by name, found {type(row).__name__}", place)
        field = "images" if "images" in row else "image"
        cells = row.get("images", [row.get("image")])
        if not isinstance(cells, list) or not cells:
            raise BadSample("mimic", '"images" is no list of pictures', place)
        shown = self._shown(cells, row.get("ViewPosition"), place)
        said = _said(row, place)
        names = tuple(name for name in self.sections if name in said)
        if not names:
            found = f"only {', '.join(said)}" if said else "neither findings nor impression"
            problem = (
                f"no {' or '.join(self.sections)} in the report ({found}); leave the study out, or --map section=..."
            )
            raise BadSample("report_section", problem, place)
        media, layout = pictures_in([(f"{field}[{number}]", cells[number]) for number in shown], place)
        pictures = [Part(type="image", media=index) for index in range(len(shown))]
        messages = [
            Message(role="user", parts=(*pictures, Part(type="text", text=QUESTIONS[names]))),
            Message(role="assistant", parts=(Part(type="text", text=_answer(said, names)),)),
        ]
        others = {key: value for key, value in row.items() if key != field}
        layout |= {"field": field, "shown": shown, "sections": list(names)}
        layout |= {"others": {"id": others.pop("id")}} if "id" in others else {}
        if hidden := {str(number): cell for number, cell in enumerate(cells) if number not in shown}:
            layout["hidden"] = hidden
        split, study, picture = (row.get(key) for key in ("split", "study_id", "dicom_id"))
        identity = f"s{study}" if isinstance(study, (int, str)) else picture if isinstance(picture, str) else ""
        meta = {"license": LICENSE, "split": SPLITS.get(split, split) if isinstance(split, str) else None}
        return build("mimic", place, {"id": identity}, others, layout, media, messages, meta=meta)

    @fitted
    def write(self, sample: Sample) -> Any:
        fields, layout = unpack_extra(sample, "mimic")
        if "shown" not in layout:
            raise not_expressible("mimic", "a chat that was not read from it", sample)
        said, names = _said(fields, sample.place), tuple(layout["sections"])
        turns = [(message.role, message.text) for message in sample.messages]
        if turns != [("user", QUESTIONS.get(names)), ("assistant", _answer(said, names))]:
            raise not_expressible("mimic", "a question or answer that is not from the report", sample)
        cells = {int(number): cell for number, cell in layout.get("hidden", {}).items()}
        cells |= dict(zip(layout["shown"], cells_of(sample.media, layout), strict=True))
        pictures = [cells[number] for number in sorted(cells)]
        shown = {"images": pictures} if layout["field"] == "images" else {"image": pictures[0]}
        return {**fields, **layout.get("others", {}), **shown}

    def _shown(self, cells: list[Any], positions: Any, place: str) -> list[int]:
        """Numbers of the pictures to show, frontal ones first. Raises BadSample."""
        given = positions if isinstance(positions, list) else [positions] * len(cells)
        views = [
            cell.get("ViewPosition") if isinstance(cell, dict) and "ViewPosition" in cell else view
            for cell, view in zip_longest(cells, given[: len(cells)])
        ]
        numbers = [number for number, view in enumerate(views) if self.views is None or view in self.views]
        if not numbers:
            found = ", ".join(sorted({str(view) for view in views}))
            raise BadSample(
                "report_views", f"no picture of the views {', '.join(self.views or ())}; only {found}", place
            )
        rank = {view: number for number, view in enumerate(_FRONTAL)}
        return sorted(numbers, key=lambda number: rank.get(str(views[number]), len(rank)))


def sections(report: str) -> dict[str, str]:
    """The findings and the impression of a report, as far as they are there and say something.

    What counts stands after the line FINAL REPORT, if there is one. A section begins with its heading, in capitals (or
    `Findings:`), and ends at the next known heading; unknown ones, such as `LUNGS:`, belong to the text. A heading that
    only names the examination (`PA AND LATERAL VIEWS OF THE CHEST:`) begins the findings if nothing else does. Sections
    that come twice are joined. Lines are joined to paragraphs.
    """
    if final := _FINAL.search(report):
        report = report[final.end() :]
    report = _TITLES.sub(lambda title: title[0].upper(), report)
    headings = list(_HEADING.finditer(report))
    found: dict[str, list[str]] = {}
    for heading, following in zip_longest(headings, headings[1:]):
        text = _unwrapped(report[heading.end() : following.start() if following else len(report)])
        if text:
            found.setdefault(heading.lastgroup or "", []).append(text)
    found.setdefault("findings", found.get("views", []))
    return {name: "\n\n".join(found[name]) for name in _SECTIONS if found.get(name)}


def _said(row: Mapping[str, Any], place: str) -> dict[str, str]:
    """The sections of a row by name: from its report, or from columns of their own. Raises BadSample."""
    columns = {name: row.get(name) for name in ("report", *_SECTIONS)}
    for name, text in columns.items():
        if text is not None and not isinstance(text, str):
            raise BadSample("mimic", f'"{name}" is {type(text).__name__}, no text', place)
    report = columns.pop("report")
    own = {name: text.strip() for name, text in columns.items() if text is not None and text.strip()}
    if report is None and not own:
        raise BadSample("report_missing", "no report of this study; get its .txt file, or leave it out", place)
    return own or sections(report or "")


def _answer(said: Mapping[str, str], names: tuple[str, ...]) -> str:
    """The sections, under their names if there are several."""
    if len(names) == 1:
        return said.get(names[0], "")
    return "\n\n".join(f"{name.capitalize()}: {said.get(name)}" for name in names)


def _unwrapped(text: str) -> str:
    """Paragraphs of a text that was broken into lines."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n[ \t]*\n", text))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph.strip("_ "))
