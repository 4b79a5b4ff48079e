import json
import shutil

import pyarrow as pa
import pytest

from qvl_core.errors import BadInput
from qvl_data.dataset import Dataset, data_files
from qvl_data.hub import is_name

from .chats import file_of, picture

PICTURES = [file_of(picture(6, 5, n)) for n in range(7)]


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets", reason='needs pip install "qvl-data[hub]"')


def chats(datasets, count):
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
        }
    )
    rows = {
        "images": [[{"bytes": PICTURES[n], "path": f"{n}.png"}] for n in range(count)],
        "messages": [
            [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": str(n)}] for n in range(count)
        ],
    }
    return datasets.Dataset.from_dict(rows, features)


def check(data, numbers):
    assert [sample.messages[-1].text for sample in data] == [str(n) for n in numbers]
    assert [data.rows[i]["images"][0]["bytes"] for i in range(len(data))] == [PICTURES[n] for n in numbers]
    sample = data[len(data) - 1]
    assert sample.opener.open(sample.media[0]).size == (6, 5)


def test_saved_datasets(tmp_path, datasets):
    chats(datasets, 7).save_to_disk(tmp_path / "one", num_shards=3)
    data = Dataset(tmp_path / "one")
    assert len(data.files) == 3
    check(data, range(7))
    assert data[0].place == f"{tmp_path / 'one/data-00000-of-00003.arrow'}:1"


def test_saved_splits(tmp_path, datasets):
    splits = {"train": chats(datasets, 5), "val": chats(datasets, 2)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "two")
    check(Dataset(tmp_path / "two", "train"), range(5))
    check(Dataset(tmp_path / "two", "validation"), range(2))
    with pytest.raises(BadInput, match=r"which split\? available: train, val"):
        Dataset(tmp_path / "two")


def test_a_selection_is_saved_as_it_was_selected(tmp_path, datasets):
    chats(datasets, 7).select([6, 2, 2, 0]).save_to_disk(tmp_path / "some")
    check(Dataset(tmp_path / "some"), [6, 2, 2, 0])


def test_damaged_saves(tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "dataset_info.json").write_text("{}")
    for state, words in (
        ("{}", 'has no list "_data_files" of file names'),
        ("[", "cannot be read as a JSON object"),
        ('{"_data_files": [{"filename": "../x.arrow"}]}', 'no list "_data_files" of file names'),
        ('{"_data_files": [{"filename": "a.arrow"}]}', r"a\.arrow: is missing, but state\.json lists it"),
    ):
        (folder / "state.json").write_text(state)
        with pytest.raises(BadInput, match=words):
            Dataset(folder)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}], "_split": None}))
    kind = pa.schema({"x": pa.int64()})
    with pa.ipc.new_stream(folder / "a.arrow", kind) as out:
        out.write_table(pa.table({"x": [1, 2]}, kind))
    assert data_files(folder, "train") == (folder / "a.arrow",)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["one", "../two"]}')
    with pytest.raises(BadInput, match='has no list "splits" of folder names'):
        Dataset(tmp_path)


def test_local_snapshots(tmp_path, datasets):
    (tmp_path / "snapshot/data").mkdir(parents=True)
    (tmp_path / "snapshot/README.md").write_text("---\nlicense: mit\n---\n")
    whole = chats(datasets, 7)
    for number in range(2):
        file = tmp_path / f"snapshot/data/train-{number:05d}-of-00002.parquet"
        whole.shard(2, number, contiguous=True).to_parquet(file)
    check(Dataset(tmp_path / "snapshot", "train"), range(7))


def test_names_on_the_hub(tmp_path, monkeypatch, datasets):
    """The library itself answers, for a name that it finds in the current folder."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    local = tmp_path / "work/owner/name/data"
    local.mkdir(parents=True)
    chats(datasets, 5).to_parquet(local / "train-00000-of-00001.parquet")
    chats(datasets, 2).to_parquet(local / "test-00000-of-00001.parquet")
    from qvl_data.hub import hub_splits

    monkeypatch.chdir(tmp_path / "work")
    found = hub_splits("owner/name")
    assert list(found) == ["train", "test"]
    assert all(file.suffix == ".arrow" for files in found.values() for file in files)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("qvl_data.hub.hub_splits", lambda name: {"owner/name": found}[name])
    check(Dataset("owner/name", "train"), range(5))
    shutil.rmtree(tmp_path / "work")
    check(Dataset("owner/name", "test"), range(2))


@pytest.mark.parametrize("offline", [True, False])
def test_without_network_it_is_said_at_once(tmp_path, monkeypatch, datasets, offline):
    """Because HF_HUB_OFFLINE says so, or because the name of the hub cannot be resolved."""
    from huggingface_hub import constants

    def unknown(*_):
        raise OSError("Name or service not known")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.getaddrinfo", unknown)
    monkeypatch.setattr("qvl_data.hub.getproxies", dict)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    words = r"^nobody/nothing: no such file or folder, and not to be had from the hub \(.*[Oo]ffline.*\)\.$"
    with pytest.raises(BadInput, match=words):
        Dataset("nobody/nothing", "train")
    assert {datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE} == {offline}
    assert not list(tmp_path.iterdir())


def test_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(BadInput, match=r'a dataset of this name on the hub needs pip install "qvl-data\[hub\]"'):
        Dataset("owner/name")


@pytest.mark.parametrize(
    ("name", "could_be"),
    [
        ("owner/name", True),
        ("HuggingFaceM4/the_cauldron:ai2d", True),
        ("name", False),
        ("a/b/c", False),
        ("../name", False),
        ("/etc/passwd", False),
        ("owner/name:", False),
        ("https://x/y", False),
    ],
)
def test_what_could_be_a_name(name, could_be):
    assert is_name(name) == could_be


def test_what_looks_like_a_file_is_not_looked_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for path in ("photos/train.jsonl", "folder/name"):
        with pytest.raises(BadInput, match=r"no such file or folder\.$"):
            Dataset(path)
