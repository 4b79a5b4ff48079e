import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageOps

from qvl_core.errors import BadInput
from qvl_data import example
from qvl_data.cli import app
from qvl_data.dataset import Dataset
from qvl_data.example.coloured import INKS, PAPER, inked
from qvl_data.example.digits import KINDS, SPLITS, digit_png, digits, digits_dataset
from qvl_data.example.drawings import KINDS as DRAWN
from qvl_data.example.drawings import NAMES, drawings
from qvl_data.example.recoloured import CHANGES
from qvl_data.example.shuffled import shuffled

COUNTS = {"train": 1257, "validation": 180, "test": 360}


def numbers(samples):
    """The UCI index of every picture."""
    return [int(media.origin.split("/")[1].split(".")[0]) for sample in samples for media in sample.media]


def test_every_digit_is_in_exactly_one_split():
    splits = [numbers(digits_dataset("digit", split)) for split in SPLITS]
    assert [len(split) for split in splits] == list(COUNTS.values())
    assert sorted(number for split in splits for number in split) == list(range(1797))


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_share_the_splits_and_never_mix_them(kind):
    for seed in (0, 3):
        for split in SPLITS:
            own = set(numbers(digits_dataset("digit", split, seed)))
            assert set(numbers(digits_dataset(kind, split, seed))) == own
    assert set(numbers(digits_dataset(kind, "test", 0))) != set(numbers(digits_dataset(kind, "test", 3)))


def test_answers_are_true():
    truth = {
        number: int(sample.messages[1].text)
        for split in SPLITS
        for sample in digits_dataset("digit", split)
        for number in numbers([sample])
    }
    assert sorted(np.bincount(list(truth.values()))) == [174, 177, 178, 179, 180, 181, 181, 182, 182, 183]
    rules = {
        "parity": lambda d: ["even", "odd"][d % 2],
        "size": lambda d: "yes" if d > 4 else "no",
        "next": lambda d: str(d + 1),
        "larger": lambda a, b: "first" if a > b else "second",
    }
    for kind, rule in rules.items():
        for sample in digits_dataset(kind, "train"):
            assert sample.messages[1].text == rule(*(truth[number] for number in numbers([sample])))
    larger = [sample.messages[1].text for sample in digits_dataset("larger", "train")]
    assert 0.4 < larger.count("first") / len(larger) < 0.6


def test_pictures_are_64_pixels_and_look_like_the_digit():
    image = Image.open(io.BytesIO(digit_png(0)))
    assert (image.size, image.mode, image.format) == ((64, 64), "L", "PNG")
    small = np.asarray(image.resize((8, 8), Image.Resampling.BOX), float) / 255 * 16
    zero = [0, 0, 5, 13, 9, 1, 0, 0, 0, 0, 13, 15, 10, 15, 5, 0]  # first two rows of the file
    assert np.abs(small[:2].ravel() - zero).max() < 3


def test_the_mixed_dataset_asks_every_kind_about_every_picture():
    samples = list(digits("test"))
    assert len(samples) == 360 * len(KINDS)
    assert len({sample.id for sample in samples}) == len(samples)
    assert {sample.meta.dataset for sample in samples} == {f"digits/{kind}" for kind in KINDS}
    assert {sample.meta.license for sample in samples} == {"CC-BY-4.0"}
    assert [s.id for s in digits("test", seed=1)] != [s.id for s in samples]
    assert [s.id for s in digits("test")] == [s.id for s in samples]


def test_unknown_kind():
    with pytest.raises(BadInput, match='unknown kind of question "colour"; known are digit, parity'):
        digits_dataset("colour", "train")


def opened(sample, index=0):
    return sample.opener.open(sample.media[index])


@pytest.mark.parametrize("name", example.SETS)
def test_every_set_is_sound_and_the_same_each_time(name):
    if name == "video":
        pytest.importorskip("av", reason="needs qvl-data[video]")
    train, test = (list(example.samples(name, split)) for split in ("train", "test"))
    assert len(train) > len(test) > 0
    ids = [sample.id for sample in (*train, *test)]
    assert len(set(ids)) == len(ids)
    assert all(sample.meta.license and sample.meta.split for sample in (*train, *test))
    assert list(example.samples(name, "test")) == test
    assert list(example.samples(name, "test", 1)) != test
    shown = [media.bytes for sample in train for media in sample.media]
    assert not set(shown) & {media.bytes for sample in test for media in sample.media}, "a picture is in two splits"


def test_images_are_balanced():
    answers = Counter(s.messages[1].text for s in example.samples("images", "train"))
    shown = Counter(s.media[0].origin.split("-")[-1] for s in example.samples("images", "train"))
    assert set(shown.values()) == {16}
    assert answers["in colour"] > 20
    assert answers["black and white"] > 20
    assert answers["一只猫。"] > 0


def test_boxes_hold_the_ink_and_nothing_else():
    for sample in example.samples("grounding", "train"):
        ink = np.asarray(opened(sample).convert("L"), int)
        assert ink.shape[0] % 64 == ink.shape[1] % 64 == 0
        for region in sample.regions:
            x1, y1, x2, y2 = map(int, region.xy)
            inside = ink[y1:y2, x1:x2] >= 40
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
        if sample.messages[0].text.startswith("Find every"):
            for region in sample.regions:
                x1, y1, x2, y2 = map(int, region.xy)
                ink[y1:y2, x1:x2] = 0
            assert (ink < 40).all()
            assert [r.xy[0] for r in sample.regions] == sorted(r.xy[0] for r in sample.regions)
        else:
            assert {r.label for r in sample.regions} == {sample.messages[0].text.split()[4].strip("?.")}


def test_edits_do_what_they_say():
    said = Counter()
    for sample in example.samples("edit", "train"):
        source, target = opened(sample, 0), opened(sample, 1)
        text = sample.edit.instruction["en"]
        said[text] += 1
        done = {
            "Mirror the picture left to right.": ImageOps.mirror,
            "Turn the picture upside down.": ImageOps.flip,
            "Invert the colours.": ImageOps.invert,
        }.get(text)
        if done is not None:
            assert done(source).tobytes() == target.tobytes()
            assert sample.edit.inverse == sample.edit.instruction
        elif "brighter" in text:
            assert np.asarray(target, int).mean() > np.asarray(source, int).mean()
        else:
            channels = np.asarray(target)
            assert (channels == channels[..., :1]).all()
            assert sample.edit.inverse is None
    assert len(said) == 5
    assert min(said.values()) > 20


def test_videos_move_as_their_answer_says():
    av = pytest.importorskip("av", reason="needs qvl-data[video]")
    ways = {"to the right": (1, 0), "to the left": (-1, 0), "down": (0, 1), "up": (0, -1)}
    seen = set()
    for sample in list(example.samples("video", "test"))[:20]:
        with av.open(io.BytesIO(sample.media[0].bytes)) as container:
            frames = [frame.to_ndarray(format="gray").astype(float) for frame in container.decode(video=0)]
        assert len(frames) == 16
        first, last = (
            np.array([(frame * axis).sum() / frame.sum() for axis in np.meshgrid(np.arange(96), np.arange(96))])
            for frame in (frames[0], frames[-1])
        )
        way = ways[sample.messages[1].text.split(", ")[1]]
        seen.add(way)
        moved = (last - first) / 48
        assert np.abs(moved - way).max() < 0.15
    assert len(seen) == 4


def test_conversations_are_true():
    truth = {int(n): int(s.messages[1].text) for s in digits_dataset("digit", "train") for n in numbers([s])}
    for sample in example.samples("multi_turn", "train"):
        a, b = (truth[number] for number in numbers([sample]))
        answers = [message.text for message in sample.messages if message.role == "assistant"]
        larger = "first" if a > b else "second"
        assert answers == [str(a), "odd" if a % 2 else "even", f"{b}, the {larger}"]


def test_reasoning_is_true():
    truth = {int(n): int(s.messages[1].text) for s in digits_dataset("digit", "test") for n in numbers([s])}
    made = list(example.samples("thinking", "test"))
    assert numbers(made) == numbers(digits_dataset("digit", "test"))
    for sample in made:
        digit = truth[numbers([sample])[0]]
        kind = "odd" if digit % 2 else "even"
        assert sample.messages[1].text == f"<think>\nThe digit is {digit}. {digit} is {kind}.\n</think>\n\n{kind}"


@pytest.mark.parametrize("split", SPLITS)
def test_drawings_show_the_digit_that_they_name_or_invert_in_the_split_of_the_questions(split):
    asked = digits_dataset("digit", split)
    named, inverted = (list(drawings(split, [kind])) for kind in DRAWN)
    for question, ours, theirs in zip(asked, named, inverted, strict=True):
        name = NAMES[int(question.messages[1].text)]
        assert (ours.task, ours.messages[0].text) == ("t2i", f"a handwritten {name}")
        assert (theirs.task, theirs.edit.instruction["en"]) == ("edit", "the same digit, inverted")
        assert theirs.media[0] == question.media[0]
        small, large, inverse = opened(ours), opened(question), opened(theirs, 1)
        assert small.size == (8, 8)
        assert small.resize((64, 64), Image.Resampling.BICUBIC).tobytes() == large.tobytes()
        assert ImageOps.invert(inverse).tobytes() == small.tobytes()


def test_both_kinds_of_drawings_are_of_the_same_digits(tmp_path):
    samples = list(drawings("test"))
    assert len(samples) == 2 * COUNTS["test"]
    assert {sample.meta.dataset for sample in samples} == {"drawings/named", "drawings/inverted"}
    assert [s.id for s in drawings("test", seed=1)] != [s.id for s in samples]
    with pytest.raises(BadInput, match='unknown kind of drawing "red"; known are named, inverted'):
        list(drawings("test", ["red"]))
    assert app.run(["example", "drawings", str(tmp_path / "out"), "--kind", "named"]) == 0
    assert {sample.task for sample in Dataset(tmp_path / "out" / "test.parquet")} == {"t2i"}


@pytest.mark.parametrize("split", SPLITS)
def test_coloured_digits_are_named_by_their_colour_in_the_split_of_the_questions(split):
    asked = digits_dataset("digit", split)
    made = list(example.samples("coloured", split))
    of = [int(sample.id.split("-")[-1]) for sample in made]
    assert of == [number for number in numbers(asked) for _ in INKS]
    for place, sample in enumerate(made[: 20 * len(INKS)]):
        colour, name = list(INKS)[place % len(INKS)], NAMES[int(asked[place // len(INKS)].messages[1].text)]
        article = "an" if colour == "orange" else "a"
        assert (sample.task, sample.messages[0].text) == ("t2i", f"{article} {colour} {name}")


def test_ink_is_told_from_paper_alike_in_every_colour():
    amounts = []
    for colour, ink in INKS.items():
        pixels = np.asarray(inked(7, colour), float)
        assert pixels.shape == (32, 32, 3)
        assert (pixels[[0, -1]] == PAPER).all()
        assert np.abs(pixels - ink).sum(-1).min() < 2  # somewhere the pen has pressed
        amounts.append(((PAPER - pixels) / (np.array(PAPER) - min(ink))).max(-1))
    assert np.ptp(amounts, axis=0).max() < 0.02


@pytest.mark.parametrize("split", SPLITS)
def test_recoloured_digits_are_changed_as_is_said_in_the_split_of_the_questions(split):
    made = list(example.samples("recoloured", split))
    of = [int(sample.id.split("-")[-1]) for sample in made]
    assert of == [number for number in numbers(digits_dataset("digit", split)) for _ in CHANGES]
    for place in range(0, 60, 3):
        red, inverted, flipped = made[place : place + 3]
        source = np.asarray(opened(red), float) / 127.5 - 1  # (16, 16, 3) in [-1, 1]
        assert source.shape == (16, 16, 3)
        assert red.media[0].bytes == inverted.media[0].bytes == flipped.media[0].bytes
        wanted = source.mean(2, keepdims=True) / 2 + np.array([0.5, -0.5, -0.5])
        assert np.abs(np.asarray(opened(red, 1)) / 127.5 - 1 - wanted).max() < 0.01
        assert np.abs(np.asarray(opened(inverted, 1)) / 127.5 - 1 + source).max() < 0.01
        assert (np.asarray(opened(flipped, 1)) == np.asarray(opened(flipped))[:, ::-1]).all()
        assert red.edit.instruction["en"] == "make it red"
        assert red.edit.inverse is None
        assert flipped.edit.inverse == flipped.edit.instruction
        assert np.ptp(source, axis=(0, 1)).mean() > 0.4  # colours that can be told apart


def test_another_set_takes_the_place_of_one_when_told(tmp_path, capsys):
    def write(*options):
        code = app.run(["example", *options])
        return code, capsys.readouterr()

    out = str(tmp_path / "out")
    assert write("multi_turn", out)[0] == 0
    assert "nothing was done" in write("multi_turn", out)[1].out
    code, said = write("edit", out, "--container", "tar")
    assert code == 2
    assert "holds the output of another command" in said.err
    assert write("edit", out, "--container", "tar", "--fresh")[0] == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [".job.jsonl", "test.tar", "train.tar", "validation.tar"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out/test.tar").unlink()
    assert write("edit", out, "--container", "tar")[0] == 0
    changed = {path.name for path in before if path.stat().st_mtime_ns != before[path]}
    assert changed == {".job.jsonl", "test.tar"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/test.tar").write_text("precious")
    assert write("edit", str(tmp_path / "mine"), "--container", "tar")[0] == 2
    assert (tmp_path / "mine/test.tar").read_text() == "precious"


@pytest.mark.parametrize("seed", [0, 1])
def test_shuffled_pictures_are_all_of_other_samples(seed):
    samples = digits_dataset("digit", "test", seed)
    mixed = shuffled(samples, seed)
    assert [(sample.id, sample.messages) for sample in mixed] == [(sample.id, sample.messages) for sample in samples]
    assert all(ours.media != theirs.media for ours, theirs in zip(mixed, samples, strict=True))
    origins = [[sample.media[0].origin for sample in given] for given in (mixed, samples)]
    assert sorted(map(str, origins[0])) == sorted(map(str, origins[1]))
    assert mixed == shuffled(samples, seed)
    assert mixed != shuffled(samples, seed + 1)
