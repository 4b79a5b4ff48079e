"""`qvl-data`: every verb in a file of its own; what a verb needs is imported when it runs."""

from . import (  # noqa: F401  (each adds its verbs)
    audit,
    convert,
    dedup,
    example,
    fetch,
    mix,
    pack,
    registry,
    stats,
    validate,
    view,
)
from .app import app

main = app.main
