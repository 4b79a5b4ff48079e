"""What a report is made of: plain values. How they look is decided by page.html.jinja and page.css alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Mark = Literal["good", "bad"]
Point = tuple[float, float | None]  # step, value; None where there is none


@dataclass(frozen=True)
class Text:
    """Paragraphs, separated by blank lines. A tone sets them off as a note, a success or a problem."""

    text: str
    tone: Literal["plain", "note", "good", "bad"] = "plain"


@dataclass(frozen=True)
class Code:
    """A command or a file, in monospace; long lines wrap."""

    text: str
    title: str = ""


@dataclass(frozen=True)
class Figure:
    """One headline number. With a bar it is marked as met or missed; with `at_most` the bar is an upper one."""

    label: str
    value: str | float | None
    bar: float | None = None
    chance: float | None = None
    at_most: bool = False
    note: str = ""

    @property
    def mark(self) -> Mark | None:
        if self.bar is None or not isinstance(self.value, int | float):
            return None
        return "good" if (self.value <= self.bar if self.at_most else self.value >= self.bar) else "bad"


@dataclass(frozen=True)
class Figures:
    """A row of headline numbers."""

    items: Sequence[Figure]


@dataclass(frozen=True)
class Table:
    """Rows as mappings; columns in the order given or first seen. Columns of numbers are aligned as numbers."""

    rows: Sequence[Mapping[str, Any]]
    title: str = ""
    columns: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True)
class Shape:
    """A box (x1, y1, x2, y2), a point (x, y) or a polygon (x, y, x, y, ...) drawn on a picture, and its label.

    `colour` is one of the page's, 1 to 6; by default shapes take them in turn.
    """

    kind: Literal["box", "point", "polygon"]
    xy: Sequence[float]
    label: str = ""
    colour: int | None = None
    dashed: bool = False


@dataclass(frozen=True)
class Picture:
    """A PNG or JPEG file's bytes, its caption (lines are kept), and whether what it shows is right.

    Shapes are drawn on it, by a card alone; their coordinates are pixels of a picture of `size` (width, height), which
    may be larger than what is shown.
    """

    data: bytes
    caption: str = ""
    mark: Mark | None = None
    shapes: Sequence[Shape] = ()
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Pictures:
    """A grid of pictures, each cell at least `width` CSS pixels wide. Tiny pictures are enlarged with hard edges."""

    items: Sequence[Picture]
    title: str = ""
    width: int = 112
    note: str = ""


@dataclass(frozen=True)
class Curves:
    """Named series over steps in one chart. Long series are shown smoothed, with the raw values lightly behind."""

    title: str
    series: Mapping[str, Sequence[Point]]
    x: str = "step"
    log: bool = False
    smooth: bool = True


@dataclass(frozen=True)
class Matrix:
    """Confusion matrix: counts[i][j] items of true label i were answered with label j. Extra columns may follow.

    `columns` defaults to `labels`; give more of them for answers that are no label ("other").
    """

    labels: Sequence[str]
    counts: Sequence[Sequence[int]]
    title: str = ""
    columns: Sequence[str] = ()
    rows_are: str = "true"
    columns_are: str = "answered"


@dataclass(frozen=True)
class Histogram:
    """How a number is distributed: bin i holds counts[i] values from edges[i] up to edges[i + 1]."""

    title: str
    edges: Sequence[float]
    counts: Sequence[int]
    note: str = ""


@dataclass(frozen=True)
class Bars:
    """How often each value occurs; the bars are shares of `total`, by default of the sum."""

    title: str
    rows: Sequence[tuple[str, int]]
    total: int = 0
    note: str = ""


@dataclass(frozen=True)
class Strip:
    """Frames of a video, in order."""

    frames: Sequence[Picture]
    caption: str = ""


@dataclass(frozen=True)
class Turn:
    """What one side says: texts, and the numbers (from 0) of the card's pictures that it shows between them."""

    role: str
    parts: Sequence[str | int]
    learned: bool = False


@dataclass(frozen=True)
class Card:
    """One sample: its pictures with what is drawn on them, and the conversation about them.

    With `becomes`, the last picture is what the others are to become.
    """

    title: str
    pictures: Sequence[Picture | Strip] = ()
    turns: Sequence[Turn] = ()
    tags: Sequence[str] = ()
    note: str = ""
    becomes: bool = False


@dataclass(frozen=True)
class Cards:
    """Samples beside one another."""

    items: Sequence[Card]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Token:
    """What a token spells, and what is told where the pointer rests.

    learned  factor in the loss; 0: not learned
    chip     a special token, set off from text that only spells its name
    faint    written by the template
    """

    text: str
    hint: str = ""
    learned: float = 0.0
    chip: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Said:
    """A turn as a model reads it: tokens, and pictures among them. `cut` turns are struck through."""

    role: str
    parts: Sequence[Token | Picture]
    note: str = ""
    learned: float = 0.0
    cut: bool = False


@dataclass(frozen=True)
class Transcript:
    """One sample as a model reads it, turn by turn. A problem says why it is not read at all."""

    title: str
    turns: Sequence[Said]
    tags: Sequence[str] = ()
    note: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Stacks:
    """Amounts laid end to end, each row a bar of segments; `legend` says what a colour (1 to 6) stands for.

    rows   of each bar: its name, its segments as (what it is, amount, colour), and what stands behind it
    total  what a full bar holds; default: the longest row
    """

    title: str
    rows: Sequence[tuple[str, Sequence[tuple[str, int, int]], str]]
    legend: Mapping[str, int] = field(default_factory=dict)
    total: int = 0
    note: str = ""


Block = Text | Code | Figures | Table | Pictures | Curves | Matrix | Histogram | Bars | Cards | Transcript | Stacks


@dataclass(frozen=True)
class Section:
    """A heading and its blocks. A folded section shows only its heading until it is opened."""

    title: str
    blocks: Sequence[Block]
    lead: str = ""
    folded: bool = False
