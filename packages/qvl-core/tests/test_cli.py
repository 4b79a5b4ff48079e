"""The shell that all packages share, on a small package of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qvl_core.cli.failure import report
from qvl_core.cli.testing import help_of_every_verb
from qvl_core.errors import BadInput, Preempted, QVLError

FILES = {
    "__init__.py": "",
    "__main__.py": "from shell_package.cli import main\nmain()\n",
    "cli.py": '''
from typing import Annotated

from qvl_core.cli import App, Argument

app = App("qvl-shell", package="shell_package", help="A package for the tests.")
app.common("train", "check", "plan", "demo", "tiny", "recipes", "report", "doctor", "slurm")

@app.command()
def fail(kind: Annotated[str, Argument(help="Which error.")]) -> int | None:
    """Fail in one of many ways."""
    from shell_package.fail import fail

    return fail(kind)

main = app.main
''',
    "recipe.py": "from qvl_core.recipe.blocks import Recipe as RECIPE\n",
    "train.py": """
import os
import sys

def train(recipe, out, fresh, resume, allow_change):
    said = (f"train rank={os.environ.get('RANK')} lr={recipe.optim.lr} nproc={recipe.parallel.nproc} "
            f"out={out.as_posix()} fresh={fresh} resume={resume} allow_change={allow_change}")
    sys.stdout.write(said + "\\n")  # in one piece: two processes share a pipe
    return {"loss": 1.0}
""",
    "check.py": "def check(recipe, out):\n    return f'checked {recipe.model.name}, rendered to {out}'\n",
    "plan.py": "def plan(recipe, gpu):\n    return f'{recipe.model.name} fits' + (f' on {gpu}' if gpu else '')\n",
    "demo.py": "def demo(out, seed):\n    return f'demo {out.as_posix()} {seed}'\n",
    "tiny.py": "def tiny(folder, seed, thinking):\n    return f'tiny {folder.as_posix()} {seed} {thinking}'\n",
    "report.py": "def report(run):\n    return f'{run.name}/report.html'\n",
    "fail.py": """
import errno

from qvl_core.errors import BadInput, Preempted, QVLError

def fail(kind):
    if kind == "input":
        raise BadInput("data.jsonl:3: no image; add one.")
    if kind == "run":
        raise QVLError("the loss is not finite; lower optim.lr.")
    if kind == "preempted":
        raise Preempted("stopped after step 7; the same command continues.")
    if kind == "bug":
        raise ZeroDivisionError("division by zero")
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "disk":
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x/model.safetensors")
    if kind == "weights on a full disk":
        from safetensors import SafetensorError
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    if kind == "memory":
        import torch
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 TiB")
    if kind == "permission":
        raise PermissionError(errno.EACCES, "Permission denied", "runs/x")
    if kind == "library":
        import a_library_that_nobody_has.part
    if kind == "missing room":
        import shell_package.nothing_here
    if kind == "pydantic":
        from shell_package.recipe import RECIPE
        RECIPE.model_validate({"version": 1, "tune": 3})
    if kind == "exit":
        return 7
""",
    "recipes/small.yaml": """# A small recipe.
version: 1
model: {name: tiny}
tune: {llm: {mode: lora}}
data: {train: a.jsonl}
batch: {size: 4}
train: {steps: 10}
""",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder to put on the path: it holds the package `shell_package`."""
    folder = tmp_path_factory.mktemp("site")
    for name, text in FILES.items():
        file = folder / "shell_package" / name
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def run(site, monkeypatch, tmp_path, capsys):
    """Run a command line in this process: (exit code, what it printed, what it said on stderr)."""
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "QVL_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    from shell_package.cli import app

    def run(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = app.run(args)
        said = capsys.readouterr()
        return code, said.out.rstrip("\n"), said.err.rstrip("\n")

    yield run
    for name in [name for name in sys.modules if name.split(".")[0] == "shell_package"]:
        del sys.modules[name]


def outside(site: Path, *args: str, **env: str) -> subprocess.CompletedProcess:
    """Run `python -m shell_package` as a user would."""
    call = [sys.executable, "-m", "shell_package", *args]
    return subprocess.run(
        call, env={**os.environ, "PYTHONPATH": str(site), **env}, cwd=site, capture_output=True, text=True
    )


# Help


def test_help_is_cheap_and_loads_nothing_heavy(site, monkeypatch):
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    seen = []
    for help in help_of_every_verb("shell_package.cli"):
        assert help.code == 0
        assert "Usage: qvl-shell" in help.text
        assert not help.loaded, help.verb
        assert help.seconds <= 0.5, help.verb
        seen.append(help.verb)
    assert {"", "train", "check", "plan", "demo", "tiny", "recipes copy", "report", "doctor", "slurm", "fail"} <= {
        *seen
    }


def test_help_of_the_core_command():
    for help in help_of_every_verb("qvl_core.cli.main"):
        assert (help.code, help.loaded) == (0, [])
        assert help.seconds <= 0.5


def test_importing_core_is_cheap():
    code = "import time, qvl_core; print(time.process_time())"
    seconds = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(2)]
    assert min(seconds) <= 0.3


def test_a_command_alone_shows_its_verbs(run):
    code, out, _ = run()
    assert code == 0
    assert "Train a recipe." in out
    code, out, _ = run("recipes")
    assert code == 0
    assert "List the shipped recipes." in out


def test_version(run):
    assert run("--version") == (0, "qvl-shell", "")


def test_errors_do_not_write_to_the_terminal(capsys):
    hostile = "a\x1b[2Jb\u202ec\nd\x9b"
    assert report(BadInput(f"{hostile}: no such file."), "qvl") == 2
    assert capsys.readouterr().err == "a\\x1b[2Jb\\u202ec\nd\\x9b: no such file.\n"
    assert report(RuntimeError(hostile), "qvl") == 1
    shown = capsys.readouterr().err
    assert "RuntimeError: a\\x1b[2Jb" in shown
    assert not {"\x1b", "\x9b", "\u202e"} & set(shown)


# Common verbs


def test_train_hands_over_recipe_and_flags(run):
    assert run("train", "small", "optim.lr=5e-4") == (
        0,
        "train rank=None lr=0.0005 nproc=None out=runs/small fresh=False resume=None allow_change=False",
        "",
    )
    _, out, _ = run("train", "small", "--out", "o", "--resume", "o/checkpoints/step-1", "--allow-change")
    assert out.endswith("out=o fresh=False resume=o/checkpoints/step-1 allow_change=True")
    assert "fresh=True" in run("train", "small", "--fresh")[1]
    assert "nproc=1 " in run("train", "small", "--nproc", "1")[1]


def test_fresh_and_resume_exclude_each_other(run):
    code, _, err = run("train", "small", "--fresh", "--resume", "x")
    assert (code, err) == (2, "--fresh starts again and --resume continues; give one of them.")


def test_several_nodes_need_a_launcher(run):
    code, _, err = run("train", "small", "--nodes", "2")
    assert code == 2
    assert "use `qvl-shell slurm small`" in err


def test_the_other_common_verbs(run):
    (Path("runs") / "x").mkdir(parents=True)
    assert run("check", "small", "model.name=m") == (0, "checked m, rendered to None", "")
    assert run("plan", "small") == (0, "tiny fits", "")
    assert run("demo", "--out", "d", "--seed", "3") == (0, "demo d 3", "")
    assert run("demo") == (0, "demo runs/demo 0", "")
    assert run("tiny", "t") == (0, "tiny t 0 False", "")
    assert run("report", "runs/x") == (0, "x/report.html", "")
    assert run("report", "runs/y") == (2, "", "runs/y: there is no such run folder.")


def test_recipes(run):
    assert run("recipes", "list") == (0, "small  A small recipe.", "")
    assert run("recipes", "show", "small")[1] == FILES["recipes/small.yaml"].rstrip("\n")
    assert run("recipes", "copy", "small") == (0, "small.yaml: edit it, then run `qvl-shell train small.yaml`.", "")
    assert Path("small.yaml").read_text(encoding="utf-8") == FILES["recipes/small.yaml"]
    assert run("recipes", "copy", "small")[0] == 2
    assert run("recipes", "show", "smal") == (2, "", 'no recipe "smal"; did you mean "small"?')
    assert "| `optim.lr` |" in run("recipes", "reference")[1]
    assert json.loads(run("recipes", "schema")[1])["title"] == "Recipe"


def test_slurm(run):
    code, out, _ = run("slurm", "small", "optim.lr=1e-4", "--nodes", "2", "--nproc", "4", "--time", "1:00:00")
    assert code == 0
    assert "python -m shell_package train small optim.lr=1e-4 --out runs/small --nproc 4 --nodes 2\n" in out
    assert "#SBATCH --job-name=small\n" in out
    assert "#SBATCH --ntasks-per-node=4\n" in out
    code, out, _ = run("slurm", "small", "--shell", "powershell")
    assert out == "python -m shell_package train small --out runs/small --nproc 1 --nodes 1"
    assert run("slurm", "small", "--shell", "fish") == (2, "", "--shell fish: must be bash or powershell.")
    assert run("slurm", "small", "optim.lrr=1")[0] == 2  # before it waits in a queue


# Errors


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["trian", "small"], 'qvl-shell: unknown verb "trian"; did you mean train?'),
        (["recipes", "lsit"], 'qvl-shell recipes: unknown verb "lsit"; did you mean list?'),
        (["train", "small", "--freshh"], "qvl-shell train: unknown option --freshh; did you mean --fresh?"),
        (["train"], "qvl-shell train: missing argument 'RECIPE'; see `qvl-shell train --help`."),
        (["train", "smal"], 'no recipe "smal"; did you mean "small"?'),
        (
            ["train", "small", "learning_rate=1"],
            'learning_rate=1: unknown key "learning_rate"; did you mean "optim.lr"?',
        ),
        (["train", "small", "--plugin"], "--plugin: give it a Python file, such as --plugin my_parts.py."),
        (["--plugin", "no.py", "doctor"], "--plugin no.py: there is no such file."),
    ],
)
def test_bad_arguments_are_one_sentence(run, args, sentence):
    assert run(*args) == (2, "", sentence)


def test_an_unknown_verb_with_no_neighbour_lists_all(run):
    code, _, err = run("zzz")
    assert code == 2
    assert err.startswith('qvl-shell: unknown verb "zzz"; there are ')
    assert "train, check, plan" in err


@pytest.mark.parametrize(
    ("kind", "code", "sentence"),
    [
        ("input", 2, "data.jsonl:3: no image; add one."),
        ("run", 1, "the loss is not finite; lower optim.lr."),
        ("preempted", 75, "stopped after step 7; the same command continues."),
        ("interrupt", 130, ""),
        ("disk", 1, "runs/x/model.safetensors: the disk is full; free some space and run the same command again."),
        ("weights on a full disk", 1, "the disk is full; free some space and run the same command again."),
        (
            "memory",
            1,
            "the device's memory is full; end what else uses it, or take smaller pictures, a model of fewer bits or "
            "parameters, or a larger device.",
        ),
        ("permission", 1, "runs/x: not allowed to read or write here; change its permissions or choose another place."),
        (
            "library",
            1,
            "the library a_library_that_nobody_has is not installed; "
            "`qvl-shell doctor` shows the line that installs it.",
        ),
        ("exit", 7, ""),
        ("nothing", 0, ""),
    ],
)
def test_exit_codes_and_sentences(run, kind, code, sentence):
    assert run("fail", kind) == (code, "", sentence)


def test_pydantic_errors_are_rewritten(run):
    code, _, err = run("fail", "pydantic")
    assert code == 2
    assert "tune: Input should be a valid dictionary." in err.splitlines()
    assert "pydantic" not in err


@pytest.mark.parametrize("kind", ["bug", "missing room"])
def test_a_bug_keeps_its_traceback_and_says_where_to_report_it(run, kind):
    code, _, err = run("fail", kind)
    assert code == 1
    assert "Traceback" in err
    assert "fail.py" in err
    assert "please report it" in err.splitlines()[-1]


def test_debug_shows_the_traceback_of_a_foreseen_error(run, monkeypatch):
    monkeypatch.setenv("QVL_DEBUG", "1")
    code, _, err = run("fail", "input")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1] == "data.jsonl:3: no image; add one."


def test_what_every_process_finds_is_said_once(run, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("train", "small", "optim.lrr=1") == (2, "", "")
    assert run("train", "small", "--freshh") == (2, "", "")
    assert run("trian", "small") == (2, "", "")
    assert run("fail", "preempted") == (75, "", "")
    assert run("--plugin", "no.py", "train", "small") == (2, "", "")


def test_what_one_process_finds_is_said_with_its_rank(run, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("fail", "input") == (2, "", "[rank 1] data.jsonl:3: no image; add one.")
    assert run("fail", "bug")[2].splitlines()[-1].startswith("[rank 1] qvl-shell failed")


def test_the_exit_codes_of_the_errors():
    assert (QVLError.exit_code, BadInput.exit_code, Preempted.exit_code) == (1, 2, 75)


# Plugins


def test_a_plugin_runs_before_the_verb_wherever_it_stands(run):
    Path("mine.py").write_text("print('plugin', __name__)\n", encoding="utf-8")
    for args in (["--plugin", "mine.py", "plan", "small"], ["plan", "small", "--plugin=mine.py"]):
        assert run(*args) == (0, "plugin qvl_plugin_mine\ntiny fits", "")
    assert run("plan", "small", "--plugin", "mine.py", "--plugin", "mine.py")[1].count("qvl_plugin_mine") == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1\ny = x +\n", "mine.py:2: invalid syntax."),
        ("def f():\n    return 1 / 0\n\nf()\n", "mine.py:2: the plugin failed: ZeroDivisionError: division by zero."),
        ("import nowhere_to_be_found\n", "mine.py:1: the plugin failed: ModuleNotFoundError: No module named "),
        ("raise SystemExit(3)\n", "mine.py:1: the plugin failed: SystemExit: 3."),
        ("\n\x00", "mine.py:1: source code string cannot contain null bytes."),
    ],
)
def test_an_error_in_a_plugin_is_one_sentence(run, text, sentence):
    Path("mine.py").write_text(text, encoding="utf-8")
    code, out, err = run("--plugin", "mine.py", "plan", "small")
    assert (code, out) == (2, "")
    assert err.startswith(sentence)
    assert len(err.splitlines()) == 1


def test_a_recipe_cannot_name_a_plugin(run):
    assert run("plan", "small", "plugin=mine.py")[0] == 2


# As a user runs it


def test_the_module_is_the_command(site):
    done = outside(site, "plan", "small")
    assert (done.returncode, done.stdout, done.stderr) == (0, "tiny fits\n", "")
    assert outside(site, "fail", "preempted").returncode == 75


def test_nproc_starts_the_processes(site):
    done = outside(site, "train", "small", "--nproc", "2")
    assert done.returncode == 0, done.stderr
    assert sorted(line.split(" lr")[0] for line in done.stdout.splitlines()) == ["train rank=0", "train rank=1"]
    assert all("nproc=2" in line for line in done.stdout.splitlines())


def test_a_wrong_recipe_starts_no_process(site):
    done = outside(site, "train", "small", "optim.lrr=1", "--nproc", "2")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == 'optim.lrr=1: unknown key "optim.lrr"; did you mean "optim.lr"?\n'


def test_under_another_launcher_no_further_process_is_started(site):
    done = outside(site, "train", "small", "--nproc", "2", RANK="1", WORLD_SIZE="2")
    assert done.stdout.startswith("train rank=1 ")
    assert len(done.stdout.splitlines()) == 1


def test_a_narrow_code_page_is_no_error(site):
    done = outside(site, "plan", "small", "model.name=训练", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "?? fits\n")


@pytest.mark.slow
def test_libraries_that_are_installed_but_not_used_say_nothing():
    for name in ("torchao", "deepspeed", "bitsandbytes"):
        pytest.importorskip(name)
    lines = (
        "import qvl_core, transformers.quantizers.auto, bitsandbytes",
        "from deepspeed.accelerator import get_accelerator",
        "get_accelerator()",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
