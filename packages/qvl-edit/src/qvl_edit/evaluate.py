"""`qvl-edit evaluate`: held-out pairs drawn and measured, or a benchmark's pictures where its scorer looks for them.

OUT/images/            a picture of each pair, or of each row of the benchmark in its own layout
OUT/predictions.jsonl  what was measured of each
OUT/report.html        source, target and output
OUT/result.json        qvl.result/1

Every file is written whole, and every picture has the same seed: an evaluation that was killed goes on with what is
missing and ends with the same files. No judge is asked, unless one is named (`endpoint`).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import track

from qvl_core.evaluation import LEFT_OUT, continued_folder, show_figures, write_lines
from qvl_core.files import writing
from qvl_core.predictions import write_predictions
from qvl_core.run import Scalar, result
from qvl_data.drawing.files import write_picture
from qvl_data.drawing.scores import Scorer, Scores, figures_of, prefixed, scored
from qvl_data.sources import Mixture
from qvl_edit.benchmarks import Benchmark
from qvl_edit.edit import open_pipeline, state_of
from qvl_edit.evaluate_report import write_page
from qvl_edit.figures import measured
from qvl_edit.opening import geometry_of
from qvl_edit.pipeline import EditPipeline
from qvl_edit.profile import read_profile
from qvl_edit.sampling import Sampling
from qvl_edit.trained import Trained, find_trained
from qvl_edit.wanted import Edited, Wanted, by_size, digest, held_out

IMAGES = "images"


@dataclass(frozen=True)
class Prediction:
    """A picture as predictions.jsonl has it."""

    list: str
    id: str
    instruction: str
    seed: int
    file: str
    scores: dict[str, Scalar] = field(default_factory=dict)


def evaluate(
    model: str,
    data: "Mapping[str, Mixture] | Benchmark",
    out: Path,
    *,
    given: Mapping[str, Any] | None = None,
    lora: Sequence[Path] = (),
    samples: int | None = None,
    seed: int = 0,
    batch: int = 4,
    checks: "Mapping[str, Scorer[Edited]] | None" = None,
    fresh: bool = False,
) -> dict[str, Any]:
    """Draw the pictures of lists of pairs by name, or of a benchmark, measure them, and leave a folder as above.

    given    fields of `Sampling` that are not as the model has them
    lora     adapters that are put upon the model
    samples  of each list at most, a fixed random choice
    seed     of every picture
    batch    pictures that are drawn together: speed and memory only
    checks   scorers by name
    fresh    move what is at `out` aside

    Raises BadInput for what cannot be drawn, and for an `out` that holds another evaluation.
    """
    found = find_trained(model)
    sampling = found.sampling.but(**(given or {}))
    wanted, left_out = _read(found, data, samples)
    request = {
        "model": hashlib.sha256(json.dumps(state_of(found, lora)).encode()).hexdigest(),
        "data": digest(wanted),
        "seed": seed,
        **sampling.said(),
    }
    run = continued_folder(out, request, fresh)
    edited = [Edited(one, run.path / IMAGES / one.file) for one in wanted]
    how = {"model": model, "lora": list(map(str, lora)), **sampling.said(), "seed": seed}
    draw([one for one in edited if not one.path.is_file()], found, lora, sampling, how, batch)
    if isinstance(data, Benchmark):
        data.complete(run.path / IMAGES, wanted)

    each = [measured(one) for one in edited]
    own, others = Scores(each), {name: scored(name, check, edited) for name, check in (checks or {}).items()}
    predictions = [
        Prediction(
            one.wanted.kind,
            one.wanted.id,
            one.text,
            seed,
            one.path.relative_to(run.path).as_posix(),
            {**each[place], **prefixed(others, place)},
        )
        for place, one in enumerate(edited)
    ]
    figures = own.all_figures() | figures_of(others)
    write_predictions(run.path, predictions)
    write_lines(run.path / LEFT_OUT, left_out)
    counts = {"pictures": len(edited), "left_out": len(left_out)}
    said: dict[str, Scalar] = {"model": model, **counts, **figures}
    values = result("qvl-edit", seed=seed, complete=True, figures=said)
    run.write_result(values)
    write_page(run, edited, predictions, values)
    show_figures(counts | figures)
    print(run.report_file)
    return dict(values)


def draw(
    missing: Sequence[Edited],
    found: Trained,
    lora: Sequence[Path],
    sampling: Sampling,
    how: Mapping[str, Any],
    batch: int,
) -> None:
    """Draw pictures, each in its file; those of one size together."""
    if not missing:
        return
    pipeline, console = open_pipeline(found, lora), Console(stderr=True)
    parts = [
        places[start : start + batch]
        for _, places in by_size([one.wanted for one in missing])
        for start in range(0, len(places), batch)
    ]
    for part in track(parts, "drawing", console=console, transient=True, disable=not console.is_terminal):
        now = [missing[place] for place in part]
        for one, picture in zip(now, _drawn(pipeline, now, sampling, how["seed"]), strict=True):
            with writing(one.path):
                one.path.parent.mkdir(parents=True, exist_ok=True)
            write_picture(one.path, picture, {"prompt": one.text, **how})


def _drawn(pipeline: EditPipeline, part: Sequence[Edited], sampling: Sampling, seed: int) -> Iterator[Image.Image]:
    height, width = part[0].wanted.bucket.target
    shown = [one.wanted.sources() for one in part]
    texts, seeds = [one.text for one in part], [seed] * len(part)
    yield from pipeline(texts, shown, seed=seeds, sampling=sampling, height=height, width=width).images


def _read(
    found: Trained, data: "Mapping[str, Mixture] | Benchmark", samples: int | None
) -> tuple[list[Wanted], list[dict[str, str]]]:
    """What is drawn, and what is left out."""
    profile = read_profile(found.checkpoint)
    geometry = geometry_of(found.settings.pictures, profile, found.checkpoint)
    if isinstance(data, Benchmark):
        return data.wanted(geometry, samples), []
    wanted: list[Wanted] = []
    left_out: list[dict[str, str]] = []
    for name, mixture in data.items():
        usable, bad = held_out(mixture, name, profile, geometry, samples)
        wanted, left_out = wanted + usable, left_out + bad
    return wanted, left_out
