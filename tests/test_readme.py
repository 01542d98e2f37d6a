"""The README files: their links lead somewhere, and the picture is the one that chapter 0 draws."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)")


def anchors(path: Path) -> set[str]:
    """The headings of a file as GitHub names them in links."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["README.md", "notebooks/README.md", "tests/benchmarks/README.md"])
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(name: str) -> None:
    path = ROOT / name
    links = LINK.findall(path.read_text(encoding="utf-8"))
    assert links
    for target, anchor in links:
        file = path.parent / target if target else path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def test_the_picture_is_the_one_that_chapter_0_draws() -> None:
    cells = nbformat.read(ROOT / "notebooks" / "00_start.ipynb", 4).cells
    data = [output.data for cell in cells for output in cell.get("outputs", []) if "data" in output]
    [anatomy] = [d["image/png"] for d in data if "Anatomy of DeepSeek V3" in d["text/plain"]]
    assert (ROOT / "assets" / "anatomy.png").read_bytes() == base64.b64decode(anatomy)
