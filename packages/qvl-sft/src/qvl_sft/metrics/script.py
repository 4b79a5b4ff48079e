"""Words by script. Nothing is downloaded and no dictionary is needed: where a script writes no spaces (Chinese,
Japanese, Thai), and in Korean, whose spaced words carry their particles with them, a character is a word.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

Script = Literal["spaced", "han", "characters"]

_RANGES: dict[Script, str] = {
    "han": "\u2e80-\u2fdf\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af",
    # kana, Hangul, Thai and Lao, Burmese, Khmer
    "characters": "\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f\u1100-\u11ff\u3130-\u318f\uac00-\ud7af"
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff",
}
_OWN = {script: re.compile(f"[{letters}]") for script, letters in _RANGES.items()}
_COUNTED = 100_000  # letters from which the script of a corpus is told


def script_of(texts: Iterable[str]) -> Script:
    """How most letters of a corpus are written.

    spaced      words between spaces: Latin, Cyrillic, Greek, Arabic, Hebrew, Devanagari, ...
    han         Chinese
    characters  Japanese (kana among Han), Korean, Thai, Lao, Burmese, Khmer
    """
    counts: dict[Script, int] = {"spaced": 0, "han": 0, "characters": 0}
    for text in texts:
        for script, letters in _OWN.items():
            counts[script] += len(letters.findall(text))
        counts["spaced"] += sum(map(str.isalpha, text))  # of all scripts
        if counts["spaced"] > _COUNTED:
            break
    counts["spaced"] -= counts["han"] + counts["characters"]
    if counts["spaced"] >= counts["han"] + counts["characters"]:
        return "spaced"
    return "characters" if 10 * counts["characters"] > counts["han"] else "han"  # Japanese is never without kana


def words(text: str) -> list[str]:
    """Lower-case words of any script, without punctuation; each character of a script without spaces is one.

    For ASCII these are the words that rouge-score's own tokenizer finds.
    """
    return "".join(map(_spaced, unicodedata.normalize("NFKC", text).lower())).split()


@lru_cache(4096)
def _spaced(letter: str) -> str:
    """A letter, digit or mark as it is, or with space around it if it is a word; space for all else."""
    if any(letters.match(letter) for letters in _OWN.values()):
        return f" {letter} "
    return letter if unicodedata.category(letter)[0] in "LNM" else " "
