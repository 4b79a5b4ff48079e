"""The page of a run that draws: what every run shows, with its pictures prompt by prompt, from first steps to last.

samples/prompt-00-0.png         the first picture that prompt 0 shows
samples/target-00.png           what is to be drawn of it, where that is one picture
samples/step-000160-00.png      what was drawn of it after 160 steps; beside it its text, as .txt
"""

import re
from collections import defaultdict
from pathlib import Path

from qvl_core.errors import BadInput
from qvl_core.report import write
from qvl_core.report.blocks import Card, Cards, Picture, Section, Strip
from qvl_core.report.sections import run_sections
from qvl_core.run import RunFolder
from qvl_core.spread import spread

SAMPLES = "Samples"  # the section of any run with pictures, in whose place they are shown prompt by prompt
FRAMES = 8  # of a prompt: the first, the last, and some between
LEAD = "Prompts of data.validation, or of data.train where that is empty, drawn from the same noise each time."


def drawn_report(path: Path) -> Path:
    """Write the report.html of the run in `path` anew. Raises BadInput if there is no run."""
    run = RunFolder(Path(path))
    if not run.recipe_file.is_file():
        raise BadInput(f"{path}: is not a run folder (it has no recipe.yaml); give the --out of a training run.")
    drawn = drawn_section(run.samples)
    sections = [drawn if section.title == SAMPLES and drawn.blocks else section for section in run_sections(run)]
    return write(run, sections)


def drawn_section(folder: Path) -> Section:
    """What was drawn of each prompt on the way, from the files above."""
    frames: dict[str, list[Picture]] = defaultdict(list)
    texts: dict[str, str] = {}
    for file in sorted(folder.glob("step-*.png")):
        if found := re.fullmatch(r"step-(\d+)-(\d+)", file.stem):
            step, number = found.groups()
            frames[number].append(Picture(file.read_bytes(), f"step {int(step):,}"))
            texts[number] = file.with_suffix(".txt").read_text(encoding="utf-8")
    cards = [
        Card(texts[number], [*_shown(folder, number), *_wanted(folder, number), Strip(spread(pictures, FRAMES))])
        for number, pictures in sorted(frames.items())
    ]
    return Section("What it draws", [Cards(cards)] if cards else [], LEAD)


def _shown(folder: Path, number: str) -> list[Picture]:
    return [Picture(file.read_bytes(), "shown") for file in sorted(folder.glob(f"prompt-{number}-*.png"))]


def _wanted(folder: Path, number: str) -> list[Picture]:
    return [Picture(file.read_bytes(), "wanted") for file in folder.glob(f"target-{number}.png")]
