"""The verbs of qvl-metaquery; each imports what it needs when it runs."""

from pathlib import Path
from typing import Annotated, Literal

from qvl_core.cli import App, Argument, Option
from qvl_core.cli.common import DemoSeed

app = App("qvl-metaquery", package="qvl_metaquery", help="Qwen3-VL that draws.")
app.common("train", "check", "plan", "tiny", "recipes", "report", "doctor", "slurm")

Trained = Annotated[str, Argument(metavar="MODEL", help="Run folder, its final/, or one of its checkpoints.")]
Negative = Annotated[str, Option(help="What is not to be drawn.")]
Steps = Annotated[int, Option(min=1, help="Steps from noise to picture.")]
Guidance = Annotated[float, Option(min=0.0, help="How much more than the negative prompt the prompt weighs; 1: none.")]
ImageGuidance = Annotated[
    float, Option(min=0.0, help="The same for a prompt's pictures; at most 1: they are not guided apart.")
]
Scheduler = Annotated[Literal["euler", "dpm"], Option(help="euler: first order; dpm: DPM-Solver++ of second order.")]
Size = Annotated[int | None, Option(min=1, help="Side of a picture in pixels; default: what was trained.")]
Batch = Annotated[int, Option(min=1, help="Pictures that are drawn together: speed and memory, not the result.")]
Number = Annotated[int, Option("--num-images", min=1, help="Pictures of each prompt.")]
Seed = Annotated[int, Option(min=0, help="Of a prompt's first picture; the following ones count up.")]


@app.command()
def demo(
    out: Annotated[
        Path | None,
        Option(help="Folder for the report, the figures and the runs; default: runs/demo or runs/demo-coloured."),
    ] = None,
    seed: DemoSeed = 0,
    coloured: Annotated[
        bool, Option("--coloured", help="Digits in five colours, 32 pixels, through an autoencoder trained here.")
    ] = False,
) -> None:
    """Train and test a tiny model here, offline, in minutes."""
    name = "demo-coloured" if coloured else "demo"
    app.room(name.replace("-", "_")).demo(out or Path("runs", name), seed)


@app.command()
def encode(
    recipe: Annotated[str, Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")],
    overrides: Annotated[
        list[str] | None, Argument(metavar="KEY=VALUE", help="Changes to the recipe, such as flow.size=1024.")
    ] = None,
    out: Annotated[Path | None, Option(help="Folder for the latents; default: flow.latents.")] = None,
    shard: Annotated[str, Option(metavar="I/N", help="Part I of N, for N machines that write to one folder.")] = "1/1",
    batch: Annotated[int, Option(min=1, help="Pictures that are read together: speed and memory only.")] = 8,
) -> None:
    """Store the latents of a recipe's pictures, so that training decodes none; the command goes on after a kill."""
    app.room("encode").encode(app.load(recipe, overrides), out, shard, batch)


@app.command()
def generate(
    model: Trained,
    out: Annotated[Path, Option(help="Folder for the PNG files.")] = Path("pictures"),
    mode: Annotated[Literal["t2i", "i2i"], Option(help="From text alone, or from text and pictures.")] = "t2i",
    prompt: Annotated[str | None, Option(help="What is to be drawn.")] = None,
    image: Annotated[list[Path] | None, Option(help="Picture that the prompt speaks of; repeatable, in order.")] = None,
    prompts: Annotated[
        Path | None, Option(help="File with a prompt in each line, JSONL with `prompt` and `images`, or a folder.")
    ] = None,
    negative: Negative = "",
    num_images: Number = 1,
    seed: Seed = 0,
    steps: Steps = 30,
    guidance: Guidance = 4.5,
    image_guidance: ImageGuidance = 1.5,
    scheduler: Scheduler = "euler",
    size: Size = None,
    batch: Batch = 4,
) -> None:
    """Draw pictures of prompts, each a PNG that says in itself how it was drawn; the same command goes on after a
    kill."""
    from qvl_data.drawing.prompts import from_command_line
    from qvl_metaquery.sampling import Sampling

    asked = from_command_line(prompt, image or (), prompts)
    how = Sampling(guidance, image_guidance, steps, scheduler, negative, size)
    from qvl_metaquery.generate import generate as run

    run(model, asked, out, mode, how, num_images, seed, batch)


@app.command()
def evaluate(
    model: Trained,
    prompts: Annotated[Path, Argument(help="GenEval's JSONL, DPG-Bench's folder of texts, or any file of prompts.")],
    out: Annotated[Path, Option(help="Folder for images/, predictions.jsonl and result.json.")] = Path(
        "runs/evaluation"
    ),
    style: Annotated[
        Literal["auto", "geneval", "dpg"], Option(help="How files are laid out; auto: by what the prompts say.")
    ] = "auto",
    scorer: Annotated[
        list[str] | None, Option(help="Scorer that is registered, also by a --plugin file; repeatable.")
    ] = None,
    clip: Annotated[Path | None, Option(help="Folder of a CLIP model: CLIP score.")] = None,
    fid: Annotated[Path | None, Option(help="Folder of real pictures: FID; needs --fid-weights.")] = None,
    fid_weights: Annotated[Path | None, Option(help="File of the Inception network that FID is defined by.")] = None,
    negative: Negative = "",
    num_images: Number = 4,
    seed: Seed = 42,
    steps: Steps = 30,
    guidance: Guidance = 4.5,
    image_guidance: ImageGuidance = 1.5,
    scheduler: Scheduler = "euler",
    size: Size = None,
    batch: Batch = 4,
    fresh: Annotated[bool, Option("--fresh", help="Move an earlier one at --out aside.")] = False,
) -> None:
    """Draw a benchmark's prompts where its scorer looks for them; the same command goes on with what is missing."""
    from qvl_metaquery.metrics import chosen
    from qvl_metaquery.sampling import Sampling

    scorers = chosen(scorer or (), clip, fid, fid_weights)
    from qvl_metaquery.evaluate import evaluate as run

    run(
        model,
        prompts,
        out,
        style=None if style == "auto" else style,
        sampling=Sampling(guidance, image_guidance, steps, scheduler, negative, size),
        number=num_images,
        seed=seed,
        batch=batch,
        scorers=scorers,
        fresh=fresh,
    )


@app.command()
def convert(
    checkpoint: Annotated[Path, Argument(metavar="CHECKPOINT", help="Folder of upstream's weights and tokenizer.")],
    out: Annotated[Path, Option(help="New folder for the model.")],
    mllm: Annotated[str, Option(help="The Qwen3-VL that it was trained over: folder or hub id.")],
    revision: Annotated[str | None, Option(help="Hub revision of --mllm (branch, tag or commit).")] = None,
    sana: Annotated[
        str, Option(help="The Sana that it was trained over.")
    ] = "Efficient-Large-Model/Sana_1600M_512px_diffusers",
    sana_revision: Annotated[str | None, Option(help="The same of --sana.")] = None,
    size: Annotated[int, Option(min=2, help="Side of its pictures in pixels.")] = 512,
    system: Annotated[
        str | None, Option(help="System text that it was trained behind; default: this package's.")
    ] = None,
) -> None:
    """Make a folder that draws from a checkpoint in upstream's layout."""
    from qvl_core.recipe.blocks import Model
    from qvl_metaquery.convert import convert as run
    from qvl_metaquery.recipe import Sana
    from qvl_metaquery.settings import SYSTEM

    qwen, source = Model(name=mllm, revision=revision), Sana(name=sana, revision=sana_revision)
    run(checkpoint, out, qwen, source, size, SYSTEM if system is None else system)


main = app.main
