"""The first screen is short, and what people ask is answered within two clicks."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MEASURED = {"calibration", "claims", "embedded_tasks", "packing"}  # pages of measurements, read beside their tables
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.stem not in MEASURED)]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_page_has_a_wall_of_text(page):
    """A paragraph or an item of a list that is longer than five lines is looked at, and not read."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )|\n(?=[|#])", text)
    prose = [" ".join(block.split()) for block in blocks if not block.lstrip().startswith(("|", "#"))]
    assert [block[:60] for block in prose if len(block) > 5 * 125] == []


@pytest.mark.parametrize("page", ["replication"])
def test_a_long_page_begins_with_its_contents(page):
    """Three hundred lines: whoever seeks the MLP must not read CoLA first."""
    head, *parts = re.split(r"^## ", (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"), flags=re.M)
    for part in parts:
        anchor = re.sub(r"[^a-z -]", "", part.partition("\n")[0].lower()).replace(" ", "-")
        assert f"(#{anchor})" in head.replace("\n", " ")
