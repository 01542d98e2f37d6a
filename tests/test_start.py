"""The first chapter's own pieces: the drawn machine, a token's way, the box to talk to a model, the course map."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from minids import plot
from minids.config import dense_active, preset
from minids.plot.machine import WIDTH, grid_of_squares, lit_experts, short
from minids.widgets import TalkBox

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
PRESETS = ("tiny", "v2_lite", "v2", "v3")


@pytest.mark.parametrize("name", PRESETS)
def test_the_machine_is_the_same_each_time_and_says_its_numbers(name: str) -> None:
    picture = plot.machine(preset(name), name, token=1)
    assert picture.png() == plot.machine(preset(name), name, token=1).png()
    assert f"{preset(name).n_activated_experts} of {preset(name).n_routed_experts} experts lit" in picture.alt


def test_the_machine_of_v3_shows_the_published_numbers() -> None:
    alt = plot.machine(preset("v3")).alt
    assert "671.0 B parameters, 36.6 B (5.5%)" in alt and "70,272 bytes" in alt


def test_every_text_of_the_machine_lies_inside_the_picture() -> None:
    for name in PRESETS:
        picture = plot.machine(preset(name), name)
        picture.canvas.draw()
        box = picture.bbox
        for text in picture.axes[0].texts:
            extent = text.get_window_extent()
            assert box.x0 <= extent.x0 and extent.x1 <= box.x1 and box.y0 <= extent.y0 and extent.y1 <= box.y1, text


def test_another_token_lights_other_experts_within_the_gate_s_rules() -> None:
    seen = set()
    for token in range(20):
        groups, lit = lit_experts(256, 8, 8, 4, token)
        assert len(groups) == 4 and len(lit) == 8 and {e // 32 for e in lit} <= groups
        seen.add(frozenset(lit))
    assert len(seen) == 20


@pytest.mark.parametrize(("n", "groups"), [(16, 4), (64, 1), (160, 8), (256, 8), (1024, 8), (7, 1), (128, 1)])
def test_squares_fill_their_field_without_overlap(n: int, groups: int) -> None:
    squares = list(grid_of_squares(n, groups, 2.0, 30.0, 37.5, 13.5))
    assert [i for i, *_ in squares] == list(range(n))
    places = {(round(x, 6), round(y, 6)) for _, x, y, _ in squares}
    assert len(places) == n
    side = squares[0][3]
    assert all(x >= 2 and x + side <= 39.5 + 1e-9 and y + side <= 30 and y >= 16.5 - 1e-9 for _, x, y, _ in squares)
    for axis in (0, 1):
        values = sorted({place[axis] for place in places})
        assert all(b - a >= side for a, b in itertools.pairwise(values))


def test_the_machine_refuses_a_model_without_mla_or_experts() -> None:
    with pytest.raises(ValueError, match=r"shows MLA and experts; got attn='gqa'.*Take tiny"):
        plot.machine(dense_active())


def test_a_count_is_said_short() -> None:
    assert [short(n) for n in (671_026_419_200, 3_092_848, 10_320, 512)] == ["671.0 B", "3.1 M", "10.3 K", "512"]
    assert WIDTH == 70  # tenths of an inch: the house's width of a picture


PICTURES = {
    "next_tokens": lambda: plot.next_tokens([" kite", "你", "$"], [0.5, 0.25, 0.01]),
    "residual_stream": lambda: plot.residual_stream([(1.0, 2.0), (0.5, 3.0)], 0.4, ["a", "从前有一个", " kite"]),
    "experts_of_tokens": lambda: plot.experts_of_tokens([[0.0, 0.5, 0.5, 0.0], [1.0, 0, 0, 0]], ["a", " b"], groups=2),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_of_the_inside_is_the_same_each_time_with_a_description(name: str) -> None:
    picture = PICTURES[name]()
    assert picture.png() == PICTURES[name]().png()
    assert len(picture.alt) > 20


def test_the_heat_map_writes_a_weight_where_an_expert_answered_and_nowhere_else() -> None:
    picture = PICTURES["experts_of_tokens"]()
    assert sorted(t.get_text() for t in picture.axes[0].texts) == ["100", "50", "50"]


def write(prompt: str, temperature: float, seed: int) -> Iterator[str]:
    if not prompt:
        raise ValueError("a prompt needs at least one token")
    yield from (prompt.upper(), f" {temperature:g}", f" {seed}")


def test_a_press_shows_what_is_written_and_the_next_press_rolls_anew() -> None:
    box = TalkBox(write, "once", temperature=0.5)
    box.press()
    assert box.answer == "ONCE 0.5 0"
    box.press()
    assert box.answer == "ONCE 0.5 1"


def test_the_button_presses() -> None:
    box = TalkBox(write, "once")
    box._button.click()
    assert box.answer == "ONCE 0.8 0" and box._button.disabled is False


def test_an_error_while_writing_is_shown_and_the_box_lives_on() -> None:
    box = TalkBox(write, "")
    box.press()
    assert "It could not go on from this prompt. ValueError: a prompt needs" in box.answer
    assert box._button.disabled is False


def test_a_saved_box_leaves_a_sentence_that_does_not_depend_on_the_answer() -> None:
    box, other = TalkBox(write, "once"), TalkBox(write, "once")
    other.press()
    assert box._repr_mimebundle_()["text/plain"] == other._repr_mimebundle_()["text/plain"]
    assert "prompt = 'once', temperature = 0.8" in repr(box)
    assert "application/vnd.jupyter.widget-view+json" in box._repr_mimebundle_()


def test_the_map_of_the_course_links_to_every_chapter_that_exists_and_to_no_other() -> None:
    path = NOTEBOOKS / "00_start.ipynb"
    if not path.exists():
        pytest.skip("the first chapter has no notebook yet")
    cells = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown"]
    course = next(c for c in cells if c.startswith("## 7. How the course works"))
    rows = re.findall(r"^\| (?:\[)?(\d\d_\w+)(?:\]\((.*?)\))? \|", course, re.M)
    assert [stem[:2] for stem, _ in rows] == [f"{n:02d}" for n in range(19)]
    assert {link for _, link in rows if link} == {p.name for p in NOTEBOOKS.glob("[0-9]*.ipynb")}
    linked = {link for cell in cells for link in re.findall(r"\]\(([^)]+\.(?:ipynb|md))\)", cell)}
    assert [link for link in linked if not (NOTEBOOKS / link).exists()] == []
