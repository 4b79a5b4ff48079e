"""`qvl-edit evaluate`: held-out pairs measured, benchmarks drawn where their scorers look, killed and continued, and a
judge behind a real local server."""

import base64
import io
import json
import shutil
import signal
import tracemalloc
from _thread import interrupt_main
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from edit_rows import row
from editing_verbs import qvl_edit
from PIL import Image

from qvl_core.run import read_records
from qvl_data.media import Opener
from qvl_data.order import chosen
from qvl_data.sample import Media
from qvl_edit.benchmarks import open_benchmark
from qvl_edit.cut import Bucket
from qvl_edit.endpoint import Judge, Unusable, read_marks
from qvl_edit.geometry import Geometry
from qvl_edit.pipeline import EditPipeline
from qvl_edit.wanted import Edited, Shown, Wanted, digest

FEW = ("--steps", 1, "--guidance", 1)


@pytest.fixture(scope="module")
def model(checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(checkpoint("edit-plus", "patches"), tmp_path_factory.mktemp("model") / "model"))
    settings = {"base": str(folder), "pictures": {"size": 48, "vl_size": 56}}
    (folder / "edit.json").write_text(json.dumps({"format": "qvl.edit/1", **settings}), encoding="utf-8")
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Four rows: one source, another shape, none, and one that cannot be read."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    rows = [
        row(folder, "a", [(48, 48)], (48, 48), instruction="make it red"),
        row(folder, "bb", [(48, 80)], (80, 48), instruction_cn="变成红色"),
        row(folder, "ccc", [], (48, 48), instruction="a cat"),
        {"source_image": "none.png", "target_image": "a-1.png", "instruction": "x"},
    ]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return file


def lines(out: Path) -> list[dict[str, Any]]:
    return read_records(out / "predictions.jsonl")


def pictures(out: Path) -> dict[str, bytes]:
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in sorted(out.rglob("images/**/*.png"))}


def test_pairs_are_drawn_at_the_sizes_of_their_targets_and_measured(model: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = qvl_edit("evaluate", model, pairs, *FEW, "--check", "recoloured", "--out", out)
    assert (done.code, done.err) == (0, "")
    found = json.loads((out / "result.json").read_text("utf-8"))
    assert {"schema": "qvl.result/1", "pictures": 3, "left_out": 1, "complete": True}.items() <= found.items()
    assert [line["instruction"] for line in lines(out)] == ["make it red", "变成红色", "a cat"]
    targets = {"a-1.png": (48, 48), "bb-1.png": (36, 60), "ccc-0.png": (48, 48)}  # of about 48 x 48 pixels
    for line, (target, size) in zip(lines(out), targets.items(), strict=True):
        output, right = Image.open(out / line["file"]).convert("RGB"), Image.open(pairs.parent / target)
        assert output.size == size
        right = right.resize(size, Image.Resampling.LANCZOS)
        apart = np.abs(np.asarray(output, float) - np.asarray(right, float)).mean() / 127.5
        assert line["scores"]["error"] == pytest.approx(apart)
    errors = [line["scores"]["error"] for line in lines(out)]
    assert found["error"] == pytest.approx(np.mean(errors))
    assert found["recoloured_red"] == 0
    assert "nearer_target" not in lines(out)[2]["scores"]
    (bad,) = read_records(out / "left_out.jsonl")
    assert "cannot be opened" in bad["problem"]
    assert "none.png" in bad["place"]
    page = (out / "report.html").read_text("utf-8")
    assert all(word in page for word in ("make it red", "变成红色", "target", "output"))


def test_a_killed_evaluation_draws_only_what_is_missing_and_batches_change_nothing(
    model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, command = tmp_path / "out", ("evaluate", model, pairs, *FEW, "--out")
    assert qvl_edit(*command, out).code == 0
    whole, drawn = pictures(out), list[int]()
    (out / "images/00001.png").unlink()
    call = EditPipeline.__call__

    def counted(self: Any, prompt: Any, *args: Any, **options: Any) -> Any:
        drawn.append(len(prompt))
        return call(self, prompt, *args, **options)

    monkeypatch.setattr(EditPipeline, "__call__", counted)
    assert qvl_edit(*command, out).code == 0
    assert drawn == [1]
    assert pictures(out) == whole
    assert qvl_edit(*command, tmp_path / "single", "--batch", 1).code == 0
    assert drawn == [1, 1, 1, 1]
    for name in whole:
        one, other = (np.asarray(Image.open(folder / name), int) for folder in (out, tmp_path / "single"))
        assert np.abs(one - other).max() <= 1
    refused = qvl_edit(*command, out, "--seed", 1)
    assert refused.code == 2
    assert "holds pictures of another `seed`" in refused.err
    assert qvl_edit(*command, out, "--seed", 1, "--fresh").code == 0
    assert (tmp_path / "out.old-1").is_dir()


def test_pictures_of_another_size_are_of_another_evaluation(model: Path, pairs: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(model, tmp_path / "model"))
    command = ("evaluate", own, pairs, *FEW, "--samples", 1, "--out", tmp_path / "out")
    assert qvl_edit(*command).code == 0
    settings = json.loads((own / "edit.json").read_text("utf-8"))
    settings["pictures"]["size"] = 64
    (own / "edit.json").write_text(json.dumps(settings), encoding="utf-8")
    done = qvl_edit(*command)
    assert done.code == 2
    assert "holds pictures of another `model`" in done.err


def test_a_recipe_says_what_is_held_out(model: Path, pairs: Path, tmp_path: Path) -> None:
    command = ("evaluate", model, "tiny", f"data={{train: none, validation: {pairs}}}", *FEW, "--samples", 1)
    done = qvl_edit(*command, "--out", tmp_path / "out")
    assert (done.code, done.err) == (0, "")
    assert [line["list"] for line in lines(tmp_path / "out")] == ["validation"]
    none = qvl_edit("evaluate", model, "tiny", f"data={{train: {pairs}}}", *FEW, "--out", tmp_path / "none")
    assert none.code == 2
    assert "tiny: holds nothing out" in none.err


def test_samples_of_a_list_that_is_sorted_by_task_are_of_every_part_of_it(model: Path, tmp_path: Path) -> None:
    one = row(tmp_path, "a", [(48, 48)], (48, 48))
    texts = [f"{task} {number}" for task in ("red", "mirrored") for number in range(6)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({**one, "instruction": text}) + "\n" for text in texts), encoding="utf-8")
    assert qvl_edit("evaluate", model, file, *FEW, "--samples", 5, "--out", tmp_path / "out").code == 0
    assert [line["instruction"] for line in lines(tmp_path / "out")] == chosen(texts, 5)
    assert {text.split()[0] for text in chosen(texts, 5)} == {"red", "mirrored"}


# Benchmarks


def source(file: Path, size: tuple[int, int] = (80, 48)) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), np.uint8)).save(file)
    return file.name


@pytest.fixture
def gedit(tmp_path: Path) -> Path:
    name = source(tmp_path / "gedit" / "s.png")
    rows = [
        {"key": key, "task_type": task, "instruction": text, "instruction_language": language, "input_image": name}
        for key, task, text, language in (("0f3", "subject-add", "Add a dog.", "en"), ("1a", "ps_human", "笑", "cn"))
    ]
    file = tmp_path / "gedit" / "rows.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return file


def test_gedit_bench_is_drawn_where_its_scorer_looks(model: Path, gedit: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = qvl_edit("evaluate", model, gedit, "--benchmark", "gedit", *FEW, "--out", out)
    assert (done.code, done.err) == (0, "")
    folder = out / "images" / "fullset"
    written = {file.relative_to(folder).as_posix() for file in folder.rglob("*.png")}
    assert written == {
        *("subject-add/en/0f3.png", "subject-add/en/0f3_SRCIMG.png", "ps_human/cn/1a.png", "ps_human/cn/1a_SRCIMG.png")
    }
    for key in ("subject-add/en/0f3", "ps_human/cn/1a"):
        before, after = Image.open(folder / f"{key}_SRCIMG.png"), Image.open(folder / f"{key}.png")
        assert np.array_equal(before, Image.open(gedit.parent / "s.png"))
        assert after.size[0] > after.size[1]
    assert [(line["list"], line["id"]) for line in lines(out)] == [("subject-add", "0f3"), ("ps_human", "1a")]


def released(folder: Path, sizes: Sequence[tuple[int, int]]) -> Path:
    """GEdit-Bench as its data set is: Parquet in data/, pictures in their columns, each in English and Chinese."""
    rows = []
    for number, size in enumerate(sizes):
        file = folder / f"{number}.png"
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), np.uint8)).save(file)
        picture = {"bytes": file.read_bytes(), "path": file.name}
        for language, text in (("en", "Make it red."), ("cn", "变成红色")):
            key = f"{number:032x}{language}"
            row = {"key": key, "task_type": "color_alter", "instruction": text, "instruction_language": language}
            rows.append(row | {"input_image": picture, "input_image_raw": picture, "Intersection_exist": True})
    (folder / "data").mkdir()
    for shard in range(2):
        table = pa.Table.from_pylist(rows[shard * len(sizes) :][: len(sizes)])
        pq.write_table(table, folder / "data" / f"train-{shard:05d}-of-00002.parquet")
    return folder


def test_gedit_bench_is_read_as_it_is_released(model: Path, tmp_path: Path) -> None:
    folder, out = released(tmp_path, [(80, 48), (48, 80)]), tmp_path / "out"
    done = qvl_edit("evaluate", model, folder, "--benchmark", "gedit", *FEW, "--out", out)
    assert (done.code, done.err) == (0, "")
    names = {
        f"images/fullset/color_alter/{language}/{number:032x}{language}{end}.png"
        for language in ("en", "cn")
        for number in range(2)
        for end in ("", "_SRCIMG")
    }
    assert set(pictures(out)) == names
    for number, language in ((0, "cn"), (1, "en")):
        beside = out / f"images/fullset/color_alter/{language}/{number:032x}{language}_SRCIMG.png"
        assert np.array_equal(Image.open(beside), Image.open(tmp_path / f"{number}.png"))
    assert [line["instruction"] for line in lines(out)] == ["Make it red.", "变成红色"] * 2


def test_pictures_of_a_benchmark_are_not_held(tmp_path: Path) -> None:
    folder = released(tmp_path, [(512, 512)] * 6)  # of 0.8 MB each
    tracemalloc.start()
    benchmark = open_benchmark("gedit", folder)
    wanted = benchmark.wanted(Geometry())
    assert len(digest(wanted)) == 64
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(wanted) == 12
    assert held < 0.8e6
    assert most < 5e6


def test_a_benchmark_takes_what_it_can_use_and_refuses_the_rest(model: Path, gedit: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in gedit.read_text("utf-8").splitlines()]
    away = tmp_path / "elsewhere" / "s.png"
    source(away)
    gedit.write_text(json.dumps(rows[0] | {"input_image": str(away)}) + "\n", encoding="utf-8")
    command = ("evaluate", model, gedit, "--benchmark", "gedit", *FEW, "--out", tmp_path / "out")
    for more, said in (
        (("--split", "test"), "--split test: gedit has no splits"),
        ((gedit.parent,), f"leave {gedit.parent} out"),
        ((), "--allow-root"),
    ):
        done = qvl_edit(*command, *more)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert said in done.err
    assert qvl_edit(*command, "--allow-root", away.parent).code == 0


def test_samples_of_a_benchmark_are_of_every_part_of_it(model: Path, tmp_path: Path) -> None:
    source(tmp_path / "a.png")
    kinds = {f"{number}": "add" if number < 6 else "style" for number in range(12)}
    rows = {key: {"id": "a.png", "prompt": "x", "edit_type": kind} for key, kind in kinds.items()}
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    command = ("evaluate", model, file, "--benchmark", "imgedit", *FEW, "--samples", 5, "--out", tmp_path / "out")
    assert qvl_edit(*command).code == 0
    assert [line["id"] for line in lines(tmp_path / "out")] == chosen(list(kinds), 5)


def test_imgedit_is_drawn_where_its_scorer_looks(model: Path, tmp_path: Path) -> None:
    source(tmp_path / "originals" / "animal" / "7.jpg")
    file = tmp_path / "basic_edit.json"
    rows = {"1082": {"id": "animal/7.jpg", "prompt": "Smooth the shell.", "edit_type": "alter"}}
    file.write_text(json.dumps(rows), encoding="utf-8")
    command = ("evaluate", model, file, "--benchmark", "imgedit", *FEW, "--out", tmp_path / "out")
    done = qvl_edit(*command, "--media-root", tmp_path / "originals")
    assert (done.code, done.err) == (0, "")
    assert list(pictures(tmp_path / "out")) == ["images/1082.png"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"1": {"id": "a.png", "prompt": "x"}}, "1: has no `edit_type`"),
        ({"../1": {"id": "a.png", "prompt": "x", "edit_type": "add"}}, "becomes a file's name"),
        ({"1": {"id": "a.png", "prompt": " ", "edit_type": "add"}}, "the instruction is empty"),
        ({"1": {"id": "a.png", "prompt": "x", "edit_type": "add"}}, "a.png"),
        ([], "is no JSON object"),
        ({}, "has no rows of imgedit"),
    ],
)
def test_what_is_no_benchmark_is_one_sentence(rows: Any, said: str, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    done = qvl_edit("evaluate", model, file, "--benchmark", "imgedit", *FEW, "--out", tmp_path / "out")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert said in done.err


# A judge


HANGS = 0  # for a status: nothing is answered, and somebody presses Ctrl-C


class Server(ThreadingHTTPServer):
    """Answers by a list of (status, text) and then the last one, and keeps what it was asked."""

    daemon_threads = True
    over: Event
    answers: list[tuple[int, str]]
    asked: list[tuple[str, dict[str, str], dict[str, Any]]]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), body))
        answers = self.server.answers
        status, text = answers.pop(0) if len(answers) > 1 else answers[0]
        if status == HANGS:
            interrupt_main()
            self.server.over.wait(60)
            return
        said = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.asked, running.over = [], Event()
        Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.over.set()
        running.shutdown()


GOOD = '{"instruction": 9, "preservation": 4, "quality": 9, "why": "well"}'


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}/v1"


def test_a_judge_sees_source_output_and_instruction_and_is_asked_once(
    model: Path, pairs: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers = [(200, GOOD)]
    monkeypatch.setenv("QVL_JUDGE_KEY", "secret")
    out = tmp_path / "out"
    command = ("evaluate", model, pairs, *FEW, "--judge", url(server), "--judge-model", "looker", "--out", out)
    done = qvl_edit(*command)
    assert (done.code, done.err) == (0, "")
    assert len(server.asked) == 2  # the picture without a source is not judged
    found = json.loads((out / "result.json").read_text("utf-8"))
    assert found["judge_overall"] == pytest.approx(6)
    assert found["judge_failed"] == 0
    assert lines(out)[2]["scores"].keys().isdisjoint({"judge_failed", "judge_overall"})
    path, headers, body = next(one for one in server.asked if "make it red" in json.dumps(one[2]))
    assert (path, headers["Authorization"], body["model"]) == ("/v1/chat/completions", "Bearer secret", "looker")
    text, *shown = body["messages"][0]["content"]
    sent = [Image.open(io.BytesIO(base64.b64decode(one["image_url"]["url"].partition(",")[2]))) for one in shown]
    assert "make it red" in text["text"]
    assert np.array_equal(sent[0], Image.open(pairs.parent / "a-0.png"))
    assert np.array_equal(sent[1], Image.open(out / "images/00000.png"))
    assert "secret" not in "".join(file.read_text("utf-8") for file in out.glob("*.json*"))
    assert qvl_edit(*command).code == 0
    assert len(server.asked) == 2


def test_what_a_judge_fails_at_is_tried_again_and_counted(
    model: Path, pairs: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Judge.__init__, "__defaults__", (2, 0.01, 5.0, 1))
    command = ("evaluate", model, pairs, *FEW, "--judge", url(server), "--out", tmp_path / "out")
    server.answers = [(503, ""), (200, GOOD), (200, "I would say nine out of ten")]
    done = qvl_edit(*command)
    assert (done.code, done.err) == (0, "")
    assert "judge: 1 of 2 stay without marks: the answer has no JSON object with marks\n" in done.out
    assert sum("judge_reason" in line["scores"] for line in lines(tmp_path / "out")) == 1
    found = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))
    assert found["judge_failed"] == 0.5
    assert found["judge_overall"] == pytest.approx(6)
    assert len(server.asked) == 4
    server.answers = [(200, GOOD)]
    assert qvl_edit(*command).code == 0
    assert len(server.asked) == 5
    assert json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))["judge_failed"] == 0


def test_a_judge_that_refuses_ends_it_in_one_sentence(model: Path, pairs: Path, tmp_path: Path, server: Server) -> None:
    server.answers = [(404, "")]
    done = qvl_edit("evaluate", model, pairs, *FEW, "--judge", url(server), "--out", tmp_path / "out")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "answers 404" in done.err
    assert "--judge-model" in done.err
    assert "is no address" in qvl_edit("evaluate", model, pairs, "--judge", "x", "--out", tmp_path / "a").err


DRAFT = '{"instruction": 0, "preservation": 0, "quality": 0, "why": "one sentence"}'
TURNED = '{"why": "well", "quality": 9, "preservation": 4, "instruction": 9}'


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        f"\n {GOOD} \n",
        TURNED,
        f"```json\n{GOOD}\n```",
        f"The hat {{a red one}} is there.\n\n```json\n{GOOD}\n```\nThat is all.",
        f'<think>As {DRAFT}? The sky moved: {{"quality": 3}}.</think>\n{GOOD}',
        f"The form is {DRAFT}.\n{TURNED}",
        f'{{"marks": {GOOD}}}',
    ],
)
def test_marks_are_read_at_the_end_of_an_answer(answer: str) -> None:
    assert read_marks(answer) == {"instruction": 9, "preservation": 4, "quality": 9, "overall": 6.0, "why": "well"}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "no JSON object"),
        ("9 4 9", "no JSON object"),
        ("[1, 2]", "no JSON object"),
        ("{" * 2000, "no JSON object"),
        (f"<think>Maybe {GOOD}", "ends in thoughts"),
        (f"<think>Maybe {GOOD}</think> Nine.", "no JSON object"),
        (GOOD.replace("9", "11"), "`instruction` is no whole number"),
        (GOOD.replace("4", "4.5"), "`preservation` is no whole number"),
        (GOOD.replace("9", '"9"'), "`instruction` is no whole number"),
        (GOOD.replace("9", "true"), "`instruction` is no whole number"),
        (GOOD.replace("instruction", "prompt"), "`instruction` is no whole number"),
        (f'{GOOD} or rather {{"quality": 2}}', "`instruction` is no whole number"),
    ],
)
def test_what_is_no_mark_is_none(answer: str, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        read_marks(answer)


def test_ctrl_c_ends_judging_at_once_and_what_is_judged_stays(tmp_path: Path, server: Server) -> None:
    shown = Shown((Media(kind="image", path=source(tmp_path / "s.png")),), None, Opener(tmp_path))
    size = Bucket((48, 80), ((48, 80),))
    edited = [
        Edited(Wanted("test", text, "s.png", text, size, lambda: shown), tmp_path / "s.png")
        for text in ("first", "second")
    ]
    judge = Judge(url(server), "looker", tmp_path / "judged.jsonl", together=1)
    server.answers = [(200, GOOD), (HANGS, "")]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
    with pytest.raises(KeyboardInterrupt):
        judge(edited)
    signal.signal(signal.SIGINT, before)
    assert len(read_records(judge.file)) == 1
    server.answers = [(200, GOOD)]
    assert [one["overall"] for one in judge(edited)] == [6, 6]
    assert len(server.asked) == 3


def test_nobody_is_asked_without_a_picture(tmp_path: Path) -> None:
    assert Judge("http://127.0.0.1:1/v1", "m", tmp_path / "judged.jsonl")([]) == []
