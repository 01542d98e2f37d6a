"""R1-Zero where the thinking has no fixed length: does a policy that is paid for right answers learn to go on?

Paper: DeepSeek-R1 (arXiv 2501.12948) section 2.2 and its figures of accuracy and length, which rise together.

    7x+3=4%    0:3-;1:0-;2:7-;3:4+    a try: a digit, its value, and + if that is the value asked for, else -
                                      in order, after 9 comes 0 again; the policy may stop after any of them

The cold start teaches the *form* and not the policy: each demonstration makes and checks tries without a mistake, and
stops at a random place (after every try with probability `STOP`), whether or not one fitted; its answer is the last
try, or now and then a guess. So a cold policy is right in about one of ten responses, as by chance. Then GRPO with the
accuracy reward alone. A policy that goes on until a try fits, and answers with it, is always right, and thinks for as
long as the problem needs; the demonstrations never show that as a rule.

    hit     stopped at the first try that fits          past    went on after a try that fitted
    early   stopped, and no try had fitted              other   thinking that is no list of tries

Length by itself proves nothing. `talkative` pays for form and length and never looks at the answer (`--warning`);
`longer_without_better` looks in a table of held-out measurements for thinking that grew while accuracy did not.

Differs from the paper: the cold start, which R1-Zero does not need, since its base has read the web; one kind of task.
Left out: tries and checks that the policy invents. What RL can change is when to stop, and what to answer.
Notebook: 14_grpo names the command, `minids zero`.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from minids import tasks
from minids.alphabet import Alphabet
from minids.config import policy
from minids.model import Transformer
from minids.rl import Reward, RLConfig, RLRun, measure, train_rl
from minids.sft import Pair, cold_start, demonstrations
from minids.tasks import Problem, accuracy, respond, thinking_of, well_formed

STOP, GUESS, MOST = 0.4, 0.2, 14  # of a demonstration: stops after a try, answers by a guess; tries at most
STOPS = ("hit", "early", "past", "other")
_TRIAL = re.compile(r"(\d)x\+(\d)=(\d)%")
_TRIES = re.compile(r"\d:\d[-+](;\d:\d[-+])*")

# --- demonstrations that teach the form


def wandering(source: Iterator[Problem], seed: int = 0) -> Iterator[Pair]:
    """Each problem of `tasks.trial` with right tries that end at a random place, regardless of a hit."""
    rng = random.Random(f"wandering {seed}")
    for problem in source:
        tries = 1
        while tries < MOST and rng.random() > STOP:
            tries += 1
        answer = rng.randrange(10) if rng.random() < GUESS else (tries - 1) % 10
        yield problem.prompt, respond(listed(problem, tries), str(answer))


def listed(problem: Problem, tries: int) -> str:
    """The first `tries` tries of a problem, each with its value and its check."""
    k, c, r = asked(problem)
    values = [(k * n + c) % 10 for n in range(tries)]
    return ";".join(f"{n % 10}:{v}{'+' if v == r else '-'}" for n, v in enumerate(values))


def asked(problem: Problem) -> tuple[int, int, int]:
    """(k, c, r) of kx + c = r modulo 10. ValueError for a problem of another task."""
    match = _TRIAL.fullmatch(problem.prompt)
    if match is None:
        raise ValueError(f"tries answer a problem of tasks.trial, such as 7x+3=4%; got {problem.prompt!r}.")
    return int(match[1]), int(match[2]), int(match[3])


# --- what a response did


def tries_of(response: str) -> list[tuple[int, int]] | None:
    """The tries (digit, value written for it) of a response's thinking; None where it is no list of tries."""
    thinking = thinking_of(response)
    if not thinking:
        return []
    return [(int(t[0]), int(t[2])) for t in thinking.split(";")] if _TRIES.fullmatch(thinking) else None


def faultless(problem: Problem, response: str) -> float:
    """1 where the response has its tags and at least one try, and every try its place, value and check; else 0."""
    thinking = thinking_of(response)
    return well_formed(response) * (thinking == listed(problem, thinking.count(";") + 1))


def stop_of(problem: Problem, response: str) -> str:
    """Where the thinking stopped: one of `STOPS` for a trial; direct or worked for any other task.

    A try fits where the value *written* is the one asked for: that is what the policy can see.
    """
    if problem.task != "trial":
        return "worked" if thinking_of(response) else "direct"
    wanted, tries = asked(problem)[2], tries_of(response)
    if tries is None:
        return "other"
    fits = [value == wanted for _, value in tries]
    if not any(fits):
        return "early"
    return "hit" if fits.index(True) == len(fits) - 1 else "past"


def talkative(problem: Problem, response: str) -> float:
    """The warning's reward: half a point for the tags, one a hundred symbols of thinking. The answer is not read."""
    return well_formed(response) * (0.5 + len(thinking_of(response)) / 100)


# --- the run


@dataclass(frozen=True)
class ZeroConfig:
    """How to run: `minutes` of processor time in all, cold start included, or so many `steps` of reinforcement.

    `every` steps the policy is measured on held-out problems. Raises ValueError, with rule, value and remedy.
    """

    task: str = "trial"
    minutes: float = 8.0
    steps: int = 0
    seed: int = 0
    warning: bool = False
    every: int = 5
    samples: int = 16  # of each held-out problem
    questions: int = 32
    group: int = 16
    lr: float = 5e-4

    def __post_init__(self):
        if self.task not in tasks.TASKS:
            raise ValueError(f"a task is one of {', '.join(tasks.TASKS)}; got {self.task!r}. trial is open-ended.")
        if self.minutes <= 0 or self.steps < 0 or self.every < 1:
            raise ValueError(
                f"a run takes some minutes, or some steps, and is measured every few; got {self.minutes}, "
                f"{self.steps} and {self.every}. 8 minutes are enough for trial."
            )


class ZeroRun:
    """A cold start and its reinforcement. `rows` are the measurements on held-out problems, the cold start's first."""

    def __init__(self, cfg: ZeroConfig, alphabet: Alphabet | None = None):
        self.cfg, self.alphabet = cfg, alphabet or Alphabet()
        self.task, self.is_trial = tasks.TASKS[cfg.task], cfg.task == "trial"
        self.width, self.new = self._sizes()
        model = Transformer(policy(len(self.alphabet)), torch.Generator().manual_seed(cfg.seed))
        reward: Reward = talkative if cfg.warning else accuracy
        rl = RLConfig(steps=cfg.steps or 10**6, questions=cfg.questions, group=cfg.group, max_new=self.new,
                      width=self.width, lr=cfg.lr, decay=False, seed=cfg.seed)  # fmt: skip
        problems = tasks.problems(self.task, "train", 1000 + cfg.seed)
        self.rl = RLRun(model, problems, reward, self.alphabet, rl)

    def _sizes(self) -> tuple[int, int]:
        """Tokens of a prompt and of a response, at most."""
        seen = tasks.take(self.task, 500)
        longest = [";".join(["0:0-"] * MOST)] if self.is_trial else [p.steps for p in seen]
        n = max(len(self.alphabet.encode(respond(s, p.answer))) for s, p in zip(longest, seen, strict=False))
        return max(len(self.alphabet.encode(p.prompt)) for p in seen), n + 2

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [r["held_out"] for r in self.rl.history if "held_out" in r]

    @property
    def seconds(self) -> float:
        """Processor time of the cold start and all steps."""
        return sum(r["seconds"] for r in self.rl.history)

    @property
    def finished(self) -> bool:
        return self.rl.step == self.rl.cfg.steps or (not self.cfg.steps and self.seconds >= 60 * self.cfg.minutes)

    def pairs(self) -> Iterator[Pair]:
        """The demonstrations of the cold start, of training problems."""
        source = tasks.problems(self.task, "train", self.cfg.seed)
        return wandering(source, self.cfg.seed) if self.is_trial else demonstrations(source, 0.5, self.cfg.seed)

    def cold_start(self, progress: bool = True) -> None:
        """Imitate until the form is learned: 90 % of the lists without a fault, or a fifth solved for another task."""
        begin, dice = time.process_time(), iter(range(10**6))
        problems = tasks.take(self.task, 256, "train", 7)
        judged, until, goal = (faultless, 0.9, "without a fault") if self.is_trial else (accuracy, 0.2, "solved")

        def share() -> float:
            texts = self.sample(problems, 1, next(dice))
            return sum(judged(p, row[0]) for p, row in zip(problems, texts, strict=True)) / len(problems)

        cold_start(self.rl.model, self.pairs(), self.alphabet, share, until, width=self.width,
                   progress=progress, goal=goal)  # fmt: skip
        row = self.look(0)
        settings = {"task": self.cfg.task, "warning": self.cfg.warning}
        self.rl.history = [{"step": 0, "seconds": time.process_time() - begin, "held_out": row, **settings}]

    def sample(self, problems: Sequence[Problem], samples: int, seed: int = 0) -> list[list[str]]:
        return measure(self.rl.model, problems, self.alphabet, samples, self.new, self.width, seed=seed).texts

    def look(self, step: int) -> dict[str, Any]:
        """Measure on held-out problems, sampled at temperature 1: accuracy, tokens of thinking, shares of stops."""
        problems = list({p.prompt: p for p in tasks.take(self.task, 200, "test", 7)}.values())[:64]
        judged = [(p, t) for p, row in zip(problems, self.sample(problems, self.cfg.samples), strict=True) for t in row]
        n, stops = len(judged), Counter(stop_of(p, t) for p, t in judged)
        kinds = STOPS if self.is_trial else ("worked", "direct")
        return {
            "step": step, "accuracy": sum(accuracy(p, t) for p, t in judged) / n,
            "thinking": sum(len(self.alphabet.encode(thinking_of(t))) for _, t in judged) / n,
            **{kind: stops[kind] / n for kind in kinds},
        }  # fmt: skip

    def resume(self, out: str | Path) -> bool:
        """Take up the last checkpoint of `out`. ValueError where it is of another task or reward."""
        if not self.rl.resume(out):
            return False
        for name in ("task", "warning"):
            here, there = asdict(self.cfg)[name], self.rl.history[0].get(name)
            if here != there:
                raise ValueError(f"{out} holds a run with {name} {there}; got {here}. Give another directory.")
        return True


def train_zero(run: ZeroRun, out: str | Path | None = None, progress: bool = True,
               on_row: Callable[[dict[str, Any]], Any] | None = None) -> list[dict[str, Any]]:  # fmt: skip
    """A run to its end, from the last checkpoint in `out` if there is one. Returns its rows.

    Ctrl-C in the reinforcement finishes the step, saves and returns. The cold start is saved when it is over.
    """
    if not run.rl.history and (out is None or not run.resume(out)):
        run.cold_start(progress=progress)
        if out is not None:
            run.rl.save(out)
    for row in run.rows:
        if on_row:
            on_row(row)

    def watch(record: dict[str, Any]) -> None:
        if record["step"] % run.cfg.every == 0:
            begin = time.process_time()
            record["held_out"] = run.look(record["step"]) | {"entropy": record["entropy"]}
            record["seconds"] += time.process_time() - begin
            if on_row:
                on_row(record["held_out"])

    seconds = 0.0 if run.cfg.steps else 60 * run.cfg.minutes
    train_rl(run.rl, out, progress=progress, on_step=watch, seconds=seconds)
    return run.rows


def longer_without_better(rows: Sequence[dict[str, Any]], window: int = 4, grew: float = 1.25,
                          gained: float = 0.05) -> str:  # fmt: skip
    """A warning where over the last `window` rows thinking grew `grew` times and accuracy by less than `gained`.

    An empty text where that is not so, or there are fewer rows.
    """
    if len(rows) < window:
        return ""
    first, last = rows[-window], rows[-1]
    if last["thinking"] < grew * first["thinking"] or last["accuracy"] - first["accuracy"] >= gained:
        return ""
    return (
        f"longer without better: from step {first['step']} to {last['step']} thinking grew from "
        f"{first['thinking']:.1f} to {last['thinking']:.1f} tokens, accuracy went from {first['accuracy']:.3f} to "
        f"{last['accuracy']:.3f}. Look at what the reward pays for."
    )


def line(row: dict[str, Any] | Sequence[str]) -> str:
    """A row of the table, in markdown; from names, its head."""
    if not isinstance(row, dict):
        return f"| {' | '.join(row)} |\n|{'---|' * len(row)}"
    values = [row["step"], *(v for k, v in row.items() if k not in ("step", "entropy")), row.get("entropy")]
    return f"| {' | '.join('' if v is None else str(v) if isinstance(v, int) else f'{v:.3f}' for v in values)} |"
