"""`qvl-vision list`: the registry as a table in plain text."""

from qvl_core.errors import BadInput
from qvl_vision.registry import EncoderInfo, list_encoders, list_mergers


def encoders(pattern: str) -> str:
    """Encoders whose names match. Raises BadInput if none does."""
    found = list_encoders(pattern)
    if not found:
        raise BadInput(f'no encoder matches "{pattern}"; `qvl-vision list` shows all.')
    head = ("name", "source", "size", "patch", "prefix", "licence", "about")
    return _table([head, *(_encoder(info) for info in found)])


def mergers(pattern: str) -> str:
    """Mergers whose names match. Raises BadInput if none does."""
    found = list_mergers(pattern)
    if not found:
        raise BadInput(f'no merger matches "{pattern}"; `qvl-vision list --mergers` shows all.')
    rows = [(info.name, str(info.merge), info.about) for info in found]
    return _table([("name", "merge", "about"), *rows])


def _encoder(info: EncoderInfo) -> tuple[str, ...]:
    own = "your own" if info.build is not None else "-"
    patch = str(info.patch) if info.patch else "-"
    prefix = str(info.prefix) if info.source else "-"
    return (info.name, info.source or own, str(info.size or "-"), patch, prefix, info.licence, info.about)


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines) + "\n"
