"""Prompts of the command line and of files, calls from Python, and pictures as files."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qvl_core.errors import BadInput, QVLError
from qvl_data.drawing.calls import check_finite, paired, pictures, seeds_of
from qvl_data.drawing.files import Wish, draw_missing, file_name, how_drawn, wishes_of, write_picture
from qvl_data.drawing.prompts import Asked, read_prompts


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    file = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(file)
    return file


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "\n \n", "a.txt: there is no prompt in this file"),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt"', r"a.jsonl:2: is not JSON"),
        ("a.jsonl", '\n{"text": "x"}\n', r"a.jsonl:2: has no text under `prompt`"),
        ("a.jsonl", '["x"]\n', r"a.jsonl:1: has no text under `prompt`"),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": " "}\n', r"a.jsonl:2: the prompt is empty"),
        ("a.jsonl", '{"prompt": "x", "images": "a.png"}\n', r"a.jsonl:1: `images` is no list"),
        ("prompts/a.txt", "", r"a.txt: the prompt is empty"),
        ("prompts/a.md", "x", r"prompts: there is no NAME.txt in this folder"),
    ],
)
def test_bad_files_of_prompts_are_one_sentence(name: str, text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=said):
        read_prompts(file.parent if "/" in name else file)


def test_a_file_of_prompts_in_another_encoding_is_refused_and_a_mark_of_its_order_left_out(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("七".encode("utf-16"))
    with pytest.raises(BadInput, match="is not UTF-8"):
        read_prompts(file)
    file.write_text("七", encoding="utf-8-sig")
    assert [one.text for one in read_prompts(file)] == ["七"]


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    """Not the other marks that Unicode has for it, which may stand in a text of JSON."""
    file = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": text}, ensure_ascii=False) for text in ("one\u2028two", "three")]
    file.write_bytes("\r\n".join(lines).encode())
    assert [one.text for one in read_prompts(file)] == ["one\u2028two", "three"]


def test_pictures_outside_the_files_folder_are_not_opened(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    file = tmp_path / "inside" / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "x", "images": [str(photo)]}), encoding="utf-8")
    (asked,) = read_prompts(file)
    with pytest.raises(BadInput):
        asked.opened()


def test_names_are_of_words_and_never_too_long() -> None:
    assert file_name("", "", 3) == "seed3.png"
    assert file_name("0001", "../a/b\\c:d", 3) == "0001-a-b-c-d-seed3.png"
    assert len(file_name("0001", "word " * 100, 3)) < 100


def test_another_picture_does_not_say_how_it_was_drawn(photo: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not say how it was drawn"):
        how_drawn(photo)
    write_picture(tmp_path / "a.png", Image.new("RGB", (4, 4)), {"prompt": "七 “x”"})
    assert how_drawn(tmp_path / "a.png") == {"prompt": "七 “x”"}


def test_rows_of_edits_are_prompts_about_their_sources(photo: Path, tmp_path: Path) -> None:
    """The document's rows of editing: two sources, none, one; and a prompt with one `image`."""
    file = tmp_path / "rows.jsonl"
    texts = {"instruction": "", "instruction_cn": "把天空改成日落。"}
    rows: list[dict[str, object]] = [
        {"source_image": [photo.name, photo.name], "target_image": "none.png", "instruction": "Merge them."},
        {"source_image": None, "target_image": "none.png", "instruction": "A cat."},
        {"source_image": photo.name, "target_image": "none.png", **texts},
        {"prompt": "in winter", "image": photo.name},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = read_prompts(file)
    assert [(one.text, len(one.opened())) for one in found] == [
        ("Merge them.", 2),
        ("A cat.", 0),
        ("把天空改成日落。", 1),
        ("in winter", 1),
    ]
    file.write_text(json.dumps({"prompt": "x", "image": "a.png", "images": []}), encoding="utf-8")
    with pytest.raises(BadInput, match="has both `image` and `images`"):
        read_prompts(file)


def test_absolute_paths_are_opened_below_a_folder_that_was_allowed(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    file = tmp_path / "inside" / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "x", "image": str(photo)}), encoding="utf-8")
    (asked,) = read_prompts(file, [tmp_path])
    assert len(asked.opened()) == 1


def test_texts_and_their_pictures() -> None:
    one, other = Image.new("RGB", (4, 4)), Image.new("RGB", (8, 4))
    assert paired("a", None) == [("a", ())]
    assert paired(["a", "b"], one) == [("a", (one,)), ("b", (one,))]
    assert paired(["a", "b"], [one, other]) == [("a", (one, other)), ("b", (one, other))]
    assert paired(["a", "b"], [[one], []]) == [("a", (one,)), ("b", ())]
    with pytest.raises(BadInput, match="image: 1 lists of pictures for 2 prompts"):
        paired(["a", "b"], [[one]])


def test_seeds_count_up_within_a_prompt() -> None:
    assert seeds_of(4, 6, 3) == [4, 5, 6, 4, 5, 6]
    assert seeds_of([7, 1], 2, 1) == [7, 1]
    with pytest.raises(BadInput, match="seed: 2 seeds for 3 pictures"):
        seeds_of([7, 1], 3, 1)


def test_numbers_become_pictures() -> None:
    values = np.linspace(-1, 1, 256, dtype=np.float32).reshape(1, 1, 16, 16).repeat(3, 1)
    (one,) = pictures(values)
    assert np.asarray(one)[:, :, 0].ravel().tolist() == list(range(256))
    (beyond,) = pictures(values * 3)
    assert (np.asarray(beyond).min(), np.asarray(beyond).max()) == (0, 255)


def test_what_is_missing_is_drawn_and_listed(tmp_path: Path) -> None:
    wishes = wishes_of([Asked("00000", "red"), Asked("00001", "blue")], number=2, seed=5)
    how = [(wish, {"prompt": wish.asked.text, "seed": wish.seed}) for wish in wishes]
    asked: list[list[int]] = []

    def draw(part: Sequence[Wish]) -> list[Image.Image]:
        asked.append([wish.seed for wish in part])
        return [Image.new("RGB", (4, 4), wish.asked.text) for wish in part]

    files = draw_missing(tmp_path, how, draw, batch=3)
    assert asked == [[5, 6, 5], [6]]
    assert [file.name for file in files] == [
        f"0000{n}-{word}-seed{s}.png" for n, word in enumerate(("red", "blue")) for s in (5, 6)
    ]
    files[1].unlink()
    assert draw_missing(tmp_path, how, draw, batch=3) == files
    assert asked[2:] == [[6]]
    lines = [json.loads(line) for line in (tmp_path / "drawn.jsonl").read_text("utf-8").splitlines()]
    assert lines == [{"file": file.name, **said} for file, (_, said) in zip(files, how, strict=True)]
    draw_missing(tmp_path, [(wishes[0], {"prompt": "red", "seed": 5, "steps": 9})], draw, batch=3)
    assert (tmp_path / "00000-red-seed5-2.png").is_file()


def test_what_is_not_finite_is_no_picture() -> None:
    check_finite(True, "torch.float16")
    with pytest.raises(QVLError, match="float16 ends at 65,504"):
        check_finite(False, "torch.float16")
    with pytest.raises(QVLError, match="earlier checkpoint"):
        check_finite(False, "torch.bfloat16")
