"""Several processes on gloo: the same run as one process, stopped, killed and resumed together."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import die, together, toy_run
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from toy import STEPS, ToyBatch, ToyBatches, network, toy_parts, toy_recipe

from qvl_core.cli.failure import report
from qvl_core.errors import BadInput, Preempted, QVLError
from qvl_core.recipe.blocks import Parallel
from qvl_core.run import RunFolder
from qvl_core.training import checkpoint
from qvl_core.training import world as world_module
from qvl_core.training.launch import environment, free_port
from qvl_core.training.parts import Loss, Micro
from qvl_core.training.session import Outcome
from qvl_core.training.world import processes

pytestmark = pytest.mark.distributed
TOLERANCE = 1e-6  # fp32: sums of gradients in another order


def run(
    out: Path, strategy: str = "auto", micro: int = 4, parts: dict[str, Any] | None = None, **blocks: Any
) -> Outcome:
    """A toy run without dropout, which depends on the number of processes."""
    recipe = toy_recipe(parallel={"strategy": strategy}, **blocks)
    return toy_run(out, toy_parts(network(dropout=0.0), **({"batches": ToyBatches(3, micro)} | (parts or {}))), recipe)


def difference(out: Path, reference: Path) -> float:
    one, other = (load_file(path / "final/model.safetensors") for path in (out, reference))
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def log_steps(out: Path) -> list[list[float]]:
    records = [record for record in RunFolder(out).read_metrics() if "event" not in record]
    return [[record[name] for name in ("step", "loss", "error", "grad_norm")] for record in records]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(out)
    return out


@pytest.mark.parametrize(
    ("strategy", "size", "micro"),
    [("ddp", 2, 4), ("ddp", 2, 1), ("fsdp2", 2, 4), ("fsdp2", 2, 1), ("ddp", 3, 4), ("fsdp2", 3, 4)],
)
def test_equal_to_one_process(strategy: str, size: int, micro: int, whole: Path, tmp_path: Path) -> None:
    """Accumulated over micro-batches too, and with 3, 3 and 2 rows of the 8 on three processes."""
    assert together(size, run, tmp_path / "run", strategy, micro) == [0] * size
    assert difference(tmp_path / "run", whole) < TOLERANCE
    for ours, theirs in zip(log_steps(tmp_path / "run"), log_steps(whole), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_one_process_may_use_any_strategy(strategy: str, whole: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", strategy)
    assert difference(tmp_path / "run", whole) < TOLERANCE


# Steps without pictures


@dataclass(frozen=True)
class SightedBatch(ToyBatch):
    sight: Tensor  # (B,) 1 if the sample has a picture
    used: Tensor  # () whether the tower is called


class SightedBatches(ToyBatches):
    """Slots 0 to 3 of steps 0, 1, 4 and 5 have a picture; several processes call the tower in each forward."""

    def plan(self, step: int, rank: int, world: int) -> Any:
        return super().plan(step, rank, world), world > 1

    def build(self, plan: Any) -> list[Micro]:
        (step, slots), witness = plan
        return [self._seen(micro, step, witness) for micro in super().build((step, slots))]

    def _seen(self, micro: Micro, step: int, witness: bool) -> Micro:
        assert isinstance(micro.batch, ToyBatch)
        sight = torch.tensor([float(step % 4 < 2 and int(name.split("/")[1]) < 4) for name in micro.samples])
        return replace(micro, batch=SightedBatch(**vars(micro.batch), sight=sight, used=sight.any() | witness))


class Sighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.tower = network(dropout=0.0), nn.Linear(4, 1)

    def forward(self, batch: SightedBatch) -> Tensor:
        out: Tensor = self.trunk(batch.x)  # (B, 1)
        return out + self.tower(batch.x) * batch.sight[:, None] if batch.used else out


def sighted_loss(model: nn.Module, batch: SightedBatch) -> Loss:
    return Loss((((model(batch) - batch.y) ** 2).squeeze(1) * batch.weight).sum(), {})


def sighted(out: Path, strategy: str, micro: int = 4) -> None:
    parts = toy_parts(Sighted(), SightedBatches(3, micro), loss=sighted_loss, evaluate=None)
    toy_run(out, parts, toy_recipe(parallel={"strategy": strategy}))


def test_a_step_without_pictures_is_the_same_in_any_world(tmp_path: Path) -> None:
    """The tower's momentum and decay go on in steps that do not use it."""
    sighted(tmp_path / "single", "single", 8)
    for strategy, micro in [("single", 2), ("ddp", 4), ("fsdp2", 4)]:
        sighted(tmp_path / f"{strategy}-{micro}", strategy, micro)
        assert difference(tmp_path / f"{strategy}-{micro}", tmp_path / "single") < TOLERANCE
    for strategy, micro in [("ddp", 4), ("ddp", 1), ("fsdp2", 2)]:
        out = tmp_path / f"two-{strategy}-{micro}"
        assert together(2, sighted, out, strategy, micro) == [0, 0]
        assert difference(out, tmp_path / "single") < TOLERANCE


# Stopping and resuming


@dataclass(frozen=True)
class Disturbed(ToyBatches):
    """Something happens to the last process after step `at`, when it makes the next batch."""

    at: int = 0
    act: Callable[[], None] = die

    def plan(self, step: int, rank: int, world: int) -> Any:
        if (step, rank) == (self.at, world - 1):
            self.act()
        return super().plan(step, rank, world)


def ask_to_stop() -> None:
    signal.raise_signal(signal.SIGTERM)


def stopped_at(out: Path, strategy: str, step: int) -> None:
    """The last process alone is asked to stop."""
    run(out, strategy, parts={"batches": Disturbed(3, at=step, act=ask_to_stop)})


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_one_then_two_then_one_process(strategy: str, whole: Path, tmp_path: Path) -> None:
    """A checkpoint does not know how many processes wrote it, nor how they shared the weights."""
    out = tmp_path / "run"
    with pytest.raises(Preempted):
        stopped_at(out, "single", 3)
    assert together(2, stopped_at, out, strategy, 5) == [75, 75]
    found, skipped = checkpoint.newest(out / "checkpoints")
    assert found is not None
    assert (found.step, skipped) == (5, [])
    run(out)
    assert difference(out, whole) < TOLERANCE
    steps = [record["step"] for record in RunFolder(out).read_metrics() if record.get("event") == "resume"]
    assert steps == [3, 5]


def killed_at(out: Path, strategy: str, step: int) -> None:
    run(out, strategy, parts={"batches": Disturbed(3, at=step, act=die)})


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_killed_and_resumed_bit_identically(strategy: str, tmp_path: Path) -> None:
    """One process is killed, the other fails in its next exchange; both start again."""
    assert together(2, run, tmp_path / "whole", strategy) == [0, 0]
    codes = together(2, killed_at, tmp_path / "run", strategy, 5)
    assert 0 not in codes
    assert together(2, run, tmp_path / "run", strategy) == [0, 0]
    assert difference(tmp_path / "run", tmp_path / "whole") == 0


def asked_in_evaluation(out: Path, strategy: str) -> None:
    """The last process alone is asked to stop, while all of them evaluate; none leaves before the others."""

    def evaluate(model: nn.Module, world: Any, final: bool) -> dict[str, float]:
        if world.rank == world.size - 1:
            ask_to_stop()
        return {"validation_loss": float(sum(world.gather(world.rank)))}

    run(out, strategy, parts={"evaluate": evaluate}, evaluate={"every": 3}, checkpoint={"every": 100})


def test_asked_to_stop_in_an_evaluation(tmp_path: Path) -> None:
    out = tmp_path / "run"
    for step in (3, 6, 8):
        assert together(2, asked_in_evaluation, out, "fsdp2") == [75, 75]
        assert checkpoint.of_step(out / "checkpoints", step).step == step
    assert together(2, run, out, "fsdp2") == [0, 0]
    records = RunFolder(out).read_metrics()
    assert [record["step"] for record in records if record.get("event") == "evaluation"] == [3, 6, 8]


def resumed(out: Path, base: str) -> None:
    """What each process reads and says; of what it writes it makes the digests itself."""
    read: list[str] = []
    digest = checkpoint.sha256

    def noted(path: Path) -> str:
        if not path.parent.name.endswith(".partial"):
            read.append(path.name)
        return digest(path)

    checkpoint.sha256 = noted
    rank, said = os.environ["RANK"], ""
    try:
        run(out, "ddp", parts={"base": base})
    except QVLError as error:
        said = str(error)
        raise
    finally:
        (out / f"rank-{rank}").write_text(json.dumps([read, said]), encoding="utf-8")


def test_the_first_process_checks_what_is_resumed_for_all(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Preempted):
        stopped_at(out, "single", 6)
    assert together(2, resumed, out, "another") == [2, 2]
    said = [json.loads((out / f"rank-{rank}").read_text(encoding="utf-8"))[1] for rank in (0, 1)]
    assert said[0] == said[1]
    assert "base was none, is another" in said[0]
    os.truncate(out / "checkpoints/step-000006/state.json", 3)
    assert together(2, resumed, out, "none") == [0, 0]
    read = [json.loads((out / f"rank-{rank}").read_text(encoding="utf-8"))[0] for rank in (0, 1)]
    assert "optimizer-00000.safetensors" in read[0]
    assert read[1] == []
    assert difference(out, whole) < TOLERANCE


# One for all


def broken(out: Path) -> None:
    blocks = {"data": {"train": "none", "max_bad": 1}}
    outcome = toy_run(out, toy_parts(network(), ToyBatches(3, bad_steps=(2,))), toy_recipe(**blocks))
    (out / f"bad-{os.environ['RANK']}").write_text(json.dumps(list(outcome.progress.bad)), encoding="utf-8")


def test_a_bad_sample_of_one_process_counts_on_all(tmp_path: Path) -> None:
    assert together(2, broken, tmp_path / "run") == [0, 0]
    assert [json.loads((tmp_path / f"run/bad-{rank}").read_text(encoding="utf-8")) for rank in (0, 1)] == [
        ["bad-2"]
    ] * 2
    assert len((tmp_path / "run/bad_samples.jsonl").read_text(encoding="utf-8").splitlines()) == 1


def poisoned(out: Path) -> None:
    """Slot 0, the only sample with a NaN, is rank 0's."""
    recipe = toy_recipe(train={"steps": STEPS, "max_nonfinite": 2})
    toy_run(out, toy_parts(network(), ToyBatches(3, nan_steps=(3, 4))), recipe)


def test_a_nan_of_one_process_stops_all(tmp_path: Path) -> None:
    assert together(2, poisoned, tmp_path / "run") == [1, 1]
    first = next(record for record in RunFolder(tmp_path / "run").read_metrics() if record.get("event") == "nonfinite")
    assert (first["step"], sorted(first["samples"])) == (4, [f"3/{slot}" for slot in range(8)])


def dealt(out: Path, strategy: str) -> None:
    """Files of some parameters each; every process notes which it writes."""
    checkpoint.SHARD_BYTES = 100
    own = out.parent / f"rank-{os.environ.get('RANK', 'alone')}"

    def note(path: Path) -> None:
        with own.open("a", encoding="utf-8") as file:
            file.write(f"{path.parent.name} {path.name}\n")

    checkpoint._written = note
    run(out, strategy, optim={"ema": 0.5})


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_every_process_writes_its_files_of_a_checkpoint(strategy: str, tmp_path: Path) -> None:
    assert together(1, dealt, tmp_path / "one/run", "single") == [0]
    assert together(3, dealt, tmp_path / "three/run", strategy) == [0] * 3
    names = [sorted((tmp_path / f"three/rank-{rank}").read_text("utf-8").splitlines()) for rank in range(3)]
    tensors = [{name for name in one if name.endswith("safetensors")} for one in names]
    assert min(map(len, tensors)) >= STEPS / 2
    assert sum(map(len, tensors)) == len(set().union(*tensors))
    one, three = (checkpoint.of_step(tmp_path / name / "run/checkpoints", STEPS) for name in ("one", "three"))
    assert one.files == three.files
    for ours, theirs in ((one.weights(), three.weights()), (one.optimizer(), three.optimizer())):
        assert list(ours) == list(theirs)
        assert all(torch.allclose(ours[name], theirs[name], atol=TOLERANCE) for name in ours)


def full_disk(out: Path, strategy: str) -> None:
    """Of the last process alone."""

    def refuse(path: Path) -> None:
        if path.parent.name.startswith(".step-000004") and os.environ["RANK"] == "1":
            raise OSError(28, "No space left on device")

    checkpoint._written = refuse
    try:
        run(out, strategy)
    except QVLError as error:
        (out / f"error-{os.environ['RANK']}").write_text(str(error), encoding="utf-8")
        raise


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_full_disk_ends_all_processes_with_the_same_sentence(strategy: str, tmp_path: Path) -> None:
    assert together(2, full_disk, tmp_path / "run", strategy) == [1, 1]
    said = {(tmp_path / f"run/error-{rank}").read_text(encoding="utf-8") for rank in (0, 1)}
    assert len(said) == 1
    assert "step-000004: the checkpoint could not be written" in said.pop()


# Sharded weights


def evaluated(out: Path, in_step: bool = False) -> None:
    """Process 1 calls the model thrice as often, except in step; after early stopping the best weights are what is
    measured."""

    def evaluate(model: nn.Module, world: Any, final: bool) -> dict[str, float]:
        x = torch.linspace(-1, 1, 32).reshape(8, 4)
        for _ in range(2 if in_step else 1 + 2 * world.rank):
            loss = float(((model(x) - x.sum(1, keepdim=True)) ** 2).mean())
        if world.size > 1:
            assert isinstance(model[0].weight, DTensor) is in_step  # type: ignore[index, union-attr]
        return {"validation_loss": loss}

    stop = {"every": 1, "early_stop": {"metric": "validation_loss", "mode": "max", "patience": 3}}
    strategy = "fsdp2" if "RANK" in os.environ else "single"
    outcome = run(out, strategy, parts={"evaluate": evaluate, "in_step": in_step}, evaluate=stop)
    (out / "figures").write_text(json.dumps([outcome.final_step, outcome.figures]), encoding="utf-8")


@pytest.mark.parametrize("in_step", [False, True])
def test_evaluation_of_sharded_weights(in_step: bool, tmp_path: Path) -> None:
    assert together(2, evaluated, tmp_path / "two", in_step) == [0, 0]
    evaluated(tmp_path / "one")
    two, one = (json.loads((tmp_path / name / "figures").read_text(encoding="utf-8")) for name in ("two", "one"))
    assert two[0] == one[0] < STEPS  # the best is not the last
    assert two[1] == pytest.approx(one[1], rel=1e-5)


def adapted(out: Path) -> None:
    """As with LoRA: bf16 weights that are frozen and fp32 weights that are trained, in one sharded module."""
    model = network(dropout=0.0).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in {"0.bias", "3.weight"}
    parts = toy_parts(model)
    groups = [
        group._replace(parameters={name: p for name, p in group.parameters.items() if p.requires_grad})
        for group in parts.groups
    ]
    strategy = "fsdp2" if "RANK" in os.environ else "single"
    recipe = toy_recipe(parallel={"strategy": strategy}, train={"steps": STEPS, "precision": "bf16"})
    toy_run(out, replace(parts, groups=groups), recipe)
    types = {name: str(p.dtype) for name, p in model.named_parameters()}
    assert types == {
        "0.weight": "torch.bfloat16",
        "0.bias": "torch.float32",
        "3.weight": "torch.float32",
        "3.bias": "torch.bfloat16",
    }


def test_frozen_bf16_and_trained_fp32_weights_are_sharded_together(tmp_path: Path) -> None:
    assert together(2, adapted, tmp_path / "two") == [0, 0]
    adapted(tmp_path / "one")
    assert difference(tmp_path / "two", tmp_path / "one") < 5e-3  # bf16 rounds to 1/256, the rate is 1/100
    kept = checkpoint.newest(tmp_path / "two/checkpoints")[0]
    assert kept is not None
    assert {str(tensor.dtype) for tensor in kept.weights().values()} == {"torch.float32"}


def slow() -> None:
    world_module.TIMEOUT = timedelta(seconds=2)
    with processes(Parallel()) as world:
        world.barrier()
        assert world.on_first(lambda: time.sleep(4) or "written") == "written"
        assert world.sum([1]) == [2]


def test_what_the_first_process_does_alone_may_take_longer_than_any_other_wait() -> None:
    assert together(2, slow) == [0, 0]


def unlike(out: Path, broken: int, busy: float = 0.5) -> None:
    """What each process says."""

    def work() -> int:
        if world.rank == broken:
            raise BadInput("row 7 is broken; mend it.")
        end = time.monotonic() + busy
        while time.monotonic() < end:
            time.sleep(0.01)
        return world.rank

    with processes(Parallel()) as world, (out / f"said-{world.rank}").open("w") as said, redirect_stderr(said):
        try:
            assert [world.on_each(work) for _ in range(2)] == [world.rank] * 2
        except BadInput as error:
            sys.exit(report(error, "qvl"))
        (out / f"done-{world.rank}").touch()


@pytest.mark.parametrize("broken", [0, 1])
def test_what_fails_on_one_process_ends_all_soon_with_its_sentence(broken: int, tmp_path: Path) -> None:
    """The others are busy for hours."""
    start = time.monotonic()
    assert together(3, unlike, tmp_path, broken, 10000) == [2, 2, 2]
    assert time.monotonic() - start < 60
    said = [(tmp_path / f"said-{rank}").read_text(encoding="utf-8") for rank in range(3)]
    assert said == ["row 7 is broken; mend it.\n", "", ""]


def test_each_process_waits_for_the_others(tmp_path: Path) -> None:
    assert together(2, unlike, tmp_path, 2) == [0, 0]
    assert {"done-0", "done-1"} < {file.name for file in tmp_path.iterdir()}


# How processes are started


@pytest.mark.parametrize("launcher", ["torch.distributed.run", "ours"])
def test_launchers(launcher: str, whole: Path, tmp_path: Path) -> None:
    tests = Path(__file__).parent
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path[:0] = [{str(tests)!r}, {str(tests.parent)!r}]\n"
        "from pathlib import Path\nfrom test_processes import run\n"
        "if __name__ == '__main__':\n    run(Path(sys.argv[1]), 'ddp')\n",
        encoding="utf-8",
    )
    call = [str(script), str(tmp_path / "run")]
    ours = f"import sys; from qvl_core.training.launch import launch; sys.exit(launch({call}, 2))"
    calls = {
        "torch.distributed.run": ["-m", launcher, "--standalone", "--nproc-per-node", "2", *call],
        "ours": ["-c", ours],
    }
    subprocess.run([sys.executable, *calls[launcher]], check=True, capture_output=True, timeout=300)
    assert difference(tmp_path / "run", whole) < TOLERANCE


def test_the_number_that_was_asked_for_is_asserted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment({}, 0, 2, free_port()).items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(BadInput, match=r"4 processes on each of 1 nodes were asked for but 2 were started"),
        processes(Parallel(nproc=4)),
    ):
        pass
    with pytest.raises(BadInput, match=r"strategy is single but 2 processes"), processes(Parallel(strategy="single")):
        pass
