"""The verbs that mean the same in every package, with the same flags.

Each calls the package's room of its name, `train` for example `<package>.train.train(recipe, out, fresh, resume,
allow_change)`, and prints what it returns if that is text.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from qvl_core.cli.app import App
from qvl_core.errors import BadInput

Source = Annotated[str, Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None, Argument(metavar="KEY=VALUE", help="Changes to the recipe, such as optim.lr=1e-4.")
]
Nproc = Annotated[int | None, Option(min=1, help="Processes on each machine, one per device (parallel.nproc).")]
DemoSeed = Annotated[int, Option(help="Another number is another run; the same number repeats it exactly.")]
Nodes = Annotated[int | None, Option(min=1, help="Machines (parallel.nodes).")]


def train(app: App) -> None:
    @app.command()
    def train(
        recipe: Source,
        overrides: Overrides = None,
        out: Annotated[Path | None, Option(help="Run folder; default: runs/<recipe name>.")] = None,
        fresh: Annotated[bool, Option("--fresh", help="Move an existing run aside and start again.")] = False,
        resume: Annotated[Path | None, Option(help="Continue from this checkpoint, not from the newest.")] = None,
        allow_change: Annotated[
            bool, Option("--allow-change", help="Continue although the recipe is not the one the run began with.")
        ] = False,
        nproc: Nproc = None,
        nodes: Nodes = None,
    ) -> int | None:
        """Train a recipe. The same command continues an interrupted run."""
        from qvl_core.training.launch import launch, launched

        if fresh and resume:
            raise BadInput("--fresh starts again and --resume continues; give one of them.")
        loaded = app.load(recipe, [*(overrides or []), *_parallel(nproc, nodes)])
        if not launched():
            if (loaded.parallel.nodes or 1) > 1:
                raise BadInput(
                    f"{loaded.parallel.nodes} nodes need a launcher on each: "
                    f"use `{app.name} slurm {recipe}`, or torchrun (README, several machines)."
                )
            if (loaded.parallel.nproc or 1) > 1:
                return launch(["-m", app.package, *app.args], loaded.parallel.nproc or 1)
        out = out or default_out(recipe)
        app.room("train").train(loaded, out=out, fresh=fresh, resume=resume, allow_change=allow_change)
        return None


def check(app: App) -> None:
    @app.command()
    def check(
        recipe: Source,
        overrides: Overrides = None,
        out: Annotated[
            Path | None, Option(help="Folder for check.html and bad_samples.jsonl; default: only printed.")
        ] = None,
    ) -> None:
        """Check a recipe and its data; show the first batch."""
        _show(app.room("check").check(app.load(recipe, overrides), out))


def plan(app: App) -> None:
    @app.command()
    def plan(
        recipe: Source,
        overrides: Overrides = None,
        gpu: Annotated[
            str | None,
            Option(help="Does it fit on this card, and how fast: 3090, 4090, l40s, a100, h100, h200 ..."),
        ] = None,
    ) -> None:
        """Predict memory and time, without the model and a GPU."""
        _show(app.room("plan").plan(app.load(recipe, overrides), gpu))


def demo(app: App) -> None:
    @app.command()
    def demo(
        out: Annotated[Path, Option(help="Folder for the report, the figures and the runs.")] = Path("runs/demo"),
        seed: DemoSeed = 0,
    ) -> None:
        """Train and test a tiny model here, offline, in minutes."""
        _show(app.room("demo").demo(out=out, seed=seed))


def tiny(app: App) -> None:
    @app.command()
    def tiny(
        folder: Annotated[Path, Argument(help="Where to write it.")],
        seed: Annotated[int, Option(help="Decides its random weights.")] = 0,
        thinking: Annotated[bool, Option("--thinking", help="With the chat template of the Thinking models.")] = False,
    ) -> None:
        """Write a tiny random model that loads like the real one."""
        _show(app.room("tiny").tiny(folder, seed, thinking))


def recipes(app: App) -> None:
    group = app.group("recipes", "List, show and copy the shipped recipes; describe every key.")
    Name = Annotated[str, Argument(metavar="NAME", help="Name of a shipped recipe.")]

    @group.command("list")
    def list_() -> None:
        """List the shipped recipes."""
        from qvl_core.recipe.shipped import shipped

        found = shipped(app.package)
        width = max((len(recipe.name) for recipe in found), default=0)
        for recipe in found:
            print(f"{recipe.name:{width}}  {recipe.description}")

    @group.command()
    def show(name: Name) -> None:
        """Print a shipped recipe."""
        from qvl_core.recipe.shipped import show

        print(show(app.package, name), end="")

    @group.command()
    def copy(
        name: Name, to: Annotated[Path | None, Argument(help="File or folder; default: NAME.yaml.")] = None
    ) -> None:
        """Copy a shipped recipe, to edit it."""
        from qvl_core.recipe.shipped import copy

        target = copy(app.package, name, to)
        print(f"{target}: edit it, then run `{app.name} train {target}`.")

    @group.command()
    def reference() -> None:
        """Print a Markdown page with every key of a recipe."""
        from qvl_core.recipe.reference import reference

        print(reference(app.room("recipe").RECIPE), end="")

    @group.command()
    def schema() -> None:
        """Print the JSON schema. Editors complete and check recipes with it: save it as recipe.schema.json and begin
        a recipe with `# yaml-language-server: $schema=recipe.schema.json`."""
        from qvl_core.recipe.reference import schema

        print(json.dumps(schema(app.room("recipe").RECIPE), indent=2, ensure_ascii=False))


def report(app: App) -> None:
    @app.command()
    def report(run: Annotated[Path, Argument(metavar="RUN", help="Run folder.")]) -> None:
        """Write a run's report.html again."""
        if not run.is_dir():
            raise BadInput(f"{run}: there is no such run folder.")
        _show(app.room("report").report(run))


def doctor(app: App) -> None:
    @app.command()
    def doctor(as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False) -> None:
        """Show versions, devices, memory, disk and what is missing."""
        from qvl_core.doctor import doctor

        print(doctor(app.package, as_json=as_json))


def slurm(app: App) -> None:
    @app.command()
    def slurm(
        recipe: Source,
        overrides: Overrides = None,
        nodes: Nodes = None,
        nproc: Nproc = None,
        out: Annotated[Path | None, Option(help="Run folder; default: runs/<recipe name>.")] = None,
        time: Annotated[str, Option(help="Time limit of the job; it is requeued until the run is done.")] = "24:00:00",
        cpus: Annotated[int, Option(min=1, help="CPU cores for each process.")] = 8,
        partition: Annotated[str | None, Option(help="SLURM partition.")] = None,
        account: Annotated[str | None, Option(help="SLURM account.")] = None,
        gpus: Annotated[bool, Option(help="Ask for one GPU per process.")] = True,
        shell: Annotated[
            str, Option(help="bash: an sbatch script; powershell: a line for one Windows machine.")
        ] = "bash",
    ) -> None:
        """Print the sbatch script that trains a recipe on a cluster."""
        from qvl_core.slurm import powershell, script

        parallel = app.load(recipe, [*(overrides or []), *_parallel(nproc, nodes)]).parallel
        nodes, nproc = parallel.nodes or 1, parallel.nproc or 1
        out = out or default_out(recipe)
        command = ["-m", app.package, "train", recipe, *(overrides or []), "--out", str(out)]
        command += ["--nproc", str(nproc), "--nodes", str(nodes)]
        if shell == "powershell":
            print(powershell(command, nodes), end="")
        elif shell == "bash":
            print(
                script(
                    command,
                    name=out.name,
                    nodes=nodes,
                    nproc=nproc,
                    time=time,
                    cpus=cpus,
                    gpus=gpus,
                    partition=partition,
                    account=account,
                ),
                end="",
            )
        else:
            raise BadInput(f"--shell {shell}: must be bash or powershell.")


VERBS: dict[str, Callable[[App], None]] = {
    verb.__name__: verb for verb in (train, check, plan, demo, tiny, recipes, report, doctor, slurm)
}


def default_out(recipe: str) -> Path:
    """Never dated: the same command finds its run again."""
    from qvl_core.recipe.load import name

    return Path("runs") / name(recipe)


def _parallel(nproc: int | None, nodes: int | None) -> list[str]:
    """The flags as the recipe's own keys, so that the training code finds what was asked for in one place."""
    given = {"parallel.nproc": nproc, "parallel.nodes": nodes}
    return [f"{key}={number}" for key, number in given.items() if number is not None]


def _show(result: Any) -> None:
    if isinstance(result, str):
        print(result)
