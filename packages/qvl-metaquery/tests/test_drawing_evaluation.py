"""`qvl-metaquery evaluate`: files where the official scorers look, killed and continued, and scorers of one's own."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawing_verbs import qvl_metaquery
from PIL import Image

from qvl_core.errors import BadInput
from qvl_data.drawing.prompts import Asked
from qvl_data.example.digits import arrays
from qvl_data.example.drawings import NAMES
from qvl_metaquery import evaluate as evaluating
from qvl_metaquery.evaluate import evaluate
from qvl_metaquery.layouts import Sheet
from qvl_metaquery.metrics import chosen
from qvl_metaquery.pipeline import MetaQueryPipeline
from qvl_metaquery.sampling import Sampling
from qvl_metaquery.scorers import Picture, Scores, register_scorer, scored

QUICK = Sampling(steps=2)
LINES = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "counting", "include": [{"class": "cup", "count": 3}], "prompt": "a photo of three cups", "exclude": []},
    {"tag": "colors", "include": [{"class": "cow", "count": 1, "color": "red"}], "prompt": "a photo of a red cow"},
]


@pytest.fixture
def geneval(tmp_path: Path) -> Path:
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")
    return file


@pytest.fixture
def dpg(tmp_path: Path) -> Path:
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name, text in (("midjourney12", "a long tale of a fox"), ("COCO_7", "two cups\n")):
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def bright(pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    return [{"mean": float(np.asarray(one.opened()).mean()), "words": one.prompt} for one in pictures]


def test_geneval_prompts_become_the_folders_that_its_scorer_reads(drawer: Path, geneval: Path, tmp_path: Path) -> None:
    found = evaluate(str(drawer), geneval, tmp_path / "out", sampling=QUICK, scorers={"light": bright})
    names = [f"{prompt:05d}/{name}" for prompt in range(3) for name in ("metadata.jsonl", "samples/0000.png")]
    written = files(tmp_path / "out" / "images")
    assert set(names) <= set(written)
    assert len(written) == 3 * (1 + 4)
    assert [json.loads(written[f"{number:05d}/metadata.jsonl"]) for number in range(3)] == LINES
    assert len({written[f"00000/samples/{place:04d}.png"] for place in range(4)}) == 4
    assert (found["style"], found["prompts"], found["pictures"], found["complete"]) == ("geneval", 3, 12, True)
    assert json.loads((tmp_path / "out" / "result.json").read_text("utf-8")) == found
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert [(line["name"], line["seed"]) for line in lines[:5]] == [
        *(("00000", 42 + n) for n in range(4)),
        ("00001", 42),
    ]
    assert lines[4]["file"] == "images/00001/samples/0000.png"
    assert lines[4]["prompt"] == lines[4]["scores"]["light_words"] == "a photo of three cups"
    mean = np.mean([line["scores"]["light_mean"] for line in lines])
    assert found["light_mean"] == pytest.approx(mean)
    own = np.asarray(Image.open(tmp_path / "out" / lines[4]["file"])).mean()
    assert lines[4]["scores"]["light_mean"] == pytest.approx(own)


def test_dpg_prompts_become_grids_of_their_names(drawer: Path, dpg: Path, tmp_path: Path) -> None:
    evaluate(str(drawer), dpg, tmp_path / "four", sampling=QUICK)
    evaluate(str(drawer), dpg, tmp_path / "one", sampling=QUICK, number=1)
    for name in ("COCO_7", "midjourney12"):
        whole = Image.open(tmp_path / "four" / "images" / f"{name}.png")
        alone = Image.open(tmp_path / "one" / "images" / f"{name}.png")
        assert (whole.size, alone.size) == ((16, 16), (8, 8))
        first = np.asarray(whole.crop((0, 0, 8, 8)), int)
        assert abs(first - np.asarray(alone, int)).max() <= 1
    assert len(list((tmp_path / "four" / "images").iterdir())) == 2


def test_pictures_of_a_sheet_come_back_in_their_order(tmp_path: Path) -> None:
    colours = [(value, 0, 0) for value in (10, 20, 30, 40, 50)]
    for number in range(1, 6):
        sheet = Sheet(tmp_path / "sheet.png", Asked("a", "x"), tuple(range(number)))
        sheet.joined([Image.new("RGB", (6, 4), colour) for colour in colours[:number]]).save(sheet.file)
        back = [sheet.picture(place) for place in range(number)]
        assert [(one.size, one.getpixel((5, 3))) for one in back] == [((6, 4), colour) for colour in colours[:number]]


@pytest.mark.parametrize("kind", ["geneval", "dpg"])
def test_a_killed_evaluation_draws_only_what_is_missing_and_ends_alike(
    kind: str, drawer: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = request.getfixturevalue(kind)
    evaluate(str(drawer), prompts, tmp_path / "whole", sampling=QUICK, scorers={"light": bright})
    drawn: list[int] = []
    call = MetaQueryPipeline.__call__

    def killed(self: Any, texts: Any, *args: Any, **options: Any) -> Any:
        if len(drawn) == 1:
            raise KeyboardInterrupt
        drawn.append(len(texts))
        return call(self, texts, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(MetaQueryPipeline, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(str(drawer), prompts, tmp_path / "out", sampling=QUICK)
    assert not (tmp_path / "out" / "result.json").exists()
    begun = files(tmp_path / "out" / "images")
    pictures = sum(name.endswith(".png") for name in begun) * (1 if kind == "geneval" else 4)
    assert pictures == 4

    def counted(self: Any, texts: Any, *args: Any, **options: Any) -> Any:
        drawn.append(len(texts))
        return call(self, texts, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(MetaQueryPipeline, "__call__", counted)
        found = evaluate(str(drawer), prompts, tmp_path / "out", sampling=QUICK, scorers={"light": bright})
    assert sum(drawn[1:]) == found["pictures"] - 4
    assert files(tmp_path / "out" / "images") == files(tmp_path / "whole" / "images")
    assert (tmp_path / "out" / "predictions.jsonl").read_bytes() == (
        tmp_path / "whole" / "predictions.jsonl"
    ).read_bytes()


def test_a_finished_one_is_scored_again_without_a_model(
    drawer: Path, geneval: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(str(drawer), geneval, tmp_path / "out", sampling=QUICK, number=1)
    monkeypatch.setattr(evaluating, "open_pipeline", lambda folder: pytest.fail("a model is opened"))
    found = evaluate(str(drawer), geneval, tmp_path / "out", sampling=QUICK, number=1, scorers={"light": bright})
    assert found["light_mean"] > 0


def test_another_evaluation_at_the_same_place_is_refused_or_moved_aside(
    drawer: Path, geneval: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    evaluate(str(drawer), geneval, out, sampling=QUICK, number=1)
    with pytest.raises(BadInput, match=r"holds pictures of another `steps`"):
        evaluate(str(drawer), geneval, out, sampling=Sampling(steps=3), number=1)
    with pytest.raises(BadInput, match=r"holds pictures of another `number`.*--fresh"):
        evaluate(str(drawer), geneval, out, sampling=QUICK, number=2)
    geneval.write_text(geneval.read_text("utf-8").replace("red cow", "blue cow"), encoding="utf-8")
    with pytest.raises(BadInput, match=r"another `prompts`"):
        evaluate(str(drawer), geneval, out, sampling=QUICK, number=1)
    evaluate(str(drawer), geneval, out, sampling=QUICK, number=1, fresh=True)
    assert (tmp_path / "out.old-1" / "result.json").is_file()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("x", encoding="utf-8")
    with pytest.raises(BadInput, match=r"holds something else"):
        evaluate(str(drawer), geneval, tmp_path / "mine", sampling=QUICK, fresh=True)
    assert (tmp_path / "mine" / "letter.txt").is_file()


def test_prompts_that_genevals_scorer_could_not_read_are_refused(drawer: Path, dpg: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"prompt COCO_7 has no `tag`"):
        evaluate(str(drawer), dpg, tmp_path / "out", style="geneval")


def test_a_scorer_says_something_of_each_picture_or_of_all() -> None:
    pictures = [Picture(Sheet(Path(), Asked("a", "x"), (1, 2)), place) for place in range(2)]
    found = scored("s", lambda given: Scores([{"right": True, "read": "7"}, {"right": False}], {"all": 3.0}), pictures)
    assert found.all_figures() == {"right": 0.5, "all": 3.0}
    with pytest.raises(BadInput, match="the scorer s: gave 1 scores for 2 pictures"):
        scored("s", lambda given: [{"right": True}], pictures)
    register = register_scorer("same")
    register(bright)
    with pytest.raises(BadInput, match='"same" is there already'):
        register(bright)


def test_digits_are_read_by_the_nearest_real_one(tmp_path: Path) -> None:
    values, digits = arrays()
    pictures = []
    for place, index in enumerate(np.flatnonzero(np.isin(digits, [3, 7]))[:12]):
        sheet = Sheet(tmp_path / f"{place}.png", Asked("a", f"a handwritten {NAMES[digits[index]]}"), (0,))
        Image.fromarray((values[index].reshape(8, 8) * (255 / 16)).astype(np.uint8)).save(sheet.file)
        pictures.append(Picture(sheet, 0))
    found = scored("digits", chosen(["digits"])["digits"], pictures).all_figures()
    assert found["right"] == 1.0
    assert 0.5 < found["diversity"] < 1.5
    wrong = [Picture(Sheet(one.sheet.file, Asked("a", "a line", record={"digit": 0}), (0,)), 0) for one in pictures]
    assert scored("digits", chosen(["digits"])["digits"], wrong).all_figures()["right"] == 0.0
    for text in ("a line", "a three or a seven"):
        with pytest.raises(BadInput, match=f'the prompt "{text}" names . digits'):
            chosen(["digits"])["digits"]([Picture(Sheet(pictures[0].sheet.file, Asked("a", text), (0,)), 0)])


PLUGIN = """
from qvl_metaquery.scorers import register_scorer

@register_scorer("seeds")
def seeds(pictures):
    return [{"even": one.seed % 2 == 0, "tagged": "tag" in one.record} for one in pictures]
"""


def test_a_plugins_scorer_by_the_command_line(drawer: Path, geneval: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN, encoding="utf-8")
    asked = ("evaluate", drawer, geneval, "--steps", 2, "--num-images", 2, "--out", tmp_path / "out")
    done = qvl_metaquery(*asked, "--scorer", "seeds")
    assert done.code == 2
    assert "--scorer seeds: " in done.err
    assert not (tmp_path / "out").exists()
    done = qvl_metaquery(*asked, "--scorer", "seeds", "--plugin", plugin)
    assert (done.code, done.err) == (0, "")
    result = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))
    assert (result["seeds_even"], result["seeds_tagged"]) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.jsonl"], "none.jsonl: there is no such file or folder of prompts"),
        (["prompts.txt", "--fid", "real"], "FID: needs --fid FOLDER of real pictures and --fid-weights FILE"),
        (["prompts.txt", "--scorer", "beauty"], "--scorer beauty: "),
        (["prompts.txt", "--clip", "nowhere"], "nowhere|torchmetrics is not installed"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(
    arguments: list[str], said: str, drawer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("x\n", encoding="utf-8")
    done = qvl_metaquery("evaluate", drawer, *arguments)
    assert done.code == 2
    assert any(part in done.err for part in said.split("|"))
    assert done.err.count("\n") == 1
