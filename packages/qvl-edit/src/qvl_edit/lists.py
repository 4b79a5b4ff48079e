"""What an evaluation is of: pairs by name, file or folder, what a recipe holds out, or a benchmark."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from qvl_core.errors import BadInput
from qvl_core.recipe.load import load
from qvl_core.recipe.shipped import find
from qvl_data.sources import Mixture, read_sources
from qvl_edit.benchmarks import Benchmark, Name, open_benchmark
from qvl_edit.recipe import RECIPE
from qvl_edit.tasks import expanded


def data_of(
    data: Sequence[str],
    benchmark: Name | None = None,
    split: str | None = None,
    media_root: Path | None = None,
    allow_root: Sequence[Path] = (),
) -> Mapping[str, Mixture] | Benchmark:
    """What a command line says. Raises BadInput for what is not there, and for what a benchmark has no use for."""
    if benchmark is None:
        return lists_of(data, split or "test", media_root, allow_root)
    if len(data) > 1:
        raise BadInput(f"--benchmark {benchmark}: is one file or folder; leave {' '.join(data[1:])} out.")
    if split is not None:
        raise BadInput(f"--split {split}: {benchmark} has no splits; leave it out.")
    return open_benchmark(benchmark, Path(data[0]), media_root, allow_root)


def lists_of(
    data: Sequence[str], split: str, media_root: Path | None = None, allow_root: Sequence[Path] = ()
) -> Mapping[str, Mixture]:
    """Lists of pairs by name.

    data   sources such as `edit%50`; or a recipe, and changes to it
    split  of sources that have several; of a recipe `data.test`, or `data.validation` where that is empty

    Raises BadInput for what is not there, and for a recipe that holds nothing out.
    """
    first, *changes = data
    if Path(first).suffix not in (".yaml", ".yml") and find("qvl_edit", first) is None:
        return {split: Mixture(read_sources(*data), split, media_root, tuple(allow_root))}
    recipe = load(RECIPE, first, changes, "qvl_edit")
    held = expanded(recipe.data)
    roots = [*held.allow_root, *map(str, allow_root)]
    for name in dict.fromkeys((split, "validation")):
        if sources := getattr(held, name, []):
            return {name: Mixture(sources, name, media_root or held.media_root, roots)}
    raise BadInput(f"{first}: holds nothing out; name pairs in data.test, or say --split train.")
