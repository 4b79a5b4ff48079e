"""A package's command: its verbs, the options that every verb shares, and its exit codes."""

import importlib
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from typer import Context, Exit, Option, Typer
from typer.core import TyperGroup
from typer.main import get_command

from qvl_core.cli import failure, plugin
from qvl_core.errors import BadInput, known_to_all

if TYPE_CHECKING:
    from qvl_core.recipe.blocks import Recipe

EPILOG = "Every verb takes --plugin FILE.py (repeatable): a file that registers your own parts before the verb runs."


class Verbs(TyperGroup):
    """A group of verbs that knows what was meant by an unknown one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            verbs = self.list_commands(ctx)
            sentence = f'{ctx.command_path}: unknown verb "{name}"; {failure.meant(name, verbs)}'
            raise known_to_all(BadInput(sentence))
        return super().resolve_command(ctx, args)

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False  # a flag that is not given: typer would import pydantic to make sense of None
        return option


class App:
    """The command `name` of one package.

    A verb is a function that returns None or its exit code: 0 done, 1 failed, 2 bad input, 75 preempted. Errors that
    the user can act on are raised as `qvl_core.errors` and shown as their one sentence.
    """

    def __init__(self, name: str, *, package: str, help: str) -> None:
        self.name = name
        self.package = package
        self.args: list[str] = []  # the command line being run, as it was written
        self._typer = _typer(name, help, epilog=EPILOG)

        @self._typer.callback(invoke_without_command=True)
        def root(
            ctx: Context, version: Annotated[bool, Option("--version", help="Print the version.")] = False
        ) -> None:
            if version:
                print(failure.versions(name))
                raise Exit
            if ctx.invoked_subcommand is None:
                print(ctx.get_help())

    def command(self, name: str | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Make a function a verb: its docstring is the help, its annotations are the arguments."""
        return self._typer.command(name)

    def common(self, *verbs: str) -> None:
        """Add verbs that mean the same in every package; see `qvl_core.cli.common`."""
        from qvl_core.cli.common import VERBS

        for verb in verbs:
            VERBS[verb](self)

    def group(self, name: str, help: str) -> Typer:
        """A verb with verbs of its own, such as `recipes list`; add them with its `.command()`."""
        group = _typer(name, help)

        @group.callback(invoke_without_command=True)
        def root(ctx: Context) -> None:
            if ctx.invoked_subcommand is None:
                print(ctx.get_help())

        self._typer.add_typer(group)
        return group

    def room(self, name: str) -> ModuleType:
        """The package's module of that name (its `train`, `plan`, `recipe` ...)."""
        return importlib.import_module(f"{self.package}.{name}")

    def load(self, source: str, overrides: Sequence[str] | None = None) -> "Recipe":
        """The recipe that a verb was given; with several processes only the first one says what is wrong with it."""
        from qvl_core.recipe.load import load

        try:
            return load(self.room("recipe").RECIPE, source, overrides or (), self.package)
        except BadInput as error:
            raise known_to_all(error) from None

    def run(self, args: Sequence[str]) -> int:
        """Run one command line and return its exit code."""
        from qvl_core.training import launch

        self.args = list(args)
        launch.end_with_launcher()
        try:
            rest = plugin.run_named(self.args)
            code = get_command(self._typer).main(args=rest, prog_name=self.name, standalone_mode=False)
        except Exception as error:
            return failure.report(error, self.name)
        return code if isinstance(code, int) else 0

    def main(self) -> NoReturn:
        """The entry point: `qvl-... verb` and `python -m package verb`."""
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a Windows console of another code page shows ? and does not fail
                stream.reconfigure(errors="replace")
        args, sys.argv[0] = sys.argv[1:], self.name  # recorded commands then name the command, not its file
        sys.exit(self.run(args))


def _typer(name: str, help: str, epilog: str | None = None) -> Typer:
    return Typer(
        name=name,
        help=help,
        epilog=epilog,
        cls=Verbs,
        add_completion=False,
        rich_markup_mode=None,  # plain help: boxes would cost as much CPU time as everything else together
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
