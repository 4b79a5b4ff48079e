"""`qvl-data fetch`."""

from pathlib import Path
from typing import Annotated

from qvl_core.cli import Argument, Option

from .app import Columns, Fresh, FromFormat, Split, app, columns_of


@app.command()
def fetch(
    source: Annotated[Path, Argument(help="List of URLs (.txt, caption behind a tab), or a data set with addresses.")],
    out: Annotated[Path, Argument(help="Folder for the shards.")],
    online: Annotated[bool, Option("--online", help="Use the network; without it nothing is fetched.")] = False,
    from_format: FromFormat = None,
    map: Columns = None,
    split: Split = None,
    container: Annotated[str, Option(help="parquet or tar.")] = "parquet",
    shard: Annotated[int, Option(min=1, help="Samples in a shard.")] = 1000,
    workers: Annotated[int, Option(min=1, help="Connections at a time (at most 4 to one host).")] = 32,
    attempts: Annotated[int, Option(min=1, help="How often a URL is tried where trying again may help.")] = 3,
    seconds: Annotated[float, Option(min=0.1, help="Longest time for one URL, redirects included.")] = 20.0,
    max_bytes: Annotated[int, Option(min=1, help="Largest body of one URL.")] = 20_000_000,
    allow_address: Annotated[
        list[str] | None, Option(help="HOST:PORT that may be private, such as your own mirror; repeatable.")
    ] = None,
    retry: Annotated[bool, Option("--retry", help="Try again what failed before, and nothing else.")] = False,
    fresh: Fresh = False,
) -> None:
    """Fetch the pictures behind a list of URLs into shards. Private addresses, slow and huge answers are refused."""
    from collections import Counter

    from qvl_core.errors import BadInput
    from qvl_data.dataset import Dataset
    from qvl_data.fetch import Rules
    from qvl_data.fetch import fetch as run
    from qvl_data.fetch.crowd import Crowd
    from qvl_data.fetch.lists import UrlList
    from qvl_data.fetch.work import can_be_mended

    if not online:
        raise BadInput("fetch uses the network; add --online if it may.")
    if container not in ("parquet", "tar"):
        raise BadInput(f"--container {container}: pictures go inside; write parquet or tar.")
    columns = columns_of(map)
    if source.suffix == ".txt":
        samples: UrlList | Dataset = UrlList(source)
    else:
        samples = Dataset(source, split, from_format, columns=columns)
    rules = Rules(seconds, max_bytes, frozenset(allow_address or ()))
    crowd = Crowd(rules, workers, attempts)
    options = {"split": split or "train", "container": container, "shard": shard}
    reading = {"from_format": from_format, "columns": columns}
    done = run(samples, out, crowd, **options, retry=retry, fresh=fresh, reading=reading)  # type: ignore[arg-type]
    if done.before:
        print("all was fetched before; nothing was done.")
    print(f"{out}: {done.samples} of {len(samples)} samples")
    if done.failed:
        reasons = ", ".join(f"{reason} {n}" for reason, n in Counter(f["reason"] for f in done.failed).most_common())
        again = "; --retry tries again" if can_be_mended(done.failed) else ""
        print(f"{len(done.failed)} failed ({reasons}); {out / 'failed.jsonl'} lists them{again}.")
