import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl_core.errors import BadInput
from qvl_core.run import RunFolder, Spent, command, redact, result, spent


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder.open(tmp_path / "runs" / "tiny")
    run.write_recipe("version: 1\n")
    return run


# --- opening


def test_open_creates_and_takes_up_again(run: RunFolder) -> None:
    run.append_metrics({"step": 1})
    assert RunFolder.open(run.path).read_metrics() == [{"step": 1}]


def test_fresh_moves_the_old_run_aside_each_time(run: RunFolder) -> None:
    for text in ("second", "third"):
        RunFolder.open(run.path, fresh=True).write_recipe(text)
    recipes = {folder.name: (folder / "recipe.yaml").read_text() for folder in run.path.parent.iterdir()}
    assert recipes == {"tiny": "third", "tiny.old-1": "version: 1\n", "tiny.old-2": "second"}


@pytest.mark.parametrize("fresh", [False, True])
def test_other_peoples_data_is_refused_and_untouched(tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"photos: .*not a run folder"):
        RunFolder.open(tmp_path / "photos", fresh)
    assert [entry.name for entry in (tmp_path / "photos").iterdir()] == ["a.jpg"]
    with pytest.raises(BadInput, match="a file, not a folder"):
        RunFolder.open(tmp_path / "photos" / "a.jpg", fresh)


def test_a_run_killed_while_it_wrote_its_first_file_opens_again(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".recipe.yaml.4711.tmp").write_text("ver")
    RunFolder.open(tmp_path / "run")


# --- metrics


def test_metrics_are_strict_json(run: RunFolder) -> None:
    run.append_metrics({"step": 3, "loss": math.nan, "lr": {"llm": 1e-4, "merger": math.inf}, "note": "数字"})
    line = run.metrics_file.read_text(encoding="utf-8")
    assert line == '{"step": 3, "loss": null, "lr": {"llm": 0.0001, "merger": null}, "note": "数字"}\n'


def test_no_metrics_yet(run: RunFolder) -> None:
    run.truncate_metrics(0)
    assert run.read_metrics() == []
    assert not run.metrics_file.exists()


def test_a_broken_line_in_the_middle_is_named(run: RunFolder) -> None:
    run.metrics_file.write_text('{"step": 1}\n{"st\n{"step": 2}\n')
    with pytest.raises(BadInput, match=r"metrics\.jsonl:2"):
        run.read_metrics()


@settings(deadline=None)  # it syncs a shared disk
@given(cut=st.integers(0, 200), resume=st.integers(0, 9))
def test_a_kill_at_any_byte_and_a_resume_leave_only_whole_records(
    tmp_path_factory: pytest.TempPathFactory, cut: int, resume: int
) -> None:
    run = RunFolder(tmp_path_factory.mktemp("run"))
    written = [{"step": step, "loss": step / 7, "note": "손실"} for step in range(1, 9)]
    for record in written:
        run.append_metrics(record)
    content = run.metrics_file.read_bytes()[: 8 + cut]
    run.metrics_file.write_bytes(content)
    whole = written[: content.count(b"\n")]

    assert run.read_metrics() == whole
    run.truncate_metrics(resume)
    run.append_metrics({"step": resume + 1})
    assert run.read_metrics() == [record for record in whole if record["step"] <= resume] + [{"step": resume + 1}]


# --- environment


def test_environment_names_versions_and_holds_no_secret(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "Secret" * 5)
    monkeypatch.setattr(sys, "argv", ["/home/me/bin/qvl-sft", "train", "r.yaml", "--token", "hush-hush"])
    run.write_environment({"tune": [{"group": "llm", "lr": math.nan}]})
    recorded = run.read_environment()
    assert recorded["packages"]["qvl-core"]
    assert recorded["command"] == "qvl-sft train r.yaml --token '***'"
    assert recorded["tune"] == [{"group": "llm", "lr": None}]
    text = run.environment_file.read_text(encoding="utf-8")
    assert "Secret" not in text
    assert "hush" not in text


def test_a_module_is_named_by_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/qvl_sft/__main__.py", "train", "my recipe.yaml"])
    assert command() == "python -m qvl_sft train 'my recipe.yaml'"


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("hub.token=abc", "hub.token=***"),
        ("--api-key=abc", "--api-key=***"),
        ("password=abc", "password=***"),
        ("x=hf_abcdefghijklmnop", "x=***"),
        ("https://me:pw@host/data", "https://***@host/data"),
        ("batch.tokens=4096", "batch.tokens=4096"),
        ("tokenizer=me/hf_model", "tokenizer=me/hf_model"),
        ("--out=runs/sk-1", "--out=runs/sk-1"),
    ],
)
def test_redaction(argument: str, shown: str) -> None:
    assert redact([argument]) == [shown]


def test_the_environment_is_recorded_without_loading_torch() -> None:
    code = "import sys, qvl_core.run as r; r.environment(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_damaged_record_is_named(run: RunFolder) -> None:
    run.result_file.write_text("{")
    with pytest.raises(BadInput, match=r"result\.json: is not valid JSON"):
        run.read_result()


# --- result


def test_result_is_flat_and_begins_with_its_schema(run: RunFolder) -> None:
    made = result("qvl-core", seed=7, complete=True, figures={"digit_accuracy": 0.97, "best_step": 120})
    assert list(made)[:3] == ["schema", "package", "version"]
    assert made["schema"] == "qvl.result/1"
    assert made["command"] == command()
    assert made["digit_accuracy"] == 0.97
    assert run.read_result() is None
    run.write_result(made)
    assert run.read_result() == made
    assert json.loads(run.result_file.read_text()) == made


@pytest.mark.parametrize("figures", [{"seconds": 1}, {"loss": [1, 2]}, {"loss": {"a": 1}}])
def test_result_refuses_nested_and_reserved_figures(figures: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="figures"):
        result("qvl-core", seed=0, complete=False, figures=figures)  # type: ignore[arg-type]


def test_seconds_continue_over_a_resume() -> None:
    first = spent()
    second = spent(Spent(100.0, 1000.0))
    assert 0 < first.cpu < second.cpu - 99
    assert 0 < first.wall < second.wall - 999
    made = result("qvl-core", seed=0, complete=True, figures={}, before=second)
    assert made["seconds"] >= second.cpu + first.cpu - 0.01


def test_seconds_count_ended_child_processes() -> None:
    before = spent()
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    if sys.platform != "win32":  # Windows does not tell
        assert spent().cpu - before.cpu >= 0.28
    assert spent().wall - before.wall >= 0.28


def test_wall_seconds_begin_with_the_process() -> None:
    code = "import time; sum(range(10**7)); from qvl_core.run import spent; print(time.process_time(), spent().wall)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    cpu, wall = map(float, done.stdout.split())
    assert wall >= cpu - 0.05
