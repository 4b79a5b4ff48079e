"""From a recipe's data to tasks: a source is a task, and so is each subfolder of a folder of tasks.

    data/meta/plates/rows.jsonl              the task plates
    data/meta/receipts/rank_000.jsonl, ...   the task receipts, of several files

A folder of tasks is one that has no data of its own, but subfolders with some, as the document's
`--train_data_meta_dir`. What `qvl-edit extract --layout files` wrote is one, too, or the one task that it is of. Any
other source is called by its registered name, or that of its file or folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qvl_core.errors import BadInput
from qvl_core.evaluation import LEFT_OUT
from qvl_core.recipe.blocks import Data, Source
from qvl_core.training.samples import Bad
from qvl_data.dataset import splits
from qvl_data.errors import BadSample
from qvl_data.mix import labels
from qvl_data.sources import Item, Mixture
from qvl_edit.questions import sources_of

ROWS = (".jsonl", ".parquet")
HEAD = "files.json"  # in what `extract --layout files` wrote


class OfTask(Source):
    """A file of a folder of tasks."""

    task: str


def expanded(data: Data) -> Data:
    """The same data, with the files in a folder of tasks in its place, in each list; they know their tasks."""
    lists = {name: _files(getattr(data, name)) for name in ("train", "validation", "test")}
    return data.model_copy(update=lists)


@dataclass(frozen=True)
class Tasks:
    """The samples of a list by task.

    numbers  (n,) entries of `mixture.items` that a task has, by its name
    sources  (n,) number of source pictures of each
    bad      rows that cannot be read; no task has them
    """

    mixture: Mixture
    numbers: dict[str, NDArray[np.int64]]
    sources: dict[str, NDArray[np.int64]]
    bad: tuple[Bad, ...] = ()

    def item(self, task: str, sample: int) -> Item:
        """A sample by its index in its task."""
        return self.mixture.item(int(self.numbers[task][sample]))


def tasks_of(mixture: Mixture) -> Tasks:
    """The tasks of a list whose folders of tasks were expanded. Looks at every row once.

    Raises BadInput for a task of which no row can be read, and as `names_of`.
    """
    tasks = names_of(mixture)
    found: dict[str, list[tuple[int, int]]] = {task: [] for task in tasks}
    bad: list[Bad] = []
    for number, item in enumerate(mixture.items()):
        try:
            found[tasks[item.source]].append((number, len(sources_of(mixture.outline(item)))))
        except BadSample as error:
            bad.append(mixture.bad(item, error))
    for task, rows in found.items():
        if not rows:
            raise BadInput(f"data: no row of the task {task} can be read: {bad[0].message}")
    pairs = {task: np.array(rows, np.int64) for task, rows in found.items()}  # (n, 2)
    return Tasks(
        mixture,
        {task: rows[:, 0] for task, rows in pairs.items()},
        {task: rows[:, 1] for task, rows in pairs.items()},
        tuple(bad),
    )


def names_of(mixture: Mixture) -> list[str]:
    """The task of each source. Raises BadInput for two tasks of one name."""
    names: list[str] = []
    homes: dict[str, str] = {}
    for source, label in zip(mixture.sources, labels(mixture), strict=True):
        name, home = (
            (source.task, str(Path(source.source).parent)) if isinstance(source, OfTask) else (label, source.source)
        )
        if homes.setdefault(name, home) != home:
            raise BadInput(f"data: {homes[name]} and {home} are both the task {name}; rename one of them.")
        names.append(name)
    return names


def _files(sources: Sequence[Source]) -> list[Source]:
    found: list[Source] = []
    for source in sources:
        folder = Path(source.source).expanduser()
        if folder.is_dir() and (rows := _rows_of_tasks(folder)):
            given = source.model_dump()
            found += [OfTask.model_validate(given | {"source": str(file), "task": task}) for task, file in rows]
        else:
            found.append(source)
    return found


def _rows_of_tasks(folder: Path) -> list[tuple[str, Path]]:
    """Tasks and their files of a folder of tasks, or of one that files were extracted to; empty for any other."""
    own = _rows(folder)
    if (folder / HEAD).is_file() and own:
        return [(folder.resolve().name, file) for file in own]
    if not (folder / HEAD).is_file() and (own or splits(folder)):
        return []
    return [(task.name, file) for task in _subfolders(folder) for file in _rows(task)]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def _rows(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in ROWS and path.name != LEFT_OUT)
