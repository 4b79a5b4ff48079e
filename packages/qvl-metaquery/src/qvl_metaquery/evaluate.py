"""`qvl-metaquery evaluate`: the pictures of a benchmark's prompts where its scorer looks for them, and figures of ours.

Every file is written whole; an evaluation that was killed goes on with what is missing, and every picture has a seed of
its own, so it ends with the same files.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from qvl_core.evaluation import continued_folder, show_figures
from qvl_core.files import writing
from qvl_core.predictions import write_predictions
from qvl_core.run import Scalar, result
from qvl_data.drawing.files import Wish, write_picture
from qvl_data.drawing.prompts import read_prompts
from qvl_data.drawing.scores import figures_of, prefixed
from qvl_metaquery.checkpoint import state_of
from qvl_metaquery.generate import drawn, open_pipeline
from qvl_metaquery.layouts import Sheet, Style, check_style, prepare, sheets, style_of
from qvl_metaquery.sampling import Sampling
from qvl_metaquery.scorers import Picture, Scorer, scored

IMAGES = "images"


@dataclass(frozen=True)
class Prediction:
    """A picture as predictions.jsonl has it; `list` is the style, `scores` have names such as digits_right."""

    list: str
    name: str
    prompt: str
    seed: int
    file: str
    scores: dict[str, Scalar] = field(default_factory=dict)


def evaluate(
    model: str,
    prompts: Path,
    out: Path,
    *,
    style: Style | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008 (immutable)
    number: int = 4,
    seed: int = 42,
    batch: int = 4,
    scorers: Mapping[str, Scorer] | None = None,
    fresh: bool = False,
) -> dict[str, Any]:
    """Draw `number` pictures of each prompt, score them, and leave images/, predictions.jsonl and result.json in `out`.

    style    how files are laid out (see `qvl_metaquery.layouts`); default: by what the prompts say
    batch    pictures that are drawn together
    fresh    move what is at `out` aside

    Raises BadInput for prompts that cannot be read, and for an `out` that holds another evaluation.
    """
    asked = read_prompts(prompts)
    style = style or style_of(asked)
    check_style(asked, style, prompts)
    request = {
        "model": state_of(Path(model)),
        "prompts": hashlib.sha256(json.dumps([[one.text, dict(one.record)] for one in asked]).encode()).hexdigest(),
        "style": style,
        "number": number,
        "seed": seed,
        **sampling.said(),
    }
    run = continued_folder(out, request, fresh)
    files = sheets(asked, run.path / IMAGES, style, number, seed)
    draw(model, [sheet for sheet in files if not sheet.file.is_file()], style, sampling, batch)
    pictures = [Picture(sheet, place) for sheet in files for place in range(len(sheet.seeds))]
    found = {name: scored(name, scorer, pictures) for name, scorer in (scorers or {}).items()}
    write_predictions(
        run.path,
        [
            Prediction(
                style,
                picture.sheet.asked.name,
                picture.prompt,
                picture.seed,
                picture.sheet.file.relative_to(run.path).as_posix(),
                prefixed(found, index),
            )
            for index, picture in enumerate(pictures)
        ],
    )
    figures = figures_of(found)
    counts = {"prompts": len(asked), "pictures": len(pictures)}
    said: dict[str, Scalar] = {"model": model, "prompt_file": str(prompts), "style": style, **counts, **figures}
    values = result("qvl-metaquery", seed=seed, complete=True, figures=said)
    run.write_result(values)
    show_figures(counts | figures)
    print(run.path / IMAGES)
    return dict(values)


def draw(model: str, missing: Sequence[Sheet], style: Style, sampling: Sampling, batch: int) -> None:
    """Draw the files that are not there."""
    if not missing:
        return
    pipeline = open_pipeline(model)
    pictures = drawn(pipeline, [Wish(sheet.asked, seed) for sheet in missing for seed in sheet.seeds], sampling, batch)
    console = Console(stderr=True)
    for sheet in track(missing, "drawing", console=console, transient=True, disable=not console.is_terminal):
        own = [next(pictures) for _ in sheet.seeds]
        with writing(sheet.file):
            prepare(sheet, style)
        how = {"prompt": sheet.asked.text, "seeds": list(sheet.seeds), "model": model, **sampling.said()}
        write_picture(sheet.file, sheet.joined(own), how)
