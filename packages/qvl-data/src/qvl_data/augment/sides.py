"""Whether a text tells left from right, so that a mirrored picture would make it false.

When in doubt it does: "right" also means correct, and such a sample is merely never mirrored.
"""

import re
import unicodedata

_WORDS = {  # whole words; ... stands for any ending
    "en": "left leftmost leftward... lefthand... lefty righthand... right rightmost rightward... lr "
    "clockwise counterclockwise anticlockwise",
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
    "ko": "왼 오른 바른쪽 좌측 우측 좌우 좌회전 우회전 좌상 우상 좌하 우하 시계방향 시계",
    "arrows": "← → ↖ ↗ ↘ ↙ ⇐ ⇒ ⟵ ⟶ ⬅ ➡ 👈 👉",
}


def _pattern() -> re.Pattern[str]:
    words = [word for line in _WORDS.values() for word in line.split()]
    whole = "|".join(re.escape(_plain(word)).replace(re.escape("..."), r"[^\W\d_]*") for word in words)
    pieces = "|".join(re.escape(_plain(piece)) for line in _PIECES.values() for piece in line.split())
    return re.compile(rf"(?<![^\W\d_])(?:{whole})(?![^\W\d_])|{pieces}")


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


_SIDES = _pattern()
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")


def names_a_side(text: str) -> bool:
    """Whether a text speaks of left or right (or clockwise, or shows an arrow).

    Known are Chinese, Japanese, Korean, Czech, Danish, Dutch, English, French, German, Italian, Norwegian, Polish,
    Portuguese, Russian, Spanish and Swedish. Latin and Cyrillic words count as whole words, also within `left-hand`,
    `left_hand` and `leftHand`; "bright" and "copyright" do not.
    """
    return _SIDES.search(_plain(_HUMP.sub(" ", text))) is not None
