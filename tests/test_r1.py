"""R1's recipe: rewards pay what they say, nothing held out is trained on, a stopped run goes on to the same bits."""

from __future__ import annotations

import math
import random
import signal
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
import torch

from minids import checkpoint, tasks
from minids.alphabet import CHINESE, ENGLISH, Alphabet
from minids.cli import main
from minids.config import policy
from minids.costs import params
from minids.distill import blank_student, distilled, quarter, reinforced
from minids.language_mixing import (
    EXAMS,
    first_demonstrations,
    language_reward,
    mixed,
    mixture,
    readable,
    rule_reward,
    sft_mixture,
)
from minids.model import Transformer
from minids.r1 import RECIPE, R1Config, R1Run, examine, table, train_r1
from minids.r1_stages import NEW, WIDTH, JudgedRun, Rejection, spend, with_open
from minids.reward_model import (
    Preferences,
    RewardModel,
    bradley_terry,
    count,
    counted,
    counting,
    liking,
    summary,
    takes_first,
)
from minids.rl import RLConfig
from minids.tasks import Problem, judging, respond
from minids.verdicts import best_judged, by_judgement, verdicts

alphabet = Alphabet()
SMALL = replace(policy(len(alphabet)), dim=16, inter_dim=24, moe_inter_dim=8, n_layers=2)
SUM = Problem("spoken", "en:64+17=", "081", "fourplusseven=one;sixplusonecarry=eight;zero", language="en")


FEW = {"questions": 3, "group": 4}


def small(seed: int = 0) -> Transformer:
    return Transformer(SMALL, torch.Generator().manual_seed(seed))


def short_exam(model, alphabet, stage, judge=None):
    return examine(model, alphabet, stage, n=2, samples=1, judge=judge)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Responses of 7 tokens and small examinations: what a run does in every stage, in a second."""
    monkeypatch.setattr("minids.r1.NEW", 7)
    monkeypatch.setattr("minids.r1_stages.NEW", 7)
    monkeypatch.setattr("minids.r1.examine", short_exam)


# --- what is held out


def prompts_of(problem: Problem) -> str:
    """The sum itself: neither the language asked for nor a proposed answer."""
    return problem.prompt.removeprefix(f"{problem.language}:").partition("=")[0]


def test_no_sum_of_an_examination_is_in_any_training_set_in_either_language_or_as_something_to_judge() -> None:
    examined = {prompts_of(p) for task in EXAMS.values() for p in tasks.take(task, 300, "test", 7)}
    trained = {prompts_of(p) for seed in (0, 1000, 2000) for p in islice(mixture(seed), 4000)}
    assert len(examined) > 300 and len(trained) > 4000 and not examined & trained
    shown = {p.split(":")[-1].partition("=")[0] for p, _ in islice(first_demonstrations(3), 4000)}
    assert len(shown) > 2000 and not examined & shown


@pytest.mark.usefixtures("short")
def test_the_stages_train_on_the_train_split_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    encode = Alphabet.encode_prompts

    def noting(self: Alphabet, prompts: list[str], width: int = 0) -> torch.Tensor:
        seen.extend(prompts)
        return encode(self, prompts, width)

    monkeypatch.setattr(Alphabet, "encode_prompts", noting)
    monkeypatch.setattr("minids.r1.examine", lambda *a, **k: examine(small(), alphabet, "none", n=1, samples=1))
    train_r1(R1Run(R1Config(steps=1, **FEW), alphabet, SMALL), progress=False)
    held = {p.prompt for name in EXAMS for p in tasks.take(EXAMS[name], 1, "test", 7)}  # what `examine` itself asks
    sums = [p for p in seen if not p.endswith("?") or "=" in p]
    problems = [Problem("judge" if p.endswith("?") else "spoken", p, "", "", language=p[:2] if ":" in p else "")
                for p in sums if p not in held]  # fmt: skip
    assert len(problems) > 60 and not any(map(tasks.held_out, problems))


# --- languages


def test_mixing_changes_words_and_nothing_else_and_half_of_them() -> None:
    rng, changed, words = random.Random(0), 0, 0
    translate = dict(zip(ENGLISH + CHINESE, CHINESE + ENGLISH, strict=True))
    for problem in tasks.take(tasks.spoken, 200):
        got = mixed(problem.steps, rng)
        before, after = tasks.words_of(problem.steps), tasks.words_of(got)
        assert all(a in (b, translate[b]) for a, b in zip(after, before, strict=True))
        changed, words = changed + sum(a != b for a, b in zip(after, before, strict=True)), words + len(before)
        assert mixed(problem.steps, rng, 0.0) == problem.steps
        assert mixed(mixed(problem.steps, rng, 1.0), rng, 1.0) == problem.steps
    assert 0.45 < changed / words < 0.55


SAID = [("sixplus三=nine;zero", 4 / 5), ("六加三=九;零", 0.0), ("sixplusthree", 1.0), ("", 0.0), ("6+3=9", 0.0)]


@pytest.mark.parametrize(("thinking", "share"), SAID)
def test_the_language_reward_is_a_share_of_words_and_nothing_for_no_words(thinking: str, share: float) -> None:
    right, wrong = respond(thinking, "081"), respond(thinking, "080")
    assert language_reward(SUM, right) == language_reward(SUM, wrong) == pytest.approx(share)
    assert rule_reward(SUM, right) == pytest.approx(1 + share) and rule_reward(SUM, wrong) == pytest.approx(share)
    assert language_reward(replace(SUM, language=""), right) == 0


def test_the_language_reward_counts_words_not_letters_and_only_those_of_the_thinking() -> None:
    assert language_reward(SUM, respond("threecarry七八九", "081")) == 2 / 5  # 10 letters and 3
    assert language_reward(SUM, respond("one", "一二三")) == 1
    assert language_reward(replace(SUM, language="zh"), respond("三one四", "081")) == pytest.approx(2 / 3)


def test_only_right_readable_thought_out_samples_are_kept() -> None:
    kept = {
        respond("sixplusone=seven", "081"): True,
        respond("six加one=seven", "081"): False,  # mixed
        respond("sixplusone=seven", "082"): False,  # wrong
        respond("", "081"): False,  # not thought out
        respond("六加一=七", "081"): False,  # the other language
        "sixplusone<answer>081</answer>": False,  # no tags around the thinking
    }
    assert {text: readable(SUM, text) for text in kept} == kept
    digits = Problem("addition", "123+456=", "0579", "3609;2507;1405")
    assert readable(digits, digits.worked) and not readable(digits, digits.direct)


def test_rejection_keeps_what_the_filter_passes_each_text_once() -> None:
    run = Rejection(small(), mixture(), alphabet, 0, keep=lambda problem, text: "<" not in text)
    records = spend(run, steps=2)
    assert records[-1]["kept"] == len(run.kept) > 10 and all("<" not in text for _, text in run.kept)
    strict = Rejection(small(), mixture(), alphabet, 0)
    spend(strict, steps=1)
    assert strict.kept == []  # random weights


def test_the_mixture_has_a_quarter_of_other_data_and_every_kept_sample_once_an_epoch() -> None:
    kept = [(f"{i}+{i}=", respond("", str(2 * i))) for i in range(300)]
    drawn = list(islice(sft_mixture(kept), 8000))
    other = [p for p, _ in drawn if p.endswith("?")]
    assert 0.22 < len(other) / len(drawn) < 0.28
    rest = [pair for pair in drawn if not pair[0].endswith("?")]
    assert sorted(rest[:300]) == sorted(kept) and rest[:300] != rest[300:600]
    assert all(p.endswith("?") for p, _ in islice(sft_mixture([]), 20))


# --- the reader and the reward model


def test_the_reader_likes_the_next_numbers_in_his_language_and_has_enough_after_five() -> None:
    asked = Problem("count", "en:8?", "", "", language="en")

    def points(text: str) -> float:
        return liking(asked, respond("", text))

    row = ["nine", "zero", "one", "two", "three", "four", "five"]
    assert [points("".join(row[:n])) for n in range(8)] == [0, 1, 2, 3, 4, 5, 4, 3]
    assert points("nine零one") == 2 and points("zero") == 0 and points("ninenine") == points("ninefive") == 1
    assert points("".join([*row[:5], "plus", "六", "seven"])) == 2  # whatever comes after the fifth
    assert liking(asked, "nine") == 0  # no answer
    rng = random.Random(0)
    for problem in islice(counting(), 50):
        text = counted(problem, rng)
        assert 1 <= len(tasks.words_of(text)) <= 4 and liking(problem, text) <= 4
        assert alphabet.decode(alphabet.encode(text)) == text
    assert len({count(rng).prompt for _ in range(500)}) == 20


def test_the_reader_takes_the_liked_one_more_often_by_the_logistic_law() -> None:
    asked, rng = Problem("count", "en:8?", "", "", language="en"), random.Random(0)
    one, two = respond("", "ninezero"), respond("", "nine")  # 2 points and 1
    share = sum(takes_first(asked, one, two, rng) for _ in range(4000)) / 4000
    assert share == pytest.approx(1 / (1 + math.exp(-1)), abs=0.03)


def test_the_pairwise_loss_is_the_mean_surprise_at_the_choices() -> None:
    taken, other = torch.randn(7, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    slow = sum(-math.log(math.exp(a) / (math.exp(a) + math.exp(b))) for a, b in zip(taken, other, strict=True)) / 7
    assert bradley_terry(taken, other).item() == pytest.approx(slow)
    assert bradley_terry(taken + 5, other + 5).item() == pytest.approx(slow)  # the zero of scores means nothing
    assert bradley_terry(taken, taken).item() == pytest.approx(math.log(2))


def test_a_score_is_read_at_the_last_token_and_not_from_the_padding() -> None:
    model = RewardModel(small(), alphabet, WIDTH)
    torch.nn.init.normal_(model.value.weight)
    long, short = ("en:3?", respond("", "fourfivesixseven")), ("zh:12+3=", respond("", "四"))
    both = model.score([long, short])
    torch.testing.assert_close(both, torch.cat([model.score([long]), model.score([short])]), atol=1e-5, rtol=0)
    assert (both[0] - both[1]).abs() > 1e-3
    thought = (short[0], respond("三加四=七", "四"))
    torch.testing.assert_close(model.score([thought]), both[1:], atol=1e-5, rtol=0)  # the summary alone is judged
    assert summary("no tags") == respond("", "")


def test_a_reward_model_learns_whom_the_reader_takes() -> None:
    work = Preferences(small(), alphabet, WIDTH, lr=1e-2, pairs=64)
    work.choose = lambda asked: ([respond("", "one七")] * len(asked), [respond("", "七")] * len(asked))  # type: ignore[method-assign]
    records = spend(work, steps=12)
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=1e-5) and records[-1]["loss"] < 0.2
    assert records[-1]["agrees"] == 1


def test_the_choices_are_the_reader_s_between_two_samples_of_the_policy() -> None:
    asked = list(islice(counting(), 40))
    work = Preferences(small(), alphabet, WIDTH, max_new=9)
    chosen, other = work.choose(asked)
    first = sum(liking(p, t) for p, t in zip(asked, chosen, strict=True))
    assert len(chosen) == len(other) == 40 and chosen != other
    assert first >= sum(liking(p, t) for p, t in zip(asked, other, strict=True))
    assert Preferences(small(), alphabet, WIDTH, max_new=9).choose(asked) == (chosen, other)


def test_open_prompts_are_paid_by_the_model_and_sums_by_the_rules() -> None:
    judge = RewardModel(small(), alphabet, WIDTH)
    torch.nn.init.normal_(judge.value.weight)
    asked = [SUM, Problem("count", "en:8?", "", "", language="en"), SUM]
    texts = [SUM.worked, respond("", "ninezero"), SUM.direct]
    run = JudgedRun(small(), mixture(), rule_reward, alphabet, RLConfig(), judge)
    with torch.no_grad():
        want = judge.score([("en:8?", texts[1])]).item()
    assert run.pay(asked, texts) == pytest.approx([2.0, want, 1.0])
    assert [p.task == "count" for p in islice(with_open(mixture(), 1.0, 0), 3)] == [True] * 3
    assert not any(p.task == "count" for p in islice(with_open(mixture(), 0.0, 0), 50))


# --- verdicts and distillation


def test_the_judge_s_problems_are_right_half_of_the_time_and_say_so() -> None:
    asked = tasks.take(tasks.judge, 600)
    assert 0.4 < sum(p.answer == "1" for p in asked) / 600 < 0.6
    for p in asked:
        a, b, proposed = map(int, p.prompt[3:-1].replace("+", " ").replace("=", " ").split())
        assert p.answer == str(int(a + b == proposed))
    assert judging(SUM, "081").answer == "1" and judging(SUM, "082").answer == "0"
    assert judging(SUM, "082").prompt == "en:64+17=082?"


def test_the_best_judged_answer_has_the_largest_share_of_yes_and_ties_go_to_the_more_frequent() -> None:
    answers = ["070", "081", "081", "090"]
    yes, no, half = ["1", "1"], ["0", None], ["1", "0"]
    assert best_judged(answers, [half, yes, yes, no]) == "081"
    assert best_judged(answers, [yes, half, half, yes]) == "070"
    assert best_judged(answers, [yes, yes, yes, yes]) == "081"
    assert best_judged([], []) is None


def test_a_policy_judges_every_answer_that_can_be_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [len(row) for row in verdicts(small(), [SUM, SUM], ["081", "080"], alphabet, 3, WIDTH, 5)] == [3, 3]
    monkeypatch.setattr("minids.verdicts.sample", lambda model, asked, *rest: [[p.direct] * 2 for p in asked])
    answers = [["080", "080", "081", None, "12"], ["x", None], [None]]  # a perfect judge overrules the majority
    assert by_judgement(small(), [SUM] * 3, answers, alphabet, 2, WIDTH, 5) == ["081", "x", None]


def test_a_student_has_a_quarter_of_the_parameters_and_neither_arm_changes_the_one_that_is_given() -> None:
    ratio = params(policy(len(alphabet))).total / params(quarter(len(alphabet))).total
    assert ratio == pytest.approx(4, rel=0.03)
    student = blank_student(alphabet)
    before = [p.clone() for p in student.parameters()]
    for other in (distilled(student, [(SUM.prompt, SUM.worked)], alphabet, steps=2),
                  reinforced(student, alphabet, steps=2)):  # fmt: skip
        assert any(not torch.equal(p, q) for p, q in zip(other.parameters(), before, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(student.parameters(), before, strict=True))


# --- the run


def test_the_shares_of_the_stages_leave_time_to_examine() -> None:
    assert 0.9 < sum(stage.share for stage in RECIPE) < 1
    with pytest.raises(ValueError, match="some minutes, or some steps"):
        R1Config(minutes=0)


def same(a: R1Run, b: R1Run) -> bool:
    pairs = zip(a.policy.state_dict().values(), b.policy.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def without_times(records: list) -> list:
    return [{k: v for k, v in r.items() if "seconds" not in k} for r in records]


@cache
def never_stopped(cfg: R1Config) -> R1Run:
    return train_r1(R1Run(cfg, alphabet, SMALL), progress=False)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("every", [1, 4])
def test_a_run_that_is_stopped_everywhere_goes_on_to_the_same_bits(tmp_path: Path, every: int) -> None:
    cfg = R1Config(steps=2, **FEW)
    whole = never_stopped(cfg)
    assert whole.finished and [row.stage for row in whole.table] == [
        stage.name for stage in RECIPE if stage.kind in ("imitate", "reinforce")
    ]
    again = R1Run(cfg, alphabet, SMALL)
    while not again.finished:
        for _ in range(every):
            if not again.finished:
                again.advance()
        again.save(tmp_path)
        again = R1Run(cfg, alphabet, SMALL)
        assert again.resume(tmp_path)
    assert same(whole, again) and again.kept == whole.kept and again.steps == 2 * len(RECIPE)
    assert without_times(again.history) == without_times(whole.history)
    assert [row.solved for row in again.table] == [row.solved for row in whole.table]


@pytest.mark.usefixtures("short")
def test_the_second_fine_tuning_starts_from_the_cold_model_not_from_the_reinforced_one() -> None:
    run = R1Run(R1Config(steps=1, **FEW), alphabet, SMALL)
    while RECIPE[run.stage].name != "SFT on the mixture":
        run.advance()
    cold = zip(run.policy.state_dict().values(), run.cold.state_dict().values(), strict=True)
    assert run.policy is not run.cold and all(torch.equal(x, y) for x, y in cold)


@pytest.mark.usefixtures("short")
def test_ctrl_c_saves_and_another_run_s_checkpoint_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = R1Run(R1Config(steps=2, **FEW), alphabet, SMALL)
    train_r1(run, tmp_path, progress=False, on_exam=lambda r: signal.raise_signal(signal.SIGINT))
    assert "Stopped in the stage 'reasoning RL'" in capsys.readouterr().out
    again = R1Run(R1Config(steps=2, **FEW), alphabet, SMALL)
    assert again.resume(tmp_path) and again.steps == 2 and same(run, again)
    with pytest.raises(ValueError, match="seed is 0 there and 1 here"):
        R1Run(R1Config(steps=2, seed=1, **FEW), alphabet, SMALL).resume(tmp_path)


@pytest.mark.usefixtures("short")
def test_a_run_keeps_to_its_time() -> None:
    run = train_r1(R1Run(R1Config(minutes=0.02, **FEW), alphabet, SMALL), progress=False)
    assert run.finished and 1.0 < run.total < 7.2  # 1.2 s, and one step too many in each of seven stages
    assert len(table(run.table).splitlines()) == 2 + len(run.table)


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_the_command_runs_all_stages_prints_the_table_and_leaves_two_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["r1", "--steps", "1", "--out", str(tmp_path), "--quiet"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert all(stage.name in out for stage in RECIPE) and "pass@1 spoken" in out
    assert checkpoint.load_model(tmp_path / "final")[0].cfg == policy(len(alphabet))
    assert len((tmp_path / "table.jsonl").read_text(encoding="utf-8").splitlines()) == 5
    assert main(command) == 0  # nothing left to do
    assert main(["r1", "--minutes", "-1", "--out", str(tmp_path)]) == 2
    assert "8 minutes are enough" in capsys.readouterr().err


def test_thinking_stays_within_the_tokens_that_a_response_may_have() -> None:
    for problem in islice(mixture(5), 2000):
        assert len(alphabet.encode(problem.worked)) < NEW and len(alphabet.encode(problem.prompt)) <= WIDTH + 1
