"""The verbs of qvl-sft; each imports what it needs when it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from qvl_core.cli import App, Argument, Option

app = App("qvl-sft", package="qvl_sft", help="Fine-tune Qwen3-VL on your pictures and answers.")
app.common("train", "check", "plan", "demo", "tiny", "recipes", "report", "doctor", "slurm")

Trained = Annotated[str, Argument(metavar="MODEL", help="Run folder, adapter folder, model folder or hub id.")]
Base = Annotated[str | None, Option(help="Base model of an adapter; default: the one it names.")]
Quant = Annotated[Literal["nf4", "int8"] | None, Option(help="Hold the language model in 4 or 8 bits: less memory.")]
DeviceMap = Annotated[
    Literal["auto"] | None, Option(help="Spread the model over all GPUs and, where they are full, host memory.")
]
Metrics = Annotated[list[str] | None, Option(help="Figure of the answers; repeatable. Default: exact_match.")]
Split = Annotated[str | None, Option(help="Split of a dataset folder; default: test.")]
Samples = Annotated[int | None, Option(min=1, help="At most this many samples: a fixed random choice.")]
Tokens = Annotated[int | None, Option(min=1, help="Longest answer in tokens; default: 64.")]
MediaRoot = Annotated[Path | None, Option(help="Folder that relative media paths start from.")]
AllowRoot = Annotated[list[Path] | None, Option(help="Folder to read absolute media paths from; repeatable.")]
Fresh = Annotated[bool, Option("--fresh", help="Move an earlier one at --out aside.")]

Dtype = Annotated[str | None, Option(help="Type of the weights: bf16, fp16 or fp32; default: the base's.")]
PushToHub = Annotated[str | None, Option(metavar="NAME", help="Upload the folder to the hub as OWNER/NAME.")]
Private = Annotated[bool, Option("--private", help="Make the uploaded repository private.")]


@app.command()
def chat(
    model: Trained,
    prompt: Annotated[str | None, Argument(help="Question; without it, a conversation is opened.")] = None,
    image: Annotated[list[Path] | None, Option(help="Picture that belongs to the question; repeatable.")] = None,
    video: Annotated[list[Path] | None, Option(help="Video that belongs to the question; repeatable.")] = None,
    base: Base = None,
    system: Annotated[str | None, Option(help="System message.")] = None,
    max_new_tokens: Annotated[int, Option(min=1, help="Longest answer in tokens.")] = 512,
    temperature: Annotated[float, Option(min=0.0, help="0 always takes the likeliest token.")] = 0.0,
    top_p: Annotated[
        float | None, Option(min=0.0, max=1.0, help="Draw from the likeliest tokens that hold this probability.")
    ] = None,
    top_k: Annotated[int | None, Option(min=0, help="Draw from so many of the likeliest tokens; 0: from all.")] = None,
    min_p: Annotated[
        float | None, Option(min=0.0, max=1.0, help="Draw from tokens at least this part as likely as the likeliest.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, Option(min=0.01, help="Above 1, words that were said before become less likely.")
    ] = None,
    seed: Annotated[int, Option(help="Decides what is drawn when temperature is above 0.")] = 0,
    quant: Quant = None,
    device_map: DeviceMap = None,
    max_pixels: Annotated[int | None, Option(min=1024, help="Largest picture in pixels.")] = None,
    image_tokens: Annotated[int | None, Option(min=1, help="Most tokens of one picture.")] = None,
    video_tokens: Annotated[int | None, Option(min=1, help="Most tokens of one video.")] = None,
    frame_tokens: Annotated[int | None, Option(min=1, help="Most tokens of two frames of a video.")] = None,
    fps: Annotated[float | None, Option(min=0.01, max=1000, help="Frames per second taken of a video.")] = None,
    min_frames: Annotated[int | None, Option(min=2, help="Fewest frames taken of a video that has them.")] = None,
    max_frames: Annotated[int | None, Option(min=2, help="Most frames taken of a video.")] = None,
) -> None:
    """Talk to a model about pictures and videos; the answer appears as it is written.

    Budgets that are not given are those of the model's training. Where --top-p, --top-k, --min-p or
    --repetition-penalty is not given, the model's generation_config.json decides.
    """
    from qvl_core.errors import BadInput
    from qvl_core.qwen3vl.generate import Sampling
    from qvl_core.recipe.blocks import Media
    from qvl_sft.chat import chat as run

    if max_pixels is not None and image_tokens is not None:
        raise BadInput("--max-pixels and --image-tokens say the same; give one.")
    run(
        model,
        prompt,
        image or [],
        video or [],
        base=base,
        system=system,
        quantization=quant,
        spread=device_map == "auto",
        budgets=Media(
            max_pixels=max_pixels,
            image_tokens=image_tokens,
            video_tokens=video_tokens,
            frame_tokens=frame_tokens,
            fps=fps,
            min_frames=min_frames,
            max_frames=max_frames,
        ),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_p, top_k, min_p, repetition_penalty),
        seed=seed,
    )


@app.command()
def evaluate(
    model: Trained,
    data: Annotated[
        list[str] | None,
        Argument(help="Sources: names, files or folders, such as digits%50; none to judge the answers in MODEL again."),
    ] = None,
    out: Annotated[Path, Option(help="Folder for result.json, predictions.jsonl and report.html.")] = Path(
        "runs/evaluation"
    ),
    metric: Metrics = None,
    group_by: Annotated[
        str | None, Option(help="Field of the samples by whose values the figures are also given apart.")
    ] = None,
    split: Split = None,
    base: Base = None,
    samples: Samples = None,
    max_new_tokens: Tokens = None,
    quant: Quant = None,
    device_map: DeviceMap = None,
    media_root: MediaRoot = None,
    allow_root: AllowRoot = None,
    fresh: Fresh = False,
) -> None:
    """Answer held-out questions and compare with the reference answers.

    Metrics are exact_match, anls, bleu, rouge1, rouge2, rougeL, cider, iou, box_recall_50, box_precision_50, and those
    of --plugin files.
    """
    from qvl_sft.asking import Asking
    from qvl_sft.evaluate import evaluate as run

    spread = device_map == "auto"
    asking = Asking(base, quant, spread, samples, max_new_tokens, split, media_root, allow_root or ())
    run(
        model,
        data or (),
        out,
        metrics=metric or ("exact_match",),
        group_by=group_by,
        asking=asking,
        fresh=fresh,
    )


@app.command()
def compare(
    a: Annotated[str, Argument(metavar="A", help="Model as for evaluate, or the folder of an evaluation.")],
    b: Annotated[str, Argument(metavar="B", help="The other one.")],
    data: Annotated[
        list[str] | None, Argument(help="Sources that both answer; none if both are folders of evaluations.")
    ] = None,
    out: Annotated[Path, Option(help="Folder for result.json, report.html, and the answers of both.")] = Path(
        "runs/comparison"
    ),
    metric: Metrics = None,
    split: Split = None,
    base: Base = None,
    samples: Samples = None,
    max_new_tokens: Tokens = None,
    quant: Quant = None,
    device_map: DeviceMap = None,
    media_root: MediaRoot = None,
    allow_root: AllowRoot = None,
    fresh: Fresh = False,
) -> None:
    """Say which of two models answers better, how sure that is, and on which samples they differ."""
    from qvl_sft.asking import Asking
    from qvl_sft.compare import compare as run

    spread = device_map == "auto"
    asking = Asking(base, quant, spread, samples, max_new_tokens, split, media_root, allow_root or ())
    run(
        a,
        b,
        data or (),
        out,
        metrics=metric or ("exact_match",),
        asking=asking,
        fresh=fresh,
    )


@app.command()
def merge(
    adapter: Annotated[Path, Argument(help="Run folder or adapter folder.")],
    out: Annotated[Path, Option(help="New folder for the merged model and its processor.")],
    base: Base = None,
    dtype: Dtype = None,
    push_to_hub: PushToHub = None,
    private: Private = False,
) -> None:
    """Fold an adapter into its full-precision base: a folder that transformers, vLLM and others load."""
    from qvl_sft.export import merge as run

    with _pushed(push_to_hub, private, out):
        run(adapter, out, base, dtype)


@app.command()
def export(
    source: Trained,
    out: Annotated[Path, Option(help="New folder.")],
    to: Annotated[
        Literal["hf", "vllm", "gguf"], Option(help="hf: transformers; vllm, gguf (llama.cpp): with their commands.")
    ] = "hf",
    base: Base = None,
    dtype: Dtype = None,
    quantize: Annotated[
        Literal["nf4"] | None, Option(help="Language model in 4 bits (bitsandbytes); tower and head stay.")
    ] = None,
    keep_adapter: Annotated[bool, Option("--keep-adapter", help="Copy the adapter and do not merge it.")] = False,
    push_to_hub: PushToHub = None,
    private: Private = False,
) -> None:
    """Write a folder that transformers, vLLM or llama.cpp load, complete with processor and model card."""
    from qvl_sft.export import export as run

    with _pushed(push_to_hub, private, out):
        run(source, out, to, base=base, dtype=dtype, quantize=quantize, keep_adapter=keep_adapter)


@contextmanager
def _pushed(name: str | None, private: bool, out: Path) -> Iterator[None]:
    """Upload the folder that is written within, if it is to be: what forbids that is known before the work is done."""
    if name is None:
        yield
        return
    from qvl_sft.hub import check_push, push

    check_push(name)
    yield
    push(out, name, private)


@app.command()
def inspect(
    recipe: Annotated[str, Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")],
    overrides: Annotated[
        list[str] | None, Argument(metavar="KEY=VALUE", help="Changes to the recipe, such as data.train_on=last.")
    ] = None,
    list_name: Annotated[str, Option("--list", metavar="LIST", help="train, validation or test.")] = "train",
    samples: Annotated[int, Option(min=1, help="How many samples, from the first that are trained on.")] = 4,
    sample: Annotated[str, Option(metavar="ID", help="Only this one: its id, or its number in the order.")] = "",
    out: Annotated[
        Path | None, Option(help="Folder for inspect.html, with the pictures; default: only printed.")
    ] = None,
) -> None:
    """Show samples as the model reads them: what is learned, what is cut, how many tokens of which kind."""
    from qvl_core.recipe.load import name

    app.room("inspect").inspect(app.load(recipe, overrides), name(recipe), list_name, samples, sample, out)


main = app.main
