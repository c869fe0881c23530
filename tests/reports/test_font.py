"""The letters of figures."""

from __future__ import annotations

import io

import matplotlib
import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageChops

from lora_bench.reports.figures import font


@pytest.mark.parametrize("text", ["AV To, fi 12.5 ± 0.3 − ×100", "rank Ж ≠ ∑", "naïve Straße β"])
def test_cut_letters_look_like_the_whole_typeface(text):
    """Cutting saves time alone: no letter moves, and one that was cut off comes from the whole."""
    drawn = []
    for family in ([font.WHOLE], font.family()):
        with matplotlib.rc_context({"font.family": family}):
            figure = Figure(figsize=(3, 0.5))
            figure.text(0.05, 0.4, text)
            content = io.BytesIO()
            figure.savefig(content, format="png")
            drawn.append(Image.open(content).convert("L"))
    assert font.family()[0] != font.WHOLE
    assert ImageChops.difference(*drawn).getbbox() is None and drawn[0].getextrema()[0] < 100
