"""Fetching: lists of URLs become shards of samples with their pictures inside.

A sample whose media all came is written; one that failed is listed in failed.jsonl with its reason, and tried again by
`retry`. What was fetched once is not asked for again.
"""

from .http import Failed, Rules
from .work import fetch

__all__ = ["Failed", "Rules", "fetch"]
