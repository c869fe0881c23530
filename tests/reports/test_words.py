"""Whatever a study can say of a contrast is drawn."""

import pandas as pd
import pytest
from matplotlib import pyplot

from lora_bench.questions.studies import PHRASES
from lora_bench.reports.figures import verdicts


@pytest.mark.parametrize("word", PHRASES)
def test_every_word_of_a_study_has_a_place_in_its_figure(word):
    """A word without a marker took the whole figure from the page."""
    row = {
        "first": "qv",
        "second": "q",
        "label": "qv − q",
        "verdict": word,
        "difference": 0.01,
        "low": 0.0,
        "high": 0.02,
    }
    figure = verdicts.contrasts(pd.DataFrame([row | {"n_seeds": 4, "extra": ", 4 seeds"}]), margin=0.01)
    assert figure.axes
    pyplot.close(figure)
