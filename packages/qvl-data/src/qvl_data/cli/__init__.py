"""`qvl-data`: every verb in a file of its own; what a verb needs is imported when it runs."""

from . import audit, convert, dedup, example, fetch, stats, validate, view  # noqa: F401  (each adds its verbs)
from .app import app

main = app.main
