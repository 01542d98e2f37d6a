"""Pipeline schedules: each obeys every rule over many sizes, takes the published time, holds what it should."""

from __future__ import annotations

from dataclasses import replace

import pytest

from minids.dualpipe import SCHEDULES, dualpipe, dualpipev, schedule
from minids.pipeline import Op, Schedule, in_flight, one_f_one_b, parse_step, violations, zb1p
from minids.simulator import Times, formula, simulate

SIZES = [(2, 4), (2, 6), (4, 8), (4, 20), (6, 12), (6, 20), (8, 16), (8, 20), (8, 40), (16, 32), (16, 40)]


def simple(schedule: Schedule, times: Times) -> float:
    """The makespan by a clock that ticks in whole units: the slow way to the same number."""
    done: dict = {}
    at, free, clock = [0] * schedule.ranks, [0.0] * schedule.ranks, 0
    while any(i < len(row) for i, row in zip(at, schedule.rows, strict=True)):
        for rank, row in enumerate(schedule.rows):
            if at[rank] < len(row) and free[rank] <= clock:
                step = row[at[rank]]
                if all(done.get(n, clock + 1) <= clock for op in step for n in schedule.needs(rank, op)):
                    free[rank] = clock + times.of(step)
                    done |= {schedule.gives(rank, op): free[rank] for op in step}
                    at[rank] += 1
        clock += 1
    return max(free)


@pytest.mark.parametrize(("ranks", "chunks"), SIZES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_obeys_every_rule_and_takes_the_time_of_the_formula(name: str, ranks: int, chunks: int) -> None:
    found = schedule(name, ranks, chunks)
    assert violations(found) == []
    timeline = simulate(found)
    assert timeline.makespan == simple(found, Times())
    want = formula(name, found.stages, Times())
    if want is not None:
        assert timeline.bubble == want


@pytest.mark.parametrize(("ranks", "chunks"), SIZES)
def test_dualpipe_holds_one_chunk_more_than_it_has_stages_on_every_rank(ranks: int, chunks: int) -> None:
    assert set(in_flight(dualpipe(ranks, chunks))) == {ranks + 1}
    assert set(in_flight(dualpipev(ranks, chunks))) == {2 * ranks + 1}
    assert in_flight(one_f_one_b(ranks, chunks)) == [ranks - r for r in range(ranks)]
    assert set(in_flight(zb1p(ranks, chunks))) == {ranks}
    assert violations(dualpipe(ranks, chunks), peak=ranks + 1) == []
    assert "holds" in violations(dualpipe(ranks, chunks), peak=ranks)[0]


def test_the_paper_s_example_takes_66_units_of_which_6_are_bubble() -> None:
    timeline = simulate(dualpipe(8, 20))
    assert (timeline.makespan, timeline.bubble, set(timeline.bubbles)) == (66, 6, {6})


# written out by hand from the eight steps of DeepSeek's README
ROWS_OF_4_AND_8 = [
    "F0.0 F0.1 F0.2 F1.0 I1.0 W1.0 F1.1 F0.3&B1.1 F1.2&B0.0 B1.2 F1.3&B0.1 B1.3 I0.2 W0.2 I0.3 W0.3",
    "F0.0 F1.0 F0.1 F1.1 F0.2 B1.0 F1.2&B0.0 F0.3&B1.1 F1.3&B0.1 B1.2 B0.2 I1.3 I0.3 W1.3 W0.3",
]


def test_the_order_is_that_of_deepseek_s_own_code() -> None:
    found = dualpipe(4, 8)
    assert found.lines()[:2] == ROWS_OF_4_AND_8
    for near, far in zip(found.rows[:2], found.rows[::-1], strict=False):  # the far half: the other direction first
        assert [tuple(op._replace(direction=1 - op.direction) for op in step) for step in far] == near


@pytest.mark.parametrize(("ranks", "chunks"), [(1, 2), (2, 4), (3, 7), (4, 9), (5, 20)])
def test_the_v_is_the_near_half_of_dualpipe_with_twice_the_ranks_and_chunks(ranks: int, chunks: int) -> None:
    assert dualpipev(ranks, chunks).rows == dualpipe(2 * ranks, 2 * chunks).rows[:ranks]


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_bubble_and_memory_of_dualpipe_do_not_grow_with_the_chunks(ranks: int) -> None:
    bubbles = {simulate(dualpipe(ranks, m)).bubble for m in (2 * ranks, 4 * ranks, 8 * ranks)}
    assert len(bubbles) == 1


def test_the_formula_overestimates_when_input_gradients_take_longer_than_forwards_and_underestimates_else() -> None:
    for times, sign in ((Times(F=2, I=3, W=2), 1), (Times(F=3, I=2, W=2), -1)):
        gap = (formula("dualpipe", 8, times) or 0) - simulate(dualpipe(8, 20), times).bubble
        assert gap * sign > 0


@pytest.mark.parametrize(("ranks", "chunks"), SIZES)
def test_the_formulas_hold_exactly_for_equal_f_and_i_a_w_no_longer_and_a_pair_from_b_to_f_plus_b(
    ranks: int, chunks: int
) -> None:
    for times in (
        Times(2, 2, 1),
        Times(2, 2, 0.5, pair=4),
        Times(2, 2, 2, pair=4),
        Times(2, 2, 2, pair=5),
        Times(1, 1, 0.25, pair=1.25),
    ):
        for name in ("1f1b", "zb1p", "dualpipe"):
            assert simulate(schedule(name, ranks, chunks), times).bubble == formula(name, ranks, times), (name, times)
    for times in (Times(3, 2, 2), Times(2, 3, 1), Times(3, 4, 3)):  # F and I may differ, in these two
        for name in ("1f1b", "zb1p"):
            assert simulate(schedule(name, ranks, chunks), times).bubble == formula(name, ranks, times), (name, times)


def test_a_w_longer_than_f_fits_into_no_gap_and_shrinks_no_bubble() -> None:
    for name in ("zb1p", "dualpipe"):
        found = [simulate(schedule(name, 8, 20), Times(W=W)).bubble for W in (1, 1.5, 3)]
        assert len(set(found)) == 1 and found[0] > (formula(name, 8, Times(W=3)) or 0)


def test_a_pair_that_hides_communication_saves_its_time_in_every_pair() -> None:
    plain, hidden = simulate(dualpipe(4, 8), Times(send=0.5)), simulate(dualpipe(4, 8), Times(pair=2.5, send=0.5))
    assert hidden.makespan < plain.makespan
    assert simulate(dualpipe(4, 8), Times(send=0.5)).makespan > simulate(dualpipe(4, 8)).makespan


def changed(rank: int, old: str, *new: str) -> Schedule:
    """1F1B of 3 ranks and 4 chunks with one step replaced."""
    good = one_f_one_b(3, 4)
    rows = [list(row) for row in good.rows]
    i = rows[rank].index(parse_step(old))
    rows[rank][i : i + 1] = [parse_step(text) for text in new]
    return replace(good, rows=tuple(rows))


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (changed(0, "F0.3"), "forward of 0.3 is missing"),
        (changed(0, "F0.3", "F0.3", "F0.3"), "F0.3 is done 2 times"),
        (changed(2, "B0.3"), "backward of 0.3 is incomplete"),
        (changed(2, "B0.3", "I0.3"), "backward of 0.3 is incomplete"),
        (changed(2, "B0.3", "B0.3", "I0.3", "W0.3"), "whole and in parts"),
        (changed(2, "B0.3", "W0.3", "I0.3"), "W0.3 comes before I0.3"),
        (changed(2, "B0.3", "B0.3", "F0.4"), "there is no chunk 0.4"),
        (changed(2, "B0.3", "B0.3", "F1.0"), "there is no chunk 1.0"),
        (changed(2, "B0.2", "F0.3&B0.2"), "F0.3 is done 2 times"),
    ],
)
def test_each_broken_rule_is_named(schedule: Schedule, message: str) -> None:
    assert any(message in problem for problem in violations(schedule)), violations(schedule)


def swapped(rank: int, first: str, second: str) -> Schedule:
    good = one_f_one_b(3, 4)
    rows = [list(row) for row in good.rows]
    i, j = (rows[rank].index(parse_step(text)) for text in (first, second))
    rows[rank][i], rows[rank][j] = rows[rank][j], rows[rank][i]
    return replace(good, rows=tuple(rows))


def test_a_wrong_order_is_named() -> None:
    assert "before its forward" in violations(swapped(2, "F0.0", "B0.0"))[0]
    assert any("exchange chunks in order" in v for v in violations(swapped(0, "F0.0", "F0.1")))
    stuck = swapped(0, "F0.2", "B0.0")  # rank 0 wants a backward before it has sent what the backward needs
    assert violations(one_f_one_b(3, 4)) == [] and violations(stuck) == []
    early = swapped(1, "F0.1", "B0.0")
    assert violations(early) == []  # lawful, only slower
    assert simulate(early).makespan > simulate(one_f_one_b(3, 4)).makespan
    two = replace(one_f_one_b(2, 2), rows=(list(map(parse_step, ["F0.0", "B0.0", "F0.1", "B0.1"])),
                                          list(map(parse_step, ["F0.0", "F0.1", "B0.0", "B0.1"]))))  # fmt: skip
    assert "rank 0 waits forever at B0.0" in violations(two)
    with pytest.raises(ValueError, match=r"rank 0 waits forever at B0\.0"):
        simulate(two)


def test_only_a_forward_and_a_backward_overlap() -> None:
    wrong = changed(0, "F0.1", "F0.1&F0.2")
    assert any("only a forward and a backward overlap" in v for v in violations(wrong))


def test_a_pair_cannot_need_itself() -> None:
    wrong = replace(one_f_one_b(1, 1), rows=([parse_step("F0.0&B0.0")],))
    assert any("before its forward" in v for v in violations(wrong))


@pytest.mark.parametrize(
    ("name", "ranks", "chunks", "message"),
    [
        ("dualpipe", 3, 8, "ranks are even; got 3. Take 4"),
        ("dualpipe", 4, 9, "chunks come from both ends, so they are even; got 9. Take 10"),
        ("dualpipe", 8, 14, r"got 14 < 2 x 8. Take 16"),
        ("dualpipev", 4, 7, r"got 7 < 2 x 4. Take 8"),
        ("chimera", 3, 4, "even ranks and chunks"),
        ("1f1b", 0, 4, "at least 1 rank"),
        ("pipedream", 4, 8, "gpipe, 1f1b, zb1p, chimera, dualpipe, dualpipev"),
    ],
)
def test_sizes_without_a_schedule_are_refused_with_the_next_one_that_has(
    name: str, ranks: int, chunks: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        schedule(name, ranks, chunks)


def test_operations_are_read_as_they_are_written() -> None:
    assert parse_step("F1.4&B0.3") == (Op("F", 1, 4), Op("B", 0, 3)) and str(Op("W", 0, 12)) == "W0.12"
    for text in ("", "F", "F0", "X0.1", "F0.a", "F0.1&", "0.1"):
        with pytest.raises(ValueError, match=r"reads like F0\.3"):
            parse_step(text)
