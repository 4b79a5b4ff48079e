"""Texts of a data set on the terminal."""


def printable(text: str, kept: str = "") -> str:
    """The text with its control characters spelt out, so that data cannot write to the terminal; `kept` ones stay."""
    return "".join(char if char.isprintable() or char in kept else repr(char)[1:-1] for char in text)
