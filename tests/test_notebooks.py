"""The notebooks are in the form that lets nbval test them, and in the form of a chapter.

nbval runs each cell again and compares outputs, but it passes a cell that was never run, a picture without a word, and
a cell that no longer raises. What is checked here closes these gaps; `faults` lists what is wrong with one notebook.
"""

from __future__ import annotations

import copy
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
MOST_BYTES, MOST_LINES, MEDIAN_LINES = 500_000, 30, 6
PROVES = re.compile(r"\bassert|\.check\(|\bassert_close\(|\.exact\(")
REMOTE = re.compile(
    r"!\[[^\]]*\]\(https?:|<img[^>]+src=.https?:|^\s*(import|from) (requests|urllib|httpx)\b|!(curl|wget|pip)", re.M
)
STALLS = re.compile(r"\b(interact|interactive|interact_manual|clear_output)\(|\bwidgets\.Output\(|\bOutput\(\)")


def faults(notebook: NotebookNode, size: int = 0) -> Iterator[str]:
    """What keeps a notebook from being tested, read or committed; nothing when all is well."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        yield "cells are not all run, once and in order: run `make notebooks`"
    if "widgets" in notebook.metadata:
        yield "metadata.widgets is stored: GitHub refuses to show the notebook"
    if size > MOST_BYTES:
        yield f"{size} bytes, more than {MOST_BYTES}: fewer or smaller pictures"
    for number, cell in enumerate(code, 1):
        yield from (f"code cell {number}: {fault}" for fault in cell_faults(cell))
    yield from form_faults(notebook, code)


def cell_faults(cell: NotebookNode) -> Iterator[str]:
    lines = [line for line in cell.source.splitlines() if line.strip()]
    tags = cell.metadata.get("tags", [])
    errors = [o for o in cell.outputs if o.output_type == "error"]
    if not lines:
        yield "empty"
    elif lines[-1].rstrip().endswith(";"):
        yield "the last line ends in ; , which nbval does not silence: write `_ = ...`"
    if errors and "raises-exception" not in tags:
        yield f"stored error: {errors[0].ename}"
    if "raises-exception" in tags and not errors:
        yield "is tagged raises-exception but raised nothing"
    if "nbval-skip" in tags or ("nbval-ignore-output" in tags and not PROVES.search(cell.source)):
        yield "is kept from nbval without proving anything by itself: add an assert"
    if len(lines) > MOST_LINES:
        yield f"{len(lines)} lines, more than {MOST_LINES}: cut it, or move it to the package"
    if STALLS.search(cell.source):
        yield "uses interact, Output or clear_output, on which a run can stall: use minids.widgets"
    if REMOTE.search(cell.source):
        yield "uses the network"
    yield from (fault for output in cell.outputs for fault in output_faults(output))


def output_faults(output: NotebookNode) -> Iterator[str]:
    data = output.get("data", {})
    text = data.get("text/plain", "")
    if "image/png" in data and (not text.strip() or text.startswith("<Figure")):
        yield "a picture says nothing: nbval compares its text only, so return a Picture of minids.plot"
    if re.search(r" at 0x[0-9a-f]{6,}", text + output.get("text", "")):
        yield "prints an address in memory, another one in each run"


def form_faults(notebook: NotebookNode, code: list[NotebookNode]) -> Iterator[str]:
    first = notebook.cells[0] if notebook.cells else None
    if first is None or first.cell_type != "markdown" or not re.match(r"# .*\?\s*(\n|$)", first.source):
        yield "does not begin with a title that asks a question: `# ...?`"
    if any(REMOTE.search(cell.source) for cell in notebook.cells if cell.cell_type == "markdown"):
        yield "shows a picture from the network"
    lengths = [len([line for line in cell.source.splitlines() if line.strip()]) for cell in code]
    if lengths and statistics.median(lengths) > MEDIAN_LINES:
        yield f"half of its code cells are longer than {MEDIAN_LINES} lines"
    for heading, cells in sections(notebook):
        sources = [cell.source for cell in cells if cell.cell_type == "code"]
        if sources and heading.strip() != "Predict" and not any(map(PROVES.search, sources)):
            yield f"section {heading!r} runs code and proves nothing: add an assert"


def sections(notebook: NotebookNode) -> Iterator[tuple[str, list[NotebookNode]]]:
    """Each second-level heading with the cells under it."""
    heading, cells = None, []
    for cell in notebook.cells:
        found = re.search(r"^## (.+)$", cell.source, re.M) if cell.cell_type == "markdown" else None
        if found:
            if heading:
                yield heading, cells
            heading, cells = found.group(1), []
        else:
            cells.append(cell)
    if heading:
        yield heading, cells


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_in_the_form_of_a_chapter_and_can_be_tested(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert list(faults(notebook, path.stat().st_size)) == []


def good_notebook() -> NotebookNode:
    new = nbformat.v4
    cells = [
        new.new_markdown_cell("# Does it hold?"),
        new.new_code_cell("x = 1", execution_count=1),
        new.new_markdown_cell("## First"),
        new.new_code_cell("assert x == 1\nprint(x)", execution_count=2, outputs=[new.new_output("stream", text="1\n")]),
    ]
    return new.new_notebook(cells=cells)


def error() -> NotebookNode:
    return nbformat.v4.new_output("error", ename="ValueError", evalue="x", traceback=[])


def result(**data: str) -> NotebookNode:
    return nbformat.v4.new_output("display_data", data={key.replace("_", "/"): value for key, value in data.items()})


FAULTS: dict[str, Callable[[NotebookNode], object]] = {
    "run, once and in order": lambda nb: nb.cells[3].update(execution_count=None),
    "metadata.widgets": lambda nb: nb.metadata.update(widgets={}),
    "empty": lambda nb: nb.cells[1].update(source=" \n"),
    "ends in ;": lambda nb: nb.cells[1].update(source="f();"),
    "stored error": lambda nb: nb.cells[1].update(outputs=[error()]),
    "raised nothing": lambda nb: nb.cells[1].metadata.update(tags=["raises-exception"]),
    "kept from nbval": lambda nb: nb.cells[1].metadata.update(tags=["nbval-ignore-output"]),
    "31 lines": lambda nb: nb.cells[1].update(source="x = 1\n" * 31),
    "half of its code cells": lambda nb: nb.cells[1].update(source="x = 1\n" * 20),
    "can stall": lambda nb: nb.cells[1].update(source="interact(f, x=3)"),
    "uses the network": lambda nb: nb.cells[1].update(source="import requests"),
    "from the network": lambda nb: nb.cells[2].update(source="## First\n![a](https://example.org/a.png)"),
    "says nothing": lambda nb: nb.cells[1].update(outputs=[result(image_png="", text_plain="<Figure size 1x1>")]),
    "address in memory": lambda nb: nb.cells[1].update(outputs=[result(text_plain="<object at 0x7f00aabbcc>")]),
    "asks a question": lambda nb: nb.cells[0].update(source="# It holds."),
    "proves nothing": lambda nb: nb.cells[3].update(source="print(x)"),
}


def test_a_good_notebook_has_no_faults() -> None:
    assert list(faults(good_notebook())) == []


@pytest.mark.parametrize("message", FAULTS)
def test_a_planted_fault_is_found(message: str) -> None:
    notebook = copy.deepcopy(good_notebook())
    FAULTS[message](notebook)
    assert any(message in fault for fault in faults(notebook))


def test_a_notebook_that_is_too_large_is_found() -> None:
    assert any("fewer or smaller pictures" in fault for fault in faults(good_notebook(), MOST_BYTES + 1))


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_link_to_a_chapter_leads_to_one_that_is_there(path: Path) -> None:
    text = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    missing = [name for name in re.findall(r"\]\((\d\d_\w+\.ipynb)\)", text) if not (NOTEBOOKS / name).exists()]
    assert missing == [], "name a chapter that is only planned, without a link"
