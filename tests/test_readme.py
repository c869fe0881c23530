"""The first screen is short, and what people ask is answered within two clicks."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_first_screen_is_short():
    """Whoever opens the page finds the two lines without scrolling: at most 200 words and one picture before them."""
    above = (ROOT / "README.md").read_text(encoding="utf-8").partition("```")[0]
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", above)
    assert above.count("![") == 1
    assert 50 < len(text.split()) <= 200


def test_the_questions_are_one_click_away():
    """README names the page, and each question has an answer of at most a screen."""
    assert "(docs/faq.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    answers = re.split(r"^## ", (ROOT / "docs/faq.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert len(answers) >= 10
    assert all(answer.partition("\n")[0].endswith("?") for answer in answers)
    assert all(10 < len(answer.split()) < 160 for answer in answers)
