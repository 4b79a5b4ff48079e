"""The coloured demo: its judge and its autoencoder, a short one whole, and over three seeds its bars."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qvl_core.demo_testing import demos, missed
from qvl_core.run import RunFolder
from qvl_data.example.coloured import COLOURS, PAPER, inked
from qvl_data.example.digits import arrays, indices
from qvl_metaquery.coder import open_coder
from qvl_metaquery.coloured_judge import CAPTIONS, ColouredJudge, real
from qvl_metaquery.demo_coloured import Size, as_pixels, demo, reconstructed
from qvl_metaquery.demo_coloured_report import BARS
from qvl_metaquery.train_coder import train_coder


@pytest.fixture(scope="module")
def judge() -> ColouredJudge:
    return ColouredJudge.of(0)


def test_held_out_pictures_are_read_as_what_they_are(judge: ColouredJudge) -> None:
    images, shown = real("test", 0)
    read = judge.read(images)
    assert len(images) == 360 * len(COLOURS)
    assert (read % 10 == shown % 10).mean() > 0.98
    assert (read // 10 == shown // 10).all()
    assert CAPTIONS[shown[0]] == f"a red {CAPTIONS[shown[0] % 10].split()[-1]}"


def test_a_digit_is_read_alike_in_every_colour_even_one_that_is_not_known(judge: ColouredJudge) -> None:
    numbers = indices("test")[:20]
    read = judge.read([inked(number, colour) for number in numbers for colour in COLOURS]).reshape(20, -1)
    assert (read % 10 == read[:, :1] % 10).all()
    assert (read // 10 == np.arange(len(COLOURS))).all()
    faint = [Image.blend(Image.new("RGB", (32, 32), PAPER), inked(number, "blue"), 0.8) for number in numbers]
    assert (judge.read(faint) % 10 == arrays()[1][numbers]).mean() > 0.9


def test_diversity_is_of_shapes_not_of_colours(judge: ColouredJudge) -> None:
    images, shown = real("test", 0)
    assert 0.9 < judge.diversity(images, shown) < 1.1
    one = {digit: number for number, digit in zip(indices("test"), arrays()[1][indices("test")], strict=True)}
    same = [inked(one[digit], colour) for digit in one for colour in COLOURS]
    assert judge.diversity(same, np.repeat(list(one), len(COLOURS))) < 0.01


def test_the_autoencoder_learns_and_its_scale_is_written(tmp_path: Path) -> None:
    pixels = as_pixels(real("train", 0)[0][:400])
    held_out = real("test", 0)[0][:50]
    before = torch.random.get_rng_state()
    coder = train_coder(pixels, 60, 0, RunFolder(tmp_path))
    assert torch.equal(torch.random.get_rng_state(), before)
    losses = [record["loss"] for record in RunFolder(tmp_path).read_metrics()]
    assert losses[-1] < 0.2 < 0.5 < losses[0]
    coder.save_pretrained(tmp_path / "vae")
    opened = open_coder(tmp_path / "vae")
    assert abs(opened.encode(pixels[:200]).std() - 1) < 0.1
    paper = as_pixels([Image.new("RGB", (32, 32), PAPER)] * len(held_out))
    empty = float((paper - as_pixels(held_out)).abs().mean() / 2)
    assert reconstructed(opened, held_out)[1] < 0.9 * empty


def test_a_short_coloured_demo_leaves_its_page_and_figures_and_says_what_it_missed(tmp_path: Path) -> None:
    values = demo(tmp_path, 0, Size(digits=30, code=3, draw=3, each=1))
    written = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert written["complete"]
    for name in BARS:
        assert isinstance(written[name], float), name
    assert {"recognised", "reconstruction_error"} <= set(written["missed"].split(", "))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("orange: ", "What the autoencoder keeps", "step 20", "before the first step"):
        assert words in page, words
    assert demo(tmp_path, 0) == written == json.loads(json.dumps(values))  # a finished one is left alone


@pytest.mark.slow
def test_the_bars_of_drawing_in_colours_over_three_seeds(tmp_path: Path) -> None:
    results = demos("qvl_metaquery", tmp_path, range(3), "--coloured")
    assert not missed(results, BARS, exact=("reconstruction_error", "seconds"))
