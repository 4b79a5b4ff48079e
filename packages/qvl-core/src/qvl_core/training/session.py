"""What surrounds the steps of one run: agreeing with the other processes, logging, evaluating, saving, finishing."""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from qvl_core.errors import BadInput, Preempted, QVLError, first_line
from qvl_core.recipe.blocks import Recipe
from qvl_core.recipe.load import dump
from qvl_core.run import RunFolder
from qvl_core.training import checkpoint
from qvl_core.training.divergence import diverged, diverging
from qvl_core.training.engine import Engine, Figures
from qvl_core.training.log import RunLog
from qvl_core.training.parts import Micro, Parts
from qvl_core.training.progress import Progress
from qvl_core.training.samples import Bad
from qvl_core.training.stopping import Interrupted, Request
from qvl_core.training.world import World

log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """How a run ended."""

    steps: int  # optimizer steps done
    final_step: int  # step of the weights in final/: the best under early stopping, else the last
    figures: dict[str, float]  # of the final evaluation
    progress: Progress


@dataclass(frozen=True)
class _Done:
    """A finished step whose figures still lie on the device."""

    step: int
    count: int
    tokens: int
    samples: tuple[str, ...]
    figures: Figures


class Session:
    """One run on this process. Every method is called by all processes at the same step."""

    def __init__(
        self,
        parts: Parts,
        recipe: Recipe,
        run: RunFolder,
        world: World,
        request: Request,
        resume: Path | None,
        allow_change: bool,
    ) -> None:
        self.parts, self.recipe, self.run, self.world = parts, recipe, run, world
        self._request = request
        self._callbacks = parts.callbacks if world.rank == 0 else ()
        self.engine = Engine(parts, recipe, world)
        self.progress = Progress()
        self._pending: list[_Done] = []
        self._tokens = 0  # of the step that was agreed on
        self._saved_step: int | None = None
        remarks = self._restore(resume, allow_change)
        self._log = RunLog(
            run,
            parts.steps,
            to=recipe.log.to,
            flops_per_token=parts.flops_per_token,
            flops_per_count=parts.flops_per_count,
            start_step=self.step,
            rank=world.rank,
            devices=world.size,
        )
        for kind, fields in remarks:
            self._log.event(self.step, kind, **fields)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._log.close()

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.progress.step

    def agree(self, share: Sequence[Micro]) -> tuple[list[Micro], int, bool]:
        """Micro-batches to train on here, labels in the global batch, and whether any process was asked to stop."""
        bad = [entry for micro in share for entry in micro.bad]
        count, self._tokens, bads, stop = self.world.sum(
            [
                sum(micro.count for micro in share),
                sum(micro.tokens for micro in share),
                len(bad),
                int(self._request.asked),
            ]
        )
        if bads and not stop:
            self._leave_out([entry for entries in self.world.gather(bad) for entry in entries])
        return [micro for micro in share if micro.batch is not None], count, bool(stop)

    def train(self, step: int, micros: list[Micro], count: int) -> None:
        """Make one optimizer step; a step whose samples were all left out only counts."""
        if count:
            samples = tuple(sample for micro in micros for sample in micro.samples)
            try:
                figures = self.engine.step(step, micros, count)
            except torch.OutOfMemoryError as error:
                advice = (self.parts.advice or less_memory)()
                raise QVLError(
                    f"step {step + 1}: the device's memory is full; {advice}, and run the same command again."
                ) from error
            self._pending.append(_Done(step + 1, count, self._tokens, samples, figures))
        self.progress.step = step + 1
        self.progress.tokens += self._tokens
        for callback in self._callbacks:
            if callback.on_step:
                callback.on_step(self.step)

    def log(self) -> None:
        """Read the figures of the steps since the last call from the device, and write them down as one record."""
        if not self._pending:
            return
        done, self._pending = self._pending, []
        rows = torch.stack([entry.figures.values for entry in done]).tolist()  # the one wait for the device
        applied = []
        for entry, (norm, was_applied, was_poisoned, *sums) in zip(done, rows, strict=True):
            if was_poisoned:
                samples = [name for names in self.world.gather(entry.samples) for name in names]
                self._log.event(entry.step, "nonfinite", samples=samples)
            self.progress.note_step(entry.step, bool(was_applied), bool(was_poisoned), self.recipe.train.max_nonfinite)
            if was_applied:
                self._check_course(entry.step, sums[0] / entry.count)
                applied.append((entry.count, norm, sums))
        figures: dict[str, float] = {"lr": self.engine.lr(done[-1].step - 1), "nonfinite": float(self.progress.skipped)}
        if applied:
            counts, norms, sums = zip(*applied, strict=True)
            means = (sum(column) / sum(counts) for column in zip(*sums, strict=True))
            figures |= dict(zip(done[0].figures.names, means, strict=True)) | {"grad_norm": norms[-1]}
        tokens, count = (sum(amounts) for amounts in zip(*((one.tokens, one.count) for one in done), strict=True))
        self._log.step(done[-1].step, figures, tokens, count)
        for callback in self._callbacks:
            if callback.on_log:
                callback.on_log(done[-1].step, dict(figures))

    def _check_course(self, step: int, loss: float) -> None:
        """Take a step's loss into the running mean. Raises QVLError if it is far above it (`train.divergence`)."""
        factor, running = self.recipe.train.divergence, self.progress.running
        if factor is not None and diverged(running, loss, factor):
            found, _ = checkpoint.newest(self.run.checkpoints) if self.run.checkpoints.is_dir() else (None, [])
            raise diverging(step, loss, running, factor, None if found is None else str(found.path))
        self.progress.running = running.then(loss)

    def evaluate(self, final: bool = False) -> dict[str, float]:
        """Measure, show pictures, note whether it is the best so far. A request to stop goes first."""
        self.log()
        self.progress.owes_evaluation = not final
        self.stop_if_asked()
        try:
            with self._log.paused():
                figures = self._measure(final)
        except Interrupted:
            self.stop()
        self.progress.owes_evaluation = False
        if self.recipe.evaluate.early_stop and not final:
            self.progress.improves(figures, self.recipe.evaluate.early_stop)
        self._log.event(self.step, "evaluation", **figures)
        for callback in self._callbacks:
            if callback.on_evaluate:
                callback.on_evaluate(self.step, dict(figures))
        return figures

    def preview(self) -> None:
        """Show pictures between evaluations. A request to stop goes first."""
        self.log()
        self.stop_if_asked()
        try:
            with self._log.paused():
                self._show()
        except Interrupted:
            self.stop()

    def owes_evaluation(self) -> bool:
        """Whether the run was stopped before the evaluation at this step was done."""
        return self.progress.owes_evaluation

    def undecided(self) -> bool:
        """Whether an evaluation at this step tells something that the final one will not."""
        return self.step < self.parts.steps or self.recipe.evaluate.early_stop is not None

    def is_best(self) -> bool:
        """Whether the evaluation at this very step was the best so far."""
        return self.progress.best_step == self.step

    def stopped_early(self) -> bool:
        stop = self.recipe.evaluate.early_stop
        return stop is not None and self.progress.stale >= stop.patience

    def save(self) -> None:
        """Write a checkpoint of the present step, once."""
        self.log()  # a lasting non-finite loss must stop the run before it is saved
        if self._saved_step == self.step:
            return
        state = {"progress": self.progress.to_json(), "engine": self.engine.state()}
        with self._log.paused():
            path = checkpoint.save(
                self.run.checkpoints,
                self.step,
                tensors=self.engine.tensors(),
                state=state,
                identity=self.parts.identity,
                base=self.parts.base,
                world=self.world,
            )
        self.world.on_first(lambda: self._note_checkpoint(path))
        self._saved_step = self.step

    def stop(self) -> NoReturn:
        """Save and raise Preempted."""
        self.save()
        raise Preempted(f"stopped when asked to, after step {self.step}; the same command continues.")

    def stop_if_asked(self) -> None:
        if self.world.sum([int(self._request.asked)])[0]:
            self.stop()

    def finish(self) -> Outcome:
        """Save, take the best weights under early stopping, write final/, and measure it."""
        self.save()
        self.stop_if_asked()
        final_step = self.step if self.progress.best_step is None else self.progress.best_step
        kept = self.world.on_first(lambda: checkpoint.of_step(self.run.checkpoints, final_step))
        if self.world.rank > 0:
            checkpoint.confirm(kept)
        weights = (kept.average() if self.engine.average else {}) or kept.weights()
        if final_step != self.step or self.engine.average:
            self.engine.settle(weights)
        self.world.on_first(lambda: self._export(weights))
        figures = self.evaluate(final=True)
        self.stop_if_asked()
        return Outcome(self.step, final_step, figures, self.progress)

    def _measure(self, final: bool) -> dict[str, float]:
        evaluate = self.parts.evaluate
        figures: dict[str, float] = {}
        if evaluate:
            figures = self._call(lambda model: evaluate(model, self.world, final))
        if final or self.parts.preview_every is None:
            self._show()
        return figures

    def _show(self) -> None:
        preview = self.parts.preview
        if preview is None:
            return

        def shown(model: nn.Module) -> None:
            """Pictures are no reason to lose a run."""
            try:
                preview(model, self.run.samples, self.step)
                return
            except torch.OutOfMemoryError:
                reason = "the device's memory is full; sampling.preview: 0 draws none"
            except QVLError as error:
                if self.parts.in_step and self.world.size > 1:  # the others draw on, and wait for this process
                    raise
                reason = first_line(error)
            if self.world.rank == 0:
                log.warning("step %d: no pictures: %s.", self.step, reason)

        self._call(shown if self.parts.in_step else lambda model: self.world.on_first(lambda: shown(model)))

    def _call(self, measure: Callable[[nn.Module], Any]) -> Any:
        """Let the engine call it. A request to stop interrupts it, but not the exchange of weights around it."""

        def interruptible(model: nn.Module) -> Any:
            with self._request.interruptible(self.world.size == 1):
                return measure(model)

        return self.engine.call(interruptible, self.parts.in_step)

    def _restore(self, resume: Path | None, allow_change: bool) -> list[tuple[str, dict[str, str]]]:
        """Continue from `resume`, else from the newest whole checkpoint of the run, else start at step 0."""
        found, skipped = self.world.on_first(lambda: self._find(resume, allow_change))
        remarks = [("checkpoint_skipped", {"reason": reason}) for reason in skipped]
        if found is not None:
            if self.world.rank > 0:
                checkpoint.confirm(found)
            remarks.append(("resume", {"checkpoint": str(found.path)}))
            self.progress = Progress.from_json(found.state["progress"])
            self.engine.load(found.weights(), found.optimizer(), found.average())
            self.engine.load_scalars(found.state["engine"])
            self._saved_step = self.step if found.path.parent.resolve() == self.run.checkpoints.resolve() else None
        if (before := self.progress.watch(self.recipe, self.parts.judged_by)) is not None:
            remarks.append(("early_stop_changed", {"was": before, "is": self.progress.watched or "off"}))
        self.world.on_first(lambda: self._take_up(found))
        return remarks

    def _find(self, resume: Path | None, allow_change: bool) -> tuple[checkpoint.Checkpoint | None, list[str]]:
        """What to continue from, every byte of it checked, and why newer checkpoints were skipped."""
        found, skipped = checkpoint.start(self.run.checkpoints, resume)
        if found is not None and not allow_change:
            wanted = {**self.parts.identity, "base": self.parts.base}
            checkpoint.same_run({**found.identity, "base": found.base}, wanted, found.path)
        return found, skipped

    def _take_up(self, found: checkpoint.Checkpoint | None) -> None:
        """Take back what a killed process wrote after the checkpoint, and describe the run as it is now."""
        checkpoint.tidy(self.run.checkpoints)
        self.run.truncate_metrics(self.step)
        self.run.write_bad_samples(map(self.progress.left_out, [*self.progress.bad, *self.progress.dropped]))
        self.run.write_recipe(dump(self.recipe))
        ema = self.recipe.optim.ema
        averaged = {"final": f"the average of the trained weights, decay {ema} per step"} if ema else {}
        self.run.write_environment({**self.parts.about, **averaged})
        if found is not None and self.progress.best_step is not None:
            checkpoint.adopt(found, self.progress.best_step, self.run.checkpoints)

    def _note_checkpoint(self, path: Path) -> None:
        """Remove old checkpoints, and say that there is a new one."""
        checkpoint.prune(self.run.checkpoints, self.step, self.recipe.checkpoint.keep, self.progress.best_step)
        self._log.event(self.step, "checkpoint", path=str(path))
        for callback in self._callbacks:
            if callback.on_checkpoint:
                callback.on_checkpoint(self.step, path)

    def _export(self, weights: Mapping[str, Tensor]) -> None:
        """Write final/ aside and rename it, so that it is whole or absent."""
        if self.parts.export is None:
            return
        aside = self.run.path / ".final.partial"
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir()
            self.parts.export(aside, weights)
            shutil.rmtree(self.run.final, ignore_errors=True)
            aside.rename(self.run.final)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise QVLError(
                f"{self.run.final}: the trained weights could not be written ({error}); the checkpoint has them: free "
                "some disk space and run the same command again."
            ) from error

    def _leave_out(self, found: list[Bad]) -> None:
        """Count samples that are left out for the first time, and list them; one too many ends the run, saved."""
        new: list[str] = []
        try:
            for bad in found:  # while making the next step: a run that is killed in it and resumed finds them again
                if not self.progress.knows(bad):
                    fields = {"sample": bad.id, "reason": bad.reason, "message": bad.message}
                    self._log.event(self.step + 1, "bad_sample", **fields)
                    self.progress.leave_out(bad, self.recipe.data.max_bad)
                    new.append(bad.id)
        except BadInput:
            self.save()
            raise
        finally:
            if new:
                self.world.on_first(lambda: self.run.append_bad_samples(map(self.progress.left_out, new)))


def less_memory() -> str:
    """What makes a step need less, the most effective first."""
    return (
        "set train.recompute: true, lower batch.micro or batch.max_length, then set optim.name: adamw_8bit, or share "
        "the weights among devices with parallel.strategy: fsdp2"
    )
