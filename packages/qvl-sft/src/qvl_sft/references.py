"""What an evaluation reads from samples: what their answers offer to metrics, and fields to group by."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

from qvl_core.errors import BadInput
from qvl_core.recipe.blocks import Evaluate
from qvl_data.answers import extra_fields
from qvl_data.errors import BadSample
from qvl_data.grounding import entries
from qvl_data.order import chosen
from qvl_data.sample import Sample
from qvl_data.sources import Item, Mixture
from qvl_sft.figures import group_of
from qvl_sft.metrics import METRICS, check_names

GROUP = "group"
SHOWN = 20  # groups that a sentence names
_LONGEST = 100  # letters of a field's value
_UNIQUE = {"locator", "url"}  # fields of meta that tell samples apart, not groups


def fields_of(sample: Sample) -> dict[str, Any]:
    """Single values of the sample's unknown fields and of its meta, whose names win."""
    values = extra_fields(sample) | sample.meta.model_dump(exclude_none=True, exclude=_UNIQUE)
    return {key: value for key, value in values.items() if _single(value)}


def check_lists(lists: Mapping[str, Mixture], metrics: Sequence[str], group_by: str | None) -> None:
    """`check_offers` of every list; no picture is opened. Raises BadInput."""
    for name, mixture in lists.items():
        offers = ((_offered(sample), fields_of(sample).keys()) for sample in _outlines(mixture, mixture.items()))
        check_offers(name, offers, metrics, group_by)


def check_stop(settings: Evaluate, lists: Mapping[str, Mixture]) -> None:
    """Raise BadInput if early stopping watches a group that no sample measured during training belongs to."""
    stop, key = settings.early_stop, settings.group_by
    if stop is None or key is None or "/" not in stop.metric:
        return
    mixture, group = lists["validation"], stop.metric.partition("/")[2]
    items = chosen(list(mixture.items()), settings.samples)
    known = {group_of(fields_of(sample), key) for sample in _outlines(mixture, items)}
    if group not in known:
        raise BadInput(
            f"evaluate.early_stop.metric {stop.metric}: no sample of validation that is measured has {key} {group}; "
            f"choose from {', '.join(sorted(known)[:SHOWN])}."
        )


def check_offers(
    name: str, offers: Iterable[tuple[Set[str], Set[str]]], metrics: Sequence[str], group_by: str | None
) -> None:
    """Raise BadInput for a metric that is unknown, or that no sample has a reference for, and for an unknown group.

    offers  what a sample's reference holds, and which fields the sample has; read until all that is needed was there
    """
    try:
        check_names(metrics)
    except ValueError as error:
        raise BadInput(f"evaluate.metrics: {error}.") from None
    needed = {METRICS[metric].needs: metric for metric in reversed(metrics)}
    missing: set[str] = {*needed, *([GROUP] if group_by else [])}
    keys: set[str] = set()
    read = 0
    for offered, fields in offers if missing else ():
        read, keys = read + 1, keys | fields
        missing -= offered | ({GROUP} if group_by in keys else set())
        if not missing:
            return
    if not read:  # nothing to measure: the measurement says so, with the reason
        return
    if "answer" in missing:
        raise BadInput(f"metric {needed['answer']}: no sample of {name} has an answer to compare with; add answers.")
    if "boxes" in missing:
        raise BadInput(
            f"metric {needed['boxes']}: no answer in {name} states a box, such as "
            '{"bbox_2d": [x1, y1, x2, y2]} in 0..1000; add boxes, or leave the metric out.'
        )
    if GROUP in missing:
        known = ", ".join(sorted(keys)) or "none"
        raise BadInput(f"group_by {group_by}: no sample of {name} has this field; fields with single values: {known}.")


def offered_by(text: str) -> set[str]:
    """What a reference answer holds that metrics need."""
    return {"answer", "boxes"} if any(kind == "box" for kind, *_ in entries(text)) else {"answer"}


def _outlines(mixture: Mixture, items: Iterable[Item]) -> Iterator[Sample]:
    for item in items:
        try:
            yield mixture.outline(item)
        except BadSample:
            continue


def _offered(sample: Sample) -> set[str]:
    """What the last answer of a sample holds that metrics need."""
    roles = [message.role for message in sample.messages]
    if "assistant" not in roles[1:]:
        return set()
    last = sample.messages[len(roles) - 1 - roles[::-1].index("assistant")]
    drawn = any(sample.regions[index].kind == "box" for part in last.parts for index in part.regions or ())
    return offered_by(last.text) | ({"boxes"} if drawn else set())


def _single(value: object) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= _LONGEST)
