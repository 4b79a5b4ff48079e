"""Which script a text is written in, by Unicode ranges: enough to see that half of the answers are Chinese."""

import re

_RANGES = {
    "kana": "\u3041-\u309f\u30a0-\u30ff\u31f0-\u31ff\uff66-\uff9d",
    "hangul": "\u1100-\u11ff\u3131-\u318e\ua960-\ua97c\uac00-\ud7fb",
    "han": "\u2e80-\u2fd5\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f",
    "latin": "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff",
    "cyrillic": "\u0400-\u052f\u1c80-\u1c8f\u2de0-\u2dff\ua640-\ua69f",
    "arabic": "\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdff\ufe70-\ufeff",
    "hebrew": "\u0590-\u05ff",
    "devanagari": "\u0900-\u097f\ua8e0-\ua8ff",
    "bengali": "\u0980-\u09ff",
    "tamil": "\u0b80-\u0bff",
    "thai": "\u0e00-\u0e7f",
    "greek": "\u0370-\u03ff\u1f00-\u1fff",
}
_SCRIPTS = {name: re.compile(f"[{characters}]") for name, characters in _RANGES.items()}
LOOKED_AT = 5_000
"""Characters from which the script is told."""
NAMES = {"kana": "kana (Japanese)", "hangul": "hangul (Korean)", "han": "han (Chinese)"}


def script(text: str) -> str:
    """The script that most letters of a text are written in; `none` without letters, `other` for a script not known.

    A Chinese, Japanese or Korean character counts twice, since it says about as much as two letters; Han together with
    kana is Japanese as soon as a tenth of them is kana.
    """
    text = text[:LOOKED_AT]
    if text.isascii():
        return "latin" if _SCRIPTS["latin"].search(text) else "none"
    found = {name: len(pattern.findall(text)) for name, pattern in _SCRIPTS.items()}
    if found["kana"] * 10 >= found["kana"] + found["han"]:
        found["kana"], found["han"] = found["kana"] + found["han"], 0
    weighted = {name: count * (2 if name in NAMES else 1) for name, count in found.items() if count}
    if not weighted:
        return "other" if any(character.isalpha() for character in text) else "none"
    most = max(weighted, key=lambda name: weighted[name])
    return NAMES.get(most, most)
