"""Batches of a mixture for a training loop of your own: shuffled, in worker processes, resumable anywhere.

    loader = Loader("2*digits%50 + receipts", seed=0, batch=8, workers=2, each=partial(encode, processor=processor))
    for batch in loader:
        ...                         # a list of what `each` made of this process's samples
        save(loader.state)          # {"seed", "position", ...}: goes on after this batch, with any number of workers

A step takes the next `batch` positions of the order, which is a pure function of (seed, position); with `world`
processes they are dealt like cards. So all processes together read the same samples in each step, however many they
are, and `position` is all there is to know. Workers are spawned: a script needs `if __name__ == "__main__":`.
"""

import multiprocessing
import pickle
import signal
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from qvl_core.errors import BadInput, QVLError

from .errors import BadSample
from .sample import Sample
from .sources import Mixture

if TYPE_CHECKING:
    from qvl_core.recipe.blocks import Source

AHEAD = 2
"""Batches that each worker prepares beside the one it is asked for."""


class Bad(NamedTuple):
    """A sample that was left out: where it stands, the reason code, and the sentence."""

    place: str
    reason: str
    message: str


class Decoded(NamedTuple):
    """A sample and its opened pictures (RGB, upright), one entry for each of `sample.media`; None for a video."""

    sample: Sample
    pictures: list[Image.Image | None]


def decoded(sample: Sample) -> Decoded:
    """For `Loader(each=decoded)`. Raises BadSample."""
    return Decoded(sample, [sample.opener.open(m) if m.kind == "image" else None for m in sample.media])


class Loader:
    """Iterates batches, without end or for `epochs`. Iterating again goes on where the last batch ended.

    source    a mixture, or the sources of one (see `Mixture`)
    batch     samples of a step over all processes; a multiple of `world`
    rank      this process among `world`
    workers   processes that read ahead; 0 reads in this one
    each      what to make of a sample, in the worker (`decoded`, `partial(encode, processor=...)`); picklable
    max_bad   bad samples that are left out (batches are then smaller) before BadInput; each process counts its own
    state     what `state` was in an earlier run, here or in a run with other workers or ranks

    `bad` lists what was left out. Raises BadInput for what cannot be used or resumed, QVLError if a worker dies.
    """

    def __init__(
        self,
        source: "Mixture | str | Sequence[Source]",
        *,
        seed: int = 0,
        batch: int = 1,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        each: Callable[[Sample], Any] | None = None,
        epochs: float | None = None,
        max_bad: int = 0,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        if batch < 1 or batch % world:
            raise BadInput(f"a batch of {batch} samples cannot be dealt evenly to {world} processes.")
        if not 0 <= rank < world:
            raise BadInput(f"rank {rank} of {world} processes; ranks are 0 to {world - 1}.")
        self.mixture = source if isinstance(source, Mixture) else Mixture(source)
        self.seed, self.batch, self.rank, self.world, self.workers = seed, batch, rank, world, workers
        self.max_bad = max_bad
        self.position = 0
        self.end = None if epochs is None else max(1, round(epochs * len(self.mixture)))
        self._work = _Work(self.mixture, seed, each)
        self._bad: dict[str, Bad] = {}
        if state is not None:
            self._resume(state)

    def __iter__(self) -> Iterator[list[Any]]:
        with _results(self._work, self._steps(self.position), self.workers) as results:
            for end, outcomes in results:
                self._quarantine(outcome for outcome in outcomes if isinstance(outcome, Bad))
                self.position = end
                yield [outcome for outcome in outcomes if not isinstance(outcome, Bad)]

    @property
    def state(self) -> dict[str, Any]:
        """JSON that goes on after the batch that was given out last; its size does not depend on the position."""
        bad = [[bad.place, bad.reason] for bad in self._bad.values()]
        return {"seed": self.seed, "position": self.position, "mixture": self.mixture.choice(), "bad": bad}

    @property
    def bad(self) -> list[Bad]:
        """The bad samples that were left out so far, each once; those of an earlier run without their sentence."""
        return list(self._bad.values())

    @property
    def counts(self) -> dict[str, int]:
        """Bad samples by reason."""
        return dict(Counter(bad.reason for bad in self._bad.values()))

    def _resume(self, state: Mapping[str, Any]) -> None:
        try:
            seed, position, mixture = state["seed"], state["position"], state["mixture"]
            bad = [Bad(place, reason, "") for place, reason in state.get("bad", ())]
        except (KeyError, TypeError, ValueError):
            raise BadInput("the state of the loader is not one: it has no seed, position and mixture.") from None
        if type(position) is not int or not 0 <= position < 1 << 63:
            raise BadInput(f"the state of the loader is at position {position!r}, which is no count of samples.")
        if seed != self.seed:
            raise BadInput(f"the state is of seed {seed}, the loader of seed {self.seed}; resume with seed={seed}.")
        if mixture != self.mixture.choice():
            raise BadInput("the state is of other sources, weights or numbers of samples; resume with the same ones.")
        self.position, self._bad = position, {one.place: one for one in bad}

    def _steps(self, position: int) -> Iterator["Step"]:
        """Where each step ends, and the positions of this process in it."""
        while self.end is None or position < self.end:
            end = position + self.batch if self.end is None else min(position + self.batch, self.end)
            yield end, range(position + self.rank, end, self.world)
            position = end

    def _quarantine(self, found: Iterable[Bad]) -> None:
        for bad in found:
            self._bad[bad.place] = bad
        if len(self._bad) > self.max_bad:
            last = next(reversed(self._bad.values()))
            raise BadInput(
                f"{len(self._bad)} bad samples, max_bad allows {self.max_bad}; mend or remove them (qvl-data validate "
                f"lists all), or raise max_bad. The last one: {last.message or last.place}"
            )


@dataclass(frozen=True)
class _Work:
    """From positions to what the loader gives out; pickled to workers."""

    mixture: Mixture
    seed: int
    each: Callable[[Sample], Any] | None

    def __call__(self, positions: range) -> list[Any]:
        return [self._one(position) for position in positions]

    def _one(self, position: int) -> Any:
        item = self.mixture.locate(self.seed, position)
        try:
            sample = self.mixture.sample(item)
            return sample if self.each is None else self.each(sample)
        except BadSample as error:
            return Bad(self.mixture.place(item), error.reason, str(error))


Step = tuple[int, range]


@contextmanager
def _results(work: _Work, steps: Iterator[Step], workers: int) -> Iterator[Iterator[tuple[int, list[Any]]]]:
    """Each step's end and results, in order; step n is done by worker n mod `workers`."""
    if workers == 0:
        yield ((end, work(positions)) for end, positions in steps)
        return
    try:
        pickled = pickle.dumps(work)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise BadInput(
            f"`each` cannot be sent to workers ({error}); use a function of a module, or workers=0."
        ) from None
    team = [_Worker(pickled, number) for number in range(workers)]
    try:
        yield _in_turn(team, steps)
    finally:
        for worker in team:
            worker.stop()


def _in_turn(team: "list[_Worker]", steps: Iterator[Step]) -> Iterator[tuple[int, list[Any]]]:
    asked: deque[tuple[int, _Worker]] = deque()
    for number, (end, positions) in enumerate(steps):
        if len(asked) == AHEAD * len(team):
            first, worker = asked.popleft()
            yield first, worker.answer()
        worker = team[number % len(team)]
        worker.ask(positions)
        asked.append((end, worker))
    for end, worker in asked:
        yield end, worker.answer()


class _Worker:
    """A spawned process at the other end of a pipe. It ends when the pipe does, so that a killed run leaves none."""

    def __init__(self, work: bytes, number: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, work), name=f"loader-{number}", daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, positions: range) -> None:
        with self._alive():
            self._pipe.send(positions)

    def answer(self) -> list[Any]:
        with self._alive():
            result = self._pipe.recv()
        if isinstance(result, BaseException):
            raise result
        answer: list[Any] = result
        return answer

    def stop(self) -> None:
        self._pipe.close()
        self._process.terminate()
        self._process.join()

    @contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, ConnectionError):
            self._process.join(5)
            raise QVLError(
                f"a worker of the loader died (exit code {self._process.exitcode}: killed, out of memory, or what "
                "stands above); resume from the last state, with fewer workers if memory was short."
            ) from None


def _serve(pipe: Connection, pickled: bytes) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process decides
    with suppress(EOFError, ConnectionError):
        try:
            work = pickle.loads(pickled)
        except Exception as error:
            pipe.recv()
            pipe.send(BadInput(f"`each` cannot be opened in a worker ({type(error).__name__}: {error})."))
            return
        while True:
            positions = pipe.recv()
            try:
                result = pickle.dumps(work(positions))
            except Exception as error:
                result = pickle.dumps(_sendable(error))
            pipe.send_bytes(result)


def _sendable(error: Exception) -> Exception:
    """The error with its traceback, as far as it can be pickled."""
    if isinstance(error, QVLError):
        return error
    if isinstance(error, (pickle.PicklingError, AttributeError, TypeError)) and "pickle" in str(error):
        return BadInput(
            f"what `each` made of a sample cannot be sent from a worker ({error}); return arrays or numbers."
        )
    return RuntimeError("".join(traceback.format_exception(error)))
