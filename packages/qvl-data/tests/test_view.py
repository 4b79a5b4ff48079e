import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from qvl_core.errors import BadInput
from qvl_data.cli import app
from qvl_data.convert import write_samples
from qvl_data.dataset import Dataset
from qvl_data.sample import Sample
from qvl_data.view import Mark, Marks, marks_file, write_clean
from qvl_data.view.search import Filter, find, fits
from qvl_data.view.server import Server

from .browser import HOSTILE, browser, needs_browser, page_of
from .chats import build, file_of, picture
from .killing import check_every_kill


def chat(name, text="What is it?", **fields):
    return build(("user", picture(96, 64), text), ("assistant", "a cat"), id=name, **fields)


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "data/train.parquet"
    boxes = [{"media": 0, "kind": "box", "xy": [10.0, 20.0, 50.0, 60.0], "label": HOSTILE}]
    boxes += [
        {"media": 0, "kind": "polygon", "xy": [1.0, 1.0, 9.0, 1.0, 9.0, 9.0]},
        {"media": 0, "kind": "point", "xy": [5.0, 5.0]},
    ]
    clip = build(
        ("user", (2.0, [picture(32, 32, seed) for seed in range(3)]), "And this?"), ("assistant", "b"), id="clip"
    )
    edit = Sample.model_validate(
        {"id": "edit", "task": "edit", "edit": {"sources": [0], "target": 1, "instruction": {"zh": "调亮图片。"}}}
        | {"media": [{"kind": "image", "bytes": file_of(picture(20, 20, seed))} for seed in range(2)]}
    )
    broken = build(("user", picture(), "?"), ("assistant", "b"), id="broken").to_dict()
    broken["media"][0]["bytes"] = "bm8gcGljdHVyZQ=="
    samples = [
        chat("zero"),
        chat("one", HOSTILE, regions=boxes),
        clip,
        edit,
        Sample.model_validate(broken),
        chat("五", "猫 Katze"),
    ]
    write_samples(samples, file)
    return file


# --- marks


def test_marks_survive_and_the_last_holds(tmp_path):
    file = tmp_path / "deep/marks.jsonl"
    marks = Marks(file)
    marks.set(Mark(3, "a", "reject"))
    marks.set(Mark(1, "b", "", "한 마디\n\ud800"))
    marks.set(Mark(3, "a", "accept", "after all"))
    again = Marks(file)
    assert again[3] == Mark(3, "a", "accept", "after all")
    assert again[1].comment == "한 마디\n\ud800"
    assert again[0] == Mark(0, "")
    assert again.counts() == {"accept": 1, "reject": 0, "comment": 2}
    assert [mark.index for mark in again] == [1, 3]


def test_a_line_that_was_cut_off_is_forgotten(tmp_path):
    file = tmp_path / "marks.jsonl"
    Marks(file).set(Mark(0, "a", "reject"))
    Marks(file).set(Mark(1, "b", "reject"))
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        marks = Marks(file)
        marks.set(Mark(2, "c", "accept"))
        assert [mark.index for mark in Marks(file)] == [i for i in (0, 1) if whole[:size].count(b"\n") > i] + [2]


NO_MARKS = ["{}", "[]", "nonsense", "[" * 100_000, '{"index": -1, "id": "", "mark": "", "comment": ""}']
NO_MARKS += [
    '{"index": 0, "id": "", "mark": "maybe", "comment": ""}',
    '{"index": true, "id": "", "mark": "", "comment": ""}',
]


@pytest.mark.parametrize("line", NO_MARKS, ids=range(len(NO_MARKS)))
def test_another_file_is_no_file_of_marks(line, tmp_path):
    (tmp_path / "marks.jsonl").write_text(line + "\n")
    with pytest.raises(BadInput, match=r"marks\.jsonl:1: is no mark"):
        Marks(tmp_path / "marks.jsonl")


# --- search


def test_search_finds_forwards_and_back(source, tmp_path):
    data, marks = Dataset(source), Marks(tmp_path / "m.jsonl")
    marks.set(Mark(2, "clip", "reject"))
    marks.set(Mark(5, "五", "", "nice"))
    assert find(data, marks, Filter(text="猫"), 0, 1).index == 1
    assert find(data, marks, Filter(text="KATZE"), 0, 1).index == 5
    assert find(data, marks, Filter(text="调亮"), 5, -1).index == 3
    assert find(data, marks, Filter(text="nowhere"), 0, 1).index is None
    matching = {
        mark: [i for i in range(6) if fits(data, marks, Filter(mark=mark), i)]
        for mark in ("accept", "reject", "open", "comment", "")
    }
    assert matching == {"accept": [], "reject": [2], "open": [0, 1, 3, 4, 5], "comment": [5], "": [0, 1, 2, 3, 4, 5]}
    assert [i for i in range(6) if fits(data, marks, Filter(reason="any"), i)] == [4]
    assert not fits(data, marks, Filter(reason="json"), 4)


# --- the clean set


def test_rejected_samples_are_left_out(source, tmp_path):
    data, marks = Dataset(source), Marks(marks_file(Dataset(source)))
    for index, verdict in ((1, "reject"), (2, "accept"), (4, "reject"), (2, "reject"), (2, "accept")):
        marks.set(Mark(index, data[index].id, verdict))
    assert write_clean(data, marks, tmp_path / "clean.parquet") == 4
    before = {sample.id: sample.to_dict() for sample in data}
    clean = list(Dataset(tmp_path / "clean.parquet"))
    assert [sample.id for sample in clean] == ["zero", "clip", "edit", "五"]
    assert all(sample.to_dict()["messages"] == before[sample.id]["messages"] for sample in clean)
    assert write_clean(data, marks, tmp_path / "accepted.jsonl", only_accepted=True) == 1
    assert [sample.id for sample in Dataset(tmp_path / "accepted.jsonl")] == ["clip"]


def test_data_is_never_written_over(source, tmp_path):
    before = source.read_bytes()
    with pytest.raises(BadInput, match=r"train\.parquet: is already there; choose another name"):
        write_clean(Dataset(source), Marks(tmp_path / "m.jsonl"), source, fresh=True)
    assert source.read_bytes() == before


def test_marks_of_other_data_are_refused(source, tmp_path):
    data, marks = Dataset(source), Marks(tmp_path / "m.jsonl")
    marks.set(Mark(1, "another", "reject"))
    with pytest.raises(BadInput, match=r"m\.jsonl: sample 1 was 'another' when it was marked and is now 'one'"):
        write_clean(data, marks, tmp_path / "clean.parquet")
    marks.set(Mark(1, "another", ""))
    marks.set(Mark(9, "nine", "reject"))
    with pytest.raises(BadInput, match=r"sample 9 was marked, but .*train\.parquet now holds 6"):
        write_clean(data, marks, tmp_path / "clean.parquet")


def test_regions_are_spelt_out_and_data_cannot_write_to_the_terminal(tmp_path, capsys):
    file = tmp_path / "a.parquet"
    row = build(("user", picture(96, 64), "Where?\x1b[2J\nHere?"), ("assistant", "x"), id="a\x07").to_dict()
    row["messages"][1]["parts"] = [{"type": "regions", "regions": [0, 1]}]
    row["regions"] = [
        {"media": 0, "kind": "box", "xy": [10, 20, 50.5, 60], "label": "cat\x9b"},
        {"media": 0, "kind": "point", "xy": [5, 6]},
    ]
    write_samples([Sample.model_validate(row)], file)
    assert app.run(["view", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "Where?\\x1b[2J\nHere?" in shown
    assert "[box cat\\x9b 10, 20, 50.5, 60], [point 5, 6]" in shown
    assert "a\\x07  chat" in shown


def test_a_picture_that_cannot_be_opened_stops_nothing(source, tmp_path, capsys):
    rows = [
        {"texts": ["a", None, "b"], "images": [None, "http://host/a.png", None]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "image": "no.png"}, {"type": "text", "text": "?"}]}
            ]
        },
    ]
    problems = ["http://host/a.png: is an address, and data is never fetched", "no.png: cannot be opened (No such file"]
    for number, (row, problem) in enumerate(zip(rows, problems, strict=True)):
        file = tmp_path / f"{number}.jsonl"
        file.write_text(json.dumps(row) + "\n", encoding="utf-8")
        assert app.run(["view", str(file)]) == 0
        assert f"[image {problem}" in capsys.readouterr().out
    assert app.run(["view", str(source), "4"]) == 0
    assert "[image embedded image: is no picture in a known format" in capsys.readouterr().out


def test_the_command(source, tmp_path, capsys):
    out = tmp_path / "clean.parquet"
    assert app.run(["view", str(source), "5"]) == 0
    assert "user: [image embedded image 96 x 64]猫 Katze" in capsys.readouterr().out
    assert app.run(["view", str(source), "3"]) == 0
    picture_of = "[image embedded image 20 x 20]"
    assert f"source: {picture_of}\nzh: 调亮图片。\ntarget: {picture_of}\n" in capsys.readouterr().out
    marks = Marks(source.parent / ".marks/train.jsonl")
    marks.set(Mark(4, "broken", "reject"))
    marks.set(Mark(5, "五", "accept"))
    args = ["view", str(source), "--write-clean", str(out)]
    assert app.run(args) == 0
    assert "5 of 6 samples" in capsys.readouterr().out
    assert app.run(args) == 0
    assert app.run([*args, "--only-accepted"]) == 2
    assert app.run(["view", str(source), "--only-accepted"]) == 2
    assert app.run(["view", str(source), "9", "--browser"]) == 2
    marks.set(Mark(0, "zero", "reject"))
    assert app.run(args) == 2
    shown = capsys.readouterr().err
    for words in (
        "holds the output of another command",
        "belongs to --write-clean",
        "sample 9 of 6",
        "has changed since",
    ):
        assert words in shown
    assert app.run([*args, "--fresh"]) == 0
    assert [sample.id for sample in Dataset(out)] == ["one", "clip", "edit", "五"]


def test_killed_anywhere_the_same_command_ends_with_the_same_file(source, tmp_path):
    Marks(tmp_path / "m.jsonl").set(Mark(4, "broken", "reject"))
    command = ["view", str(source), "--marks", str(tmp_path / "m.jsonl"), "--write-clean"]
    assert check_every_kill(lambda out: [*command, str(out / "clean.parquet")], tmp_path, every=8) > 5


# --- the server


@contextmanager
def served(data, marks):
    with Server(data, marks) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server, path, method="GET", body=None, **headers):
    """Status, headers and body of one request below the token; a header of None is not sent."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    given = {"Host": f"127.0.0.1:{server.server_port}"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    connection.putrequest(method, path if path.startswith("/") else f"/{server.token}/{path}", skip_host=True)
    for name, value in given.items():
        if value is not None:
            connection.putheader(name, value)
    if body is not None and "Content-Length" not in given:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders()
    if body is not None:
        connection.send(body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


@pytest.fixture
def server(source, tmp_path):
    with served(Dataset(source), Marks(tmp_path / "m.jsonl")) as running:
        yield running


def test_pages_are_strict(server):
    for path, kind in (
        ("", "text/html"),
        ("view.js", "text/javascript"),
        ("view.css", "text/css"),
        ("about", "application/json"),
    ):
        status, headers, _ = ask(server, path)
        assert status == 200
        assert headers["Content-Type"].startswith(kind)
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
    assert server.server_address[0] == "127.0.0.1"


def test_other_hosts_and_tokens_are_refused(server):
    assert ask(server, "", Host="evil.example")[0] == 403
    assert ask(server, "", Host=f"evil.example:{server.server_port}")[0] == 403
    assert ask(server, "", Host=None)[0] == 403
    assert ask(server, "", Host=f"localhost:{server.server_port}")[0] == 200
    for path in ("/", "/about", "/x/about", f"/{server.token[:-1]}/about", f"/{server.token}x/about", "/%00/"):
        assert ask(server, path)[0] == 404
    for path in (
        "../about",
        "sample/99",
        "sample/-1",
        "sample/x",
        "sample/%31",
        "media/0/7",
        "media/0",
        "nowhere",
        "marks.py",
        "find",
    ):
        assert ask(server, path)[0] == 404, path


def test_media_are_written_anew(server):
    status, headers, body = ask(server, "media/0/0")
    assert (status, headers["Content-Type"]) == (200, "image/png")
    assert body.startswith(b"\x89PNG")
    assert ask(server, "media/2/3")[0] == 200  # the frames of a video
    status, headers, body = ask(server, "media/4/0")
    assert (status, headers["Content-Type"]) == (422, "text/plain; charset=utf-8")
    assert b"is no picture in a known format" in body
    assert json.loads(ask(server, "sample/4")[2])["media"][0]["error"].startswith("embedded image: is no picture")


def test_only_the_page_itself_sets_marks(server):
    body = json.dumps({"index": 1, "mark": "reject", "comment": "좋다"}).encode()
    good = {"Origin": f"http://127.0.0.1:{server.server_port}", "Content_Type": "application/json"}
    for wrong in (
        {"Origin": "http://evil.example"}, {"Origin": None}, {"Origin": "null"}, {"Host": "evil.example"},
        {"Content_Type": "text/plain"}, {"Content_Length": "999999999"}, {"Content_Length": "x"},
    ):  # fmt: skip
        assert ask(server, "mark", "POST", body, **good | wrong)[0] in (400, 403, 413), wrong
    assert ask(server, f"/{'x' * len(server.token)}/mark", "POST", body, **good)[0] == 404
    for bad in (b"", b"{}", b"[]", b"nonsense", b'{"index": 99, "mark": "", "comment": ""}', b"[" * 50_000):
        assert ask(server, "mark", "POST", bad, **good)[0] == 400
    assert not server.marks.file.exists()
    status, _, answer = ask(server, "mark", "POST", body, **good)
    assert (status, json.loads(answer)) == (200, {"accept": 0, "reject": 1, "comment": 1})
    assert Marks(server.marks.file)[1] == Mark(1, "one", "reject", "좋다")


def test_a_kill_loses_no_mark(source, tmp_path):
    marks = tmp_path / "m.jsonl"
    command = [sys.executable, "-m", "qvl_data", "view", str(source), "--port", "0", "--marks", str(marks)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        assert process.stdout is not None
        url = process.stdout.readline().split("open ")[1].strip()
        host, token = url.removeprefix("http://").rstrip("/").split("/")
        connection = http.client.HTTPConnection(host, timeout=10)
        for index in range(5):
            body = json.dumps({"index": index, "mark": "accept", "comment": ""})
            headers = {"Origin": f"http://{host}", "Content-Type": "application/json"}
            connection.request("POST", f"/{token}/mark", body, headers)
            assert connection.getresponse().read()
        process.kill()
        connection.close()
    assert Marks(marks).counts()["accept"] == 5


@pytest.mark.skipif(os.name == "nt", reason="a Ctrl-C is sent as a signal")
def test_ctrl_c_ends_it(source, tmp_path):
    command = [sys.executable, "-m", "qvl_data", "view", str(source), "--port", "0", "--marks", str(tmp_path / "m")]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child of a job in the background ignores it
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, errors) == (0, "")


# --- in the browser


def seen(page, name):
    """Wait until the sample of that id is shown."""
    page.wait_for_selector(f"#id:has-text('{name}')")


def boxes_of(page, *selectors):
    """Where the elements lie, all read at the same moment."""
    read = "names => names.map(name => document.querySelector(name).getBoundingClientRect().toJSON())"
    return page.evaluate(read, list(selectors))


@needs_browser
def test_looking_through_and_marking(source, tmp_path):
    complaints: list[str] = []
    marks = tmp_path / "m.jsonl"
    with served(Dataset(source), Marks(marks)) as server, browser() as chromium:
        page = page_of(chromium, complaints, server.url)
        page.goto(server.url)
        seen(page, "zero")
        page.keyboard.press("a")  # accepts and goes on
        seen(page, "one")
        page.keyboard.press("r")
        seen(page, "clip")
        page.keyboard.press("c")
        page.keyboard.type("long <b>comment</b> 댓글, arrows and a r do nothing here")
        page.keyboard.press("Enter")
        page.wait_for_selector("#counts:has-text('✎ 1')")
        page.keyboard.press("ArrowRight")
        seen(page, "edit")
        page.keyboard.press("ArrowLeft")
        seen(page, "clip")
        page.reload()
        seen(page, "clip")
        assert page.input_value("#comment").startswith("long <b>comment</b> 댓글")
        assert "✓ 1" in page.inner_text("#counts")
        page.select_option("#filter", "mark=reject")
        seen(page, "one")
        assert page.get_attribute("#reject", "aria-pressed") == "true"
        page.select_option("#filter", "reason=any")
        page.wait_for_selector(".broken")
        page.select_option("#filter", "")
        page.fill("#text", "katze")
        page.press("#text", "Enter")
        seen(page, "五")
    assert complaints == []
    assert write_clean(Dataset(source), Marks(marks), tmp_path / "clean.jsonl", only_accepted=True) == 1
    assert [sample.id for sample in Dataset(tmp_path / "clean.jsonl")] == ["zero"]


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_hostile_texts_stay_texts(source, tmp_path, width):
    complaints: list[str] = []
    with served(Dataset(source), Marks(tmp_path / "m.jsonl")) as server, browser() as chromium:
        server.marks.set(Mark(1, "one", "", HOSTILE))
        page = page_of(chromium, complaints, server.url, width)
        for index in range(6):
            page.goto(f"{server.url}#{index}")
            page.reload()
            page.wait_for_selector("#stage > *")
            page.wait_for_load_state("networkidle")
            assert page.evaluate("document.documentElement.scrollWidth") == width, index
            assert "qvl-data view" in page.title()
        page.goto(f"{server.url}#1")
        page.reload()
        page.wait_for_selector(".picture .label")
        assert page.inner_text(".picture .label") == HOSTILE
        assert HOSTILE in page.inner_text("#talk")
        assert page.input_value("#comment") == HOSTILE
        # A box of 40 x 40 pixels at (10, 20) in a picture of 96 x 64 covers that part of what is shown.
        box, shown = boxes_of(page, ".picture rect", ".picture img")
        assert box["x"] - shown["x"] == pytest.approx(shown["width"] * 10 / 96, abs=2)
        assert box["height"] == pytest.approx(shown["height"] * 40 / 64, abs=3)
        assert page.locator("script").count() == 1
    assert complaints == []


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_moves_when_a_picture_arrives(source, tmp_path, width):
    with served(Dataset(source), Marks(tmp_path / "m.jsonl")) as server, browser() as chromium:
        page = page_of(chromium, [], server.url, width)
        held = []
        page.route("**/media/**", lambda route: held.append(route))
        page.goto(f"{server.url}#1", wait_until="commit")
        page.wait_for_selector(".picture rect", state="attached")
        awaited = boxes_of(page, ".picture", ".picture rect", ".picture img", "figcaption")
        deadline = time.monotonic() + 30
        while not held and time.monotonic() < deadline:
            page.wait_for_timeout(20)  # lets the request arrive
        assert len(held) == 1
        held.pop().continue_()
        page.evaluate("() => document.querySelector('.picture img').decode()")
        assert boxes_of(page, ".picture", ".picture rect", ".picture img", "figcaption") == awaited
