"""The pages tell the truth: code blocks run, commands exist, links lead somewhere.

In every page a ```python block is executed, in a fresh folder, with the names of the page's earlier blocks. In a
```bash block each command of ours is checked, not run (training takes minutes): the verb exists, has the options, and
the recipe loads with its overrides. A ```yaml block with a version is a recipe and loads. A comment on the line above a
block changes that:

    <!-- run -->               the bash block is run, too
    <!-- run: slow -->         the same, but only by `nox -s full`
    <!-- not run: WHY -->      the python block is only compiled
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from qvl_core.errors import BadInput
from qvl_core.recipe.load import load
from tools.reference import FOLDER, pages

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "packages/*/*.md", "apps/*/*.md", "docs/**/*.md")
    for path in ROOT.glob(pattern)
)
FENCE = re.compile(r"^(?:<!-- (?P<mark>.*?) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
PROGRAMS = Path(sys.executable).parent  # where the commands of this environment are


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    code: str
    mark: str
    line: int  # of the first line of code


def blocks(page: str) -> Iterator[Block]:
    text = (ROOT / page).read_text("utf-8")
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        yield Block(match["language"], match["code"], match["mark"] or "", line)


def has_slow_blocks(page: str) -> bool:
    return any(block.mark == "run: slow" for block in blocks(page))


def run_page(page: str, *, slow: bool) -> None:
    """Run the page's blocks from top to bottom in the current folder; slow ones only if asked for."""
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.mark == "run: slow" and not slow:
            continue
        if block.language == "python":
            # The leading newlines make the lines of a traceback those of the page.
            code = compile("\n" * (block.line - 1) + block.code, page, "exec")
            if not block.mark.startswith("not run: "):
                exec(code, names)
        elif block.language == "bash" and block.mark.startswith("run"):
            path = os.pathsep.join([str(PROGRAMS), os.environ["PATH"]])
            env = os.environ | {"PATH": path, "UV_PROJECT": str(ROOT), "UV_NO_SYNC": "1"}
            subprocess.run(block.code, shell=True, check=True, env=env)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(page, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if has_slow_blocks(page)])
def test_slow_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(page, slow=True)


def commands(code: str) -> Iterator[list[str]]:
    """The commands of a shell block as lists of words, without environment settings and `uv run`."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = next((i for i, word in enumerate(words) if word in ("&&", "||", ";", "|")), len(words))
            command, words = words[:end], words[end + 1 :]
            while command and "=" in command[0]:
                command = command[1:]
            yield command[2:] if command[:2] == ["uv", "run"] else command


@cache
def answer(*command: str) -> str:
    """What a command prints; it must succeed."""
    env = os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    program = str(PROGRAMS / command[0])
    run = subprocess.run([program, *command[1:]], cwd=ROOT, env=env, capture_output=True, text=True, encoding="utf-8")
    assert run.returncode == 0, f"{shlex.join(command)} exits {run.returncode}: {run.stderr}"
    return run.stdout


def complaint(command: list[str]) -> str | None:
    """What is wrong with a command of ours, or None; other programs are not looked at."""
    program, *words = command or [""]
    if program == "nox":
        sessions = words[words.index("-s") + 1 :] if "-s" in words else []
        sessions = sessions[: sessions.index("--")] if "--" in sessions else sessions
        missing = [name for name in sessions if not re.search(rf"^[*-] {name} ", answer("nox", "-l"), re.MULTILINE)]
        return f"nox has no session {', '.join(missing)}" if missing else None
    if program.startswith("qvl-"):
        verb = [] if not words or words[0].startswith("-") else [words[0]]
        if verb and f"{program} {verb[0]} [OPTIONS] COMMAND" in answer(program, *verb, "--help"):
            verb = words[:2]  # a group of verbs
        known = answer(program, *verb, "--help") + answer(program, "--help")
        options = [word.partition("=")[0] for word in words if word.startswith("--")]
        missing = [option for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", known)]
        if missing:
            return f"{' '.join([program, *verb])} has no {', '.join(missing)}"
        if verb and verb[0] in ("train", "check", "plan", "slurm") and "RECIPE" in answer(program, *verb, "--help"):
            return recipe_complaint(program, words[1], [word for word in words[2:] if re.match(r"[a-z][\w.]*=", word)])
    return None


def recipe_complaint(program: str, source: str | Path, overrides: list[str]) -> str | None:
    """Why a recipe does not load, or None; a file that the reader would write is not looked at."""
    if isinstance(source, str) and source.endswith(".yaml"):
        return None
    package = program.replace("-", "_")
    try:
        load(import_module(f"{package}.recipe").RECIPE, source, overrides, package)
    except BadInput as error:
        return str(error)
    return None


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page: str) -> None:
    shell = [block for block in blocks(page) if block.language == "bash"]
    found = [(block.line, complaint(command)) for block in shell for command in commands(block.code)]
    assert [f"{page}:{line}: {said}" for line, said in found if said] == []


@pytest.mark.parametrize("page", PAGES)
def test_recipes_load(page: str, tmp_path: Path) -> None:
    program = Path(page).parts[1] if page.startswith("packages/") else "qvl-sft"
    file = tmp_path / "recipe.yaml"
    for block in blocks(page):
        if block.language == "yaml" and block.code.startswith(("version:", "#")):
            file.write_text(block.code, encoding="utf-8")
            assert recipe_complaint(program, file, []) is None


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = FENCE.sub("", (ROOT / page).read_text("utf-8"))
    assert [link for link in LINK.findall(text) if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_ci_runs_the_test_command_of_the_readme() -> None:
    command = "pip install uv && uv run nox -s tests"
    assert command in (ROOT / ".ci" / "run").read_text("utf-8")
    assert command in (ROOT / "README.md").read_text("utf-8")


def test_the_recipe_reference_is_current() -> None:
    written = {path.name: path.read_text("utf-8") for path in FOLDER.glob("*.md")}
    assert written == pages(), "a recipe model changed; run `uv run nox -s docs` and commit docs/reference/"


# The checks themselves.


def test_shell_blocks_are_read_as_commands() -> None:
    code = (
        'pip install uv && uv run qvl-sft demo --out demo  # minutes\nA=1 qvl-sft \\\n  train lora "a b"\n\n# nothing\n'
    )
    assert list(commands(code)) == [
        ["pip", "install", "uv"],
        ["qvl-sft", "demo", "--out", "demo"],
        ["qvl-sft", "train", "lora", "a b"],
    ]


def test_a_wrong_command_is_found() -> None:
    assert complaint(["nox", "-s", "tests", "lint", "--", "-k", "chat"]) is None
    assert complaint(["nox", "-s", "test"]) == "nox has no session test"
    assert complaint(["qvl-sft", "demo", "--out", "demo"]) is None
    assert complaint(["qvl-sft", "demo", "--outt=demo"]) == "qvl-sft demo has no --outt"
    with pytest.raises(AssertionError, match="qvl-sft dmo --help exits 2"):
        complaint(["qvl-sft", "dmo"])
    assert complaint(["qvl-sft", "train", "tiny", "optim.lr=1e-4", "--out", "runs/mine"]) is None
    assert complaint(["qvl-sft", "train", "mine.yaml"]) is None
    assert "optimm" in str(complaint(["qvl-sft", "train", "tiny", "optimm.lr=1e-4"]))
    assert "tinny" in str(complaint(["qvl-sft", "train", "tinny"]))


def test_a_failing_block_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError) as error:
        run_page(str(page), slow=False)
    assert error.traceback[-1].lineno + 1 == 8
    page.write_text("<!-- run -->\n```bash\nexit 3\n```\n", encoding="utf-8")
    with pytest.raises(subprocess.CalledProcessError):
        run_page(str(page), slow=False)
