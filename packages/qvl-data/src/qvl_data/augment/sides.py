"""Whether a text tells left from right, so that a mirrored picture would make it false.

When in doubt it does: "right" also means correct, and such a sample is merely never mirrored.
"""

import re
import unicodedata

_WORDS = {  # whole words; ... stands for any ending
    "en": "left leftmost leftward... lefthand... lefty righthand... right rightmost rightward... "
    "clockwise counterclockwise anticlockwise",
    "medicine": "lt rt lul lll rul rml rll luq llq ruq rlq dextr... sinist...",
    "de": "links... linke linken linker linkes linkem rechts... rechte rechten rechter rechtes rechtem",
    "fr": "gauche gauches droite droites droit droits",
    "es": "izquierd... izq derecha derechas derecho derechos zurd...",
    "pt": "esquerd... direita direitas direito direitos",
    "it": "sinistr... destra destro destre destri",
    "nl": "linker... linkse linksaf rechter... rechtse rechtsaf",
    "da, no, sv": "venstre... høyre... højre... vänster... vänstra... höger... högra...",
    "pl": "lewo lewa lewy lewe lewą lewej lewego lewemu lewym lewych lewymi "
    "prawo prawa prawy prawe prawą prawej prawego prawemu prawym prawych prawymi",
    "cs": "vlevo doleva levý levá levé levou levého levém vpravo doprava pravý pravá pravé pravou pravého pravém",
    "ru": "лево левый левая левое левые левого левой левую левом левым левых левыми левее слева влево налево "
    "право правый правая правое правые правого правой правую правом правым правых правыми правее справа вправо направо",
}
_PIECES = {  # anywhere in the text, for scripts that do not part words by spaces, and signs
    "zh, ja": "左 右 顺时针 逆时针 順時針 逆時針 ひだり みぎ 時計回り 時計まわり",
    "ko": "왼 오른 바른쪽 좌측 우측 좌우 좌회전 우회전 좌상 우상 좌하 우하 시계",  # the last: clock, as in clockwise
    "arrows": "← → ↖ ↗ ↘ ↙ ⇐ ⇒ ⟵ ⟶ ⬅ ➡ 👈 👉",
}


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


_ALL = [_plain(word) for line in _WORDS.values() for word in line.split()]
_WHOLE = frozenset(word for word in _ALL if not word.endswith("..."))
_STARTS = tuple(word.removesuffix("...") for word in _ALL if word.endswith("..."))
_SIGNS = [_plain(piece) for line in _PIECES.values() for piece in line.split()]
_WORD = re.compile(r"[^\W\d_]+")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")


def names_a_side(text: str) -> bool:
    """Whether a text speaks of left or right (or clockwise, or shows an arrow).

    Known are Chinese, Japanese, Korean, Czech, Danish, Dutch, English, French, German, Italian, Norwegian, Polish,
    Portuguese, Russian, Spanish and Swedish. Latin and Cyrillic words count as whole words, also within `left-hand`,
    `left_hand` and `leftHand`; "bright" and "copyright" do not.
    """
    plain = _plain(_HUMP.sub(" ", text))
    words = set(_WORD.findall(plain))
    return (
        not words.isdisjoint(_WHOLE)
        or any(word.startswith(_STARTS) for word in words)
        or any(sign in plain for sign in _SIGNS)
    )
