"""Every routine of the project, one session each: `uv run nox -l`. Words after `--` go to the command inside.

Sessions work in the project's own environment (`uv run` locks, syncs and enters it), with two exceptions: packages are
also tried in `.nox/isolated`, which holds only what one package declares, and `gpu` takes the interpreter at hand, so
that it runs on a machine without an index, too.
"""

import os
import shutil
import sys
import tomllib
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["tests"]

UV = os.environ.get("UV", "uv")  # uv sets it for what it starts, also where uv itself is not on PATH
PACKAGES = sorted(path.parent.name for path in Path("packages").glob("*/pyproject.toml"))
FAST = "not slow and not gpu"
# Two processes take half the suite each, in order, so that tests that share fixtures stay together; who is done helps.
HALVES = ["-n", "2", "--dist", "worksteal"]
TEST_ENV = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
ISOLATED_ENV = TEST_ENV | {"UV_PROJECT_ENVIRONMENT": str(Path(".nox", "isolated").absolute()), "VIRTUAL_ENV": None}


def project(session: nox.Session, *command: str) -> None:
    """Run a command in the project's environment."""
    session.run(UV, "run", *command, env=TEST_ENV)


def isolate(session: nox.Session, package: str, *options: str) -> None:
    """Fill `.nox/isolated` with one package, built as for release, and only what it declares."""
    # uv caches the builds of workspace members by their metadata alone; --reinstall-package takes today's source.
    rebuilt = [word for member in PACKAGES for word in ("--reinstall-package", member)]
    sync = ["sync", "--quiet", "--exact", "--no-editable", "--no-default-groups", "--package", package]
    session.run(UV, *sync, *rebuilt, *options, env=ISOLATED_ENV)


def in_isolation(session: nox.Session, *command: str) -> None:
    session.run(UV, "run", "--no-sync", *command, env=ISOLATED_ENV, silent="--help" in command)


def scripts(package: str) -> list[str]:
    """The commands a package installs."""
    return list(tomllib.loads(Path("packages", package, "pyproject.toml").read_text("utf-8"))["project"]["scripts"])


@nox.session
def tests(session: nox.Session) -> None:
    """The fast suite of all packages; before it, each package imports and answers --help with only what it declares."""
    if not session.posargs:
        for package in PACKAGES:
            isolate(session, package)
            in_isolation(session, "python", "-c", f"import {package.replace('-', '_')}")
            for script in scripts(package):
                in_isolation(session, script, "--help")
    project(session, "pytest", "-m", FAST, *(session.posargs or HALVES))


@nox.session
def full(session: nox.Session) -> None:
    """Everything: slow tests, each package's suite with only what it declares, and every demo."""
    for package in PACKAGES:
        isolate(session, package, "--all-extras", "--group", "test")
        in_isolation(session, "pytest", "-m", FAST, f"packages/{package}")
    demo(session)
    project(session, "pytest")


@nox.session
def distributed(session: nox.Session) -> None:
    """Tests that start several processes, slow ones included."""
    project(session, "pytest", "-m", "distributed", *session.posargs)


@nox.session
def integration(session: nox.Session) -> None:
    """Whole jobs across packages, command by command: swap an encoder, train, merge, reload, evaluate."""
    project(session, "pytest", "tests/integration", *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """Tests on a CUDA device, with the interpreter at hand; without a device each skips with its reason."""
    session.run(sys.executable, "-m", "pytest", "-m", "gpu", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting."""
    project(session, "ruff", "check", ".")
    project(session, "ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict, on qvl-core and qvl-data."""
    project(session, "mypy", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Write docs/reference/ from the recipe models, run the code blocks of all pages, build the site into site/."""
    project(session, "python", "-m", "tools.reference")
    project(session, "pytest", "tests/test_docs.py")
    session.run(UV, "run", "--group", "docs", "zensical", "build", "--strict")


@nox.session
def demo(session: nox.Session) -> None:
    """Every demo on real digits: `nox -s demo -- --seed 1`; reports in runs/demo, -vision, -mdlm, -metaquery, -edit."""
    project(session, "qvl-sft", "demo", "--out", "runs/demo", *session.posargs)
    project(session, "qvl-vision", "demo", "--out", "runs/demo-vision", *session.posargs)
    project(session, "qvl-mdlm", "demo", "--out", "runs/demo-mdlm", *session.posargs)
    project(session, "qvl-metaquery", "demo", "--out", "runs/demo-metaquery", *session.posargs)
    project(session, "qvl-metaquery", "demo", "--coloured", "--out", "runs/demo-metaquery-coloured", *session.posargs)
    project(session, "qvl-edit", "demo", "--out", "runs/demo-edit", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Every benchmark at its quick size; words after `--` take the place of --quick."""
    for benchmark in sorted(Path("benchmarks").glob("*.py")):
        project(session, "python", str(benchmark), *(session.posargs or ["--quick"]))


@nox.session
def build(session: nox.Session) -> None:
    """Wheels and source archives of all packages, in dist/."""
    shutil.rmtree("dist", ignore_errors=True)
    session.run(UV, "build", "--quiet", "--all-packages", "--out-dir", "dist")


@nox.session(name="release-check")
def release_check(session: nox.Session) -> None:
    """Every wheel resolves with freshly built siblings, newest and oldest allowed; its commands answer --help."""
    build(session)
    project(session, "python", "-m", "tools.release", "dist")


@nox.session
def lock(session: nox.Session) -> None:
    """Renew uv.lock (not committed) and requirements.lock (committed); with CI set, fail where the latter changes."""
    everything = ["--all-packages", "--all-extras", "--all-groups", "--no-emit-workspace"]
    session.run(UV, "lock")
    session.run(UV, "export", "--quiet", *everything, "--no-header", "--no-annotate", "-o", "requirements.lock")
    if os.environ.get("CI"):
        session.run("git", "diff", "--exit-code", "--stat", "requirements.lock", external=True)
