import html as html_module
import io
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qvl_core.errors import BadInput
from qvl_core.report import (
    Bars,
    Card,
    Cards,
    Code,
    Curves,
    Figure,
    Figures,
    Histogram,
    Matrix,
    Picture,
    Pictures,
    Section,
    Shape,
    Strip,
    Table,
    Text,
    Turn,
    render,
    report,
    run_sections,
    write,
)
from qvl_core.report import curves as charts
from qvl_core.report.render import bins, cell, number, numeric, shares, spot, ticks, tiny
from qvl_core.run import RunFolder, result

HOSTILE = (
    """</style></svg><script src="https://evil.example/x.js">alert(1)</script>"""
    """<img src=x onerror='alert(1)'>"&amp;{{7*7}}"""
)


def picture(kind: str, size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).save(file, kind)
    return file.getvalue()


def all_blocks(text: str) -> list[Section]:
    """A page that shows `text` in every place that takes one."""
    series = {text: [(step, 2.0 / step) for step in range(1, 60)], "validation": [(20, 0.5), (40, None), (59, 0.2)]}
    return [
        Section(
            text,
            [
                Figures(
                    [
                        Figure(text, 0.97, bar=0.96, chance=0.1, note=text),
                        Figure("shuffled", 0.1, bar=0.2, at_most=True),
                    ]
                ),
                Text(f"{text}\n\n{text}", tone="good"),
                Code(text, title=text),
                Table([{text: text, "n": 1}, {text: None, "n": 2.5}], title=text, note=text),
            ],
            lead=text,
        ),
        Section(
            "Charts",
            [
                Curves(text, series, x=text),
                Curves("log", series, log=True),
                Matrix([text, "b"], [[3, 1], [0, 4]], title=text, rows_are=text, columns_are=text),
                Pictures([Picture(picture("PNG"), text, "bad"), Picture(picture("JPEG"), text)], title=text, note=text),
            ],
        ),
        Section(
            "Counts", [Histogram(text, [0, 1, 2], [3, 0], note=text), Bars(text, [(text, 3), ("b", 1)], note=text)]
        ),
        Section("Cards", [Cards([card(text)], title=text, note=text)]),
        Section("Folded", [Text(text)], folded=True),
    ]


def card(text: str) -> Card:
    """A card with every kind of picture and shape on it."""
    shapes = [Shape("box", (10, 20, 50, 60), text), Shape("point", (5, 1), text), Shape("polygon", (0, 0, 9, 0, 9, 9))]
    drawn = Picture(picture("PNG"), text, shapes=shapes, size=(100, 80))
    strip = Strip([Picture(picture("JPEG"), text)], text)
    return Card(text, [drawn, strip], [Turn(text, [0, text, 1], learned=True)], [text], note=text, becomes=True)


class Page(HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


# --- safety: what the page must never do


def test_hostile_texts_stay_texts() -> None:
    source = render(HOSTILE, all_blocks(HOSTILE), lead=HOSTILE)
    page = Page(source)
    assert {"script", "iframe", "object", "embed", "form", "base"}.isdisjoint(tag for tag, _ in page.tags)
    handlers = [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert handlers == []
    assert "<script" not in source
    assert "{{7*7}}" in source  # and 49 nowhere: a text is not a template
    assert len([text for text in page.texts if text.strip() == HOSTILE]) >= 15
    assert [a["alt"] for tag, a in page.tags if tag == "img"] == [HOSTILE] * 4


def test_nothing_outside_the_page_is_asked_for() -> None:
    source = render("Run", all_blocks("text"))
    page = Page(source)
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            if (value := attributes.get(name)) is not None:
                assert value.startswith(("data:", "#")), (tag, name, value)
        assert "url(" not in (attributes.get("style") or "")
    style = re.search(r"<style>(.*?)</style>", source, re.DOTALL)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "://" not in source
    policies = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    ]


def test_ids_are_unique_and_references_resolve() -> None:
    page = Page(render("Run", all_blocks("text")))
    ids = [attributes["id"] for tag, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = {(a.get("href") or "")[1:] for _, a in page.tags if (a.get("href") or "").startswith("#")}
    assert references <= set(ids)
    assert any(tag == "use" for tag, _ in page.tags)  # markers of short series are references too


@settings(deadline=None, max_examples=40)
@given(st.text(st.characters(codec=None), max_size=40))
def test_any_text_can_be_written(text: str) -> None:
    """Half surrogate pairs, control characters, right-to-left marks: nothing breaks the page."""
    source = render(
        "Run", [Section("S", [Pictures([Picture(picture("PNG"), text)]), Table([{text: text}])])], lead=text
    )
    source.encode("utf-8")
    shown = html_module.unescape(source)
    assert text.encode("utf-8", "replace").decode().replace("\r", "") in shown.replace("\r", "")


# --- what it shows


def test_chinese_and_korean_are_text_and_never_drawn() -> None:
    source = render("손글씨 숫자 手写数字", all_blocks("猫 고양이"))
    assert "猫 고양이" in source
    drawn = re.findall(r"<text[^>]*>(.*?)</text>", source)
    assert drawn
    assert all(re.fullmatch(r"[-\u22120-9.eGMk]+", label) for label in drawn), drawn


def test_the_same_sections_give_the_same_page() -> None:
    assert render("Run", all_blocks("text")) == render("Run", all_blocks("text"))


def test_charts_take_the_colours_of_the_page() -> None:
    drawn = charts.svg(Curves("loss", {"a": [(1, 1.0), (2, 0.5)], "b": [(1, 2.0), (2, None)]}))
    assert "var(--c1)" in drawn
    assert "var(--c2)" in drawn
    assert "var(--grid)" in drawn
    assert "currentColor" in drawn
    assert re.findall(r"#[0-9a-f]{6}\b", drawn) == []
    assert "<style" not in drawn


def test_axis_labels_are_whole() -> None:
    drawn = charts.svg(Curves("lr", {"lr": [(0, 0.0), (1, 1e-2)]}))
    labels = re.findall(r"<text[^>]*>(.*?)</text>", drawn)
    assert "0.0025" in labels
    assert "0.01" in labels


@pytest.mark.parametrize(
    "series",
    [{}, {"a": []}, {"a": [(1, None)]}, {"a": [(1, math.nan)]}, {"a": [(5, 1.0)]}, {"a": [(1, 0.0), (2, -1.0)]}],
)
@pytest.mark.parametrize("log", [False, True])
def test_charts_of_little(series: dict[str, Any], log: bool) -> None:
    assert render("Run", [Section("S", [Curves("loss", series, log=log)])]).count("<svg") == 1


def test_a_long_series_stays_small_and_keeps_its_spike() -> None:
    series = [(step, 1.0 + step % 7 / 10) for step in range(50_000)]
    series[31_234] = (31_234, 99.0)
    assert (31_234, 99.0) in charts.thin(series)
    assert len(charts.svg(Curves("loss", {"a": series}))) < 60_000


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(-10, 10) | st.none()), max_size=3000))
def test_thinning_keeps_order_and_extremes(series: list[tuple[float, float | None]]) -> None:
    series = sorted(series, key=lambda point: point[0])
    kept = charts.thin(series, limit=100)
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)
    assert len(kept) <= 102
    values = [y for _, y in charts.finite(series)]
    if values:
        assert {min(values), max(values)} <= {y for _, y in kept}


@given(st.floats(-5, 5), st.floats(-100, 100), st.integers(2, 200), st.integers(1, 50))
def test_smoothing_does_not_bend_a_straight_line(slope: float, start: float, count: int, reach: int) -> None:
    line = [start + slope * place for place in range(count)]
    assert charts.smooth(line, reach) == pytest.approx(line, abs=1e-6)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1e-3, "1e-3"), (1.25e-4, "1.25e-4"), (0.25, "0.25"), (9999, "9999"), (12_000, "12k"), (2.1e9, "2.1G")],
)
def test_compact(value: float, text: str) -> None:
    assert charts.compact(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567, "1,234,567"),
        (0.97234, "0.9723"),
        (2e-4, "2e-4"),
        (43650000.0, "43,650,000"),
        (None, "–"),
        (True, "yes"),
        ([1, "a"], "1, a"),
        ("x", "x"),
    ],
)
def test_cells(value: Any, text: str) -> None:
    assert cell(value) == text


def test_numbers_are_aligned_as_numbers() -> None:
    table = Table([{"group": "llm", "lr": 1e-4, "on": True}, {"group": "vision", "lr": None, "extra": 3}])
    assert [numeric(table, column) for column in ("group", "lr", "on", "extra")] == [False, True, False, True]
    source = render("Run", [Section("S", [table])])
    assert '<td class="number" dir="auto">1e-4</td>' in source
    assert number(-0.5) == "-0.5"


def test_bars_are_met_or_missed() -> None:
    assert Figure("a", 0.96, bar=0.96).mark == "good"
    assert Figure("a", 0.95, bar=0.96).mark == "bad"
    assert Figure("a", 0.21, bar=0.20, at_most=True).mark == "bad"
    assert Figure("a", 0.20, bar=0.20, at_most=True).mark == "good"
    assert Figure("a", 0.5, chance=0.1).mark is None
    assert Figure("a", "1 min", bar=1).mark is None


def test_matrix_shows_counts_and_refuses_a_wrong_shape() -> None:
    source = render("Run", [Section("S", [Matrix(["a", "b"], [[9, 1, 0], [0, 8, 2]], columns=["a", "b", "other"])])])
    cells = re.findall(r'<td class="(\w+)[^"]*" style="--share: ([\d.]+)">([\d,]+)</td>', source)
    assert cells[:3] == [("right", "0.9", "9"), ("wrong", "0.1", "1"), ("wrong", "0.0", "0")]
    with pytest.raises(ValueError, match="must be 2 rows of 2"):
        render("Run", [Section("S", [Matrix(["a", "b"], [[1, 2]])])])


def test_pictures_are_png_or_jpeg() -> None:
    with pytest.raises(ValueError, match="'cat' is neither PNG nor JPEG"):
        render("Run", [Section("S", [Pictures([Picture(b"GIF89a", "cat")])])])
    assert tiny(Picture(picture("PNG", (8, 100))))
    assert not tiny(Picture(picture("PNG", (64, 64))))
    assert not tiny(Picture(picture("JPEG", (8, 8))))


def test_describing_loads_no_heavy_library() -> None:
    code = "import sys, qvl_core.report; assert not {'torch', 'matplotlib', 'jinja2', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the report of a run


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A finished run, as training leaves it."""
    run = RunFolder.open(tmp_path / "digits")
    run.write_recipe("version: 1\nmodel: {name: tiny}  # 数字\n")
    rows = [
        {"group": "llm", "mode": "lora", "parameters": 3000, "trainable": 500, "lr": 2e-4},
        {"group": "vision", "mode": "frozen", "parameters": 1000, "trainable": 0, "lr": None},
    ]
    run.write_environment({"tune": rows})
    for step in range(1, 41):
        figures = {"loss": 3.0 / step, "lr": 1e-3, "grad_norm": 1.0, "nonfinite": 0.0, "loss/flow": 0.1}
        run.append_metrics({"step": step, **figures, "tokens_per_second": 1e4, "elapsed": step * 1.0})
        if step % 20 == 0:
            run.append_metrics({"step": step, "event": "evaluation", "validation_loss": 0.3, "exact_match": 0.9})
    run.append_metrics({"step": 40, "event": "checkpoint", "path": "checkpoints/step-000040"})
    bad = {"id": "a.jsonl:7", "reason": "truncated", "message": "사진.png: is cut off", "tolerated": False}
    run.bad_samples_file.write_text(json.dumps(bad, ensure_ascii=False) + "\n", encoding="utf-8")
    run.samples.mkdir()
    (run.samples / "fox.png").write_bytes(picture("PNG"))
    (run.samples / "fox.txt").write_text("雪地里的狐狸", encoding="utf-8")
    (run.samples / "step-000040.jpg").write_bytes(picture("JPEG"))
    (run.samples / "cut-off.png").write_bytes(b"")
    run.write_result(result("qvl-core", seed=0, complete=True, figures={"exact_match": 0.9, "best": "step 40"}))
    return run


def test_a_run_shows_everything_it_left(run: RunFolder) -> None:
    assert report(run.path) == run.report_file
    source = run.report_file.read_text(encoding="utf-8")
    page = Page(source)
    shown = " ".join(text.strip() for text in page.texts if text.strip())
    for expected in (
        "digits qvl-core 0.1.0 · seed 0",
        "0.900",
        "best step 40",
        "Loss training 0.075 validation 0.3",
        "Exact match last 0.9",
        "Learning rate last 1e-3",
        "Loss parts flow 0.1",
        "500 of 4,000 parameters are trained (12.50%).",
        "사진.png: is cut off",
        "雪地里的狐狸",
        "step-000040",
        "checkpoint path: checkpoints/step-000040",
        "model: {name: tiny}  # 数字",
        "qvl-core",
    ):
        assert expected in shown, expected
    assert "Steps not applied" not in shown
    assert "cut-off" not in shown


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path / "run")
    run.write_recipe("version: 1\n")
    titles = [section.title for section in run_sections(run)]
    assert titles == ["Result", "Recipe"]
    assert "has not finished" in write(run).read_text(encoding="utf-8")


def test_steps_that_were_not_applied_are_shown(run: RunFolder) -> None:
    run.append_metrics({"step": 41, "loss": math.nan, "nonfinite": 1.0})
    assert "Steps not applied (non-finite)" in render("Run", run_sections(run))


def test_shapes_lie_on_their_picture() -> None:
    page = Page(render("Run", [Section("Cards", [Cards([card("text")])])]))
    drawn = {tag: attributes for tag, attributes in page.tags if tag in ("svg", "rect", "path", "polygon")}
    assert drawn["svg"]["viewbox"] == "0 0 100 80"
    assert [drawn["rect"][name] for name in ("x", "y", "width", "height")] == ["10", "20", "40", "40"]
    assert drawn["path"]["d"] == "M5 1h0"
    assert drawn["polygon"]["points"] == "0 0 9 0 9 9"
    labels = [a["style"] for tag, a in page.tags if tag == "span" and (a.get("class") or "").startswith("label")]
    assert [str(style).split(";")[:2] for style in labels] == [["left: 10%", " top: 25%"], ["left: 5%", " top: 1.25%"]]


def test_labels_stay_inside() -> None:
    assert spot(Shape("box", (-50, -50, 10, 10)), (100, 100)) == (0, 0, True)
    assert spot(Shape("point", (500, 500)), (100, 100)) == (0.95, 1, False)


def test_histograms_and_bars_are_shares() -> None:
    assert bins(Histogram("", [0, 10, 20], [3, 6])) == [(0, 10, 3, 0.5), (10, 20, 6, 1)]
    assert bins(Histogram("", [0], [])) == []
    with pytest.raises(ValueError, match="2 counts need as many edges and one more"):
        bins(Histogram("", [0, 1], [3, 6]))
    assert shares(Bars("", [("a", 3), ("b", 1)], total=10)) == [("a", 3, 0.3, 1), ("b", 1, 0.1, 1 / 3)]
    assert shares(Bars("", [])) == []


def test_ticks_name_edges_or_whole_numbers() -> None:
    assert ticks(Histogram("", [0, 10, 20], [3, 6])) == [(0, "0"), (0.5, "10"), (1, "20")]
    assert ticks(Histogram("", [4, 5, 6], [3, 6])) == [(0.25, "4"), (0.75, "5")]
    assert len(ticks(Histogram("", [10 * edge for edge in range(26)], [1] * 25))) <= 7


def test_own_sections_and_title(run: RunFolder) -> None:
    write(run, [Section("Mine", [Text("hello")])], title="수 숫자", lead="in short")
    source = run.report_file.read_text(encoding="utf-8")
    assert "<title>수 숫자</title>" in source
    assert "Recipe" not in source


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"is not a run folder"):
        report(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- in a real browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--enable-logging=stderr",
]  # fmt: skip


def browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        call = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *options, page.as_uri()]
        return subprocess.run(call, capture_output=True, encoding="utf-8", errors="replace", timeout=120)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")
@pytest.mark.parametrize("width", [420, 1280])
def test_a_browser_shows_it_whole(run: RunFolder, tmp_path: Path, width: int) -> None:
    """Nothing is wider than the page, every picture is decoded, every chart has a size, the policy is not violated."""
    wide = [{"key": "x" * 300, "words": "long words " * 40, **{f"column {n}": n for n in range(20)}}]
    sections = [*run_sections(run), *all_blocks("猫 고양이 " * 10 + "w" * 200), Section("Wide", [Table(wide)])]
    source = render("The whole of it", sections)
    write(run, sections)
    alone = browse(run.report_file, "--dump-dom")
    assert "CONSOLE" not in alone.stderr, alone.stderr

    # The page in a frame of that width, measured by a script outside it (inside, its own policy allows none).
    measuring = tmp_path / "measure.html"
    measuring.write_text(
        f"""<!doctype html><meta charset="utf-8">
<iframe style="width:{width}px;height:4000px;border:0" srcdoc="{html_module.escape(source)}"></iframe><pre></pre>
<script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument;
  page.querySelectorAll("details").forEach(entry => entry.open = true);
  page.querySelectorAll("img").forEach(entry => entry.loading = "eager");
  setTimeout(() => {{
    const inside = entry => entry.parentElement && (entry.closest(".scroll") || entry.closest("svg"));
    const over = [...page.body.querySelectorAll("*")].filter(
      entry => !inside(entry) && entry.getBoundingClientRect().right > {width} + 0.5);
    document.querySelector("pre").textContent = JSON.stringify({{
      width: page.documentElement.scrollWidth,
      over: over.map(entry => entry.outerHTML.slice(0, 80)),
      pictures: [...page.images].map(entry => entry.naturalWidth),
      charts: [...page.querySelectorAll("svg")].map(entry => entry.getBoundingClientRect().height),
    }});
  }}, 500);
}};
</script>""",
        encoding="utf-8",
    )
    done = browse(measuring, "--dump-dom", "--virtual-time-budget=3000", f"--window-size={max(width, 600)},4200")
    measured = json.loads(html_module.unescape(re.findall(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)[-1]))
    assert measured["width"] == width, measured
    assert measured["over"] == []
    assert min(measured["pictures"]) == 8
    assert min(measured["charts"]) > 100
