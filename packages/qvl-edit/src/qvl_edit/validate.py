"""`qvl-edit validate`: can the rows of a recipe's data be learned from, and do its pairs lie on one another?

OUT/report.html         rows, tasks, buckets, shifts with the worst pairs side by side, and what is wrong
OUT/validation.json     the same as figures (qvl.edit-validation/1)
OUT/findings.jsonl      every problem with its place

Every row is read as training reads it, pictures are opened and brought to size; nothing of a model is needed.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvl_core.errors import BadInput
from qvl_core.files import write_atomic
from qvl_core.recipe.blocks import Data
from qvl_data.checking import leaks
from qvl_data.job import complete
from qvl_data.progress import track
from qvl_data.sources import mixtures
from qvl_data.validate import Finding, Validation, counted
from qvl_data.validate.finding import to_line
from qvl_data.validate.show import show
from qvl_data.walk import steps, walk
from qvl_edit.alignment import Shift
from qvl_edit.cut import Bucket
from qvl_edit.geometry import Geometry
from qvl_edit.looking import Facts, Listed, Looked, Looking
from qvl_edit.mixture import Mixture
from qvl_edit.opening import described, sized
from qvl_edit.profile import Profile
from qvl_edit.questions import Asking
from qvl_edit.recipe import EditRecipe
from qvl_edit.tasks import expanded, names_of

SCHEMA = "qvl.edit-validation/1"
STEP = 32  # rows that a worker looks at before it tells
WORST = 12  # pairs that are shown


@dataclass
class Pairs:
    """How far targets lie from their sources, and where the farthest of them stand, by list and number."""

    shifts: list[Shift] = field(default_factory=list)
    far: list[tuple[Shift, str, int]] = field(default_factory=list)

    def add(self, shift: Shift, name: str, number: int) -> None:
        self.shifts.append(shift)
        if shift.sure and shift.distance > 0:
            self.far.append((shift, name, number))
            self.far.sort(key=lambda entry: -entry[0].distance)  # stable: of equal ones the first
            del self.far[WORST:]

    @property
    def sure(self) -> NDArray[np.int64]:
        """(N, 2): down and right, in pixels, of pairs that agree on a shift."""
        return np.array([(one.down, one.right) for one in self.shifts if one.sure], np.int64).reshape(-1, 2)

    @property
    def distances(self) -> NDArray[np.float64]:
        """(N,) of the same."""
        return np.hypot(*self.sure.T)

    def figures(self) -> dict[str, Any]:
        sure, far = self.sure, self.distances
        whole: dict[str, Any] = {"measured": len(self.shifts), "agree": len(sure), "moved": int((far > 0).sum())}
        if len(sure):
            whole |= {
                "mean_pixels": float(far.mean()),
                "p95_pixels": float(np.percentile(far, 95)),
                "most_pixels": float(far.max()),
                "median_down": float(np.median(sure[:, 0])),
                "median_right": float(np.median(sure[:, 1])),
            }
        return whole


@dataclass
class Met:
    """What was met in the rows that can be used.

    tasks      number of sources of each row that is trained on, by task
    stretches  of each row
    """

    tasks: dict[str, list[int]] = field(default_factory=dict)
    texts: Counter[str] = field(default_factory=Counter)
    buckets: Counter[Bucket] = field(default_factory=Counter)
    stretches: list[float] = field(default_factory=list)
    pairs: Pairs = field(default_factory=Pairs)
    usable: int = 0
    untrained: int = 0
    enlarged: int = 0

    def add(self, name: str, task: str, row: Looked, facts: Facts) -> None:
        """A row of the list `name`."""
        self.usable += 1
        self.untrained += not facts.trained
        self.enlarged += facts.enlarged
        self.texts.update(f"{'inverse' if text.inverse else 'instruction'} · {text.language}" for text in facts.texts)
        self.buckets[facts.bucket] += 1
        self.stretches.append(facts.stretch)
        if name == "train":
            self.tasks.setdefault(task, []).append(facts.sources)
        if facts.shift is not None:
            self.pairs.add(facts.shift, name, row.number)


@dataclass(frozen=True)
class Validated:
    """What a validation found.

    found       problems by reason, of all lists
    mixture     of the tasks under the recipe's weights; None if there is none, and then `impossible` says why
    leaks       a sentence for each two lists that share rows
    """

    found: Validation
    met: Met
    lists: Mapping[str, Listed]
    profile: Profile
    geometry: Geometry
    mixture: Mixture | None
    impossible: str
    leaks: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        met, counts = self.met, self.counts
        geometry = {"area": self.geometry.area, "vl_area": self.geometry.vl_area, "step": self.geometry.step}
        return {
            **self.found.to_dict(),
            "schema": SCHEMA,
            "usable": met.usable,
            "untrained": met.untrained,
            "enlarged": met.enlarged,
            "profile": self.profile.name,
            "geometry": {**geometry, "stretch": self.geometry.stretch},
            "tasks": {task: {str(number): rows for number, rows in by.items()} for task, by in counts.items()},
            "shares": self.shares,
            "impossible": self.impossible or None,
            "texts": dict(sorted(met.texts.items())),
            "buckets": [
                {"target": bucket.target, "sources": bucket.sources, "rows": rows}
                for bucket, rows in sorted(met.buckets.items(), key=lambda entry: (-entry[1], entry[0]))
            ],
            "most_stretched": max(met.stretches, default=None),
            "alignment": met.pairs.figures()
            | {
                "worst": [
                    {"place": self.place(name, number), "down": far.down, "right": far.right, "peak": far.peak}
                    for far, name, number in met.pairs.far
                ]
            },
            "shared": self.leaks,
        }

    @property
    def counts(self) -> dict[str, dict[int, int]]:
        """Rows of each task by their number of sources."""
        return {task: dict(sorted(Counter(rows).items())) for task, rows in sorted(self.met.tasks.items())}

    @property
    def shares(self) -> dict[str, float]:
        """Part of the slots that each task has."""
        if self.mixture is None:
            return {}
        return dict(zip(self.mixture.tasks, self.mixture.shares.sum(0).tolist(), strict=True))

    def place(self, name: str, number: int) -> str:
        mixture = self.lists[name].mixture
        return mixture.place(mixture.item(number))


def validate(
    recipe: EditRecipe,
    out: Path,
    *,
    allow_root: Sequence[Path] = (),
    columns: Mapping[str, str] | None = None,
    allow_identity: bool = False,
    workers: int = 1,
) -> Validated:
    """Look at every row of a recipe's lists and write the folder `out`.

    allow_root      folders from which pictures may be read, beside the recipe's
    columns         columns of all data by field, in place of the recipe's
    allow_identity  a target that shows what its source shows is meant, and no warning
    workers         processes; the result is the same for every number

    Raises BadInput, when all is written, for more bad rows than `data.max_bad`, a list without a row that can be used,
    and weights that no row answers to.
    """
    data = _read_as(expanded(recipe.data), allow_root, columns)
    lists = {name: Listed(mixture) for name, mixture in mixtures(data).items()}
    profile, _, grid, seen = described(recipe.model)
    geometry = sized(recipe.pictures, profile, grid, seen)
    asking = Asking(recipe.mixture.inverse, recipe.mixture.sources)
    met = Met()
    source = " + ".join(source.source for source in recipe.data.train)
    found = Validation(source, pixels=True, splits={name: len(rows) for name, rows in lists.items()})
    found.samples = sum(found.splits.values())
    with complete(out / "findings.jsonl") as part, part.open("wb") as lines:
        looked = _looked(Looking(lists, asking, profile, geometry, allow_identity), met, workers)
        lines.writelines(map(to_line, counted((), looked, found)))
    mixture, impossible = _mixed(recipe, met)
    same = leaks({name: rows.mixture for name, rows in lists.items()})
    validated = Validated(found, met, lists, profile, geometry, mixture, impossible, same)
    write_atomic(out / "validation.json", json.dumps(validated.to_dict(), ensure_ascii=False, indent=1) + "\n")

    from qvl_edit.validate_report import page

    write_atomic(out / "report.html", page(validated, out / "findings.jsonl"))
    show(found)
    print(f"\n{met.usable:,} of {found.samples:,} rows can be used; see {out / 'report.html'}")
    _conclude(validated, recipe.data.max_bad, out)
    return validated


def _read_as(data: Data, allow_root: Sequence[Path], columns: Mapping[str, str] | None) -> Data:
    changes: dict[str, Any] = {"allow_root": [*data.allow_root, *map(str, allow_root)]}
    if columns is not None:
        for name in ("train", "validation", "test"):
            changes[name] = [source.model_copy(update={"map": dict(columns)}) for source in getattr(data, name)]
    return data.model_copy(update=changes)


def _looked(looking: Looking, met: Met, workers: int) -> Iterator[Finding]:
    """The findings of all rows, in order, while what can be used is added to `met`."""
    tasks = {name: names_of(rows.mixture) for name, rows in looking.lists.items()}
    todo = steps(looking.lists, STEP)
    for step, rows in track(walk(looking, todo, workers), "validate", len(todo)):
        for row in rows:
            if row.facts is not None:
                met.add(step.split, tasks[step.split][row.source], row, row.facts)
            yield from row.findings


def _mixed(recipe: EditRecipe, met: Met) -> tuple[Mixture | None, str]:
    """The mixture of what can be used, or why there is none."""
    found = {task: np.array(rows, np.int64) for task, rows in met.tasks.items()}
    weights = recipe.mixture
    make = partial(Mixture, found, recipe.batch.size or 1, recipe.train.seed, weights.tasks, weights.sources)
    try:
        return make(), ""
    except BadInput as error:
        return None, str(error)


def _conclude(validated: Validated, max_bad: int, out: Path) -> None:
    found = validated.found
    if not validated.met.tasks:
        first = [reason.first[0] for reason in found.reasons.values() if reason.severity == "error"]
        raise BadInput(f"data.train: no row can be used: {first[0] if first else 'it has none'}")
    if validated.impossible:
        raise BadInput(validated.impossible)
    if found.bad > max_bad:
        raise BadInput(
            f"{found.bad:,} rows cannot be used, and data.max_bad allows {max_bad}; mend or remove them "
            f"({out / 'findings.jsonl'} lists all), or raise data.max_bad."
        )
