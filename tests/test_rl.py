"""A run of reinforcement learning: it learns what is paid, resumes to the bit, and its measures are what they say."""

from __future__ import annotations

import signal
from itertools import combinations
from pathlib import Path

import pytest
import torch

from minids import tasks
from minids.alphabet import Alphabet
from minids.config import policy
from minids.model import Transformer
from minids.rl import RLConfig, RLRun, Score, majority, measure, train_rl
from minids.tasks import Problem

alphabet = Alphabet()
SMALL = {"steps": 4, "questions": 3, "group": 4, "max_new": 6, "minibatches": 2}


def start(cfg: RLConfig, reward=None, seed: int = 0) -> RLRun:
    model = Transformer(policy(len(alphabet)), torch.Generator().manual_seed(seed))
    return RLRun(model, tasks.problems(tasks.addition), reward or starts_small, alphabet, cfg)


def starts_small(problem: Problem, response: str) -> float:
    """Pays for a first symbol from the first half of the alphabet: about every second random response."""
    ids = alphabet.encode(response)
    return float(bool(ids) and ids[0] < len(alphabet) // 2)


def same(a: RLRun, b: RLRun) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    )


def test_what_is_paid_becomes_likelier_and_what_is_not_paid_does_not() -> None:
    cfg = RLConfig(**SMALL | {"steps": 12, "questions": 8, "group": 8, "lr": 5e-3})  # type: ignore[arg-type]
    paid, unpaid = start(cfg), start(cfg, lambda p, t: 0.5)
    before = [p.clone() for p in unpaid.model.parameters()]
    history = train_rl(paid, progress=False)
    assert history[0]["reward"] < 0.6 < 0.8 < history[-1]["reward"]
    train_rl(unpaid, progress=False)
    assert all(torch.equal(p, q) for p, q in zip(before, unpaid.model.parameters(), strict=True))
    assert unpaid.history[-1]["informative"] == 0


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path, beta: float) -> None:
    cfg = RLConfig(**SMALL, beta=beta, ref_every=2)  # type: ignore[arg-type]
    whole = start(cfg)
    train_rl(whole, progress=False)
    stopped = start(cfg)
    for _ in range(3):
        stopped.advance()
        stopped.save(tmp_path)
    stopped.advance()  # not saved: lost
    again = start(cfg, seed=1)
    train_rl(again, tmp_path, progress=False)
    assert again.step == 4 and same(whole, again) and not same(whole, start(cfg))
    strip = [{k: v for k, v in r.items() if "seconds" not in k} for r in again.history]
    assert strip == [{k: v for k, v in r.items() if "seconds" not in k} for r in whole.history]


def test_ctrl_c_finishes_the_step_and_saves_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = start(RLConfig(**SMALL))  # type: ignore[arg-type]

    def press(record: dict) -> None:
        if record["step"] == 3:
            signal.raise_signal(signal.SIGINT)

    train_rl(run, tmp_path, save_every=2, progress=False, on_step=press)
    assert "Stopped after step 3, saved in" in capsys.readouterr().out
    again = start(RLConfig(**SMALL), seed=1)  # type: ignore[arg-type]
    assert again.resume(tmp_path) and again.step == 3 and same(run, again)


def test_another_run_s_checkpoint_is_refused(tmp_path: Path) -> None:
    run = start(RLConfig(**SMALL))  # type: ignore[arg-type]
    run.save(tmp_path)
    with pytest.raises(ValueError, match=r"lr is 0\.0005 there and 0\.1 here"):
        start(RLConfig(**SMALL, lr=0.1)).resume(tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"group": 1}, {"questions": 0}, {"average": "mean"}])
def test_a_config_without_a_meaning_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="got"):
        RLConfig(**wrong)


def test_the_kl_to_a_frozen_reference_grows_and_holds_the_policy_back() -> None:
    def drift(beta: float) -> float:
        cfg = RLConfig(**SMALL | {"steps": 8, "questions": 8, "group": 8, "lr": 2e-3, "beta": beta})  # type: ignore[arg-type]
        return train_rl(start(cfg), progress=False)[-1]["kl"]

    assert 0 < drift(2.0) < drift(1e-9)


RIGHT = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
ANSWERS = [["3", "4", "5", "3", None], ["1", "2", "2", None, None], ["9"] * 5]


def test_pass_at_k_is_the_mean_over_all_ways_to_choose_k_samples() -> None:
    score = Score(RIGHT, ANSWERS, 0.0, 0.0, [])
    for k in range(1, 6):
        ways = list(combinations(range(5), k))
        want = sum(any(row[i] for i in way) for row in RIGHT.tolist() for way in ways) / len(ways) / 3
        assert score.pass_at(k) == pytest.approx(want)
    assert score.pass_at(1) == pytest.approx(score.accuracy)
    with pytest.raises(ValueError, match="between 1 and the 5 samples"):
        score.pass_at(6)


def test_votes_take_the_most_frequent_answer_and_the_earliest_of_equals() -> None:
    score = Score(RIGHT, ANSWERS, 0.0, 0.0, [])
    problems = [Problem("addition", "", a, "") for a in ("3", "7", "9")]
    assert score.votes(problems, 5) == pytest.approx(2 / 3)
    assert majority(["4", "3", "3", "4"]) == "4" and majority([None, None]) is None and majority([None, "1"]) == "1"


def test_measuring_counts_samples_by_problem() -> None:
    model = Transformer(policy(len(alphabet)), torch.Generator().manual_seed(0))
    problems = tasks.take(tasks.addition, 3, "test")
    score = measure(model, problems, alphabet, samples=4, max_new=5)
    assert score.right.shape == (3, 4) and [len(row) for row in score.texts] == [4, 4, 4]
    assert score.length <= 5 and score.accuracy == 0
