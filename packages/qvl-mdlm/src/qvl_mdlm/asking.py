"""`qvl-mdlm sample` and `infill`: one question, one canvas, on the terminal if it is watched."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from qvl_core.printable import printable
from qvl_data.asked import asked, media_file
from qvl_data.chat import prompt
from qvl_data.sample import Media
from qvl_mdlm.canvas import on_terminal, pieces
from qvl_mdlm.infill import Filled, begin, filled
from qvl_mdlm.opening import open_masked
from qvl_mdlm.sample import Step, Writer, Written
from qvl_mdlm.sampling import Sampling


def sample(
    name: str,
    question: str,
    images: Sequence[Path] = (),
    videos: Sequence[Path] = (),
    *,
    base: str | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008 (immutable)
    watch: bool = False,
) -> str:
    """Print a model's answer; `watch` shows how it is written, and what that took. Raises BadInput."""
    media = _files(images, videos)
    model, processor = open_masked(name, base)
    writer = Writer(model, processor, [prompt(asked(question, media), processor)[0]], sampling)
    seconds = _write(writer, watch)
    (written,) = writer.results()
    return _told(written, seconds if watch else None)


def infill(
    name: str,
    question: str,
    answer: str,
    images: Sequence[Path] = (),
    videos: Sequence[Path] = (),
    *,
    base: str | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008 (immutable)
    watch: bool = False,
) -> str:
    """Print an answer whose gaps a model has filled; otherwise as `sample`."""
    media = _files(images, videos)
    model, processor = open_masked(name, base)
    writer, form = begin(model, processor, question, answer, media, sampling)
    seconds = _write(writer, watch)
    return _told(filled(writer, form), seconds if watch else None)


def _told(written: Written | Filled, seconds: float | None) -> str:
    """Print an answer, and what it took if that is to be told."""
    print(printable(written.text, "\n\t"))
    if seconds is not None:
        print(took(written.tokens, written.forwards, seconds))
    return written.text


def took(tokens: int, forwards: int, seconds: float) -> str:
    """One line of what writing took."""
    each = f"{forwards / tokens:.2f} a token" if tokens else "nothing was written"
    return f"{tokens} tokens, {forwards} forward passes ({each}), {tokens / max(seconds, 1e-9):.1f} tokens/s"


def _files(images: Sequence[Path], videos: Sequence[Path]) -> list[Media]:
    """Before the model is loaded: what is wrong with them is known at once."""
    return [*(media_file(path, "image") for path in images), *(media_file(path, "video") for path in videos)]


def _write(writer: Writer, watch: bool) -> float:
    """Write the canvas of a batch of one; gives the seconds that took."""
    began = time.perf_counter()
    with Live(console=Console(), auto_refresh=False, transient=True) if watch else nullcontext() as live:
        for step in writer.steps():
            if live:
                live.update(shown(step, writer), refresh=True)
    return time.perf_counter() - began


def shown(step: Step, writer: Writer) -> Text:
    """The first canvas after a step."""
    mask = writer.model.config.mask_token_id
    return on_terminal(pieces(step.canvases[0], step.written[0], writer.processor.tokenizer, mask))
