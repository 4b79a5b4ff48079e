import json
import os
import shutil
import time
from html.parser import HTMLParser
from importlib.util import find_spec

import pytest

from qvl_core.errors import BadInput
from qvl_core.spread import spread
from qvl_data.audit import audit
from qvl_data.audit.cards import card
from qvl_data.cli import app
from qvl_data.convert import write_samples
from qvl_data.example import samples
from qvl_data.sample import Sample
from qvl_data.shown import frames, small

from .broken import KINDS
from .browser import HOSTILE, browser, needs_browser, page_of
from .chats import build, file_of, picture, write_png
from .killing import check_every_kill


def edit(**fields):
    media = [{"kind": "image", "bytes": file_of(picture(20, 30, seed))} for seed in range(2)]
    said = {"sources": [0], "target": 1, "instruction": {"en": "Brighter.", "zh": "调亮。"}}
    return Sample.model_validate({"id": "edit", "task": "edit", "edit": said, "media": media, **fields})


def boxed(label, **fields):
    shapes = [
        {"media": 0, "kind": "box", "xy": [10.0, 20.0, 50.0, 60.0], "label": label},
        {"media": 0, "kind": "polygon", "xy": [1.0, 1.0, 9.0, 1.0, 9.0, 9.0]},
        {"media": 0, "kind": "point", "xy": [90.0, 5.0], "label": "点"},
    ]
    return build(("user", picture(96, 64, 5), label), ("assistant", "there"), regions=shapes, **fields)


@pytest.fixture
def source(tmp_path):
    """train: pictures, boxes, a video, an edit, duplicates, and lines that are broken in several ways."""
    folder = tmp_path / "data"
    clip = build(("user", (2.0, [picture(32, 32, seed) for seed in range(3)]), "?"), ("assistant", "b"), id="clip")
    twice = [build(("user", picture(96, 64, 7), "Same?"), ("assistant", "yes"), id=name) for name in ("first", "again")]
    good = [boxed(HOSTILE, id=HOSTILE), clip, edit(), *twice, build(("user", "안녕"), ("assistant", "猫"), id="text")]
    write_samples(good, folder / "train.jsonl")
    write_png(folder / "cut.png", picture(64, 64))
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:500])
    cut = build(("user", picture(), "cut?"), ("assistant", "b"), id="cut").to_dict()
    cut["media"][0] = {"kind": "image", "path": "cut.png"}
    gone = json.loads(json.dumps(cut).replace("cut", "gone"))
    with (folder / "train.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in (cut, gone))
        file.write('{"broken": \n')
    write_samples([twice[0].model_copy(update={"id": "leak"})], folder / "test.parquet")
    return folder


class Page(HTMLParser):
    def __init__(self, source):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


def test_a_page_on_everything(source, tmp_path):
    out = tmp_path / "report.html"
    assert audit(source, out) == {"samples": 10, "bad": 3, "duplicates": 2}
    html = out.read_text(encoding="utf-8")
    page = Page(html)
    shown = "\n".join(page.texts)
    for words in ("What it is", "Samples", "Lengths and sizes", "Answers and balance", "Duplicates", "What is wrong"):
        assert words in shown
    for words in ("안녕", "猫", "调亮。", "instruction · zh", "train 3 · first", "train 4 · same", "test 0 · same"):
        assert words in shown, words
    for words in ("image_truncated", "media_missing", "json", "train.jsonl:9", "1 of them stands in two splits"):
        assert words in shown, words
    assert str(tmp_path) not in html  # the same page wherever the data lies
    svg = html[html.index("<svg viewBox") :]
    assert svg.startswith('<svg viewBox="0 0 96 64"')
    assert '<rect x="10.0" y="20.0" width="40.0" height="40.0"' in svg
    assert '<polygon points="1.0 1.0 9.0 1.0 9.0 9.0"' in svg
    assert {"script", "iframe", "form", "a"} & {tag for tag, _ in page.tags} == {"a"}
    assert all(a["href"].startswith("#") for tag, a in page.tags if tag == "a")
    assert all(a["src"].startswith("data:image/") for tag, a in page.tags if tag == "img")
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_the_same_data_gives_the_same_page(source, tmp_path):
    (tmp_path / "b").mkdir()
    audit(source, tmp_path / "a.html")
    moved = shutil.move(source, tmp_path / "b/data")
    audit(moved, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@pytest.mark.slow
def test_several_processes_give_the_same_page(source, tmp_path):
    audit(source, tmp_path / "a.html")
    audit(source, tmp_path / "b.html", workers=2)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_sound_data_is_told_so(tmp_path):
    write_samples(
        [build(("user", picture(), "?"), ("assistant", "b"), meta={"license": "MIT"})], tmp_path / "a.parquet"
    )
    audit(tmp_path / "a.parquet", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Nothing: every sample was read and every picture was decoded." in page
    assert "No two samples say the same about pictures that look alike." in page


def test_how_many_are_shown(source, tmp_path):
    audit(source, tmp_path / "report.html", samples=0)
    assert "0 samples, drawn at random" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_command(source, tmp_path, capsys):
    out = tmp_path / "report.html"
    args = ["audit", str(source), "--out", str(out)]
    assert app.run(args) == 0
    assert "10 samples, 3 with errors, 2 look like another" in capsys.readouterr().out
    written = out.stat().st_mtime_ns
    start = time.process_time()
    assert app.run(args) == 0
    assert time.process_time() - start < 1
    assert out.stat().st_mtime_ns == written
    assert app.run([*args, "--samples", "3"]) == 2
    assert "holds the output of another command" in capsys.readouterr().err
    assert app.run([*args, "--samples", "3", "--fresh"]) == 0
    with pytest.raises(BadInput, match=r"report\.txt: the report is a web page; name it report\.html"):
        audit(source, tmp_path / "report.txt")


def test_killed_anywhere_the_same_command_ends_with_the_same_page(source, tmp_path):
    command = ["audit", str(source / "test.parquet"), "--out"]
    assert check_every_kill(lambda out: [*command, str(out / "report.html")], tmp_path, every=25, twice=False) > 20


@pytest.mark.slow
def test_killed_before_every_operation(source, tmp_path):
    check_every_kill(lambda out: ["audit", str(source), "--out", str(out / "report.html")], tmp_path)


# --- cards


def test_a_card_of_a_chat():
    shown = card(boxed("cat", id="one"), ("train 0",))
    assert (shown.title, shown.tags, shown.note) == ("one", ("train 0",), "")
    (drawn,) = shown.pictures
    assert drawn.size == (96, 64)
    assert [shape.label for shape in drawn.shapes] == ["cat", "", "点"]
    assert [(turn.role, turn.parts, turn.learned) for turn in shown.turns] == [
        ("user", [0, "cat"], False),
        ("assistant", ["there"], True),
    ]


def test_a_card_of_an_edit():
    shown = card(edit())
    assert shown.becomes
    assert [picture.caption.split(" · ")[0] for picture in shown.pictures] == ["source", "target"]
    assert [turn.role for turn in shown.turns] == ["instruction · en", "instruction · zh"]


def test_a_card_of_a_sample_that_cannot_be_shown():
    broken = build(("user", picture(), "?"), ("assistant", "b")).to_dict()
    broken["media"][0]["bytes"] = "bm8gcGljdHVyZQ=="
    shown = card(Sample.model_validate(broken))
    assert shown.pictures == []
    assert "is no picture in a known format" in shown.note
    assert shown.turns[0].parts == ["[image]", "?"]


def test_cards_stay_small():
    huge = build(
        ("user", *[picture(8, 8, seed) for seed in range(30)], "x" * 10**6), ("assistant", "y"), id="z" * 10**4
    )
    shown = card(huge)
    assert len(shown.pictures) == 8
    assert "22 more pictures" in shown.note
    assert len(shown.turns[0].parts[-1]) < 5000
    assert len(shown.title) < 200


def test_frames_of_videos():
    clip = build(("user", (2.0, [picture(32, 32, seed) for seed in range(20)])), ("assistant", "b"))
    shown = frames(clip, clip.media[20], 4)
    assert [second for second, _ in shown] == [0.0, 3.0, 6.5, 9.5]
    pytest.importorskip("av", reason="needs qvl-data[video]")
    moving = next(samples("video", "test"))
    shown = frames(moving, moving.media[0])
    assert len(shown) == 8
    assert shown[0][1].size == (96, 96)


def test_small_pictures():
    assert small(picture(64, 30), 100).startswith(b"\x89PNG")
    large = small(picture(900, 300), 300)
    assert large.startswith(b"\xff\xd8")
    assert spread(range(3), 8) == [0, 1, 2]
    assert spread(range(100), 3)[::2] == [0, 99]


# --- in the browser


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_whole(source, tmp_path, width):
    audit(source, tmp_path / "report.html")
    complaints: list[str] = []
    with browser() as chromium:
        page = page_of(chromium, complaints, (tmp_path / "report.html").as_uri(), width)
        page.goto((tmp_path / "report.html").as_uri())
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.title() == "data"
        assert page.evaluate("[...document.images].every(image => image.loading === 'lazy' || image.complete)")
        assert HOSTILE.split("/>")[0] in page.inner_text("main")
        box, shown = (page.locator(name).first.bounding_box() for name in (".canvas rect", ".canvas:has(rect) img"))
        assert box["x"] - shown["x"] == pytest.approx(shown["width"] * 10 / 96, abs=2)
        assert box["height"] == pytest.approx(shown["height"] * 40 / 64, abs=3)
        outside = """[...document.querySelectorAll('.card *')].filter(one => {
            const inside = one.getBoundingClientRect(), card = one.closest('.card').getBoundingClientRect();
            return inside.right > card.right + 1 && !one.closest('.canvas');
        }).map(one => one.outerHTML.slice(0, 80))"""
        assert page.evaluate(outside) == []
    assert complaints == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_broken_data_breaks_no_report(kind, tmp_path):
    """148 kinds: a report, or one sentence where nothing can be read at all."""
    if missing := [name for name in kind.needs if not (hasattr(os, name) or find_spec(name))]:
        pytest.skip(f"needs {', '.join(missing)}")
    out = tmp_path / "report.html"
    (tmp_path / "data").mkdir()
    source = kind.make(tmp_path / "data")
    reading = {key: value for key, value in kind.options.items() if key in ("format", "split", "media_root")}
    said = ""
    try:
        audit(source, out, **reading)
    except BadInput as error:
        said = str(error)
    assert out.is_file() != said.startswith(str(source))
