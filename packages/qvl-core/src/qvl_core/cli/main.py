"""The `qvl-core` command: what works on any run and any machine, whichever package it belongs to."""

import importlib
from pathlib import Path
from typing import Annotated

from qvl_core.cli import App, Argument
from qvl_core.errors import BadInput

app = App("qvl-core", package="qvl_core", help="What every QVL package stands on.")
app.common("doctor")


@app.command()
def report(run: Annotated[Path, Argument(metavar="RUN", help="Run folder of any package.")]) -> None:
    """Write a run's report.html again."""
    from qvl_core.run import RunFolder

    result = RunFolder(run).read_result()
    if result is None:
        raise BadInput(f"{run}: has no result.json, so it is not a finished run; use the package's own `report` verb.")
    room = f"{str(result['package']).replace('-', '_')}.report"
    importlib.import_module(room).report(run)


main = app.main
