"""The verbs of qvl-mdlm; each imports what it needs when it runs."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from qvl_core.cli import App, Argument, Option
from qvl_mdlm.options import with_sampling

app = App("qvl-mdlm", package="qvl_mdlm", help="Qwen3-VL that writes by denoising.")
app.common("train", "check", "plan", "demo", "tiny", "recipes", "report", "doctor", "slurm")

Trained = Annotated[str, Argument(metavar="MODEL", help="Run folder, adapter folder, or converted model folder.")]
Base = Annotated[str | None, Option(help="Base model of an adapter; default: the one it names.")]
Images = Annotated[list[Path] | None, Option(help="Picture that belongs to the question; repeatable.")]
Videos = Annotated[list[Path] | None, Option(help="Video that belongs to the question; repeatable.")]
Watch = Annotated[bool, Option("--watch", help="Show the denoising as it goes, and what it took.")]
Question = Annotated[str, Argument(help="The question.")]


@app.command()
def convert(
    base: Annotated[str, Argument(metavar="BASE", help="Autoregressive model: run folder, model folder or hub id.")],
    out: Annotated[Path, Option(help="New folder for the converted model and its processor.")],
    attention: Annotated[
        Literal["full", "prefix", "block"], Option(help="Who sees whom; prefix and block have exact caches.")
    ] = "full",
    block_size: Annotated[int | None, Option(min=1, help="Tokens of a block (--attention block).")] = None,
    mask_token_id: Annotated[
        int | None, Option(min=0, help="Row of the embedding that stands for what is masked; default: the first spare.")
    ] = None,
) -> None:
    """Make a masked diffusion model of an autoregressive one: same weights, to be trained."""
    from qvl_mdlm.convert import convert as run

    run(base, out, attention, block_size, mask_token_id)


@app.command()
@with_sampling
def sample(
    model: Trained,
    question: Question,
    how: dict[str, Any],
    image: Images = None,
    video: Videos = None,
    base: Base = None,
    watch: Watch = False,
) -> None:
    """Answer a question by denoising."""
    from qvl_mdlm.asking import sample as run
    from qvl_mdlm.sampling import Sampling

    run(model, question, image or (), video or (), base=base, sampling=Sampling(**how), watch=watch)


@app.command()
@partial(with_sampling, but=("max_new_tokens", "eos_guard", "early_stop"))  # the answer is as long as it is given
def infill(
    model: Trained,
    question: Question,
    answer: Annotated[str, Option(help="Answer with gaps: `It is a [4] of [2].` has one of 4 tokens and one of 2.")],
    how: dict[str, Any],
    image: Images = None,
    video: Videos = None,
    base: Base = None,
    watch: Watch = False,
) -> None:
    """Fill the gaps of an answer; what is given stays to the letter."""
    from qvl_mdlm.asking import infill as run
    from qvl_mdlm.sampling import Sampling

    run(model, question, answer, image or (), video or (), base=base, sampling=Sampling(**how), watch=watch)


@app.command()
@with_sampling
def evaluate(
    model: Annotated[
        str,
        Argument(metavar="MODEL", help="Run, adapter or model folder; an autoregressive one is measured as it is."),
    ],
    data: Annotated[list[str], Argument(help="Sources: names, files or folders, such as digits%50.")],
    how: dict[str, Any],
    out: Annotated[Path, Option(help="Folder for result.json, predictions.jsonl and report.html.")] = Path(
        "runs/evaluation"
    ),
    metric: Annotated[
        list[str] | None,
        Option(help="exact_match, nelbo or choice_accuracy; repeatable. Default: all that the data allow."),
    ] = None,
    split: Annotated[str, Option(help="Split of a dataset folder.")] = "test",
    samples: Annotated[int | None, Option(min=1, help="At most this many samples: a fixed random choice.")] = None,
    draws: Annotated[int, Option(min=1, help="Masks of each sample that its likelihood is estimated from.")] = 16,
    base: Base = None,
    media_root: Annotated[Path | None, Option(help="Folder that relative media paths start from.")] = None,
    allow_root: Annotated[
        list[Path] | None, Option(help="Folder to read absolute media paths from; repeatable.")
    ] = None,
    fresh: Annotated[bool, Option("--fresh", help="Move an earlier one at --out aside.")] = False,
) -> None:
    """Measure a model on held-out samples: likelihood, answers, forward passes, multiple choice."""
    from qvl_mdlm.evaluate import evaluate as run
    from qvl_mdlm.sampling import Sampling

    run(
        model,
        data,
        out,
        metrics=metric,
        sampling=Sampling(**how),
        split=split,
        samples=samples,
        draws=draws,
        base=base,
        media_root=media_root,
        allow_root=allow_root or (),
        fresh=fresh,
    )


@app.command()
def bench(
    model: Trained,
    base: Annotated[str | None, Option(help="Autoregressive model to compare with.")] = None,
    ratio: Annotated[list[int] | None, Option(min=1, help="Prompt tokens for each of the answer; repeatable.")] = None,
    tokens: Annotated[int, Option(min=2, help="Tokens of an answer.")] = 32,
    rows: Annotated[int, Option(min=1, help="Answers that are written together.")] = 1,
    repeats: Annotated[int, Option(min=1, help="Times each is measured; the median counts.")] = 3,
    out: Annotated[Path | None, Option(help="JSON file for the figures; default: only printed.")] = None,
) -> None:
    """Tokens a second and forward passes of each way to write, at several lengths of the prompt."""
    from qvl_mdlm.bench import bench as run

    run(model, base, ratio or (2, 8, 16), tokens, rows, repeats, out)


@app.command()
def merge(
    adapter: Annotated[str, Argument(help="Run folder or adapter folder.")],
    out: Annotated[Path, Option(help="New folder for the merged model and its processor.")],
    base: Base = None,
) -> None:
    """Fold an adapter into its full-precision base: a masked diffusion model that needs neither."""
    from qvl_mdlm.convert import merge as run

    run(adapter, out, base)


main = app.main
