"""The verbs of qvl-edit; each imports what it needs when it runs."""

from pathlib import Path
from typing import Annotated, Literal

from qvl_core.cli import App, Argument, Option

app = App("qvl-edit", package="qvl_edit", help="Fine-tune Qwen-Image-Edit on your pairs.")
app.common("recipes", "doctor")


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


main = app.main
