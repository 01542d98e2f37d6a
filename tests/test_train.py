"""Training: the sum of losses, balancing, budgets, and runs that go on with the same bits whatever happened to them."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from torch.multiprocessing import get_context

from minids import checkpoint
from minids.config import Config, tiny
from minids.corpus import eval_rows
from minids.fp8_layers import Fp8Linear
from minids.model import Transformer
from minids.processes import start_method
from minids.recipe import Plan, TrainConfig
from minids.tokenizer import Tokenizer, default_tokenizer
from minids.train import Result, Run, bits_per_byte, evaluate, train

SMALL = dataclasses.replace(
    tiny(), vocab_size=37, dim=24, n_layers=2, inter_dim=20, n_heads=2, q_lora_rank=10, kv_lora_rank=12,
    qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=8, moe_inter_dim=8, n_routed_experts=8, n_activated_experts=3,
    max_seq_len=32, original_seq_len=32,
)  # fmt: skip
SHORT = TrainConfig(steps=12, batch_size=3, seq_len=11, warmup_steps=2, save_seconds=10**9)


class Rows:
    """Batches of counting sequences from a seed and a position: the stand-in for the corpus."""

    def __init__(self, seq_len: int = 11, vocab: int = 37):
        self.seq_len, self.vocab, self.at = seq_len, vocab, 0

    def batch(self, batch_size: int) -> torch.Tensor:
        gen = torch.Generator().manual_seed(1000 + self.at)
        self.at += 1
        start = torch.randint(self.vocab, (batch_size, 1), generator=gen)
        stride = torch.randint(1, 4, (batch_size, 1), generator=gen)
        return (start + stride * torch.arange(self.seq_len + 1)) % self.vocab

    def state_dict(self) -> dict:
        return {"at": self.at}

    def load_state_dict(self, state: dict) -> None:
        self.at = state["at"]


class Clock:
    """Seconds that pass only when told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def fit(cfg: TrainConfig = SHORT, out: Path | None = None, model: Config = SMALL, **kwargs):
    return train(model, cfg, out, data=kwargs.pop("data", Rows(cfg.seq_len)), progress=False, **kwargs)


@cache
def whole() -> Result:
    """The run of SHORT that nothing stopped."""
    return fit()


def same_weights(a: Transformer, b: Transformer) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_training_learns_to_count():
    history = fit(dataclasses.replace(SHORT, steps=40, lr=1e-2)).history
    # an untrained model guesses nearly uniformly: logits of deviation s = 0.045 sqrt(128) add about s^2 / 2 to ln W
    assert history[0]["main"] == pytest.approx(math.log(37) + 0.045**2 * 128 / 2, abs=0.1)
    assert history[-1]["main"] < 0.6 * history[0]["main"]


def test_history_tells_rates_tokens_and_balance_of_every_layer():
    result = whole()
    assert [r["step"] for r in result.history] == list(range(1, 13))
    assert [r["tokens"] for r in result.history] == [33 * s for s in range(1, 13)]
    assert [r["lr"] for r in result.history] == [SHORT.schedule.at(s, (s - 1) / 12) for s in range(1, 13)]
    assert all(len(r["max_vio"]) == 2 for r in result.history)  # one MoE layer and the MTP module
    json.dumps(result.history)


def test_loss_is_main_plus_lambda_mtp_plus_alpha_balance_and_lambda_falls_with_the_rate():
    history = fit(dataclasses.replace(SHORT, balance_alpha=0.05)).history
    for r in history:
        lam = 0.3 if (r["step"] - 1) / 12 < 10 / 14.8 else 0.1
        assert r["loss"] == pytest.approx(r["main"] + lam * r["mtp"] + 0.05 * r["balance"], rel=1e-5)


def test_one_step_is_clipped_adamw_then_the_bias_moves_against_the_load():
    cfg = dataclasses.replace(SHORT, grad_clip=0.01, gamma=0.25, steps=1)
    run = Run(SMALL, cfg, Rows(), torch.device("cpu"), Clock())
    want = Transformer(SMALL, torch.Generator().manual_seed(cfg.seed))
    losses = want.losses(Rows().batch(3))
    (losses.main + 0.3 * losses.mtp + 1e-4 * losses.balance).backward()
    norm = torch.stack([p.grad.norm() for p in want.parameters()]).norm()
    record = run.advance()
    assert record["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    lr = cfg.schedule.at(1, 0.0)
    w, g = want.head.weight.detach(), want.head.weight.grad * (0.01 / norm)
    # the first step of Adam moves every weight by lr against the gradient's sign (as far as eps lets it), after decay
    torch.testing.assert_close(run.model.head.weight.detach(), w * (1 - 0.1 * lr) - lr * g / (g.abs() + 1e-8))
    for gate, load in zip(run.model.gates(), losses.load.float(), strict=True):
        torch.testing.assert_close(gate.bias, 0.25 * torch.sign(load.mean() - load))


def test_bias_stands_still_after_gamma_off():
    late = dataclasses.replace(SHORT, gamma_off=10 / 14.8)
    run = Run(SMALL, late, Rows(), torch.device("cpu"), Clock())
    seen = []
    while not run.done:
        run.advance()
        seen.append(torch.cat([g.bias for g in run.model.gates()]).clone())
    moved = [not torch.equal(a, b) for a, b in pairwise(seen)]
    assert moved == [s / 12 < 10 / 14.8 for s in range(1, 12)]


@pytest.mark.parametrize("micro", [1, 2])
def test_micro_batches_give_the_whole_batchs_gradients_and_load(micro):
    tokens = Rows().batch(5)
    runs = [
        Run(SMALL, dataclasses.replace(SHORT, micro_batch=m), Rows(), torch.device("cpu"), Clock()) for m in (0, micro)
    ]
    (record, load), (record2, load2) = (run.backward(tokens, 0.3) for run in runs)
    assert torch.equal(load, load2)
    assert record2 == pytest.approx(record, rel=1e-5)
    for p, q in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-7)


def test_batch_ramp_grows_the_batch_by_tokens_seen():
    cfg = dataclasses.replace(SHORT, batch_start=2, batch_size=6, ramp_tokens=33 * 5, micro_batch=4)
    history = fit(cfg).history
    sizes = [(b["tokens"] - a["tokens"]) // 11 for a, b in zip([{"tokens": 0}, *history], history, strict=False)]
    assert sizes[0] == 2 and sizes[-1] == 6 and sizes == sorted(sizes) and len(set(sizes)) > 2


def test_average_is_kept_and_differs_from_the_weights():
    result = whole()
    assert result.ema is not None and not same_weights(result.ema, result.model)
    assert fit(dataclasses.replace(SHORT, ema_decay=0.0)).ema is None


def test_fp8_training_follows_fp32_closely_but_not_to_the_bit():
    rounded = train(SMALL, dataclasses.replace(SHORT, precision="fp8"), data=Rows(), progress=False)
    assert any(isinstance(m, Fp8Linear) for m in rounded.model.modules())
    losses = [[h["loss"] for h in run.history] for run in (rounded, whole())]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_dense_model_trains_without_gates():
    dense = dataclasses.replace(SMALL, n_dense_layers=2, n_mtp_modules=0, n_routed_experts=0)
    history = fit(model=dense).history
    assert history[-1]["main"] < history[0]["main"] and history[-1]["max_vio"] == []
    assert history[-1]["loss"] == history[-1]["main"]


# the course's corpus

WORDS = dataclasses.replace(SMALL, vocab_size=2048)
SUMS = dataclasses.replace(SHORT, weights={"maths": 1.0}, save_every=3)


def test_a_run_on_the_corpus_keeps_its_tokenizer_and_goes_on_with_the_same_bits(tmp_path):
    whole = train(WORDS, SUMS, progress=False)
    with pytest.raises(Killed):
        train(WORDS, SUMS, tmp_path, progress=False, on_step=kill_at(8))
    resumed = train(WORDS, SUMS, tmp_path, progress=False)
    assert same_weights(whole.model, resumed.model)
    model, tokenizer = checkpoint.load_model(tmp_path)
    assert same_weights(model, whole.model) and tokenizer.to_str() == default_tokenizer().to_str()


def test_a_run_with_another_tokenizer_is_refused_and_untouched(tmp_path):
    train(WORDS, dataclasses.replace(SUMS, steps=1), tmp_path, progress=False)
    before = files(tmp_path)
    other = Tokenizer.train(["one two three four " * 9], 270)
    with pytest.raises(ValueError, match="another tokenizer"):
        train(WORDS, dataclasses.replace(SUMS, steps=1), tmp_path, other, progress=False)
    assert files(tmp_path) == before


def test_bits_per_byte_is_minus_log2_of_the_probability_of_each_byte():
    model, tokenizer = Transformer(WORDS, torch.Generator().manual_seed(2)), default_tokenizer()
    rows, n_bytes = eval_rows("maths", tokenizer, 13, 10)
    bits = 0.0
    with torch.no_grad():
        for row in rows:
            p = model(row[None, :-1])[0].double().softmax(-1)
            bits -= sum(math.log2(p[i, t]) for i, t in enumerate(row[1:].tolist()))
    assert n_bytes == sum(len(tokenizer.token_bytes(t)) for row in rows for t in row[1:].tolist())
    assert bits_per_byte(model, rows, n_bytes) == pytest.approx(bits / n_bytes, rel=1e-5)
    assert model.training  # as it was


def test_evaluation_tells_each_domain_and_changes_nothing():
    result = train(WORDS, dataclasses.replace(SUMS, steps=5, eval_every=3, eval_rows=4), progress=False)
    told = {r["step"]: r["bits_per_byte"] for r in result.history if "bits_per_byte" in r}
    assert list(told) == [3, 5]  # and always at the end
    assert told[5] == evaluate(result.model, default_tokenizer(), 11, 4, ["maths"])
    assert same_weights(result.model, train(WORDS, dataclasses.replace(SUMS, steps=5), progress=False).model)


def test_evaluation_is_not_charged_to_the_time(monkeypatch):
    clock = Clock()
    run = Run(WORDS, dataclasses.replace(SUMS, eval_every=2), Rows(), torch.device("cpu"), clock, default_tokenizer())

    def slow():
        clock.now += 50.0
        return {"maths": 1.0}

    monkeypatch.setattr(run, "evaluate", slow)
    for _ in range(5):
        clock.now += 1.0
        run.advance()
    assert clock.now == 105.0 and run.elapsed == 5.0


def test_the_bar_shows_loss_balance_and_speed(capsys):
    train(SMALL, SHORT, data=Rows())
    line = capsys.readouterr().err
    assert re.search(r"12/12 .*loss \d\.\d{3}, MaxVio \d\.\d\d, [\d,]+ tokens/s", line)


# budgets


def test_a_run_by_minutes_is_a_run_by_steps_to_the_bit():
    clock, speed = Clock(), iter([3.0, 1.0, 1.0, 2.0] * 99)

    def tick(record):
        clock.now += next(speed)

    timed = fit(dataclasses.replace(SHORT, steps=0, minutes=1), clock=clock, on_step=tick)
    assert timed.finished and 30 <= timed.total_steps <= 40  # 60 s at 1.75 s a step
    counted = fit(dataclasses.replace(SHORT, steps=timed.total_steps))
    assert same_weights(timed.model, counted.model)
    assert [r["lr"] for r in timed.history] == [r["lr"] for r in counted.history]


def test_plan_fixes_the_smallest_total_that_changes_no_step_done():
    for fix_at in (10 / 14.8, 0.5, 0.9):
        for done in range(1, 60):
            plan = Plan(0, 100.0, fix_at)
            assert not plan.fix(done, 99.9 * fix_at) and plan.share(done) == 0.0
            assert plan.fix(done, 100.0 * fix_at)
            assert plan.share(done - 1) < fix_at  # the last step done was still in the constant phase
            assert (plan.total - 1) * fix_at < done


def test_a_run_needs_one_budget():
    for budget in ({}, {"steps": 3, "minutes": 1}, {"steps": -1}):
        with pytest.raises(ValueError, match="limited by steps or by minutes"):
            TrainConfig(**budget)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "batch_size and seq_len are at least 1"),
        ({"batch_start": 9, "ramp_tokens": 5}, "the batch grows from batch_start"),
        ({"ramp_tokens": 5}, "the batch grows from batch_start"),
        ({"gamma_off": 0.2}, "gamma_off comes after decay_start"),
        ({"export": "best"}, "'best'"),
        ({"export": "ema", "ema_decay": 0.0}, "with ema_decay > 0"),
        ({"decay_end": 0.1}, "follow one another"),
        ({"precision": "fp4"}, "'fp4'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SHORT, **fields)


# going on


class Killed(BaseException):
    """Stands for a process that ends between two steps."""


def kill_at(step: int):
    def on_step(record):
        if record["step"] == step:
            raise Killed

    return on_step


@pytest.mark.parametrize("how", [{}, {"moments": "bf16"}, {"precision": "fp8"}], ids=str)
def test_a_resumed_run_has_the_same_bits_as_one_never_stopped(tmp_path, how):
    cfg = dataclasses.replace(SHORT, save_every=2, **how)
    whole = fit(cfg)
    for stop in (1, 5, 8):  # before any checkpoint, between two, at one that was not yet written
        with pytest.raises(Killed):
            fit(cfg, tmp_path / "run", on_step=kill_at(stop))
    resumed = fit(cfg, tmp_path / "run")
    assert same_weights(whole.model, resumed.model) and same_weights(whole.ema, resumed.ema)
    timeless = [{k: v for k, v in r.items() if not k.startswith(("seconds", "tokens_per"))} for r in resumed.history]
    assert timeless == [{k: r[k] for k in t} for r, t in zip(whole.history, timeless, strict=True)]
    exported, _ = checkpoint.load_model(tmp_path / "run")
    assert same_weights(exported, whole.model)


def test_a_timed_run_keeps_its_plan_and_its_time_when_resumed(tmp_path):
    clock, cfg = Clock(), dataclasses.replace(SHORT, steps=0, minutes=1, save_every=1)

    def go_on(until: int, seconds: float):
        def tick(record):
            clock.now += seconds
            if record["step"] == until:
                raise Killed

        return fit(cfg, tmp_path / "run", clock=clock, on_step=tick)

    for until in (3, 9, 14):
        with pytest.raises(Killed):
            go_on(until, 4.0)
        clock.now += 1000.0  # time between processes is not training
    # 4 s a step: after 10 / 14.8 of a minute 12 steps were begun; so there are 12 / (10 / 14.8) in all
    result = go_on(99, 1.0)
    assert result.finished and result.total_steps == 18
    assert same_weights(result.model, fit(dataclasses.replace(SHORT, steps=18)).model)


def test_the_step_that_fixes_the_plan_is_saved(tmp_path):
    clock = Clock()

    def tick(record):
        clock.now += 4.0
        if record["step"] == 14:
            raise Killed

    with pytest.raises(Killed):
        fit(dataclasses.replace(SHORT, steps=0, minutes=1), tmp_path, clock=clock, on_step=tick)
    _, state = checkpoint.load(checkpoint.latest(tmp_path))
    assert state["step"] == 12 and state["total_steps"] == 18


def test_a_finished_run_is_returned_as_it_is(tmp_path):
    first, steps = fit(out=tmp_path / "run"), []
    again = fit(out=tmp_path / "run", on_step=steps.append)
    assert again.finished and not steps and same_weights(first.model, again.model)


def files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("model", "cfg", "message"),
    [
        (dataclasses.replace(SMALL, n_heads=4), SHORT, "another model: n_heads is 2 there and 4 here"),
        (SMALL, dataclasses.replace(SHORT, lr=0.5), r"trained otherwise: lr is 0\.003 there and 0\.5 here"),
        (SMALL, dataclasses.replace(SHORT, mtp_lambda=(0.3, 0.2)), "trained otherwise: mtp_lambda is"),
    ],
)
def test_a_directory_of_another_run_is_refused_and_untouched(tmp_path, model, cfg, message):
    fit(out=tmp_path / "run")
    before = files(tmp_path)
    with pytest.raises(ValueError, match=message):
        fit(cfg, tmp_path / "run", model)
    assert files(tmp_path) == before


def test_other_peoples_directories_are_refused_and_untouched(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("hello", encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds other things \(dear\.txt\)"):
        fit(out=tmp_path / "letters")
    checkpoint.save_model(tmp_path / "model", Transformer(SMALL))
    for out, resume, message in [("model", True, "already holds a model"), ("run", False, "already holds a run")]:
        if out == "run":
            fit(out=tmp_path / "run")
        before = files(tmp_path)
        with pytest.raises(ValueError, match=message):
            fit(out=tmp_path / out, resume=resume)
        assert files(tmp_path) == before


def test_settings_that_do_not_touch_the_weights_may_change(tmp_path):
    with pytest.raises(Killed):
        fit(dataclasses.replace(SHORT, save_every=2), tmp_path / "run", on_step=kill_at(5))
    result = fit(dataclasses.replace(SHORT, save_every=3, keep=4), tmp_path / "run")
    assert same_weights(result.model, whole().model)


def test_a_directory_whose_making_was_interrupted_is_made_anew(tmp_path):
    (tmp_path / "train.json").write_text("{", encoding="utf-8")
    (tmp_path / "config.json.tmp").write_text("{", encoding="utf-8")
    assert fit(out=tmp_path).finished and not list(tmp_path.glob("*.tmp"))


def test_ctrl_c_finishes_the_step_saves_and_tells_how_to_go_on(tmp_path, capsys):
    before = signal.getsignal(signal.SIGINT)

    def press(record):
        if record["step"] == 4:
            signal.raise_signal(signal.SIGINT)

    stopped = fit(out=tmp_path / "run", on_step=press)
    assert not stopped.finished and stopped.step == 4
    assert "Stopped after step 4" in (said := capsys.readouterr().out) and "same command again" in said
    assert signal.getsignal(signal.SIGINT) is before
    assert same_weights(fit(out=tmp_path / "run").model, whole().model)


def test_a_second_ctrl_c_stops_at_once_and_leaves_the_last_checkpoint(tmp_path):
    def press(record):
        if record["step"] == 5:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(dataclasses.replace(SHORT, save_every=2), tmp_path / "run", on_step=press)
    assert [p.name for p in checkpoint.checkpoints(tmp_path / "run")] == ["step-00000002", "step-00000004"]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_divergence_stops_the_run_before_weights_move(monkeypatch, what):
    run = Run(SMALL, SHORT, Rows(), torch.device("cpu"), Clock())
    run.advance()
    if what == "loss":
        run.model.head.weight.data[0, 0] = math.inf
    else:
        run.model.embed.weight.register_hook(lambda g: g * math.nan)
    before = [p.clone() for p in run.model.parameters()]
    with pytest.raises(FloatingPointError, match="in step 2: training has diverged"):
        run.advance()
    assert all(torch.equal(p, q) for p, q in zip(run.model.parameters(), before, strict=True))


def test_a_full_disk_stops_the_run_with_its_last_checkpoint_whole(tmp_path, monkeypatch):
    cfg = dataclasses.replace(SHORT, save_every=2)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill(record):
        if record["step"] == 5:
            monkeypatch.setattr(checkpoint.os, "fsync", full)

    with pytest.raises(OSError, match=r"step-00000006 .*step-00000004, is whole.*start the same command again"):
        fit(cfg, tmp_path, on_step=fill)
    monkeypatch.undo()
    assert same_weights(fit(cfg, tmp_path).model, fit(cfg).model)


def test_training_works_in_a_thread_that_hears_no_signals():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(fit).result().finished


def step_by_step(cfg: TrainConfig, out: Path, told: Connection) -> None:
    """In a process of its own: tell of each step, and go on when the parent has answered."""
    torch.set_num_threads(1)

    def tell(record):
        told.send(record["step"])
        told.recv()

    fit(cfg, out, on_step=tell)


@pytest.mark.slow
def test_a_run_killed_by_sigkill_while_it_saves_always_goes_on_with_the_same_bits(tmp_path):
    cfg, out, context = (
        dataclasses.replace(SHORT, steps=20, save_every=1),
        tmp_path / "run",
        get_context(start_method()),
    )
    for _ in range(3):
        told, tell = context.Pipe()
        child = context.Process(target=step_by_step, args=(cfg, out, tell))
        child.start()
        for _ in range(5):  # five steps, then the kill falls into the writing of a checkpoint
            assert told.poll(60)
            told.recv()
            told.send("go on")
        child.kill()  # SIGKILL where there are signals
        child.join()
        assert len(checkpoint.checkpoints(out)) >= 1
    assert not (out / "model.safetensors").exists()
    assert same_weights(fit(cfg, out).model, fit(cfg).model)
