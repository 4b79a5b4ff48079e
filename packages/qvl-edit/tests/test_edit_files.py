"""Embeddings in a file for each text: what upstream's trainer reads is written, and its folders are read, as tensors
alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edit_rows import task
from editing_verbs import qvl_edit
from pyarrow import Table
from pyarrow.parquet import write_table
from safetensors.torch import load_file

from qvl_core.errors import BadInput
from qvl_core.recipe.load import load
from qvl_core.run import read_records
from qvl_data.dataset import Dataset
from qvl_data.errors import BadSample
from qvl_data.sources import mixtures
from qvl_edit import filed, train
from qvl_edit.embed import Embedder
from qvl_edit.extract import extract
from qvl_edit.filed import FiledEmbeddings
from qvl_edit.recipe import RECIPE, EditRecipe
from qvl_edit.tasks import expanded, tasks_of

WIDTH = 64  # of the tiny text encoder
save = torch.save


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    task(folder / "a", (1, 1, 0, 2))
    return folder


@pytest.fixture(scope="module")
def made(data: Path, checkpoint: Callable[..., Path]) -> Path:
    """Both layouts of one data set."""
    extract(recipe(data / "a" / "rows.jsonl", checkpoint), data / "shards")
    extract(recipe(data / "a" / "rows.jsonl", checkpoint), data / "files", layout="files")
    return data


def recipe(source: Path, checkpoint: Callable[..., Path], *changes: str, allow: Path | None = None) -> EditRecipe:
    given = [f"data={{train: {source}, workers: 0, allow_root: [{allow or source.parent}]}}", "train.steps=2"]
    given += [f"model.name={checkpoint('edit-plus', 'patches')}", "batch.size=4", "log.every=1"]
    return load(RECIPE, "tiny", [*given, *changes], "qvl_edit")


def rows(made: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (made / "files" / "rows_rank_000.jsonl").read_text("utf-8").splitlines()]


def test_rows_and_files_are_upstreams(made: Path) -> None:
    first, second, drawn, two = rows(made)
    assert not (made / "files" / ".shards").exists()
    names = {name.removeprefix("embeddings_tensor") for name in first if name.startswith("embeddings_tensor")}
    assert names == {"_en", "_cn", "_droptext", "_en_inv", "_cn_inv", "_droptext_inv"}
    names = {name.removeprefix("embeddings_tensor") for name in second if name.startswith("embeddings_tensor")}
    assert names == {"_en", "_droptext"}
    assert first["embeddings_tensor_en_inv"] == str((made / "files" / "rows" / "0_en_inv.pt").resolve())
    assert first["source_image_size"] == [{"width": 64, "height": 64}]
    assert first["edit_image_size"] == {"width": 64, "height": 64}
    assert (first["instruction_cn"], second["inverse_instruction"]) == ("a 0 cn", "")
    assert (drawn["source_image"], len(two["source_image"])) == ([], 2)
    kept = torch.load(first["embeddings_tensor_cn"], weights_only=True)
    assert kept.shape[1] == WIDTH
    assert Path(first["embeddings_tensor_cn"]).stat().st_size < kept.nbytes + 4000  # the tensor alone, not its storage


def test_training_from_files_is_training_from_shards(made: Path, checkpoint: Callable[..., Path]) -> None:
    source = made / "files" / "rows_rank_000.jsonl"
    train(recipe(source, checkpoint, f"stored.embeddings={made / 'shards'}", allow=made), made / "one")
    train(recipe(source, checkpoint, "stored={layout: files}", allow=made), made / "two")
    one, two = (load_file(made / run / "final" / "transformer" / "diffusion_pytorch_model.safetensors")
                for run in ("one", "two"))  # fmt: skip
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_files_of_another_origin_are_refused(made: Path, checkpoint: Callable[..., Path]) -> None:
    source = made / "files" / "rows_rank_000.jsonl"
    other = recipe(source, checkpoint, "stored={layout: files}", "pictures.vl_size=112", allow=made)
    with pytest.raises(BadInput, match=r"was made with resize .*; write them again: qvl-edit extract RECIPE --layout"):
        train(other, made / "other")


def test_files_of_one_origin_are_not_laid_beside_those_of_another(made: Path, checkpoint: Callable[..., Path]) -> None:
    other = recipe(made / "a" / "rows.jsonl", checkpoint, "pictures.vl_size=112")
    with pytest.raises(BadInput, match=r"files.json: was made with resize .*; choose another --out"):
        extract(other, made / "files", layout="files")


def test_what_was_written_is_data_and_rows_of_an_earlier_extraction_do_not_stay(
    data: Path, tmp_path: Path, checkpoint: Callable[..., Path], capsys: Any
) -> None:
    meta, out = tmp_path / "meta", tmp_path / "out"
    task(meta / "one", (1,))
    task(meta / "two", (0, 1))
    (out / "one").mkdir(parents=True)
    (out / "one" / "rows_rank_001.jsonl").write_text("{}\n", encoding="utf-8")  # of two processes
    extract(recipe(meta, checkpoint, allow=tmp_path), out, layout="files")
    assert [file.name for file in (out / "one").glob("*.jsonl")] == ["rows_rank_000.jsonl"]
    assert f"train with data.train={out} stored.layout=files" in capsys.readouterr().out
    assert set(tasks_of(mixtures(expanded(recipe(out, checkpoint).data))["train"]).numbers) == {"one", "two"}
    extract(recipe(meta / "two" / "rows.jsonl", checkpoint, allow=tmp_path), tmp_path / "alone", layout="files")
    alone = recipe(tmp_path / "alone", checkpoint, "stored={layout: files}", allow=tmp_path)
    assert {name: len(found) for name, found in tasks_of(mixtures(expanded(alone.data))["train"]).numbers.items()} == {
        "alone": 2
    }


def everything(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}


@pytest.mark.parametrize("killed", ["a file of a text", "rows", "Filed.finish", "clean-up", None])
def test_files_that_are_there_are_not_made_again_whenever_it_was_killed(
    made: Path, tmp_path: Path, checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, killed: str | None
) -> None:
    source, out = made / "a" / "rows.jsonl", tmp_path / "out"
    calls: list[int] = []
    embed = Embedder.__call__
    monkeypatch.setattr(Embedder, "__call__", lambda self, asked: calls.append(len(asked)) or embed(self, asked))

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    if killed is not None:
        with monkeypatch.context() as patched:
            write = filed.write_atomic
            where, name, dies = {
                "a file of a text": (
                    torch,
                    "save",
                    lambda value, at: die() if at.name == "1_en.pt" else save(value, at),
                ),
                "rows": (filed, "write_atomic", lambda at, text: write(at, text) or (at.suffix == ".jsonl" and die())),
                "Filed.finish": (filed.Filed, "finish", die),
                "clean-up": (filed.shutil, "rmtree", lambda folder, **how: how or die()),
            }[killed]
            patched.setattr(where, name, dies)
            with pytest.raises(KeyboardInterrupt):
                extract(recipe(source, checkpoint), out, layout="files")
        if killed in ("rows", "Filed.finish"):
            partial = recipe(out / "rows_rank_000.jsonl", checkpoint, "stored={layout: files}", allow=tmp_path)
            with pytest.raises(BadInput, match="is of an extraction that did not come to its end"):
                train(partial, tmp_path / "run")
    extract(recipe(source, checkpoint), out, layout="files")
    extract(recipe(source, checkpoint), out, layout="files")
    assert calls == [5]  # questions at once: four rows, one of them with a way back
    there, here = (json.dumps(str(at.resolve()))[1:-1].encode() for at in (made / "files", out))  # in rows
    assert everything(out) == {at: held.replace(there, here) for at, held in everything(made / "files").items()}


def test_what_other_data_was_written_over_is_made_again(tmp_path: Path, checkpoint: Callable[..., Path]) -> None:
    name, out = "rows_rank_000", tmp_path / "out"  # as an earlier extraction calls its rows
    one, two = (rows.rename(rows.with_stem(name)) for rows in (task(tmp_path / "1", (1,)), task(tmp_path / "2", (0,))))
    extract(recipe(one, checkpoint), out, layout="files")
    first = everything(out)
    extract(recipe(two, checkpoint), out, layout="files")
    assert everything(out)[f"{name}_rank_000.jsonl"] != first[f"{name}_rank_000.jsonl"]
    extract(recipe(one, checkpoint), out, layout="files")
    assert everything(out)[f"{name}_rank_000.jsonl"] == first[f"{name}_rank_000.jsonl"]
    written = mixtures(expanded(recipe(out, checkpoint).data))["train"]
    assert filed.check_heads(written, {}, "") == []
    for said in ("{", "[1]"):
        (out / "files.json").write_text(said, encoding="utf-8")
        with pytest.raises(BadInput, match=r"files.json: cannot be read; remove it, and write them again"):
            filed.check_heads(written, {}, "")


def test_names_of_files_are_those_that_every_system_allows(tmp_path: Path, checkpoint: Callable[..., Path]) -> None:
    rows = task(tmp_path / "a", (0, 0)).read_text("utf-8").splitlines(keepends=True)
    for number, row in enumerate(rows):
        (tmp_path / "a" / f"train-{number:05d}.jsonl").write_text(row, encoding="utf-8")
    (tmp_path / "a" / "rows.jsonl").unlink()
    shards = recipe(tmp_path / "a", checkpoint)
    (source,) = shards.data.train
    lists = mixtures(shards.data.model_copy(update={"train": [source]}))
    assert "*" in lists["train"].datasets[0].file.name
    extract(shards, tmp_path / "out", layout="files")
    assert (tmp_path / "out" / "train_rank_000.jsonl").is_file()
    assert not [name for name in everything(tmp_path / "out") if "*" in name]
    task(tmp_path / "meta" / "b", (0,))
    table = Table.from_pylist([{"source_image": None, "target_image": "000-0.png", "instruction": "make it red"}])
    write_table(table, tmp_path / "meta" / "b" / "rows.parquet")
    with pytest.raises(
        BadInput, match=r"rows.parquet: its files would be written over those of .*rows.jsonl; give one"
    ):
        extract(recipe(tmp_path / "meta", checkpoint), tmp_path / "twice", layout="files")


def test_what_was_left_out_of_files_is_listed(tmp_path: Path, checkpoint: Callable[..., Path]) -> None:
    source = task(tmp_path / "a", (1, 1))
    (source.parent / "001-0.png").unlink()
    extract(recipe(source, checkpoint, "data.max_bad=1"), tmp_path / "out", layout="files")
    (left,) = read_records(tmp_path / "out" / "left_out.jsonl")
    assert left["reason"] == "media_missing"


def test_what_nobody_knows_of_upstreams_folders_is_said(
    made: Path, tmp_path: Path, checkpoint: Callable[..., Path], capsys: Any
) -> None:
    (tmp_path / "rows.jsonl").write_text((made / "files" / "rows_rank_000.jsonl").read_text("utf-8"), "utf-8")
    train(recipe(tmp_path / "rows.jsonl", checkpoint, "stored={layout: files}", allow=made), tmp_path / "run")
    assert "do not say with which text encoder, template and sizes" in " ".join(capsys.readouterr().out.split())


class Evil:
    def __reduce__(self) -> Any:
        return print, ("run",)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda file: torch.save(Evil(), file), "is a pickle of more than a tensor, which could run code"),
        (cut, r"is cut off or damaged \(.*; extract it again"),
        (lambda file: file.write_bytes(b""), r"is cut off or damaged \(.*; extract it again"),
        (lambda file: torch.save(torch.zeros(3, 8), file), r"holds \(3, 8\), not tokens of width 64: it is of another"),
        (lambda file: torch.save({"a": 1}, file), "holds dict, not tokens of width 64"),
        (Path.unlink, "cannot be opened"),
    ],
)
def test_files_that_are_none_are_one_sentence(made: Path, tmp_path: Path, spoil: Any, said: str, capsys: Any) -> None:
    row = rows(made)[0]
    file = tmp_path / "one.pt"
    file.write_bytes(Path(row["embeddings_tensor_en"]).read_bytes())
    spoil(file)
    (tmp_path / "rows.jsonl").write_text(json.dumps({**row, "embeddings_tensor_en": "one.pt"}) + "\n", encoding="utf-8")
    sample = Dataset(tmp_path / "rows.jsonl", allow_root=(made,))[0]
    with pytest.raises(BadSample, match=said):
        FiledEmbeddings(WIDTH).pieces(sample, [0], "a 0")
    assert "run" not in capsys.readouterr().out


def test_a_row_without_a_file_is_said(data: Path) -> None:
    sample = Dataset(data / "a" / "rows.jsonl")[0]
    with pytest.raises(BadSample, match='"embeddings_tensor_en_inv" names no file; extract the embeddings of this row'):
        FiledEmbeddings(WIDTH).pieces(sample, [1], "back 0")


def test_check_reads_files(made: Path, checkpoint: Callable[..., Path]) -> None:
    source = made / "files" / "rows_rank_000.jsonl"
    given = [f"data={{train: {source}, allow_root: [{made}]}}", f"model.name={checkpoint('edit-plus', 'patches')}"]
    done = qvl_edit("check", "tiny", *given, "stored={layout: files}")
    assert done.code == 0, done.err
    assert "tokens of text and sources" in done.out
