"""`qvl-data convert`."""

from pathlib import Path
from typing import Annotated

from qvl_core.cli import Argument, Option

from .app import AllowRoot, Columns, Format, Fresh, FromFormat, MediaRoot, Split, app, columns_of


@app.command()
def convert(
    source: Annotated[
        str, Argument(help='File, folder, registered name, name on the hub, or text such as "digits%50 + a.jsonl".')
    ],
    target: Annotated[Path, Argument(help="New .parquet, .tar, .jsonl, .json or .csv file, or a folder of shards.")],
    format: Format = "qvl",
    from_format: FromFormat = None,
    map: Columns = None,
    split: Split = None,
    media_root: MediaRoot = None,
    allow_root: AllowRoot = None,
    container: Annotated[
        str | None, Option(help="Of a folder: parquet (default for qvl), tar (for wds), jsonl (otherwise), json, csv.")
    ] = None,
    shard: Annotated[int, Option(min=1, help="Samples in a shard of a folder.")] = 5000,
    boxes: Annotated[
        str | None, Option(help="Write regions out as text: qwen3vl (0..1000), qwen2.5vl or pixel.")
    ] = None,
    license: Annotated[str | None, Option(help="Licence of samples that state none.")] = None,
    max_bad: Annotated[int, Option(min=0, help="Samples that may be left out (listed) before it stops.")] = 0,
    fresh: Fresh = False,
) -> None:
    """Convert between formats and containers. Parquet and tar carry the pictures inside, JSONL has them laid beside."""
    from qvl_data.convert import Change
    from qvl_data.convert import convert as run
    from qvl_data.shards import Figures

    files = run(
        source,
        target,
        format,
        split=split,
        from_format=from_format,
        columns=columns_of(map),
        media_root=media_root,
        allow_root=tuple(allow_root or ()),
        container=container,
        shard=shard,
        change=Change(boxes, license),
        max_bad=max_bad,
        fresh=fresh,
    )
    if files.before:
        print("all was written before; nothing was done.")
    for file, figures in files.items():
        print(f"{file}: {figures.samples} samples")
    if left_out := Figures.total(files.values()).left_out:
        print(f"{len(left_out)} samples were left out, the first is {left_out[0]['place']}: {left_out[0]['problem']}.")
