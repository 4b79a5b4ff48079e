"""What drawn pictures are worth: scorers by name, also from a --plugin file. Importing this loads no torch.

    SCORERS = Scorers[Picture]("--scorer")               # of a method's own kind of picture

    @SCORERS.register("dark")
    def dark(pictures):
        return [{"share": float(np.asarray(one.opened()).mean() < 128)} for one in pictures]

gives `dark_share`, the mean over pictures, in result.json and each picture's own in predictions.jsonl.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

from qvl_core.errors import BadInput
from qvl_core.run import Scalar

P = TypeVar("P")


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


Scorer: TypeAlias = Callable[[Sequence[P]], Scores | Sequence[Mapping[str, Scalar]]]


class Scorers(Generic[P]):
    """Scorers of one kind of picture by name; `option` is how a command names them."""

    def __init__(self, option: str) -> None:
        self.option = option
        self._known: dict[str, Scorer[P]] = {}

    def register(self, name: str) -> Callable[[Scorer[P]], Scorer[P]]:
        """Make a function a scorer that can be named. Raises BadInput for a taken name."""

        def register(scorer: Scorer[P]) -> Scorer[P]:
            if name in self._known:
                raise BadInput(f'{self.option}: "{name}" is there already; choose another name.')
            self._known[name] = scorer
            return scorer

        return register

    def named(self, names: Iterable[str]) -> dict[str, Scorer[P]]:
        """Scorers by their names. Raises BadInput for one that is not there."""
        for name in names:
            if name not in self._known:
                raise BadInput(
                    f"{self.option} {name}: there is {', '.join(self._known)}; register yours in a file and name it "
                    "with --plugin FILE.py."
                )
        return {name: self._known[name] for name in names}


def scored(name: str, scorer: Scorer[P], pictures: Sequence[P]) -> Scores:
    """What a scorer says of pictures. Raises BadInput if it says something of more or fewer."""
    found = scorer(pictures)
    scores = found if isinstance(found, Scores) else Scores(found)
    if scores.each and len(scores.each) != len(pictures):
        raise BadInput(
            f"the scorer {name}: gave {len(scores.each)} scores for {len(pictures)} pictures; give one for each."
        )
    return scores


def prefixed(found: Mapping[str, Scores], place: int) -> dict[str, Scalar]:
    """What all scorers say of the picture at a place, under names such as digits_right."""
    return {f"{name}_{key}": value for name, s in found.items() if s.each for key, value in s.each[place].items()}


def figures_of(found: Mapping[str, Scores]) -> dict[str, float]:
    """The figures of all scorers, under names such as digits_diversity."""
    return {f"{name}_{key}": value for name, scores in found.items() for key, value in scores.all_figures().items()}
