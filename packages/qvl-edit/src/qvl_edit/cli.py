"""The verbs of qvl-edit; each imports what it needs when it runs."""

from pathlib import Path
from typing import Annotated, Literal

from qvl_core.cli import App, Argument, Option

app = App("qvl-edit", package="qvl_edit", help="Fine-tune Qwen-Image-Edit on your pairs.")
app.common("train", "check", "plan", "demo", "recipes", "report", "doctor", "slurm")

AllowRoot = Annotated[
    list[Path] | None, Option(help="Folder from which pictures may be read by absolute path; may be repeated.")
]
Negative = Annotated[str | None, Option(help="What is not to be drawn; default: the run's sampling.")]
Guidance = Annotated[
    float | None, Option(min=0.0, help="Weight of the instruction against it; at most 1: none. Default: the run's.")
]
Steps = Annotated[int | None, Option(min=1, help="Steps from noise to picture; default: the run's.")]
Shift = Annotated[
    float | None, Option(help="Shift of noise levels, for adapters of few steps (3 for Qwen-Image-Lightning).")
]
Lora = Annotated[
    list[Path] | None, Option(help="File or folder of adapters that are put upon the model; may be repeated.")
]
Batch = Annotated[int, Option(min=1, help="Pictures that are drawn together: speed and memory only.")]


@app.command()
def tiny(
    folder: Annotated[Path, Argument(help="Where to write it.")],
    seed: Annotated[int, Option(help="Decides its random weights.")] = 0,
    kind: Annotated[
        Literal["t2i", "edit", "edit-plus", "edit-2511", "image-2.1"],
        Option(help="Qwen-Image, Qwen-Image-Edit of 2508, 2509 or 2511, or Qwen-Image-2.1."),
    ] = "edit-plus",
    coder: Annotated[
        Literal["vae", "patches"], Option(help="Qwen-Image's autoencoder, random; or pixels rearranged, exact.")
    ] = "vae",
) -> None:
    """Write a tiny random checkpoint that diffusers loads like the real one."""
    print(app.room("tiny").tiny(folder, seed, kind, coder))


@app.command()
def validate(
    recipe: Annotated[str, Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")],
    overrides: Annotated[
        list[str] | None, Argument(metavar="KEY=VALUE", help="Changes to the recipe, such as data.train=my.jsonl.")
    ] = None,
    out: Annotated[
        Path | None, Option(help="Folder for report.html and validation.json; default: runs/<recipe name>-data.")
    ] = None,
    allow_root: AllowRoot = None,
    columns: Annotated[
        str | None,
        Option("--map", help="Columns by field, such as source_image=before,target_image=after."),
    ] = None,
    allow_identity: Annotated[
        bool, Option("--allow-identity", help="Targets that show what their source shows are meant.")
    ] = False,
    workers: Annotated[int, Option(min=1, help="Processes; the result is the same for every number.")] = 1,
) -> None:
    """Look at every row of a recipe's data as training will: what is wrong, tasks, sizes, and how far source and target
    are shifted."""
    from qvl_core.cli.common import default_out
    from qvl_data.cli.app import columns_of

    run = default_out(recipe)
    app.room("validate").validate(
        app.load(recipe, overrides),
        out or run.with_name(f"{run.name}-data"),
        allow_root=allow_root or (),
        columns=columns_of(columns),
        allow_identity=allow_identity,
        workers=workers,
    )


@app.command()
def extract(
    recipe: Annotated[str, Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")],
    overrides: Annotated[
        list[str] | None, Argument(metavar="KEY=VALUE", help="Changes to the recipe, such as pictures.size=768.")
    ] = None,
    out: Annotated[Path | None, Option(help="Folder for the embeddings; default: stored.embeddings.")] = None,
    batch: Annotated[int, Option(min=1, help="Samples that are embedded together: speed and memory only.")] = 4,
    layout: Annotated[
        Literal["shards", "files"], Option(help="files: a file for each text and rows that name them, as upstream.")
    ] = "shards",
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
    app.room("extract").extract(loaded, out, batch, layout)
    return None


@app.command()
def edit(
    model: Annotated[
        str, Argument(metavar="MODEL", help="Run folder, its final/, a checkpoint, or a folder in diffusers' layout.")
    ],
    out: Annotated[Path, Option(help="Folder for PNG files and drawn.jsonl.")] = Path("pictures"),
    prompt: Annotated[str | None, Option(help="The instruction.")] = None,
    image: Annotated[list[Path] | None, Option(help="Source picture; repeatable, in order; none: text alone.")] = None,
    prompts: Annotated[
        Path | None, Option(help="JSONL with `prompt` and `image` or `images`, rows of edits, or a text in each line.")
    ] = None,
    allow_root: AllowRoot = None,
    negative: Negative = None,
    guidance: Guidance = None,
    steps: Steps = None,
    shift: Shift = None,
    lora: Lora = None,
    height: Annotated[int | None, Option(min=1, help="In pixels; default: of the last source's shape.")] = None,
    width: Annotated[int | None, Option(min=1, help="The same.")] = None,
    num_images: Annotated[int, Option("--num-images", min=1, help="Pictures of each instruction.")] = 1,
    seed: Annotated[int, Option(min=0, help="Of an instruction's first picture; the following ones count up.")] = 0,
    batch: Batch = 4,
) -> None:
    """Draw what instructions say of pictures; the same command goes on after a kill."""
    from qvl_data.drawing.prompts import from_command_line

    asked = from_command_line(prompt, image or (), prompts, allow_root or ())
    given = {"negative": negative, "guidance": guidance, "steps": steps, "shift": shift}
    app.room("edit").edit(
        model,
        asked,
        out,
        given=given,
        lora=lora or (),
        height=height,
        width=width,
        number=num_images,
        seed=seed,
        batch=batch,
    )


@app.command()
def export(
    model: Annotated[str, Argument(metavar="RUN", help="Run folder, its final/, or one of its checkpoints.")],
    out: Annotated[Path, Option(help="New folder.")],
    merge: Annotated[bool, Option("--merge", help="Fold adapters into the weights: a whole folder.")] = False,
) -> None:
    """Write what was trained for diffusers: a whole folder, or adapters, these for ComfyUI as well."""
    app.room("export").export(model, out, merge)


@app.command()
def evaluate(
    model: Annotated[
        str, Argument(metavar="MODEL", help="Run folder, its final/, a checkpoint, or a folder in diffusers' layout.")
    ],
    data: Annotated[
        list[str],
        Argument(
            metavar="DATA...",
            help="Pairs: names, files or folders, such as edit%50; a recipe and changes; or a benchmark's file.",
        ),
    ],
    out: Annotated[Path, Option(help="Folder for images/, predictions.jsonl, report.html and result.json.")] = Path(
        "runs/evaluation"
    ),
    benchmark: Annotated[
        Literal["gedit", "imgedit"] | None, Option(help="DATA is GEdit-Bench or ImgEdit: drawn where its scorer looks.")
    ] = None,
    split: Annotated[
        str | None, Option(help="Of names and folders; a recipe's list, else data.validation. Default: test.")
    ] = None,
    check: Annotated[
        list[str] | None, Option(help="Check of edits: recoloured, or one of a --plugin file; repeatable.")
    ] = None,
    judge: Annotated[
        str | None, Option(metavar="URL", help="Ask this judge, such as http://localhost:8000/v1; default: nobody.")
    ] = None,
    judge_model: Annotated[str, Option("--judge-model", help="Its name there.")] = "Qwen/Qwen3-VL-32B-Instruct",
    media_root: Annotated[
        Path | None, Option(help="Folder of pictures with relative paths; default: that of the data.")
    ] = None,
    allow_root: AllowRoot = None,
    negative: Negative = None,
    guidance: Guidance = None,
    steps: Steps = None,
    shift: Shift = None,
    lora: Lora = None,
    samples: Annotated[
        int | None, Option(min=1, help="Of each list at most, chosen at random and always the same.")
    ] = None,
    seed: Annotated[int, Option(min=0, help="Of every picture.")] = 0,
    batch: Batch = 4,
    fresh: Annotated[bool, Option("--fresh", help="Move an earlier one at --out aside.")] = False,
) -> None:
    """Draw held-out pairs and measure them, or a benchmark's pictures; the same command goes on with what is
    missing."""
    from qvl_edit.checks import CHECKS
    from qvl_edit.endpoint import Judge
    from qvl_edit.lists import data_of

    checks = CHECKS.named(check or ())
    if judge is not None:
        checks["judge"] = Judge(judge, judge_model, out / "judged.jsonl")
    app.room("evaluate").evaluate(
        model,
        data_of(data, benchmark, split, media_root, allow_root or ()),
        out,
        given={"negative": negative, "guidance": guidance, "steps": steps, "shift": shift},
        lora=lora or (),
        samples=samples,
        seed=seed,
        batch=batch,
        checks=checks,
        fresh=fresh,
    )


main = app.main
