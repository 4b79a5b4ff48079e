"""What drawn pictures are worth: scorers by name, also from a --plugin file. Importing this loads no torch.

    @register_scorer("dark")
    def dark(pictures):                                  # of qvl_metaquery.scorers.Picture
        return [{"share": float(np.asarray(one.opened()).mean() < 128)} for one in pictures]

gives `dark_share`, the mean over pictures, in result.json and each picture's own in predictions.jsonl.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from qvl_core.errors import BadInput
from qvl_core.run import Scalar
from qvl_metaquery.layouts import Sheet


@dataclass(frozen=True)
class Picture:
    """A picture, and what was asked for."""

    sheet: Sheet
    place: int

    @property
    def prompt(self) -> str:
        return self.sheet.asked.text

    @property
    def record(self) -> Mapping[str, Any]:
        """The prompt's line in a JSONL file."""
        return self.sheet.asked.record

    @property
    def seed(self) -> int:
        return self.sheet.seeds[self.place]

    def opened(self) -> Image.Image:
        return self.sheet.picture(self.place)


@dataclass(frozen=True)
class Scores:
    """What a scorer found.

    each     of every picture, by name; the mean of numbers (true is 1) is a figure. Empty: nothing is said of one
    figures  of all pictures together
    """

    each: Sequence[Mapping[str, Scalar]] = ()
    figures: Mapping[str, float] = field(default_factory=dict)

    def all_figures(self) -> dict[str, float]:
        """Means over the pictures that have a number, and what was said of all."""
        numbers: dict[str, list[float]] = {}
        for one in self.each:
            for name, value in one.items():
                if isinstance(value, int | float):
                    numbers.setdefault(name, []).append(float(value))
        return {name: sum(values) / len(values) for name, values in numbers.items()} | dict(self.figures)


Scorer = Callable[[Sequence[Picture]], Scores | Sequence[Mapping[str, Scalar]]]
SCORERS: dict[str, Scorer] = {}


def register_scorer(name: str) -> Callable[[Scorer], Scorer]:
    """Make a function a scorer that --scorer can name. Raises BadInput for a taken name."""

    def register(scorer: Scorer) -> Scorer:
        if name in SCORERS:
            raise BadInput(f'the scorer "{name}" is there already; choose another name.')
        SCORERS[name] = scorer
        return scorer

    return register


def named(names: Iterable[str]) -> dict[str, Scorer]:
    """Scorers by their names. Raises BadInput for one that is not there."""
    for name in names:
        if name not in SCORERS:
            raise BadInput(
                f"--scorer {name}: there is {', '.join(SCORERS)}; register yours in a file and name it with --plugin "
                "FILE.py."
            )
    return {name: SCORERS[name] for name in names}


def scored(name: str, scorer: Scorer, pictures: Sequence[Picture]) -> Scores:
    """What a scorer says of pictures. Raises BadInput if it says something of more or fewer."""
    found = scorer(pictures)
    scores = found if isinstance(found, Scores) else Scores(found)
    if scores.each and len(scores.each) != len(pictures):
        raise BadInput(
            f"the scorer {name}: gave {len(scores.each)} scores for {len(pictures)} pictures; give one for each."
        )
    return scores
