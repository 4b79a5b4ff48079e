"""Texts of a data set, or of whoever named a file, on the terminal."""


def printable(text: str, kept: str = "") -> str:
    """The text with what cannot be seen spelt out (control characters, marks that turn the direction of writing).

    So data cannot write to the terminal, or show itself as something else. Characters in `kept` stay.
    """
    return "".join(char if char.isprintable() or char in kept else repr(char)[1:-1] for char in text)
