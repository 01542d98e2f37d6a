"""The kinds of work that R1's recipe is made of: imitate, reinforce, sample and filter; each goes step by step.

Paper: DeepSeek-R1 (arXiv 2501.12948) section 2.3. `r1` strings them together; `reward_model.Preferences` is the fourth.

    Imitation   64 pairs a step: the cold start, and the SFT on the mixture
    JudgedRun   GRPO; open prompts are paid by a reward model, all others by the rules
    Rejection   128 problems x 4 samples a step, those that pass `readable` kept

Every work has `model`, `optimizer`, `step`, `problems` (of which a step takes `questions`) and `advance`: enough to
save it (`work_state`) and to go on (`go_on`) to the same bits.

Differs from the paper: sizes.
Left out: works that run at the same time.
Notebook: 15_r1.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from minids.alphabet import Alphabet
from minids.language_mixing import readable
from minids.model import Transformer
from minids.reward_model import RewardModel, counting, sample
from minids.rl import Reward, RLConfig, RLRun
from minids.sft import FineTuning, Pair
from minids.tasks import Problem

WIDTH, NEW = 12, 32  # tokens of a prompt and of a response, at most


class JudgedRun(RLRun):
    """Reinforcement in which open prompts are paid by a reward model, all others by the rules."""

    def __init__(self, model: Transformer, problems: Iterator[Problem], reward: Reward, alphabet: Alphabet,
                 cfg: RLConfig, judge: RewardModel | None = None):  # fmt: skip
        super().__init__(model, problems, reward, alphabet, cfg)
        self.judge, self.questions = judge, cfg.questions

    def pay(self, asked: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        paid = [0.0 if p.task == "count" else self.reward(p, t) for p, t in zip(asked, texts, strict=True)]
        opened = [i for i, p in enumerate(asked) if p.task == "count"]
        if opened and self.judge is not None:
            with torch.no_grad():
                scores = self.judge.score([(asked[i].prompt, texts[i]) for i in opened]).tolist()
            for i, score in zip(opened, scores, strict=True):
                paid[i] = score
        return paid


class Imitation:
    """Fine-tuning on a stream of pairs, a batch a step; the rate is constant or falls with the stage."""

    def __init__(self, model: Transformer, pairs: Iterator[Pair], alphabet: Alphabet, lr: float, falls: bool):
        self.tuning, self.problems, self.falls = FineTuning(model, alphabet, lr, WIDTH), pairs, falls
        self.model, self.optimizer, self.questions = model, self.tuning.optimizer, 64
        self.step = 0

    def advance(self, done: float = 0.0) -> dict[str, Any]:
        self.tuning.steps = self.step
        loss = self.tuning.step([next(self.problems) for _ in range(64)], 1 - done if self.falls else 1.0)
        self.step += 1
        return {"step": self.step, "loss": loss}


class Rejection:
    """Samples of a policy on training problems, those that pass a filter kept."""

    def __init__(self, model: Transformer, problems: Iterator[Problem], alphabet: Alphabet, seed: int,
                 questions: int = 128, keep: Callable[[Problem, str], bool] = readable):  # fmt: skip
        self.model, self.problems, self.alphabet, self.keep = model, problems, alphabet, keep
        self.optimizer, self.dice = None, torch.Generator().manual_seed(seed)
        self.questions, self.step, self.kept = questions, 0, []

    def advance(self, done: float = 0.0) -> dict[str, Any]:
        asked = [next(self.problems) for _ in range(self.questions)]
        texts = sample(self.model, asked, self.alphabet, WIDTH, 4, NEW, self.dice)
        for problem, row in zip(asked, texts, strict=True):
            self.kept += [(problem.prompt, text) for text in dict.fromkeys(row) if self.keep(problem, text)]
        self.step += 1
        return {"step": self.step, "kept": len(self.kept)}


def spend(work: Any, seconds: float = 0.0, steps: int = 0) -> list[dict[str, Any]]:
    """Advance a work for so many seconds of processor time, or so many steps. Returns the records of the steps."""
    begin, records = time.process_time(), []
    while (done := len(records) / steps if steps else (time.process_time() - begin) / seconds) < 1:
        records.append(work.advance(done) if isinstance(work, Imitation) else work.advance())
    return records


def with_open(source: Iterator[Problem], share: float, seed: int) -> Iterator[Problem]:
    """Problems, and open prompts with probability `share`."""
    rng, opened = random.Random(f"open {seed}"), counting()
    while True:
        yield next(opened) if rng.random() < share else next(source)


def work_state(work: Any) -> dict[str, Tensor]:
    """Moments by the parameter's name, and the state of the random numbers, where the work has them."""
    tensors: dict[str, Tensor] = {"rng.dice": work.dice.get_state()} if hasattr(work, "dice") else {}
    if work.optimizer is not None:
        for name, p in work.model.named_parameters():
            tensors |= {f"optim.{key}.{name}": t for key, t in work.optimizer.state.get(p, {}).items()}
    return tensors


def go_on(work: Any, state: dict[str, Any], parts: dict[str, dict[str, Tensor]]) -> None:
    """Put a fresh work where the saved one stood: moments, random numbers, problems already used."""
    named = dict(work.model.named_parameters())
    for name, t in parts.get("optim", {}).items():
        key, parameter = name.split(".", 1)
        work.optimizer.state[named[parameter]][key] = t
    if hasattr(work, "dice"):
        work.dice.set_state(parts["rng"]["dice"])
    work.step = state["step"]
    if isinstance(work, Rejection):
        work.kept = [(prompt, response) for prompt, response in state["kept"]]
    for _ in range(work.step * work.questions):
        next(work.problems)
