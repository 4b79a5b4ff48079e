"""What the fields beside a sample's messages say of its answer.

They stand there in any format that keeps unknown fields, in qvl.sample/1 in `extra.fields`.
"""

import json
from typing import Any

from .errors import BadSample
from .sample import Sample

REFERENCES, CHOICES = "references", "choices"


def references_of(sample: Sample) -> tuple[str, ...]:
    """Answers that are as good as the conversation's last: the field `references` of the data, a list of texts.

    Raises BadSample if it is something else.
    """
    return _texts(sample, REFERENCES, "write every accepted answer as one text")


def choices_of(sample: Sample) -> tuple[str, ...]:
    """What the conversation's last answer was to be chosen from: the field `choices` of the data, a list of texts.

    Raises BadSample if it is something else, or does not have the answer.
    """
    choices = _texts(sample, CHOICES, "write every choice as one text")
    answers = [message.text.strip() for message in sample.messages if message.role == "assistant"]
    if choices and (not answers or answers[-1] not in choices):
        raise BadSample("schema", f"`{CHOICES}` does not have the last answer; write it there as the answer has it")
    return choices


def extra_fields(sample: Sample) -> dict[str, Any]:
    """The fields of the data that no format knows."""
    fields = json.loads(sample.extra).get("fields", {}) if sample.extra else {}
    return fields if isinstance(fields, dict) else {}


def _texts(sample: Sample, field: str, mend: str) -> tuple[str, ...]:
    given = extra_fields(sample).get(field, [])
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise BadSample("schema", f"`{field}` is no list of texts; {mend}")
    return tuple(given)
