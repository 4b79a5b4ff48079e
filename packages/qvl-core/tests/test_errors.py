"""What a library says becomes part of a sentence."""

import pytest

from qvl_core.errors import first_line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("no such key.\nTraceback of it"), "no such key"),
        (ValueError("\r\nwrong:\r\nthe rest"), "wrong"),
        (MemoryError(), "MemoryError"),
        (ValueError(" \n "), "ValueError"),
    ],
)
def test_the_first_line_of_an_error_is_never_empty(error: Exception, said: str) -> None:
    assert first_line(error) == said
