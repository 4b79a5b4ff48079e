"""The card of a data set folder: a README.md that says what it holds, under which licence, and how to read it.

Its head is the YAML that the Hugging Face hub reads, so that the folder can be uploaded as it is.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .shards import Figures

NAME = "README.md"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def card(title: str, splits: Mapping[str, Mapping[str, Figures]], made: str) -> str:
    """The text of a card.

    splits  figures by split and file name, in order
    made    one sentence on where the data comes from
    """
    by_split = {split: Figures.total(files.values()) for split, files in splits.items()}
    total = Figures.total(by_split.values())
    rows = [(split, len(splits[split]), figures) for split, figures in by_split.items()]
    lines = [
        "---",
        *_head(splits, total),
        "---",
        "",
        f"# {title}",
        "",
        made,
        "",
        "| split | files | samples | pictures | videos | answers | bytes |",
        "|---|---|---|---|---|---|---|",
        *(f"| {split} | {files} | {_counts(figures)} |" for split, files, figures in rows),
        "",
        f"Tasks: {_shares(total.tasks)}. Licences: {_shares(total.licenses)}.",
        "",
        f"Left out: {len(total.left_out)} samples{' (left_out.jsonl)' if total.left_out else ''}.",
        "",
        f"Fingerprint: `sha256:{fingerprint(splits)}`",
        "",
        "```python",
        "from qvl_data.dataset import Dataset",
        "",
        f'data = Dataset(".", split="{next(iter(splits))}")',
        "```",
    ]
    return "\n".join(lines) + "\n"


def fingerprint(splits: Mapping[str, Mapping[str, Figures]]) -> str:
    """SHA-256 (hex) over the names and contents of all data files."""
    digest = hashlib.sha256()
    for split, files in splits.items():
        for name, figures in files.items():
            digest.update(f"{split}\0{name}\0{figures.sha256}\n".encode())
    return digest.hexdigest()


def _head(splits: Mapping[str, Mapping[str, Figures]], total: Figures) -> list[str]:
    known = [license for license in total.licenses if license != "unknown"]
    license = known[0].lower() if len(total.licenses) == len(known) == 1 else "other"
    size = next((name for limit, name in _SIZES if total.samples < limit), "n>1M")
    lines = [f"license: {json.dumps(license)}", "size_categories:", f"- {size}", "tags:", "- qvl", "configs:"]
    lines += ["- config_name: default", "  data_files:"]
    for split, files in splits.items():
        names = list(files)
        pattern = names[0] if len(names) == 1 else f"{split}-*{Path(names[0]).suffix}"
        lines += [f"  - split: {json.dumps(split)}", f"    path: {json.dumps(pattern)}"]
    return lines


def _counts(figures: Figures) -> str:
    counts = (figures.samples, figures.images, figures.videos, figures.answers, figures.bytes)
    return " | ".join(f"{count:,}" for count in counts)


def _shares(counts: Mapping[str, int]) -> str:
    ordered: list[tuple[str, Any]] = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{_plain(name)} {count:,}" for name, count in ordered) or "none"


def _plain(text: str) -> str:
    """Text of the data without what Markdown or HTML would act on."""
    return "".join(char if char.isalnum() or char in " .-_+/" else " " for char in text)[:80].strip() or "?"
