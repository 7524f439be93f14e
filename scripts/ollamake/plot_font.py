"""Which fonts a picture is drawn with, so that it shows Japanese on a machine that has no Japanese font.

Latin texts stay text in the SVG, in matplotlib's own DejaVu Sans or whatever the viewer has for it. Where a text has letters
that DejaVu Sans lacks, all texts are drawn as outlines, and those letters are taken from IPAex Gothic, which the package
matplotlib-fontja carries (IPA Font License 1.0). Its module is not imported: that would change matplotlib's settings.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.ft2font import FT2Font

from ollamake.errors import OllamakeError

LATIN = "DejaVu Sans"
JAPANESE = "IPAexGothic"
_PACKAGE = "matplotlib_fontja"
_FILE = Path("fonts") / "ipaexg.ttf"


def font_settings(texts: Iterable[str]) -> dict[str, Any]:
    """Return the rcParams ``font.family`` and ``svg.fonttype`` of a picture with these texts.

    Letters that neither font has (Hangul, simplified Chinese, emoji) leave all texts text, for the viewer's fonts to show.
    Raises OllamakeError if the Japanese font is needed and not installed.
    """
    letters = set().union(*texts)
    if letters <= _letters(_latin_file()):
        return {"font.family": [LATIN], "svg.fonttype": "none"}
    family = [LATIN, _add_japanese()]
    drawable = letters <= _letters(_latin_file()) | _letters(japanese_file())
    return {"font.family": family, "svg.fonttype": "path" if drawable else "none"}


def japanese_file() -> str:
    """Return the file of the Japanese font. Raises OllamakeError if the package with it is not installed."""
    package = importlib.util.find_spec(_PACKAGE)
    for folder in (package and package.submodule_search_locations) or ():
        if (Path(folder) / _FILE).exists():
            return str(Path(folder) / _FILE)
    raise OllamakeError(
        "A picture with Japanese text needs the font of matplotlib-fontja, which is not installed; install what"
        " requirements.txt names."
    )


@cache
def _add_japanese() -> str:
    fontManager.addfont(japanese_file())
    entry = next(entry for entry in reversed(fontManager.ttflist) if entry.name == JAPANESE)
    # It has no bold: without this matplotlib would say so in the log for every bold text.
    fontManager.ttflist.append(dataclasses.replace(entry, weight=700))
    return JAPANESE


def _latin_file() -> str:
    return fontManager.findfont(FontProperties(family=[LATIN]), fallback_to_default=False)


@cache
def _letters(file: str) -> frozenset[str]:
    return frozenset(map(chr, FT2Font(file).get_charmap()))
