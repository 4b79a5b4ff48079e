"""How property tests run, in all packages: without Hypothesis' deadline of 200 ms, which a busy machine misses."""

from contextlib import suppress

with suppress(ImportError):  # some tests of a GPU run where it is not installed
    from hypothesis import settings

    settings.register_profile("qvl", settings(), deadline=None)
    settings.load_profile("qvl")
