"""`qvl-data pack`."""

from pathlib import Path
from typing import Annotated, Any

from qvl_core.cli import Argument, Option
from qvl_core.errors import BadInput

from .app import AllowRoot, Fresh, MediaRoot, RegistryFile, app


@app.command()
def pack(
    sources: Annotated[list[str] | None, Argument(help='Sources, such as "digits%50 + receipts".')] = None,
    out: Annotated[Path, Option(help="New .parquet file for the plan.")] = Path("plan.parquet"),
    capacity: Annotated[int, Option(min=1, help="Tokens of a bin: the max_length of the training.")] = 4096,
    model: Annotated[Path | None, Option(help="Local model folder, whose processor counts the tokens.")] = None,
    lengths: Annotated[Path | None, Option(help="Tokens of each sample as a .npy file, in place of sources.")] = None,
    media: Annotated[Path | None, Option(help="With --lengths: pictures of each sample as a .npy file.")] = None,
    too_long: Annotated[str, Option(help="A longer sample: error, drop, or cut (a bin of its own).")] = "error",
    max_pictures: Annotated[int | None, Option(min=1, help="Most pictures and videos in a bin.")] = None,
    max_media_tokens: Annotated[int | None, Option(min=1, help="Most tokens of pictures and videos in a bin.")] = None,
    max_bad: Annotated[int, Option(min=0, help="Samples that cannot be used before it stops.")] = 0,
    seed: Annotated[int, Option(min=0, help="Decides the order of the bins.")] = 0,
    split: Annotated[str, Option(help="List that the sources are for (their split, their part).")] = "train",
    media_root: MediaRoot = None,
    allow_root: AllowRoot = None,
    registry: RegistryFile = None,
    fresh: Fresh = False,
) -> None:
    """Plan which samples share a row of so many tokens, over a whole data set (best-fit decreasing)."""
    from qvl_data.pack import pack_lengths, pack_source
    from qvl_data.registry import Registry
    from qvl_data.sources import Mixture, read_sources

    options: dict[str, Any] = {"seed": seed, "too_long": too_long, "fresh": fresh}
    if out.suffix != ".parquet":
        raise BadInput(f"{out}: a plan is a .parquet file; name it so.")
    if lengths is not None and not sources and model is None:
        figures = pack_lengths(lengths, media, out, capacity, max_media=max_pictures or max_media_tokens, **options)
    elif sources and model is not None and lengths is None and media is None:
        names = Registry(registry) if registry else None
        mixture = Mixture(read_sources(*sources), split, media_root, allow_root or (), registry=names)
        options |= {"max_pictures": max_pictures, "max_media_tokens": max_media_tokens, "max_bad": max_bad}
        figures = pack_source(mixture, model, out, capacity, **options)
    else:
        raise BadInput("qvl-data pack: give sources and --model FOLDER, or --lengths FILE.npy alone.")
    print(f"{out}: {figures['samples']} samples, {figures['tokens']} tokens in {figures['bins']} bins of {capacity}")
    print(f"fill {figures['fill']:.2%}; no packing needs fewer than {figures['least_bins']} bins")
    if figures["left_out"]:
        print(
            f"{figures['left_out']} samples were left out (their bin is null); not usable: {figures['bad'] or 'none'}"
        )
    if figures["before"]:
        print("the plan was made before; nothing was done.")
