"""`--help` of every verb is quick and loads nothing heavy."""

from qvl_core.cli.testing import help_of_every_verb


def test_help_of_every_verb() -> None:
    seen = set()
    for help in help_of_every_verb("qvl_edit.cli"):
        assert (help.code, help.loaded) == (0, []), help.verb
        assert help.seconds <= 0.5, (help.verb, help.seconds)
        seen.add(help.verb)
    assert {"check", "doctor", "edit", "evaluate", "export", "extract", "plan", "tiny", "train", "validate"} <= seen
