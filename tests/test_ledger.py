"""The ledger refuses numbers that are not the published ones, and the README's table is what the cells printed."""

import json
from pathlib import Path

import pytest

from minids.ledger import BEGIN, END, Ledger, collect, refresh

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def test_an_exact_claim_that_does_not_round_to_the_published_digits_is_refused():
    claims = Ledger("03_mla")
    claims.exact("KB a token", "2505.09343 table 1", "70.272", 70.272)
    with pytest.raises(ValueError, match=r"70\.28 is not 70\.272"):
        claims.exact("KB a token", "2505.09343 table 1", "70.272", 70.28)
    assert "| 70.272 | 70.272 | exact |" in str(claims)


def test_a_noted_claim_must_say_which_kind_it_is():
    with pytest.raises(ValueError, match="got 'proved'"):
        Ledger("x").note("a", "b", "c", "d", "proved")


def test_rows_are_collected_from_what_the_cells_showed(tmp_path):
    claims = Ledger("09_x")
    claims.note("loss gap", "2412.19437 section 3.3", "0.25 %", "0.1 %", "in kind")
    cell = {"cell_type": "code", "outputs": [{"data": {"text/markdown": str(claims)}}]}
    (tmp_path / "09_x.ipynb").write_text(json.dumps({"cells": [cell, {"cell_type": "markdown"}]}), encoding="utf-8")
    assert collect(tmp_path).splitlines()[2].startswith("| [09_x](09_x.ipynb) | loss gap |")
    (tmp_path / "README.md").write_text(f"top\n{BEGIN}\nold\n{END}\nbottom", encoding="utf-8")
    made = refresh(tmp_path / "README.md")
    assert made.startswith("top\n") and made.endswith("\nbottom") and "loss gap" in made and "old" not in made


def test_the_ledger_in_the_readme_is_what_the_notebooks_show():
    readme = NOTEBOOKS / "README.md"
    assert readme.read_text(encoding="utf-8") == refresh(readme), "run `python -m minids.ledger`"
