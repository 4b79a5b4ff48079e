import io
import itertools
import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qvl_core.errors import BadInput
from qvl_data.cli import app
from qvl_data.convert import write_samples
from qvl_data.dataset import Dataset
from qvl_data.dedup import DUPLICATES, dedup
from qvl_data.dedup.near import Cosine, Equal, Hamming, Similar, changes, keep_first, pieces
from qvl_data.errors import BadSample
from qvl_data.example.digits import digits_dataset
from qvl_data.hashing import minhash, phash

from .chats import build, picture
from .killing import check_every_kill

# --- pictures that look alike


def digit_pictures(count=None):
    samples = digits_dataset("digit", "train")[:count]
    return [sample.opener.open(sample.media[0]) for sample in samples]


def through(picture, format, **options):
    file = io.BytesIO()
    picture.save(file, format, **options)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


COPIES = {
    "jpeg 90": (lambda p: through(p, "JPEG", quality=90), 0.99),
    "jpeg 30": (lambda p: through(p, "JPEG", quality=30), 0.97),
    "webp 60": (lambda p: through(p, "WEBP", quality=60), 0.97),
    "larger": (lambda p: p.resize((150, 150), Image.Resampling.BICUBIC), 0.99),
    "smaller": (lambda p: p.resize((40, 40), Image.Resampling.BILINEAR), 0.97),
    "darker": (lambda p: p.point(lambda v: int(v * 0.9)), 0.99),
    "larger, jpeg 75": (lambda p: through(p.resize((97, 97), Image.Resampling.LANCZOS), "JPEG", quality=75), 0.80),
}


@pytest.mark.parametrize("change", COPIES)
def test_recall_copies_of_real_pictures_are_found_at_4_bits(change):
    copied, least = COPIES[change]
    pictures = digit_pictures(400)
    far = np.array([(phash(p) ^ phash(copied(p))).bit_count() for p in pictures])
    assert np.mean(far <= 4) >= least


def test_precision_other_pictures_are_not_found_at_4_bits():
    """1,257 different digits, written by few hands and 8 x 8 pixels large: as alike as pictures get."""
    hashes = np.array([phash(p) for p in digit_pictures()], np.uint64)
    far = np.bitwise_count(hashes[:, None] ^ hashes[None])[np.triu_indices(len(hashes), 1)]
    assert len(far) == 789_396
    assert (far <= 4).sum() <= 10  # 1 in 10^5 pairs
    kept, _ = keep_first(np.arange(len(hashes)), hamming(hashes, 4))
    assert (kept != np.arange(len(hashes))).mean() < 0.01


def test_pictures_without_a_shape_are_told_apart_by_brightness():
    grey = [phash(Image.new("RGB", (50, 30), (level,) * 3)) for level in (0, 60, 128, 255)]
    assert min((a ^ b).bit_count() for a, b in itertools.combinations(grey, 2)) > 12
    noisy = Image.fromarray(
        np.full((64, 64, 3), 128, np.uint8) + np.random.default_rng(0).integers(0, 3, (64, 64, 3), np.uint8)
    )
    assert (phash(noisy) ^ grey[2]).bit_count() <= 1


def test_a_flipped_or_turned_picture_is_another_one():
    one = digit_pictures(1)[0]
    for turn in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_90):
        assert (phash(one) ^ phash(one.transpose(turn))).bit_count() > 12


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 1000))
def test_every_picture_has_a_hash(width, height, seed):
    assert 0 <= phash(picture(width, height, seed)) < 2**64


# --- what is near what


def hamming(hashes, radius):
    hashes = np.asarray(hashes, np.uint64)
    return Hamming(np.zeros(len(hashes), np.int64), hashes, np.arange(len(hashes) + 1), radius)


def slowly(order, same):
    """`keep_first` as it is defined; `same(i, j)` is the distance, or None if they are not near."""
    kept, distance, gone = list(range(len(order))), [0.0] * len(order), set()
    for place, i in enumerate(order):
        for j in order[place + 1 :]:
            if i not in gone and j not in gone and (far := same(i, j)) is not None:
                kept[j], distance[j] = i, far
                gone.add(j)
    return kept, distance


@st.composite
def rows_of_hashes(draw):
    """Groups, hashes and starts of rows with 0..3 hashes each, many of them near."""
    base = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3))
    near = st.tuples(st.sampled_from(base), st.lists(st.integers(0, 63), max_size=6))
    rows = draw(st.lists(st.tuples(st.integers(0, 1), st.lists(near, max_size=3)), min_size=1, max_size=25))
    flipped = [[hash_ ^ sum(1 << bit for bit in set(bits)) for hash_, bits in row] for _, row in rows]
    groups = [10 * len(row) + group for (group, _), row in zip(rows, flipped, strict=True)]
    starts = np.concatenate([[0], np.cumsum([len(row) for row in flipped])]).astype(np.int64)
    hashes = np.array([hash_ for row in flipped for hash_ in row], np.uint64)
    order = draw(st.permutations(range(len(rows))))
    return np.array(order), np.array(groups), hashes, starts


@settings(max_examples=150, deadline=None)
@given(rows_of_hashes(), st.integers(0, 12), st.sampled_from([(1, 1), (2, 8), (100, 100)]))
def test_the_index_finds_what_a_comparison_of_all_pairs_finds(given_, radius, blocks):
    order, groups, hashes, starts = given_

    def same(i, j):
        mine, others = (hashes[starts[k] : starts[k + 1]] for k in (i, j))
        if groups[i] != groups[j]:
            return None
        far = max((int(np.bitwise_count(a ^ b)) for a, b in zip(mine, others, strict=True)), default=0)
        return far if far <= radius else None

    kept, distance = keep_first(order, Hamming(groups, hashes, starts, radius), blocks)
    assert (kept.tolist(), distance.tolist()) == slowly(order, same)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.randoms())
def test_equal_rows_keep_the_first(groups, random):
    order = list(range(len(groups)))
    random.shuffle(order)
    kept, _ = keep_first(np.array(order), Equal(np.array(groups)), (3, 5))
    assert kept.tolist() == [next(j for j in order if groups[j] == group) for group in groups]


@pytest.mark.parametrize("threshold", [0.2, 0.9])
def test_cosine_finds_what_a_comparison_of_all_pairs_finds(threshold):
    vectors = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    assert np.abs(cosines - threshold).min() > 1e-6  # no pair stands on the edge
    kept, far = keep_first(np.arange(60), Cosine(vectors, threshold, block=7), (4, 16))
    expected, _ = slowly(range(60), lambda i, j: 1 - cosines[i, j] if cosines[i, j] >= threshold else None)
    assert kept.tolist() == expected
    assert (far <= 1 - threshold + 1e-6).all()


LONG = "the cat sat on a mat while two dogs looked through an open window at birds and clouds of many shapes"
WORDS = LONG.split()


def jaccard(a, b):
    one, other = ({text[i : i + 5] for i in range(len(text) - 4)} for text in (a, b))
    return len(one & other) / len(one | other)


def test_signatures_agree_as_much_as_texts_have_in_common():
    random = np.random.default_rng(0)
    errors = []
    for _ in range(200):
        one = random.choice(WORDS, 40).tolist()
        other = one[: random.integers(40)] + random.choice(WORDS, 10).tolist()
        texts = " ".join(one), " ".join(other)
        agree = np.mean(minhash(texts[0]) == minhash(texts[1]))
        errors.append(agree - jaccard(*texts))
    assert abs(np.mean(errors)) < 0.015
    assert np.std(errors) < 0.0625


@given(st.text())
def test_every_text_has_a_signature_without_case_and_white_space(text):
    assert minhash(text).shape == (64,)
    assert (minhash(f"  {text}\n") == minhash(text)).all()
    assert (minhash("Ein  Text" * 3000) == minhash("ein text" * 3000)).all()


def test_similar_texts_are_found_and_others_are_not():
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, 40)) for _ in range(300)]
    copies = [text.replace(" cat ", " dog ", 1) + "." for text in texts]
    signatures = np.array([minhash(text) for text in texts + copies])
    kept, far = keep_first(np.arange(600), Similar(signatures, 0.7), (16, 64))
    near = np.array([jaccard(text, copy) for text, copy in zip(texts, copies, strict=True)])
    found = kept[300:] == np.arange(300)
    assert found[near > 0.85].mean() > 0.99
    assert (kept[:300] == np.arange(300)).all()
    assert ((far > 0) == (kept != np.arange(600)))[far > 0].all()


def test_a_chain_of_small_steps_does_not_join_what_is_far():
    kept, distance = keep_first(np.arange(4), hamming([0b0, 0b11, 0b1111, 0b111111], 2))
    assert kept.tolist() == [0, 0, 2, 2]
    assert distance.tolist() == [0, 2, 0, 2]


@given(st.integers(0, 10**7), st.integers(0, 16))
def test_pieces_cover_all_bits_once(count, radius):
    cut = pieces(count, radius)
    assert [bit for low, bits in cut for bit in range(low, low + bits)] == list(range(64))
    assert max(bits for _, bits in cut) <= 22
    assert len(list(changes(4, 2))) == 1 + 4 + 6


@pytest.mark.slow
@pytest.mark.parametrize("clustered", [False, True])
def test_a_million_hashes_in_a_minute(clustered):
    """6 s at 4 bits on one core. Clustered: a tenth of the pictures are one page with some dirt."""
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**63, 1_000_000, np.uint64)
    some = random.choice(1_000_000, 100_000, replace=False)
    source = hashes[:1].repeat(len(some)) if clustered else hashes[random.integers(0, 1_000_000, len(some))]
    hashes[some] = source ^ (np.uint64(1) << random.integers(0, 64, len(some), np.uint64))
    start = time.process_time()
    kept, distance = keep_first(np.arange(len(hashes)), hamming(hashes, 4))
    assert time.process_time() - start < 60
    assert 80_000 < (kept != np.arange(len(hashes))).sum() < 101_000
    assert distance.max() <= 4


# --- the verb


def drawing(seed, size=96):
    """A picture with a shape of its own, enlarged from a random 5 x 5 one."""
    return picture(5, 5, seed).resize((size, size), Image.Resampling.BICUBIC)


def ids(file):
    return [sample.id for sample in Dataset(file)]


def chat(name, image, answer="b"):
    return build(("user", image, "What is it?"), ("assistant", answer), id=name)


@pytest.fixture
def source(tmp_path):
    """train: two equal ones, one recompressed, one that asks something else; test: one of train."""
    copy = through(drawing(1, 80), "JPEG", quality=70)
    train = [chat("a", drawing(1)), chat("b", drawing(2)), chat("a again", drawing(1)), chat("a copied", copy)]
    train += [chat("a asked otherwise", drawing(1), "c"), chat("in test", drawing(3))]
    folder = tmp_path / "data"
    write_samples(train, folder / "train.parquet")
    write_samples([chat("d", drawing(4)), chat("e", drawing(3))], folder / "test.parquet")
    return folder


def duplicates(out):
    lines = (out / DUPLICATES).read_text(encoding="utf-8").splitlines()
    return [
        (line["kept"]["id"], [(entry["id"], entry["distance"]) for entry in line["removed"]])
        for line in map(json.loads, lines)
    ]


def test_equal_samples_go_and_test_wins(source, tmp_path):
    done = dedup(source, tmp_path / "out")
    assert done == {"samples": 8, "removed": {"test": 0, "train": 2}, "groups": 2}
    assert ids(tmp_path / "out/train.parquet") == ["a", "b", "a copied", "a asked otherwise"]
    assert ids(tmp_path / "out/test.parquet") == ["d", "e"]
    assert duplicates(tmp_path / "out") == [("e", [("in test", 0)]), ("a", [("a again", 0)])]
    kept = json.loads((tmp_path / "out" / DUPLICATES).read_text().splitlines()[1])["kept"]
    assert kept == {"split": "train", "index": 0, "id": "a", "place": f"{source / 'train.parquet'}:1"}


def test_what_is_kept_is_unchanged(source, tmp_path):
    dedup(source, tmp_path / "out", split="train")
    before = {sample.id: sample for sample in Dataset(source / "train.parquet")}
    assert all(sample.to_dict() == before[sample.id].to_dict() for sample in Dataset(tmp_path / "out/train.parquet"))


def test_pictures_that_look_alike(source, tmp_path):
    dedup(source, tmp_path / "out", perceptual=4, split="train")
    assert ids(tmp_path / "out/train.parquet") == ["a", "b", "a asked otherwise", "in test"]
    ((_, removed),) = duplicates(tmp_path / "out")
    assert [name for name, _ in removed] == ["a again", "a copied"]
    assert removed[0][1] == 0 < removed[1][1] <= 4


def test_pictures_alone_and_text_alone(source, tmp_path):
    dedup(source, tmp_path / "pictures", compare="pictures", perceptual=4, split="train")
    assert ids(tmp_path / "pictures/train.parquet") == ["a", "b", "in test"]
    dedup(source, tmp_path / "text", compare="text", split="train")
    assert ids(tmp_path / "text/train.parquet") == ["a", "a asked otherwise"]


def test_similar_texts(tmp_path):
    answers = [LONG, LONG.replace("two", "ten"), "Something else.", LONG.upper(), "", ""]
    write_samples([chat(str(i), drawing(i), answer) for i, answer in enumerate(answers)], tmp_path / "a.parquet")
    dedup(tmp_path / "a.parquet", tmp_path / "out", compare="text", similar=0.7)
    assert ids(tmp_path / "out/a.parquet") == ["0", "2", "4"]
    with pytest.raises(BadInput, match="--similar compares texts alone; add --compare text"):
        dedup(tmp_path / "a.parquet", tmp_path / "out2", similar=0.7)


def test_the_largest_pictures_are_kept(tmp_path):
    write_samples([chat("small", drawing(1)), chat("large", drawing(1, 192))], tmp_path / "a.parquet")
    dedup(tmp_path / "a.parquet", tmp_path / "out", perceptual=4, keep="largest")
    assert ids(tmp_path / "out/a.parquet") == ["large"]


def test_several_pictures_must_all_look_alike(tmp_path):
    one, other, third = drawing(1), drawing(2), drawing(3)
    chats = [
        build(("user", *shown), ("assistant", "b"), id=str(i))
        for i, shown in enumerate([(one, other), (one, third), (one,), (one.resize((50, 50)), other), (other, one)])
    ]
    write_samples(chats, tmp_path / "a.parquet")
    dedup(tmp_path / "a.parquet", tmp_path / "out", compare="pictures", perceptual=4)
    assert ids(tmp_path / "out/a.parquet") == ["0", "1", "2", "4"]


def test_what_stands_in_another_file_is_removed(source, tmp_path):
    other = tmp_path / "held-out.parquet"
    write_samples([chat("x", drawing(1)), chat("y", drawing(1))], other)
    done = dedup(source, tmp_path / "out", split="train", against=[other], compare="pictures")
    assert done["removed"] == {"train": 3}
    assert ids(tmp_path / "out/train.parquet") == ["b", "a copied", "in test"]
    assert duplicates(tmp_path / "out")[0][0] == "x"


def test_embeddings_are_compared_by_cosine(source, tmp_path):
    vectors = np.eye(6, dtype=np.float32)
    vectors[4] = vectors[1] * 3 + 0.1
    np.save(tmp_path / "e.npy", vectors)
    dedup(source, tmp_path / "out", split="train", embeddings=tmp_path / "e.npy")
    assert duplicates(tmp_path / "out") == [("b", [("a asked otherwise", pytest.approx(0.0026, abs=1e-3))])]
    np.save(tmp_path / "e.npy", vectors[:5])
    with pytest.raises(
        BadInput, match=r"e\.npy: float32 of shape \(5, 6\); needs one vector of floats for each of the 6"
    ):
        dedup(source, tmp_path / "out2", split="train", embeddings=tmp_path / "e.npy")
    (tmp_path / "e.npy").write_bytes(b"no array")
    with pytest.raises(BadInput, match=r"e\.npy: no readable \.npy file"):
        dedup(source, tmp_path / "out3", split="train", embeddings=tmp_path / "e.npy")


def test_a_broken_picture_is_named(tmp_path):
    bad = build(("user", picture(8, 8)), ("assistant", "b"), id="bad").to_dict()
    bad["media"][0] = {"kind": "image", "path": "gone.png"}
    (tmp_path / "a.jsonl").write_text(json.dumps(bad) + "\n")
    with pytest.raises(BadSample, match=r"a\.jsonl:1: gone\.png: cannot be opened"):
        dedup(tmp_path / "a.jsonl", tmp_path / "out")


def test_data_is_never_written_over(source, tmp_path):
    before = (source / "train.parquet").read_bytes()
    for out, said in ((source, "holds something else"), (source / "clean", "lies inside the data")):
        with pytest.raises(BadInput, match=said):
            dedup(source, out)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInput, match="holds something else"):
        dedup(source, tmp_path / "file")
    assert (source / "train.parquet").read_bytes() == before
    assert sorted(path.name for path in source.iterdir()) == ["test.parquet", "train.parquet"]


def test_fresh_leaves_no_shard_of_an_earlier_run(source, tmp_path, monkeypatch):
    monkeypatch.setattr("qvl_data.shards.plan.__defaults__", (3,))
    dedup(source, tmp_path / "out", split="train")
    assert len(list((tmp_path / "out").glob("train-*-of-00002.parquet"))) == 2
    dedup(source, tmp_path / "out", split="train", compare="pictures", perceptual=4, fresh=True)
    assert [path.name for path in (tmp_path / "out").glob("train*")] == ["train.parquet"]
    assert Dataset(tmp_path / "out", "train")[2].id == "in test"


def test_several_processes_give_the_same(source, tmp_path, monkeypatch):
    dedup(source, tmp_path / "one", perceptual=4)
    dedup(source, tmp_path / "two", perceptual=4, workers=2)
    for name in (DUPLICATES, "train.parquet", "test.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_command(source, tmp_path, capsys):
    out = tmp_path / "out"
    args = ["dedup", str(source), "--perceptual", "4"]
    assert app.run([*args, "--dry-run"]) == 0
    assert "8 samples, 3 of them the same as one of 2 that stay" in capsys.readouterr().out
    assert app.run([*args, "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [".job.jsonl", DUPLICATES, "test.parquet", "train.parquet"]
    assert "train: 3 removed" in capsys.readouterr().out
    start = time.process_time()
    assert app.run([*args, "--out", str(out)]) == 0
    assert time.process_time() - start < 1
    assert app.run([*args[:2], "--out", str(out)]) == 2
    assert app.run(args) == 2
    shown = capsys.readouterr().err
    assert "holds the output of another command" in shown
    assert "name a folder with --out, or only count with --dry-run" in shown


def test_killed_anywhere_the_same_command_ends_with_the_same_files(source, tmp_path):
    command = ["dedup", str(source), "--split", "train", "--perceptual", "4", "--out"]
    assert check_every_kill(lambda out: [*command, str(out / "clean")], tmp_path, every=11) > 10


@pytest.mark.slow
def test_killed_before_every_operation(source, tmp_path):
    check_every_kill(lambda out: ["dedup", str(source), "--perceptual", "4", "--out", str(out / "clean")], tmp_path)
