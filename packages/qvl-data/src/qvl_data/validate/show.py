"""A validation on the terminal."""

from qvl_core.printable import printable

from ..errors import REASONS
from . import SHOWN, Validation

_ORDER = ("error", "warning", "note")


def show(found: Validation) -> None:
    """Print counts by reason, errors first, each with its first places; the sentences say how to mend it."""
    import typer

    bad = typer.style(f"{found.bad:,} bad", fg="red" if found.bad else "green", bold=True)
    look = "decoded" if found.pixels else "headers only"
    typer.echo(f"{found.source}: {found.samples:,} samples ({look}), {bad}, {found.warned:,} with warnings")
    ranked = sorted(found.reasons.items(), key=lambda item: (_ORDER.index(item[1].severity), -item[1].count, item[0]))
    for code, reason in ranked:
        colour = {"error": "red", "warning": "yellow", "note": "blue"}[reason.severity]
        typer.echo(f"\n{typer.style(reason.severity, fg=colour)} {code}: {REASONS.get(code, '')}, {reason.count:,} x")
        for sentence in reason.first:
            typer.echo(f"  {printable(sentence)}")
        if reason.count > SHOWN:
            typer.echo(f"  ... and {reason.count - len(reason.first):,} more; all are in findings.jsonl of --out DIR")
    if found.mended is not None and found.left_out is not None:
        kept = found.samples - found.left_out
        typer.echo(f"\nclean set: {kept:,} samples, {found.mended:,} of them mended; {found.left_out:,} left out")
