"""A program that consumes a Loader and saves its state after each batch; it kills itself in the middle if told so.

python consuming.py DATA FOLDER WORKERS STEPS KILL

FOLDER/log.jsonl gets a line for each batch: where it ended, and the samples. KILL is the number of batches after which
the process dies, between the line and the state; -1: never.
"""

import json
import multiprocessing
import os
import signal
import sys
from itertools import islice
from operator import attrgetter
from pathlib import Path

from qvl_data.loader import Loader


def main(data: str, folder: Path, workers: int, steps: int, kill: int) -> None:
    file = folder / "state.json"
    state = json.loads(file.read_text()) if file.exists() else None
    loader = Loader(data, seed=3, batch=4, workers=workers, each=attrgetter("id"), max_bad=9, state=state)
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        for number, batch in enumerate(islice(loader, steps)):
            pids = [child.pid for child in multiprocessing.active_children()]
            print(json.dumps({"end": loader.position, "batch": batch, "pids": pids}), file=log, flush=True)
            if number == kill:
                os.kill(os.getpid(), signal.SIGKILL)
            aside = file.with_suffix(".part")
            aside.write_text(json.dumps(loader.state))
            os.replace(aside, file)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
