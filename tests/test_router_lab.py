"""The router lab trains what it says: a real MoE layer, by the package's own gate, the same way each time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minids import plot
from minids.config import tiny
from minids.model import Transformer
from minids.router_lab import Lesson, RouterLab, lesson

SMALL = replace(
    tiny(), vocab_size=37, dim=24, n_layers=2, n_mtp_modules=0, n_heads=2, inter_dim=20, moe_inter_dim=6,
    n_routed_experts=8, n_expert_groups=2, n_limited_groups=2, n_activated_experts=3,
)  # fmt: skip


def lopsided(n: int = 30, S: int = 7, D: int = 12) -> Lesson:
    """Inputs with a common direction, so that the same few experts win for all tokens; answers of a fixed layer."""
    dice = torch.Generator().manual_seed(1)
    x = torch.randn(n, S, D, generator=dice) + 1.5
    return Lesson(x, torch.tanh(x @ torch.randn(D, D, generator=dice)))


def lab(batch: int = 6) -> RouterLab:
    return RouterLab(lopsided(), batch=batch, n_experts=8, n_groups=4, width=5)


def test_a_lesson_is_what_the_last_layer_of_experts_reads_and_answers() -> None:
    model = Transformer(SMALL, torch.Generator().manual_seed(0))
    rows = torch.randint(37, (5, 9))
    x, y = lesson(model, rows)
    block = model.layers[-1]
    with torch.no_grad():
        h, freqs = model.embed(rows), model.freqs_cis[:9]
        h, _ = model.layers[0](h, freqs)
        want = block.ffn_norm(h + block.attn(block.attn_norm(h), freqs, None, "naive"))
        answer = block.ffn(want)[0]
    torch.testing.assert_close(x, want)
    torch.testing.assert_close(y, answer / answer.square().mean().sqrt())
    assert not x.requires_grad and not y.requires_grad


def test_a_lesson_needs_a_layer_of_experts() -> None:
    dense = Transformer(replace(SMALL, n_dense_layers=2))
    with pytest.raises(ValueError, match="must be a mixture of experts"):
        lesson(dense, torch.randint(37, (2, 5)))


def test_a_run_learns_and_counts_every_choice() -> None:
    run = lab()
    run.advance(60, gamma=0.01, alpha=0.0, top_k=2, groups=4)
    assert sum(run.losses[-10:]) < sum(run.losses[:10])
    assert {sum(load) for load in run.loads} == {6 * 7 * 2}
    assert run.max_vio.tolist() == [pytest.approx(max(load) / (84 / 8) - 1) for load in run.loads]


def test_the_same_settings_give_the_same_run_and_a_restart_begins_it_anew() -> None:
    first, second = lab(), lab()
    first.advance(12, 0.01, 0.1, 2, 2)
    second.advance(5, 0.01, 0.1, 2, 2)
    second.advance(7, 0.01, 0.1, 2, 2)
    assert first.losses == second.losses and first.loads == second.loads
    second.restart()
    assert second.loads == [] and not second.layer.gate.bias.any()
    second.advance(12, 0.01, 0.1, 2, 2)
    assert first.losses == second.losses


def test_bias_and_loss_both_balance_a_gate_that_leans() -> None:
    late = {}
    for name, gamma, alpha in (("none", 0.0, 0.0), ("bias", 0.02, 0.0), ("loss", 0.0, 0.3)):
        run = lab(batch=30)
        run.advance(150, gamma, alpha, top_k=2, groups=4)
        late[name] = run.max_vio[-20:].mean().item()
    assert late["none"] > 1.0 > 0.7 > max(late["bias"], late["loss"])


def test_settings_change_from_one_step_to_the_next() -> None:
    run = lab()
    run.advance(2, 0.0, 0.0, 4, 2)
    assert not run.layer.gate.bias.any()
    run.advance(1, 0.02, 0.0, 1, 4)
    assert run.layer.gate.bias.abs().max().item() == pytest.approx(0.02)
    assert [sum(load) // 42 for load in run.loads] == [4, 4, 1]
    assert run.settings == [(0.0, 0.0, 4, 2)] * 2 + [(0.02, 0.0, 1, 4)]


def test_the_loss_of_balance_moves_the_gate_and_is_not_in_what_is_shown() -> None:
    runs = [lab(), lab()]
    for run, alpha in zip(runs, (0.0, 5.0), strict=True):
        run.advance(1, 0.0, alpha, 2, 4)
    assert runs[0].losses == runs[1].losses  # the error of the first step, before any update
    assert not torch.equal(runs[0].layer.gate.weight, runs[1].layer.gate.weight)


def test_more_experts_than_the_groups_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="must fit into its groups"):
        lab().advance(1, 0.0, 0.0, top_k=3, groups=1)


def test_a_run_follows_a_clock_and_begins_anew_when_it_is_set_back() -> None:
    run = lab()
    for tick, steps in ((1, 5), (2, 10), (2, 15), (0, 5), (1, 10)):  # the same tick again: a slider was moved
        run.follow(tick, 0.01, 0.0, 2, 4)
        assert len(run.loads) == steps


def test_the_picture_of_a_run_says_where_it_stands() -> None:
    run = lab()
    run.advance(30, 0.01, 0.0, 2, 4)
    alt = plot.router_lab(run.loads, run.losses, run.settings, window=20).alt
    assert alt.startswith("Router lab, step 30: gamma 0.01, alpha 0, K 2, M 4; MaxVio ")
    assert f"MaxVio {run.max_vio[-20:].mean().item():.2f}, error {sum(run.losses[-20:]) / 20:.3f}" in alt
