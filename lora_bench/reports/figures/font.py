"""The letters of figures: DejaVu Sans, once more with those alone that names, numbers and labels are made of.

A PDF embeds the letters that it uses, and cutting them from the whole typeface, which has thousands, takes as long as
drawing. They are cut once per process; whatever letter is not among them comes from the whole typeface, as before.
"""

from __future__ import annotations

import functools
import tempfile

from fontTools import subset
from matplotlib import font_manager

WHOLE, CUT = "DejaVu Sans", "Figure Sans"
LETTERS = [*range(0x20, 0x250), *range(0x391, 0x3CA), *map(ord, "‐‑–—‘’“”‖…−×→←↑↓≤≥≈")]
"""Latin, Greek, and the signs that labels have."""


@functools.cache
def family() -> list[str]:
    """Families for `font.family`, the next where one lacks a letter."""
    options = subset.Options()
    options.recalc_timestamp = False  # equal figures are equal files
    options.drop_tables += ["FFTM"]  # a time stamp too
    font = subset.load_font(font_manager.findfont(WHOLE), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=LETTERS)
    subsetter.subset(font)
    names = font["name"]
    for entry in list(names.names):
        text = entry.toUnicode().replace(WHOLE, CUT).replace(WHOLE.replace(" ", ""), CUT.replace(" ", ""))
        names.setName(text, entry.nameID, entry.platformID, entry.platEncID, entry.langID)
    folder = _folder()
    path = f"{folder.name}/cut.ttf"
    subset.save_font(font, path, options)
    font_manager.fontManager.addfont(path)
    return [CUT, WHOLE]


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Where the letters lie as long as the process runs, since matplotlib reads a font when it needs it."""
    return tempfile.TemporaryDirectory(prefix="lora_bench_font_")
