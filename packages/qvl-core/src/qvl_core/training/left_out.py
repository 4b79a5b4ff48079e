"""What could not be used in a pass over a data set that writes a store: noted in each shard, bounded as in training."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from qvl_core.errors import BadInput
from qvl_core.training.store import Store

NOTE = "left_out"


def noted(found: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The notes of a shard (`Store.write`): samples that were left out, by place (`samples.Bad` as a mapping)."""
    return {NOTE: json.dumps([*found.values()])}


def left_out(store: Store, names: Iterable[str]) -> dict[str, Any]:
    """What could not be used of some shards' samples, by place."""
    return {entry["id"]: entry for name in names for entry in json.loads(store.notes(name)[NOTE])}


def check_bad(bad: Mapping[str, Mapping[str, Any]], allowed: int) -> None:
    """Raise BadInput for more samples that cannot be used than `data.max_bad`."""
    if len(bad) > allowed:
        message = [*bad.values()][allowed]["message"].rstrip(".")
        raise BadInput(
            f"{message}; data.max_bad allows {allowed} bad samples and this is one more: mend it, or raise "
            "data.max_bad, and run the same command again."
        )
