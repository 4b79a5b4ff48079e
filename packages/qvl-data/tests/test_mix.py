import json
from collections import Counter

import pytest

from qvl_core.errors import BadInput
from qvl_data.cli import app
from qvl_data.convert import write_samples
from qvl_data.dataset import Dataset
from qvl_data.errors import BadSample
from qvl_data.media import read_bytes
from qvl_data.mix import expect, labels, tempered, write
from qvl_data.sources import Mixture

from .chats import build, picture, write_png
from .killing import check_every_kill


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two files of 20 and 5 samples, whose ids and pictures' names are the same."""
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("a", 20), ("b", 5)):
        chats = (
            build(("user", picture(8, 8, i + count), f"{name}?"), ("assistant", str(i)), id=f"{i}")
            for i in range(count)
        )
        chats = (
            chat.model_copy(
                update={"media": tuple(m.model_copy(update={"origin": f"{chat.id}.png"}) for m in chat.media)}
            )
            for chat in chats
        )
        write_samples(chats, folder / f"{name}.parquet")
    return folder


def spec(folder, text):
    return text.replace("a.", f"{folder}/a.").replace("b.", f"{folder}/b.")


def test_counts(folder):
    mixture = Mixture(spec(folder, "0.5*a.parquet + b.parquet%300"))
    first, second = expect(mixture)
    assert (first.available, first.chosen, first.per_epoch, first.draws, first.passes) == (20, 20, 10, 10, 0.5)
    assert (second.available, second.chosen, second.per_epoch, second.draws, second.passes) == (5, 5, 15, 15, 3)
    assert second.source.endswith("b.parquet%300")
    far = expect(mixture, 2500)
    assert [row.draws for row in far] == [1000, 1500]
    drawn = Counter(mixture.locate(0, position).source for position in range(2500))
    assert [drawn[0], drawn[1]] == [1000, 1500]


def test_temperature():
    assert tempered([100, 300], [100, 300], 1) == [1, 1]
    flat = tempered([100, 300], [100, 300], 1e9)
    assert flat == pytest.approx([2, 2 / 3], rel=1e-5)
    half = tempered([100, 400], [100, 400], 2)
    assert [half[0] * 100, half[1] * 400] == pytest.approx([500 / 3, 1000 / 3], rel=1e-5)
    sharp = tempered([100, 300], [100, 300], 0.5)
    assert sharp[1] > 1 > sharp[0]
    with pytest.raises(BadInput, match="the temperature is 0; it must be above 0"):
        tempered([1], [1], 0)


def test_the_written_set_is_the_order(folder, tmp_path):
    mixture = Mixture(spec(folder, "0.5*a.parquet + 3*b.parquet"))
    files, before = write(mixture, tmp_path / "mixed", 60, seed=4, shard=25)
    assert not before
    assert [(file.name, figures.samples) for file, figures in files.items()] == [
        (f"train-0000{n}-of-00003.parquet", count) for n, count in enumerate((25, 25, 10))
    ]
    data = Dataset(tmp_path / "mixed", "train")
    assert len(data) == 60
    ids = set()
    for position, found in enumerate(data):
        item = mixture.locate(4, position)
        sample = mixture.sample(item)
        again = f"#{item.pass_number + 1}" if item.pass_number else ""
        assert found.id == f"{'ab'[item.source]}/{sample.id}{again}"
        assert found.meta.dataset == "ab"[item.source]
        assert (found.messages, found.media[0].bytes) == (sample.messages, sample.media[0].bytes)
        ids.add(found.id)
    assert len(ids) == 60
    assert write(mixture, tmp_path / "mixed", 60, seed=4, shard=25).before
    with pytest.raises(BadInput, match="another command"):
        write(mixture, tmp_path / "mixed", 60, seed=5, shard=25)


def test_one_source_keeps_its_ids(folder, tmp_path):
    write(Mixture(spec(folder, "b.parquet")), tmp_path / "once.parquet")
    assert {sample.id for sample in Dataset(tmp_path / "once.parquet")} == set("01234")
    write(Mixture(spec(folder, "b.parquet%200")), tmp_path / "twice.parquet")
    assert {sample.id for sample in Dataset(tmp_path / "twice.parquet")} == {
        f"{i}{j}" for i in range(5) for j in ("", "#2")
    }


def test_pictures_of_the_same_name_lie_apart(folder, tmp_path):
    mixture = Mixture(spec(folder, "a.parquet + b.parquet"))
    write(mixture, tmp_path / "train.jsonl", format="openai")
    data = Dataset(tmp_path / "train.jsonl")
    for position, found in enumerate(data):
        sample = mixture.sample(mixture.locate(0, position))
        pictures = [one.opener.open(one.media[0]).tobytes() for one in (found, sample)]
        assert pictures[0] == pictures[1]
    assert (tmp_path / "a" / "0.png").is_file()
    assert (tmp_path / "b" / "0.png").is_file()


@pytest.mark.parametrize("name", ["mixed.parquet", "mixed.tar", "mixed.jsonl"])
def test_videos_of_the_same_name_lie_apart(tmp_path, name):
    turns = [{"from": "human", "value": "<video>"}, {"from": "gpt", "value": "x"}]
    for one in ("a", "b"):
        (tmp_path / one / "clips").mkdir(parents=True)
        (tmp_path / one / "clips/1.mp4").write_bytes(f"film {one}".encode())
        row = {"id": one, "video": "clips/1.mp4", "conversations": turns}
        (tmp_path / one / "train.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    write(Mixture(f"{tmp_path}/a + {tmp_path}/b"), tmp_path / "out" / name)
    films = [read_bytes(sample.media[0], sample.opener.root) for sample in Dataset(tmp_path / "out" / name)]
    assert sorted(films) == [b"film a", b"film b"]


def test_labels(folder):
    mixture = Mixture(spec(folder, "a.parquet + b.parquet + a.parquet%50"))
    assert labels(mixture) == ["a", "b", "a-2"]
    write_samples(Dataset(folder / "b.parquet"), folder / "a-2.parquet")
    again = Mixture(spec(folder, "a.parquet + a.parquet + {0}/a-2.parquet + a.parquet".replace("{0}", str(folder))))
    assert labels(again) == ["a", "a-2", "a-2-2", "a-3"]


def test_the_command(folder, tmp_path, capsys):
    sources = spec(folder, "a.parquet + b.parquet")
    assert app.run(["mix", sources, "--dry-run", "--steps", "10", "--batch", "8"]) == 0
    shown = capsys.readouterr().out
    assert "80 samples, 3.2 epochs of 25" in shown
    assert app.run(["mix", sources, "--weights", "1,2", "--out", str(tmp_path / "x.jsonl"), "--format", "openai"]) == 0
    assert "x.jsonl: 30 samples" in capsys.readouterr().out.replace("\n", "")
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()]
    assert Counter(row["id"].split("/")[0] for row in rows) == {"a": 20, "b": 10}
    assert app.run(["mix", sources, "--weights", "1,2", "--out", str(tmp_path / "x.jsonl"), "--format", "openai"]) == 0
    assert "nothing was done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name what to write with --out, or add --dry-run"),
        (["--dry-run", "--weights", "1"], "1 weights for 2 sources; give one for each"),
        (["--dry-run", "--weights", "1,x"], "--weights 1,x: write numbers with commas"),
        (["--dry-run", "--weights", "1,0"], "a weight is a finite number above 0"),
        (["--dry-run", "--weights", "1,0.01"], "weight 0.01 of 5 samples is less than one sample in an epoch"),
        (["--dry-run", "--temperature", "-1"], "the temperature is -1"),
        (["--dry-run", "--samples", "5", "--steps", "5"], "--samples and --steps exclude each other"),
    ],
)
def test_what_cannot_be_mixed(folder, capsys, arguments, sentence):
    assert app.run(["mix", spec(folder, "a.parquet + b.parquet"), *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_a_bad_sample_stops_it(tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text("{}\n", encoding="utf-8")
    row = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "x"}]}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\nnot json\n", encoding="utf-8")
    assert app.run(["mix", str(tmp_path / "x.jsonl"), "--out", str(tmp_path / "out")]) == 2
    assert "x.jsonl:2: not valid JSON" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_bad_samples_may_be_left_out(tmp_path, capsys):
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "x"}]
    rows = [{"id": str(n), "messages": turns if n not in (1, 4) else "none"} for n in range(6)]
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    args = ["mix", f"{file}%200", "--shard", "4", "--out", str(tmp_path / "out")]
    assert app.run([*args, "--max-bad", "1"]) == 2
    assert app.run([*args, "--max-bad", "2"]) == 0
    shown = capsys.readouterr().out.replace("\n", "")
    assert "2 samples were left out, the first is " in shown  # however often each would have come
    figures = write(Mixture(f"{file}%200"), tmp_path / "out", shard=4, max_bad=2).files
    assert sum(figure.samples for figure in figures.values()) == len(Dataset(tmp_path / "out", "train")) == 8
    listed = [json.loads(line) for line in (tmp_path / "out/left_out.jsonl").read_text("utf-8").splitlines()]
    assert sorted(entry["place"] for entry in listed) == [f"{file}:2", f"{file}:5"]
    assert "Left out: 2 samples (left_out.jsonl)" in (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert app.run([*args, "--max-bad", "1"]) == 2
    one = tmp_path / "one.parquet"
    write(Mixture(str(file)), one, max_bad=2)
    assert len((tmp_path / "one.parquet.left_out").read_text("utf-8").splitlines()) == 2


def test_a_missing_picture_may_be_left_out(tmp_path):
    turns = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "x"}]
    write_png(tmp_path / "0.png", picture(8, 8))
    for name in "ab":
        rows = [{"id": str(n), "image": f"{n}.png", "conversations": turns} for n in range(2)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    mixture = Mixture(f"{tmp_path}/a.jsonl%200 + {tmp_path}/b.jsonl")
    with pytest.raises(BadSample, match=r"1\.png: cannot be opened"):
        write(mixture, tmp_path / "out.parquet", max_bad=1)
    (figures,) = write(mixture, tmp_path / "out.parquet", max_bad=2).files.values()
    assert (figures.samples, len(figures.left_out)) == (3, 2)


@pytest.mark.slow
def test_kill_anywhere(folder, tmp_path):
    command = ["mix", spec(folder, "a.parquet + 2*b.parquet"), "--shard", "12", "--samples", "30"]
    assert check_every_kill(lambda out: [*command, "--out", str(out / "mixed")], tmp_path) > 12
