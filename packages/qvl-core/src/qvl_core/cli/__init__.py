"""The command line that all packages share.

A package's cli.py names its verbs and imports what they need inside them, so that `--help` stays cheap:

    from qvl_core.cli import App, Argument

    app = App("qvl-sft", package="qvl_sft", help="Fine-tune Qwen3-VL.")
    app.common("train", "check", "plan", "demo", "tiny", "recipes", "report", "doctor", "slurm")

    @app.command()
    def merge(adapter: Annotated[Path, Argument(help="...")]) -> None:
        \"\"\"One line of help.\"\"\"
        from .merge import merge as run  # torch is loaded here, not by --help
        run(adapter)

    main = app.main
"""

from typer import Argument, Option

from qvl_core.cli.app import App

__all__ = ["App", "Argument", "Option"]
