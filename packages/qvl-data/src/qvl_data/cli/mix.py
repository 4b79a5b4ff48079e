"""`qvl-data mix`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from qvl_core.cli import Argument, Option
from qvl_core.errors import BadInput

from .app import AllowRoot, Format, Fresh, MediaRoot, RegistryFile, app

if TYPE_CHECKING:
    from qvl_data.mix import Expected


@app.command()
def mix(
    sources: Annotated[list[str], Argument(help='Sources, such as "2*digits%50 + receipts[train:1000,test:100]".')],
    out: Annotated[
        Path | None, Option(help="New .parquet, .tar or .jsonl file, or a folder (shards and a card).")
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Only print what would be drawn how often.")] = False,
    split: Annotated[
        str, Option(help="List that the sources are for: their split, their part, and the split written.")
    ] = "train",
    weights: Annotated[
        str | None, Option(help="One weight for each source, such as 1,0.5, in place of their own.")
    ] = None,
    temperature: Annotated[
        float | None, Option(help="Shares in proportion to size ** (1 / this): 1 as they are, larger is flatter.")
    ] = None,
    samples: Annotated[int | None, Option(min=1, help="How many samples to write; default: an epoch.")] = None,
    steps: Annotated[int | None, Option(min=1, help="Count for so many training steps of --batch samples.")] = None,
    batch: Annotated[int, Option(min=1, help="Samples of a training step.")] = 1,
    seed: Annotated[int, Option(min=0, help="Decides the order.")] = 0,
    format: Format = "qvl",
    container: Annotated[
        str | None, Option(help="Of a folder: parquet (default for qvl), tar (for wds) or jsonl (otherwise).")
    ] = None,
    shard: Annotated[int, Option(min=1, help="Samples in a shard of a folder.")] = 5000,
    max_bad: Annotated[int, Option(min=0, help="Samples that may be left out (listed) before it stops.")] = 0,
    media_root: MediaRoot = None,
    allow_root: AllowRoot = None,
    registry: RegistryFile = None,
    fresh: Fresh = False,
) -> None:
    """Mix sources: count what is drawn of each, or write it as one shuffled data set."""
    from qvl_data.mix import expect, tempered, write
    from qvl_data.registry import Registry
    from qvl_data.shards import Figures
    from qvl_data.sources import Mixture, read_sources

    if out is None and not dry_run:
        raise BadInput("qvl-data mix: name what to write with --out, or add --dry-run.")
    if steps is not None and samples is not None:
        raise BadInput("qvl-data mix: --samples and --steps exclude each other; keep one.")
    names = Registry(registry) if registry else None
    mixture = Mixture(read_sources(*sources), split, media_root, allow_root or (), registry=names)
    if weights is not None:
        mixture = mixture.weighted(_numbers(weights))
    if temperature is not None:
        mixture = mixture.weighted(tempered(mixture.draws, mixture.sizes, temperature))
    count = samples if steps is None else steps * batch
    _show(expect(mixture, count), len(mixture), count)
    if out is not None and not dry_run:
        options = {"seed": seed, "split": split, "format": format, "container": container, "shard": shard}
        files, before = write(mixture, out, count, max_bad=max_bad, fresh=fresh, **options)  # type: ignore[arg-type]
        for file, figures in files.items():
            print(f"{file}: {figures.samples} samples")
        if before:
            print("all was written before; nothing was done.")
        if left_out := Figures.total(files.values()).left_out:
            first = f"{left_out[0]['place']}: {left_out[0]['problem']}"
            print(f"{len(left_out)} samples were left out, the first is {first}.")


def _numbers(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise BadInput(f"--weights {text}: write numbers with commas, such as 1,0.5.") from None
    if not all(0 < number < float("inf") for number in found):
        raise BadInput(f"--weights {text}: a weight is a finite number above 0.")
    return found


def _show(rows: "list[Expected]", epoch: int, count: int | None) -> None:
    from rich import print as show
    from rich.table import Table
    from rich.text import Text

    total = epoch if count is None else count
    table = Table(title=f"{total:,} samples, {total / epoch:.4g} epochs of {epoch:,}")
    table.add_column("source", overflow="fold")
    for title in ("chosen of", "per epoch", "share", "drawn", "times each"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        numbers = (f"{row.chosen:,} of {row.available:,}", f"{row.per_epoch:,}", f"{row.per_epoch / epoch:.1%}")
        table.add_row(Text(row.source), *numbers, f"{row.draws:,.0f}", f"{row.passes:.4g}")
    show(table)
