"""`--help` of every verb is quick and loads nothing heavy."""

import pytest

from qvl_core.cli.testing import help_of_every_verb


@pytest.mark.parametrize(
    ("module", "verbs"),
    [
        ("qvl_sft.cli", {"train", "check", "plan", "demo", "tiny", "recipes list", "report", "doctor", "slurm"}
         | {"chat", "evaluate", "inspect", "merge", "export"}),
        ("qvl_data.cli", {"audit", "convert", "dedup", "example digits", "fetch", "mix", "pack", "registry list"}
         | {"stats", "validate", "view"}),
    ],
)  # fmt: skip
def test_help_of_every_verb(module: str, verbs: set[str]) -> None:
    seen = set()
    for help in help_of_every_verb(module):
        assert (help.code, help.loaded) == (0, []), help.verb
        assert help.seconds <= 0.5, (help.verb, help.seconds)
        seen.add(help.verb)
    assert verbs <= seen
