"""Tables as CSV: a spreadsheet must not run what a user called a model."""

import pandas as pd
import pytest

from lora_bench.reports.output import write_table
from lora_bench.reports.section import Table


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "--x"])
def test_a_text_that_a_spreadsheet_would_run_gets_an_apostrophe(tmp_path, text):
    path = write_table(Table("t", "t", pd.DataFrame({"model": [text], text: ["plain"]})), tmp_path)
    read = pd.read_csv(path)
    inert = f"'{text}".replace("\r", " ")
    assert read["model"][0] == inert
    assert list(read) == ["model", inert]


@pytest.mark.parametrize("text", ["-0.5", "+1e-3", "-", "qv r=4", "-inf", "a=b", ""])
def test_numbers_and_plain_texts_stay_as_they_are(tmp_path, text):
    path = write_table(Table("t", "t", pd.DataFrame({"x": [text], "y": [-0.25], "z": [-3]})), tmp_path)
    assert path.read_text(encoding="utf-8").splitlines()[1] in (f"{text},-0.25,-3", f'"{text}",-0.25,-3')
    assert pd.read_csv(path).dtypes[["y", "z"]].tolist() == ["float64", "int64"]
