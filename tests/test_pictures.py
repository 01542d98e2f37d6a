"""Pictures say what they show, leave matplotlib alone, and follow the controls beside them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image

from minids import plot, widgets
from minids.dualpipe import schedule
from minids.plot.pipeline import held_at, idle_until
from minids.plot.style import text_on
from minids.plot.treemap import squarify
from minids.simulator import Times, simulate
from minids.widgets import LivePlot, explore

DRAWINGS: dict[str, Callable[[], plot.Picture]] = {
    "cache_bytes": lambda: plot.cache_bytes({"MHA": 4_194_304, "MLA": 70_272}, 4096, memory_gb=8),
    "anatomy": lambda: plot.anatomy({"tiny": {"experts": 900, "head": 124}, "V3": {"experts": 656 * 10**9}}),
    "low_rank": lambda: plot.low_rank(np.random.default_rng(0).normal(size=(9, 12)).tolist(), rank=2, cut=6),
    "quality_by_cache": lambda: plot.quality_by_cache({"latent": {2: 4.0, 8: 2.9}, "two": {2: 5.0, 8: 3.3}}, full=2.7),
    "numbers_per_token": lambda: plot.numbers_per_token({"cached": {"c": 512, "k_R": 64}, "h": {"h": 99}}, ["cached"]),
    "decode_cost": lambda: plot.decode_cost([16, 256], {"naive": [1, 9], "absorb": [3, 30]}, {"naive": [7, 99]}),
    "cache_of_models": lambda: plot.cache_of_models({"V3": 70_272, "yours": 99_999}, 4096, marked=["yours"]),
    "schedule": lambda: plot.schedule([0.0, 1.0, 2.0], [0.0, 0.003, 0.001], [4, 8, 8], "T tokens", "7 steps"),
    "live_run": lambda: plot.live_run({"main": [7.0, 6.0]}, [[1, 2, 3], [2, 2, 2]], "Mia 你", 5, {"falls": 3}),
    "live_run at its start": lambda: plot.live_run({"main": []}, []),
    "race": lambda: plot.race({"a": [([3.0, 2.0, 1.5], [1.0, 2.0, 3.0])], "b": [([4.0, 3.0], [1.5, 3.0])]}, 64, 2),
    "spike": lambda: plot.spike({"raw": [1.0, 0.4, 0.2], "clipped": [1.0, 1.0, 1.0]}, at=2),
    "curves": lambda: plot.curves({"train": [3.0, 2.0], "held out": [3.5, 2.5], "none yet": []}),
}
DRAWINGS |= {  # 06_mtp
    "shifted_sequences": lambda: plot.shifted_sequences(["Once", " upon", " a", " time", " there"], 1, 2),
    "shifted_sequences beyond the last target": lambda: plot.shifted_sequences(
        ["Once", " upon", " a", " time", " there"], 3, 1
    ),
    "paired_runs": lambda: plot.paired_runs({"off": [1.0, 0.9], "on": [0.95, 0.92], "longer": [0.8, 0.7]}),
    "agreement": lambda: plot.agreement({"en": [(0.3, 0.6, 50), (0.9, 0.99, 400)], "code": [(0.2, 0.4, 100)]}),
}
WORDS = ["bos", "user", "3", "+", "4", "?", "assistant", "7", "eos", "bos", "user", "hi", "assistant", "hi", "eos"]
LEARNED, NUMBER = [word in ("7", "eos", "hi") for word in WORDS], [1] * 9 + [2] * 6
DRAWINGS |= {  # 13_sft
    "token_masks": lambda: plot.token_masks(WORDS, LEARNED, NUMBER, 6),
    "token_masks open": lambda: plot.token_masks(WORDS, LEARNED, NUMBER, 13, isolated=False),
    "cold_starts": lambda: plot.cold_starts([20, 60, 100], [0.0, 0.3, 0.99], [0.0, 0.9, 0.1]),
}
PLAN = {"weights": 3e9, "masters": 5e9}
DRAWINGS |= {  # 11_expert_parallel
    "token_copies": lambda: plot.token_copies([0, 5, 9, 33, 34], nodes=4, gpus=3, each=4),
    "token_copies to each expert": lambda: plot.token_copies([0, 5, 9, 33, 34], 4, 3, 4, once_a_node=False),
    "sent_rows": lambda: plot.sent_rows([[3, 0, 12], [5, 6, 7], [0, 0, 120]]),
    "sent_rows of nothing": lambda: plot.sent_rows([[0, 0], [0, 0]]),
    "network_lab": lambda: plot.network_lab(),
    "network_lab beyond its ends": lambda: plot.network_lab(200, 40, nodes=8, experts=1),
    "overlap_bars": lambda: plot.overlap_bars(1.0, 2.0, 3),
    "memory_by_kind": lambda: plot.memory_by_kind({"plan": PLAN, "other": {"weights": 90e9, "masters": 0.0}}),
}
DRAWINGS |= {  # 14_grpo
    "reinforcement": lambda: plot.reinforcement([0.2, 0.5, 0.9], [0.5, 0.9, 1.0], [9.0, 15, 19], [0.7, 0.2, 0.05], 9),
    "reinforcement at its start": lambda: plot.reinforcement([0.2], [0.5], [9.0], [0.7]),
    "clipping": lambda: plot.clipping(0.3, 0.1),
    "tries": lambda: plot.tries({"before": [(1, 0.2), (8, 0.7)], "after": [(1, 0.9), (8, 1.0)]}, {"after": 0.95}),
}
RUN = {"language": [0.5, 0.9], "accuracy": [0.4, 0.6], "thinking": [6.0, 13.0]}
DRAWINGS |= {  # 15_r1
    "recipe": lambda: plot.recipe(
        [("cold start", "imitate", 0.3), ("RL", "reinforce", 0.5), ("SFT", "imitate", 0.2)], (0, 2)
    ),
    "recipe without a restart": lambda: plot.recipe([("reward model", "prefer", 0.3), ("RL", "reinforce", 0.7)]),
    "languages": lambda: plot.languages({"accuracy alone": RUN, "with language": RUN}),
    "over_reward": lambda: plot.over_reward(
        [0.5, 1, 1.5], [1, 2, 1], 2, {"paid": [0.1, 0.9], "liking": [0.2, -3.0], "length": [5.0, 20.0]}
    ),
    "ballot": lambda: plot.ballot({"081": 3, "你": 1}, "081", [(1, 0.5), (4, 0.7)], 4, 0.5),
    "ballot where nothing was said": lambda: plot.ballot({}, "081", [(1, 0.5), (4, 0.7)], 1, 0.5),
    "students": lambda: plot.students(
        {"distilled": {"spoken": [0.9, 0.8], "judge": [0.5, 0.6]}, "RL": {"spoken": [0.3], "judge": [0.5]}}
    ),
}
ROWS = {"one a row": [[(0, 9)], [(1, 11)]], "end to end": [[(0, 9), (1, 4)], [(1, 7)]]}
DRAWINGS |= {  # 17_serving
    "token_gaps": lambda: plot.token_gaps(
        {"one unit": [5.0, 6.0, 70.0, 5.0], "two": [5.0, 5.0, 6.0, 5.0]}, 2, "a prompt"
    ),
    "slots_over_time": lambda: plot.slots_over_time({"fixed": [(0, 0, 4), (1, 0, 2), (0, 4, 3)]}, 2),
    "goodput": lambda: plot.goodput([5, 10, 20], {"both": [4.9, 8.0, 3.0], "parted": [4.9, 9.0, 9.5]}, "fast"),
    "expert_replicas": lambda: plot.expert_replicas(
        [90, 10, 20, 30], [[0, 1], [2, 3]], [[0, 1, 2], [0, 3, 3]], "maths, layer 1"
    ),
    "two_batches": lambda: plot.two_batches({"two": [("dispatch", 0, 0.0, 1.0), ("experts", 1, 1.0, 2.0)]}),
}
DRAWINGS |= {  # 01_tokens
    "merge_wall": lambda: plot.merge_wall("a rat, a 你 rat", [("a", "t"), ("r", "at")], 2),
    "merge_wall before the first merge": lambda: plot.merge_wall("a rat, a rat", [("a", "t")], 0),
    "bytes_per_token": lambda: plot.bytes_per_token([266, 512, 2048], {"en": [1.0, 2.0, 3.8], "digits": [1, 1, 1]}),
    "documents_in_rows": lambda: plot.documents_in_rows(ROWS, 13),
    "after_the_cut": lambda: plot.after_the_cut(
        ":", [(0, 0), (0.1, 0.5), (1, 0.9)], 0.9, {"trained": [(0, 0.1), (0.5, 0.7)]}
    ),
}
DRAWINGS |= {  # 04_moe
    "teams": lambda: plot.teams([[True, False, False, True], [False, True, False, False]], 4, {4: 0.4, 16: 0.1}),
    "flow": lambda: plot.flow(["Once", " upon", " 你"], [[0.6, 0, 0, 0.4], [0, 0.5, 0.5, 0], [0.3, 0, 0.7, 0]], 1),
    "flow without a shared expert": lambda: plot.flow([" a", " b"], [[1.0, 0, 0, 0], [0, 0.5, 0.5, 0]], 0, 0, 2),
    "sorted_pairs": lambda: plot.sorted_pairs([[0, 3], [1, 3], [4, 0]], 6),
    "dispatch_times": lambda: plot.dispatch_times([1, 64, 512], {"loop": [300, 200], "sort": [90.0, 8.0, 3.0]}),
    "used_parameters": lambda: plot.used_parameters({"experts": (653.9e9, 20.4e9), "embedding": (0.93e9, 0)}),
    "shares": lambda: plot.shares({"untrained": [0.1, 0.6, 0.3], "trained": [0.3, 0.4, 0.3]}, 1 / 3),
}
DRAWINGS |= {  # 02_attention
    "step_times": lambda: plot.step_times({"again": [0.002, 0.003, 0.005, 0.006], "cached": [0.002] * 4}, block=2),
    "mask_corners": lambda: plot.mask_corners(3, 7),
    "turning_pairs": lambda: plot.turning_pairs(40, 12),
    "what_fits": lambda: plot.what_fits({"MHA": (157, 3e-3, 1.2), "MQA": (132, 5e-5, 1.1)}, 4096, 64, 640, 26_800),
    "what_fits where nothing does": lambda: plot.what_fits({"MHA": (157, 3e-3, 1.2)}, 4096, 640, 640, 26_800),
}
DRAWINGS |= {  # 05_balance
    "load_maps": lambda: plot.load_maps({"none": [[9, 1, 2], [8, 2, 2]], "bias": [[4, 4, 4], [5, 4, 3]]}),
    "balance_curves": lambda: plot.balance_curves({"none": [[2.0, 3.0], [2.5, 2.0]], "bias": [[1.0, 0.3]]}, 2, [0.5]),
    "balance_cost": lambda: plot.balance_cost(
        {"loss": [("0.1", 0.4, 0.25), ("0", 1.3, 0.2)], "bias": [("1", 0.6, 0.2)]}
    ),
    "router_lab": lambda: plot.router_lab([[3, 1], [4, 0], [2, 2]], [1.0, 0.9, 0.8], [(0.0, 0.0, 2, 4)] * 3),
    "router_lab at its start": lambda: plot.router_lab([], [], []),
    "relative_load": lambda: plot.relative_load({"bias": {"en": [1.9, 0.1, 1.0], "zh": [0.2, 2.1, 0.7]}}),
    "domain_pair": lambda: plot.domain_pair([1.9, 0.1, 1.0], [0.2, 1.2, 1.6], ("English", "code")),
    "node_traffic": lambda: plot.node_traffic([0.1, 0.2, 0.3], [0.3, 0.3, 0.3], marked=2, title="13 experts"),
}
DRAWINGS |= {  # 07_deepseek
    "treemap": lambda: plot.treemap(
        {"routed experts": 654e9, "attention": 11.4e9, "rest": 6e9}, {"routed experts": 2e10}
    ),
    "treemap of one part": lambda: plot.treemap({"a part with a long name": 7, "nothing": 0}, title="one"),
    "by_depth": lambda: plot.by_depth(
        {"before": [1.0, 2.0], "none": [3.0, float("inf")]}, "root mean square", "Stream"
    ),
    "conversions": lambda: plot.conversions({"lost": (3.4, 0.31), "swapped": (18.0, 1.7)}, right=0.3, rounding=1e-5),
}
DRAWINGS |= {  # 12_long_context
    "bent_frequencies": lambda: plot.bent_frequencies(40, 32, 1),
    "angles_seen": lambda: plot.angles_seen({"pair 0": 1.0, "pair 9": 0.003}, 64, 512),
    "needle_maps": lambda: plot.needle_maps(
        {"short": [[1.0, 0.2, 0.1], [1.0, 0.5, 0.4]], "extended": [[1.0, 1.0, 0.9], [0.9, 1.0, 1.0]]},
        [32, 64, 128], [0, 1], trained=32,
    ),
}  # fmt: skip
DRAWINGS |= {  # 16_decode
    "sampling_bars": lambda: plot.sampling_bars(
        [" fox", "你", " girl"], [0.6, 0.3, 0.1], [0.67, 0.33, 0.0], "top-p 0.9"
    ),
    "draft_cycles": lambda: plot.draft_cycles([([" a", " b"], 1, " c"), ([" d", "你"], 2, " a long token")]),
    "draft_speed": lambda: plot.draft_speed(0.9, 1, 0.4, 0.25, {"V3": (0.875, 1.8)}),
    "draft_speed with every draft kept": lambda: plot.draft_speed(1.0, 8, 0.0, 0.0, {}),
    "kept_by_depth": lambda: plot.kept_by_depth({"en": [0.9, 0.8, 0.7], "code": [0.7, 0.6]}),
}
DRAWINGS |= {  # 09_fp8
    "rounding_error": lambda: plot.rounding_error({"E4M3": [0.25, 0.5, 0.75, 1.0, 1.5, 2.0], "E5M2": [0.5, 1.0, 2.0]}),
    "outlier_map": lambda: plot.outlier_map(
        [[1.0, 2.0, 900.0, 4.0], [3.0, 1.0, 2.0, 5.0]], [[0.0, 1.9, 896.0, 3.5], [3.0, 1.0, 2.1, 5.0]], (1, 2), (0, 2)
    ),
    "three_products": plot.three_products,
    "accumulation_error": lambda: plot.accumulation_error([128, 4096], {"never": [0.1, 1.2], "N_C = 128": [0.1, 0.1]}),
    "loss_runs": lambda: plot.loss_runs({"fp32": [7.0, 5.0], "fp8": [7.1, 5.1]}, 20, {"fp8": [0.1, -0.2, 0.05]}),
}
LINE = simulate(schedule("dualpipe", 4, 10), Times(send=0.25))
DRAWINGS |= {  # 10_dualpipe
    "pipeline_schedule": lambda: plot.pipeline_schedule(LINE),
    "pipeline_schedule of a V with a title": lambda: plot.pipeline_schedule(simulate(schedule("dualpipev", 3, 7)), "V"),
    "pipeline_player": lambda: plot.pipeline_player(LINE, 12.0),
    "pipeline_player at its start": lambda: plot.pipeline_player(simulate(schedule("gpipe", 1, 3)), 0.0),
    "pipeline_costs": lambda: plot.pipeline_costs({"gpipe": (20, 0.26, 1), "dualpipe": (9, 0.09, 2)}),
    "bubble_by_chunks": lambda: plot.bubble_by_chunks({"1f1b": {8: 0.47, 32: 0.18}, "dualpipe": {16: 0.1, 32: 0.06}}),
    "pair_lanes": lambda: plot.pair_lanes(
        {"in turn": [("compute", "MLP (F)", 0, 2), ("network", "COMBINE (F)", 2, 3)], "PP": [("network", "PP", 0, 1)]}
    ),
}
each_drawing = pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS.keys())


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


@each_drawing
def test_a_picture_is_the_same_each_time_on_solid_white_with_a_description_and_leaves_no_trace(
    draw: Callable[[], plot.Picture],
) -> None:
    before = dict(mpl.rcParams)
    picture, again = draw(), draw()
    png = picture.png()
    data, extra = picture._repr_mimebundle_()
    assert data["image/png"] == png == again.png()
    assert dict(mpl.rcParams) == before and pyplot.get_fignums() == []
    image = pixels(png)
    assert (image[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all() and (image == 255).mean() > 0.3
    assert len(picture.alt) > 20 and repr(picture) == f"Picture: {picture.alt}"
    assert data["text/plain"] == repr(picture) and extra["image/png"]["alt"] == picture.alt


def test_the_reader_s_own_settings_do_not_change_a_picture() -> None:
    plain = plot.curves({"a": [1.0, 2.0]}).png()
    with mpl.rc_context({"axes.facecolor": "black", "font.size": 20}):
        assert plot.curves({"a": [1.0, 2.0]}).png() == plain


def test_text_that_the_font_lacks_is_written_as_code_points_and_draws_without_a_warning() -> None:
    assert plot.label("a 你\n") == "a␣U+4F60⏎"
    plot.curves({plot.label("$你 好$"): [1.0], "b": [2.0]}).png()


def test_text_on_a_colour_is_the_one_that_can_be_read() -> None:
    assert [text_on(c) for c in ("#000000", "#FFFFFF", "#0072B2", "#E69F00")] == [
        "white", "black", "white", "black",
    ]  # fmt: skip


def draw_n(n: int = 2, name: str = "a") -> plot.Picture:
    if n == 4:
        raise RuntimeError("four <is> too many")
    return plot.curves({name: list(range(n))}, title=name)


def test_a_moved_control_redraws_the_picture() -> None:
    explorer = explore(draw_n, n=(1, 9), name=["a", "b"])
    seen = [explorer.png()]
    for values in ({"n": 3}, {"name": "b"}):
        explorer.set(**values)
        seen.append(explorer.png())
    assert len(set(seen)) == 3
    assert seen[2] == draw_n(3, "b").png()


def test_controls_start_at_the_function_s_own_defaults() -> None:
    assert explore(draw_n, n=(1, 9), name={"first": "b", "second": "a"}).values == {"n": 2, "name": "a"}
    assert explore(lambda n: draw_n(n), n=[3, 5, 7]).values == {"n": 3}


def test_an_error_while_moving_is_shown_and_cleared_and_the_picture_stays() -> None:
    explorer = explore(draw_n, n=(1, 9))
    before, control = explorer.png(), explorer._controls["n"]
    control.value = 4
    assert "RuntimeError: four &lt;is&gt; too many" in explorer._trouble.value
    assert explorer.png() == before
    control.value = 5
    assert explorer._trouble.value == "" and explorer.png() != before


def test_an_error_at_the_start_is_raised() -> None:
    with pytest.raises(RuntimeError, match="too many"):
        explore(draw_n, n=(4, 9))


def test_a_saved_widget_holds_the_picture_and_a_short_text() -> None:
    explorer = explore(draw_n, n=(1, 9), name=["a", "b"])
    data, extra = explorer._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]) == explorer.png()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["text/plain"] == "Picture with controls (n = 2, name = a): Curves of loss against step: a"
    assert extra["image/png"]["alt"] == "Curves of loss against step: a"


def test_a_figure_of_pyplot_is_closed_after_drawing() -> None:
    def drawn(n: int = 1) -> Any:
        figure, ax = pyplot.subplots()
        ax.plot([n])
        return figure

    assert len(explore(drawn, n=(1, 3)).png()) > 1000
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize("control", ["text", (1,), [], (1, 2, 3, 4), ("a", "b")])
def test_a_control_of_another_kind_is_refused(control: object) -> None:
    with pytest.raises(ValueError, match=r"a control is .* n is "):
        explore(draw_n, n=control)


def test_a_live_plot_shows_itself_at_once_and_ends_as_the_last_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[dict[str, Any], dict[str, Any]]] = []
    monkeypatch.setattr(widgets, "display", lambda data, metadata=None, raw=False: shown.append((data, metadata or {})))
    with LivePlot(plot.curves, every=1000) as live:
        assert "application/vnd.jupyter.widget-view+json" in shown[0][0]
        for n in range(1, 9):
            live.update({"a": list(range(n))})
    data, extra = shown[1]
    assert base64.b64decode(data["image/png"]) == plot.curves({"a": list(range(8))}).png()
    assert extra["image/png"]["alt"] and "application/vnd.jupyter.widget-view+json" not in data


def test_a_live_plot_is_redrawn_while_the_loop_runs_but_not_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widgets, "display", lambda data, **_: None)
    drawn: list[int] = []

    def draw(n: int) -> plot.Picture:
        drawn.append(n)
        return plot.curves({"a": list(range(n))})

    with LivePlot(draw, every=1000) as live:
        for n in range(1, 9):
            live.update(n)
    assert drawn == [1, 8]


def test_a_live_plot_that_is_interrupted_still_leaves_its_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(widgets, "display", lambda data, **_: shown.append(data))
    with pytest.raises(KeyboardInterrupt), LivePlot(plot.curves) as live:
        live.update({"a": [1.0]})
        raise KeyboardInterrupt
    assert "image/png" in shown[-1]


@pytest.mark.parametrize(
    ("position", "depth", "said"),
    [
        (2, 0, "the main model at position 2 knows t0 to t2 and must predict t3, time"),
        (0, 2, "depth 2 at position 0 knows t0 to t2 and must predict t3, time"),
        (2, 1, "depth 1 at position 2 knows t0 to t3 and must predict t4, there"),
        (3, 1, "depth 1 at position 3: its target would be t5, but the last token is t4"),
    ],
)
def test_the_shifted_sequences_say_what_a_state_knows_and_predicts(position: int, depth: int, said: str) -> None:
    tokens = ["Once", " upon", " a", " time", " there"]
    assert plot.shifted_sequences(tokens, position, depth).alt == f"Shifted sequences: {said}"


@pytest.mark.parametrize(("position", "depth", "depths"), [(4, 0, 2), (-1, 0, 2), (0, 3, 2), (0, 1, 4)])
def test_a_position_or_depth_that_is_not_drawn_is_refused(position: int, depth: int, depths: int) -> None:
    with pytest.raises(ValueError, match=r"a position lies between 0 and 3, .* 5 tokens are 4 inputs"):
        plot.shifted_sequences(["a", "b", "c", "d", "e"], position, depth, depths)


@pytest.mark.parametrize(
    ("n", "said"),
    [
        (0, "after 0 merges: 5 tokens"),
        (1, "after 1 merges: 3 tokens; the last made aa (2 times)"),
        (2, "after 2 merges: 2"),
    ],
)
def test_the_wall_of_merges_counts_tokens_and_joins_a_run_from_the_left(n: int, said: str) -> None:
    alt = plot.merge_wall("aaaaa", [("a", "a"), ("aa", "aa")], n).alt
    assert alt.startswith(f"A text of 5 characters: {said}")


def test_a_merge_that_is_not_given_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1 merges are given; got n=2\. Take from 0 to 1\."):
        plot.merge_wall("aaa", [("a", "a")], 2)


def test_the_flow_says_who_answers_for_the_token_in_colour() -> None:
    weights = [[0.6, 0, 0, 0.4], [0, 0.5, 0.5, 0], [0.3, 0, 0.7, 0]]
    said = plot.flow(["Once", " upon", " 你"], weights, 1, shared=1).alt
    assert said == "Tokens and experts: token 1, upon, flows to routed experts 1, 2 of 4 and to 1 shared"
    assert plot.flow(["Once", " upon", " 你"], weights, 2).alt.startswith("Tokens and experts: token 2, U+4F60, flows")
    with pytest.raises(ValueError, match="between 0 and 2; got 3"):
        plot.flow(["Once", " upon", " 你"], weights, 3)


@pytest.mark.parametrize(("cut", "said"), [(8, "28 teams, 30.0 % lost"), (64, "about 10^14 teams, 8.1 % lost")])
def test_the_teams_are_counted_from_the_cut(cut: int, said: str) -> None:
    chosen = [[True] * 16 + [False] * 48]
    assert plot.teams(chosen, cut, {8: 0.3, 64: 0.081}).alt.endswith(said)


@pytest.mark.parametrize(("queries", "keys"), [(0, 4), (5, 4)])
def test_a_mask_of_more_queries_than_keys_is_refused(queries: int, keys: int) -> None:
    with pytest.raises(ValueError, match=rf"1 <= S <= T; got S = {queries}, T = {keys}"):
        plot.mask_corners(queries, keys)


def test_the_score_of_turning_pairs_depends_on_their_distance_alone() -> None:
    said = [plot.turning_pairs(q, k).alt.split("distance")[1] for q, k in ((40, 12), (160, 132), (41, 12))]
    assert said[0] == said[1] != said[2]


def test_what_fits_is_the_sum_of_weights_and_of_each_user_s_cache() -> None:
    kinds = {"MHA": (157.0, 3e-3, 1.2), "MQA": (132.0, 5e-5, 1.1)}
    assert "64 users of 1,000 tokens need MHA 349 GB, MQA 135 GB" in plot.what_fits(kinds, 1000, 64, 640, 26_800).alt
    labels = [line.get_label() for line in plot.what_fits(kinds, 1000, 64, 640, 26_800).axes[0].lines]
    assert "MHA: up to 2,515" in labels  # (640 - 157) / (64 x 0.003)


def test_the_areas_of_a_treemap_are_the_parameters_and_fill_the_map_without_overlap() -> None:
    sizes, box = [60.0, 17.0, 11.0, 6.0, 5.0, 1.0], (0.5, 0.25, 4.0, 3.0)
    boxes = squarify(sizes, box)
    for size, (_, _, w, h) in zip(sizes, boxes, strict=True):
        assert w * h == pytest.approx(size / sum(sizes) * 12)
    for i, (x, y, w, h) in enumerate(boxes):
        assert x >= 0.5 - 1e-9 and y >= 0.25 - 1e-9 and x + w <= 4.5 + 1e-9 and y + h <= 3.25 + 1e-9
        for x2, y2, w2, h2 in boxes[:i]:
            assert min(x + w, x2 + w2) - max(x, x2) < 1e-9 or min(y + h, y2 + h2) - max(y, y2) < 1e-9
    assert max(max(w / h, h / w) for _, _, w, h in boxes[:5]) < 3  # slices side by side would reach 16


def test_a_treemap_says_what_one_token_touches_and_the_shares_of_the_parts() -> None:
    alt = plot.treemap({"head": 10, "routed experts": 90, "norms": 0}, {"routed experts": 15}, "M").alt
    assert alt == (
        "Treemap of M: 100 parameters; solid: 25 (25.0%), touched by one token; routed experts 90.0%, head 10.0%"
    )
    assert plot.treemap({"head": 10}, title="M").alt == "Treemap of M: 10 parameters; head 100.0%"


@pytest.mark.parametrize("parts", [{}, {"head": 0}, {"head": 3, "norms": -1}])
def test_a_treemap_of_no_parameters_is_refused(parts: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="an area needs parameters, none of them negative"):
        plot.treemap(parts)


def test_the_outlier_lab_says_how_many_numbers_are_lost() -> None:
    x, rounded = np.full((3, 256), 2.0), np.full((3, 256), 2.0)
    x[1, 7], rounded[1, :5] = 5e6, 0.0
    said = plot.outlier_map(x, rounded, (1, 128), (1, 7)).alt
    assert said.startswith("Error of each number, scales for 1 x 128; outlier 5,000,000: 5 of 768 numbers lost")


def test_the_player_counts_what_a_rank_holds_and_how_long_it_has_idled_at_a_moment() -> None:
    line = simulate(schedule("1f1b", 2, 3))  # rank 0: F0 F1 . . B0 F2 . B1 . B2;  rank 1: . F0 B0 F1 B1 F2 B2
    at = {0.0: ([0, 0], [0, 0]), 3.0: ([2, 1], [1, 1]), 4.5: ([2, 1], [2, 1]), line.makespan: ([0, 0], line.bubbles)}
    for now, want in at.items():
        assert (held_at(line, now), idle_until(line, now)) == want, now
    for name in ("dualpipe", "zb1p"):  # never more at a moment than over the whole, and that much at some moment
        line = simulate(schedule(name, 4, 8))
        moments = [held_at(line, span.start + 0.01) for row in line.spans for span in row]
        assert [max(held[r] for held in moments) for r in range(4)] == line.peaks


def test_the_player_says_the_moment_and_stays_within_the_schedule() -> None:
    line = simulate(schedule("dualpipe", 4, 10))
    assert plot.pipeline_player(line, 99).alt == (
        "Pipeline schedule at time 32: dualpipe, 4 ranks, 10 chunks: 32 long, 2 of it idle, 5 chunks held; "
        "held now 0, idle so far 2"
    )
    assert plot.pipeline_player(line, -1).alt.startswith("Pipeline schedule at time 0: ")


def test_the_copies_of_a_token_are_counted_by_node_or_by_expert() -> None:
    experts = [0, 13, 14, 15, 33]  # 12 to a node: one at home, three on node 1, one on node 2
    assert "2 copies leave the node" in plot.token_copies(experts, 4, 3, 4).alt
    assert "4 copies leave the node" in plot.token_copies(experts, 4, 3, 4, once_a_node=False).alt


@pytest.mark.parametrize(
    ("experts", "said"), [(8, "0.57 us, InfiniBand decides"), (16, "0.72 us, NVLink decides"), (2, "4 experts on 4")]
)
def test_the_network_lab_says_which_link_decides(experts: int, said: str) -> None:
    assert said in plot.network_lab(experts=experts).alt
