"""Fonts for letters that matplotlib's own font lacks, such as names of categories in Chinese or Hindi.

DejaVu Sans comes with matplotlib and has Latin, Greek, Cyrillic, Arabic and many symbols. Other letters are taken from
the fonts of the system, where one has them; else matplotlib warns and prints a box.
"""

import functools
from collections.abc import Iterator

from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

OWN = "DejaVu Sans"


def use_fonts_that_have_the_letters(figure: Figure) -> None:
    """Give each text of a figure fonts for the letters that matplotlib's own font lacks."""
    for text in figure.findobj(Text):
        missing = frozenset(text.get_text()) - _letters(findfont(OWN)) - {"\n"}
        if missing:
            text.set_fontfamily([OWN, *fonts_for(missing)])


@functools.cache
def fonts_for(letters: frozenset[str]) -> tuple[str, ...]:
    """Find installed fonts that together have letters, as far as there are any.

    Returns:
        Names of font families, first the one that has most of the letters.
    """
    families: list[str] = []
    while letters:
        best = max(_candidates(), key=lambda font: len(letters & _letters(font.fname)), default=None)
        if best is None or not letters & _letters(best.fname):
            break
        families.append(best.name)
        letters -= _letters(best.fname)
    return tuple(families)


def _candidates() -> Iterator[FontEntry]:
    """List upright fonts of normal weight, TrueType files first, because matplotlib embeds these in PDF unchanged."""
    fonts = [
        font
        for font in fontManager.ttflist
        # A font of last resort has a box for every letter.
        if font.style == "normal" and font.weight in (400, "normal", "regular") and "Last Resort" not in font.name
    ]
    yield from sorted(fonts, key=lambda font: (not font.fname.lower().endswith(".ttf"), font.name))


@functools.cache
def _letters(file: str) -> frozenset[str]:
    """Return the letters that a font file has; none if it cannot be read."""
    try:
        return frozenset(map(chr, FT2Font(file).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()
