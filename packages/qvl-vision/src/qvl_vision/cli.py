"""The verbs of qvl-vision; each imports what it needs when it runs."""

from pathlib import Path
from typing import Annotated

from qvl_core.cli import App, Argument, Option

app = App("qvl-vision", package="qvl_vision", help="Put any vision encoder into Qwen3-VL.")
app.common("demo", "tiny", "doctor")

Base = Annotated[str, Argument(metavar="BASE", help="Stock Qwen3-VL: folder or hub id.")]
Folder = Annotated[Path, Argument(metavar="FOLDER", help="Folder of a swapped model.")]
Encoder = Annotated[
    list[str], Option(help="Name (`qvl-vision list`), timm:NAME, hub id or folder; repeat it to join several.")
]
Merger = Annotated[str, Option(help="Name (`qvl-vision list --mergers`).")]
Layout = Annotated[str, Option(help="patches: pictures of any size; image: one size, any number of tokens; auto.")]
FeatureLayer = Annotated[
    int | None, Option(help="Encoder layer, as an index of its hidden states (-2: second-last); default: the usual.")
]
FeatureSelect = Annotated[str, Option(help="patch: patch tokens; all: with CLS and register tokens.")]
MaxTokens = Annotated[
    int | None, Option(min=1, help="Most tokens of a picture; default: those of the encoder's own picture size.")
]
Merge = Annotated[int | None, Option(min=1, help="Side of the square of patches that becomes one token.")]
DeepStack = Annotated[
    list[int] | None, Option(help="Encoder layer that also goes into the language model; repeatable; default: off.")
]
EncoderOptions = Annotated[
    list[str] | None, Option(metavar="KEY=VALUE", help="Argument of a module of one's own; repeatable.")
]
MergerOptions = Annotated[list[str] | None, Option(metavar="KEY=VALUE", help="Argument of the merger; repeatable.")]
InputNorm = Annotated[bool, Option("--input-norm", help="A LayerNorm before the merger.")]


@app.command("list")
def list_(
    pattern: Annotated[str, Argument(help="Only names that match, such as 'dino*'.")] = "*",
    mergers: Annotated[bool, Option("--mergers", help="List mergers.")] = False,
) -> None:
    """List encoders or mergers, with their facts."""
    from qvl_vision.listing import encoders
    from qvl_vision.listing import mergers as list_mergers

    print(list_mergers(pattern) if mergers else encoders(pattern), end="")


@app.command()
def swap(
    base: Base,
    encoder: Encoder,
    out: Annotated[Path, Option(help="New folder for the swapped model and its processor.")],
    merger: Merger = "linear",
    layout: Layout = "auto",
    feature_layer: FeatureLayer = None,
    feature_select: FeatureSelect = "patch",
    max_tokens: MaxTokens = None,
    merge: Merge = None,
    deepstack: DeepStack = None,
    encoder_option: EncoderOptions = None,
    merger_option: MergerOptions = None,
    input_norm: InputNorm = False,
    calibrate: Annotated[bool, Option("--calibrate", help="Scale the new merger to the text embeddings.")] = False,
    precision: Annotated[
        str | None, Option(help="Type of the weights that are written: bf16, fp16 or fp32; default: the base's.")
    ] = None,
    seed: Annotated[int, Option(help="Decides the merger's first weights.")] = 0,
) -> None:
    """Write a Qwen3-VL with another vision encoder; only its merger then has to be trained."""
    from qvl_vision.commands import swap as run

    run(
        base,
        encoder,
        out,
        merger,
        layout=layout,
        feature_layer=feature_layer,
        feature_select=feature_select,
        max_tokens=max_tokens,
        merge=merge,
        deepstack=deepstack or (),
        encoder_options=encoder_option or (),
        merger_options=merger_option or (),
        input_norm=input_norm,
        calibrate=calibrate,
        precision=precision,
        seed=seed,
    )


@app.command()
def inspect(folder: Folder, as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False) -> None:
    """Show what a swapped model is: encoder, merger, tokens, parameters."""
    from qvl_vision.commands import inspect as run

    run(folder, as_json)


@app.command()
def verify(folder: Folder) -> int:
    """Check weights, sizes and tokens of a swapped model, with real pictures; exit 1 if anything is wrong."""
    from qvl_vision.commands import verify as run

    return run(folder)


@app.command()
def plan(
    base: Base,
    encoder: Encoder,
    merger: Merger = "linear",
    layout: Layout = "auto",
    feature_layer: FeatureLayer = None,
    feature_select: FeatureSelect = "patch",
    max_tokens: MaxTokens = None,
    merge: Merge = None,
    deepstack: DeepStack = None,
    encoder_option: EncoderOptions = None,
    merger_option: MergerOptions = None,
    input_norm: InputNorm = False,
) -> None:
    """Show parameters and tokens of a swap, without weights; names of released models work offline."""
    from qvl_vision.plan import plan as run

    run(
        base,
        encoder,
        merger,
        max_tokens,
        encoder_option or (),
        merger_option or (),
        layout=layout,
        feature_layer=feature_layer,
        feature_select=feature_select,
        merge=merge,
        deepstack=deepstack or (),
        input_norm=input_norm,
    )


main = app.main
