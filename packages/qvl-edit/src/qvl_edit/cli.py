"""The verbs of qvl-edit; each imports what it needs when it runs."""

from pathlib import Path
from typing import Annotated, Literal

from qvl_core.cli import App, Argument, Option

app = App("qvl-edit", package="qvl_edit", help="Fine-tune Qwen-Image-Edit on your pairs.")
app.common("train", "recipes", "report", "doctor", "slurm")


@app.command()
def tiny(
    folder: Annotated[Path, Argument(help="Where to write it.")],
    seed: Annotated[int, Option(help="Decides its random weights.")] = 0,
    kind: Annotated[
        Literal["t2i", "edit", "edit-plus", "edit-2511"],
        Option(help="Qwen-Image, or Qwen-Image-Edit of 2508, 2509 or 2511."),
    ] = "edit-plus",
    coder: Annotated[
        Literal["vae", "patches"], Option(help="Qwen-Image's autoencoder, random; or pixels rearranged, exact.")
    ] = "vae",
) -> None:
    """Write a tiny random checkpoint that diffusers loads like the real one."""
    print(app.room("tiny").tiny(folder, seed, kind, coder))


@app.command()
def extract(
    recipe: Annotated[str, Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")],
    overrides: Annotated[
        list[str] | None, Argument(metavar="KEY=VALUE", help="Changes to the recipe, such as pictures.size=768.")
    ] = None,
    out: Annotated[Path | None, Option(help="Folder for the embeddings; default: stored.embeddings.")] = None,
    batch: Annotated[int, Option(min=1, help="Samples that are embedded together: speed and memory only.")] = 4,
    nproc: Annotated[
        int | None, Option(min=1, help="Processes on each machine, one per device (parallel.nproc).")
    ] = None,
) -> int | None:
    """Store the embeddings of a recipe's texts and pictures, so that training has no text encoder; goes on after a
    kill."""
    from qvl_core.training.launch import launch, launched

    loaded = app.load(recipe, [*(overrides or []), *([f"parallel.nproc={nproc}"] if nproc else [])])
    processes = loaded.parallel.nproc or 1
    if processes > 1 and not launched():
        return launch(["-m", app.package, *app.args], processes)
    app.room("extract").extract(loaded, out, batch)
    return None


main = app.main
