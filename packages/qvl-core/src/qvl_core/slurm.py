"""Scripts that start a run elsewhere: sbatch for one or several machines, PowerShell for one Windows machine."""

import shlex
from collections.abc import Sequence

from qvl_core.errors import BadInput

_SCRIPT = """\
#!/bin/bash
# {command}
# Submit with: sbatch THIS_FILE. When the time is up the run saves its state and the job is queued again.
{directives}

# Every process finds the others by these variables; torch.distributed reads them.
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export WORLD_SIZE={size}
export LOCAL_WORLD_SIZE={nproc}
export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{threads}}}

# One task per process. `exec`, so that SLURM's signals reach Python itself.
srun --kill-on-bad-exit=0 bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID; exec "$@"' task \\
  {command}
code=$?

# 75: interrupted with its state saved; the same job continues it.
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def script(
    command: Sequence[str],
    *,
    name: str,
    nodes: int = 1,
    nproc: int = 1,
    time: str = "24:00:00",
    cpus: int = 8,
    gpus: bool = True,
    partition: str | None = None,
    account: str | None = None,
) -> str:
    """An sbatch script that runs `python *command` in `nproc` processes on each of `nodes` machines.

    USR1 comes 120 seconds before the time limit: the run finishes its step, saves and exits 75.
    """
    options = {
        "job-name": name,
        "partition": partition,
        "account": account,
        "nodes": nodes,
        "ntasks-per-node": nproc,
        "cpus-per-task": cpus,
        "gres": f"gpu:{nproc}" if gpus else None,
        "time": time,
        "signal": "USR1@120",
        "output": "%x-%j.log",
        "open-mode": "append",
    }
    directives = [f"#SBATCH --{key}={value}" for key, value in options.items() if value is not None]
    return _SCRIPT.format(
        command=shlex.join(["python", *command]),
        directives="\n".join([*directives, "#SBATCH --requeue"]),
        size=nodes * nproc,
        nproc=nproc,
        threads=cpus,
    )


def powershell(command: Sequence[str], nodes: int = 1) -> str:
    """The PowerShell line that runs `python *command` on one Windows machine."""
    if nodes > 1:
        raise BadInput("--shell powershell starts one machine; for several, give --shell bash and run it under SLURM.")
    return " ".join(["python", *(_quoted(word) for word in command)]) + "\n"


def _quoted(word: str) -> str:
    """PowerShell takes single-quoted text as it is."""
    plain = word.replace("-", "").replace("_", "").replace(".", "").replace("/", "").replace("=", "").isalnum()
    return word if plain else "'" + word.replace("'", "''") + "'"
