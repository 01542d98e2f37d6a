"""Reinforcement learning with verifiable rewards: sample, check, compare within the group, take a step.

Paper: DeepSeek-R1 (arXiv 2501.12948) section 2.2 (R1-Zero) and its supplement's hyper-parameters: 32 questions x 16
outputs a step, one inner epoch over 16 minibatches, reference replaced every 400 steps; DeepSeekMath algorithm 1.

    one step   32 problems -> 16 rollouts each -> rewards by rules -> advantages -> minibatches of policy_loss -> AdamW

A run is resumable to the bit: `RLRun.save` keeps weights, moments, reference, random states and the history.

Differs from the paper: a learning rate for a model of 0.3 M parameters; by default no KL (beta 0), as TRL's default.
Left out: asynchronous rollouts, several processes.
Notebook: 14_grpo, 15_r1.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from minids import checkpoint
from minids.alphabet import END_THINK, THINK, Alphabet
from minids.grpo import AVERAGES, advantages, informative, log_probs, policy_loss
from minids.model import Transformer
from minids.optim import make_optimizer
from minids.rollout import Rollout, rollout
from minids.tasks import Problem, accuracy, answer_of, thinking_of
from minids.train import patient_ctrl_c

BAR = "{percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} {unit} [{elapsed}<{remaining}{postfix}]"
Reward = Callable[[Problem, str], float]


@dataclass(frozen=True)
class RLConfig:
    """How to reinforce. `max_new` and `width` in tokens; rates as in `policy_loss`.

    Raises ValueError, with the rule, the value and the remedy.
    """

    steps: int = 60
    questions: int = 32
    group: int = 16
    max_new: int = 40
    width: int = 12
    lr: float = 5e-4
    warmup_steps: int = 5
    decay: bool = True  # of lr, linear to a tenth
    minibatches: int = 4
    clip: float = 0.2
    beta: float = 0.0
    ref_every: int = 0  # steps after which the reference becomes the policy; 0: never
    average: str = "dapo"
    scale: str = "group"
    temperature: float = 1.0
    grad_clip: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if min(self.steps, self.questions, self.minibatches) < 1 or self.group < 2:
            raise ValueError(
                "steps, questions and minibatches are at least 1, and a group compares at least 2 responses; got "
                f"{self.steps}, {self.questions}, {self.minibatches}, group={self.group}. R1 has 32 questions x 16."
            )
        if self.average not in AVERAGES:
            raise ValueError(f"average is one of {', '.join(AVERAGES)}; got {self.average!r}. R1's formula is grpo.")

    def rate(self, step: int) -> float:
        """The learning rate of the step after `step` steps."""
        falling = 1 - 0.9 * step / self.steps if self.decay else 1.0
        return self.lr * falling * min(1.0, (step + 1) / self.warmup_steps)


class RLRun:
    """All that reinforcement changes. `advance` is one step; `history` has a record of each."""

    def __init__(self, model: Transformer, problems: Iterator[Problem], reward: Reward, alphabet: Alphabet,
                 cfg: RLConfig):  # fmt: skip
        self.model, self.problems, self.reward, self.alphabet, self.cfg = model, problems, reward, alphabet, cfg
        self.reference = deepcopy(model).requires_grad_(False) if cfg.beta else None
        self.optimizer = make_optimizer(model, cfg.lr, weight_decay=0.0, betas=(0.9, 0.95))
        self.dice = torch.Generator().manual_seed(cfg.seed)
        self.step, self.taken = 0, 0
        self.history: list[dict[str, Any]] = []

    def advance(self) -> dict[str, Any]:
        """Sample, reward, update. Returns the step's record."""
        begin, cfg = time.process_time(), self.cfg
        asked = [next(self.problems) for _ in range(cfg.questions)]
        self.taken += len(asked)
        out = self.sample(asked)
        texts = [self.alphabet.decode(row) for row in out.responses()]
        rewards = torch.tensor(self.pay(list(_each(asked, cfg.group)), texts)).view(cfg.questions, cfg.group)
        sampled = time.process_time()
        record = self.update(out, rewards)
        if cfg.ref_every and self.reference is not None and (self.step + 1) % cfg.ref_every == 0:
            self.reference.load_state_dict(self.model.state_dict())
        self.step += 1
        thoughts = [len(self.alphabet.encode(thinking_of(text))) for text in texts]
        record |= {
            "step": self.step, "reward": rewards.mean().item(), "entropy": out.entropy,
            "accuracy": sum(map(accuracy, _each(asked, cfg.group), texts)) / len(texts),
            "length": out.lengths.float().mean().item(), "thinking": sum(thoughts) / len(texts),
            "worked": sum(n > 0 for n in thoughts) / len(texts), "cut": 1 - out.finished.float().mean().item(),
            "sampling_seconds": sampled - begin, "seconds": time.process_time() - begin,
        }  # fmt: skip
        self.history.append(record)
        return record

    def sample(self, asked: Sequence[Problem]) -> Rollout:
        """A group of responses for each problem."""
        prompts = self.alphabet.encode_prompts([p.prompt for p in asked], self.cfg.width)
        a, cfg = self.alphabet, self.cfg
        return rollout(self.model, prompts, cfg.group, cfg.max_new, a.eos, a.pad, cfg.temperature, self.dice)

    def pay(self, asked: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        """The reward of each response. Another class may judge all of them at once (15_r1's reward model)."""
        return [self.reward(problem, text) for problem, text in zip(asked, texts, strict=True)]

    def update(self, out: Rollout, rewards: Float[Tensor, "P G"]) -> dict[str, float]:
        """One epoch of minibatches over the rows whose group has a signal."""
        cfg = self.cfg
        useful = informative(rewards).repeat_interleave(cfg.group)
        record = {"informative": useful.float().mean().item(), "loss": 0.0, "clipped": 0.0, "kl": 0.0}
        if not useful.any():
            return record
        A = advantages(rewards, cfg.scale).flatten()
        chosen = useful.nonzero().flatten()
        parts = chosen[torch.randperm(len(chosen), generator=self.dice)].chunk(cfg.minibatches)
        for group in self.optimizer.param_groups:
            group["lr"] = cfg.rate(self.step)
        divisor = {"dr_grpo": float(cfg.max_new), "dapo": out.mask[chosen].sum().item() / len(parts)}
        for part in parts:
            loss, clipped, kl = self._loss(out, part, A[part], divisor.get(cfg.average, 0.0))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), cfg.grad_clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            for name, value in (("loss", loss.item()), ("clipped", clipped), ("kl", kl)):
                record[name] += value / len(parts)
        return record

    def _loss(self, out: Rollout, part: Tensor, A: Tensor, divisor: float):
        cfg, n = self.cfg, int(out.lengths[part].max())  # columns after the longest response hold nothing
        L = out.mask.shape[1]
        tokens = out.tokens[part, : out.tokens.shape[1] - L + n]
        logp = log_probs(self.model, tokens, n)
        ref_logp = None
        if self.reference is not None:
            with torch.no_grad():
                ref_logp = log_probs(self.reference, tokens, n)
        old, mask = out.logp[part, :n], out.mask[part, :n]
        return policy_loss(logp, old, A, mask, cfg.clip, cfg.beta, ref_logp, cfg.average, divisor)

    # --- what is saved

    def save(self, directory: str | Path) -> Path:
        """A checkpoint of everything that the next step reads."""
        tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        if self.reference is not None:
            tensors |= {f"reference.{name}": t for name, t in self.reference.state_dict().items()}
        for name, p in self.model.named_parameters():
            tensors |= {f"optim.{key}.{name}": t for key, t in self.optimizer.state.get(p, {}).items()}
        tensors["rng.dice"] = self.dice.get_state()
        state = {"rl": asdict(self.cfg), "model": asdict(self.model.cfg), "step": self.step, "taken": self.taken,
                 "history": self.history}  # fmt: skip
        return checkpoint.save(directory, self.step, tensors, state)

    def resume(self, directory: str | Path) -> bool:
        """Take up the last checkpoint of `directory`, if there is one. ValueError where it comes from another run."""
        path = checkpoint.latest(directory)
        if path is None:
            return False
        tensors, state = checkpoint.load(path, {"rl": asdict(self.cfg), "model": asdict(self.model.cfg)})
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "reference": {}, "optim": {}, "rng": {}}
        for name, t in tensors.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = t
        self.model.load_state_dict(parts["model"])
        if self.reference is not None:
            self.reference.load_state_dict(parts["reference"])
        named = dict(self.model.named_parameters())
        for name, t in parts["optim"].items():
            key, parameter = name.split(".", 1)
            self.optimizer.state[named[parameter]][key] = t
        self.dice.set_state(parts["rng"]["dice"])
        for _ in range(state["taken"] - self.taken):
            next(self.problems)
        self.step, self.taken, self.history = state["step"], state["taken"], state["history"]
        return True


def _each(asked: Sequence[Problem], group: int) -> Iterator[Problem]:
    return (p for p in asked for _ in range(group))


def train_rl(
    run: RLRun,
    out: str | Path | None = None,
    save_every: int = 10,
    progress: bool = True,
    on_step: Callable[[dict[str, Any]], Any] | None = None,
    seconds: float = 0.0,
) -> list[dict[str, Any]]:
    """Advance a run to its last step, from the last checkpoint in `out` if there is one. Returns its history.

    `seconds` of processor time, if given, end it before: those of all records of the history, resumed ones included.
    Ctrl-C finishes the step, saves and returns; a second one stops at once.
    """
    if out is not None:
        run.resume(out)

    def done() -> float:
        return sum(r["seconds"] for r in run.history) if seconds else run.step

    whole, unit = (seconds, "s") if seconds else (run.cfg.steps, "step")
    with (
        patient_ctrl_c() as pressed,
        tqdm(total=whole, initial=done(), unit=unit, disable=not progress, bar_format=BAR) as bar,
    ):
        while run.step < run.cfg.steps and done() < whole and not pressed:
            record = run.advance()
            if on_step:
                on_step(record)
            bar.set_postfix_str(
                f"reward {record['reward']:.2f}, thinking {record['thinking']:.0f} tokens, "
                f"entropy {record['entropy']:.2f}, KL {record['kl']:.3f}",
                refresh=False,
            )
            bar.update(done() - bar.n)
            over = run.step == run.cfg.steps or done() >= whole
            if out is not None and (run.step % save_every == 0 or over or pressed):
                run.save(out)
    if pressed and run.step < run.cfg.steps and done() < whole:
        where = f"saved in {out}; start the same run again to go on" if out else "not saved: it had no directory"
        print(f"\nStopped after step {run.step}, {where}.")
    return run.history


# --- measuring


class Score(NamedTuple):
    """`right` [P K]: whether each of K samples of each of P problems was right; and what the samples looked like."""

    right: Tensor
    answers: list[list[str | None]]
    length: float
    worked: float
    texts: list[list[str]]

    @property
    def accuracy(self) -> float:
        """pass@1 by sampling: the mean over all samples."""
        return self.right.float().mean().item()

    def pass_at(self, k: int) -> float:
        """The unbiased estimate of pass@k, 1 - C(n - c, k) / C(n, k) (arXiv 2107.03374 eq. 1), mean over problems."""
        n, c = self.right.shape[1], self.right.sum(1)
        if not 1 <= k <= n:
            raise ValueError(f"pass@k needs k between 1 and the {n} samples a problem; got {k}.")
        i = torch.arange(k)
        # 1 - prod_i (n - c - i) / (n - i)
        return 1 - ((n - c[:, None] - i).clamp(min=0) / (n - i)).prod(1).mean().item()

    def votes(self, problems: Sequence[Problem], k: int) -> float:
        """cons@k: the share of problems whose most frequent answer among the first k samples is right."""
        return sum(
            bool(right[row.index(best)])
            for row, right in zip(self.answers, self.right.tolist(), strict=True)
            if (best := majority(row[:k])) is not None
        ) / len(problems)


def majority(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer, the earliest of equally frequent ones; None where nothing parsed."""
    counted = Counter(a for a in answers if a is not None)
    return counted.most_common(1)[0][0] if counted else None


def measure(model: Transformer, problems: Sequence[Problem], alphabet: Alphabet, samples: int = 1, max_new: int = 40,
            width: int = 12, temperature: float = 1.0, seed: int = 0) -> Score:  # fmt: skip
    """`samples` responses for each problem, judged."""
    prompts = alphabet.encode_prompts([p.prompt for p in problems], width)
    dice = torch.Generator().manual_seed(seed)
    out = rollout(model, prompts, samples, max_new, alphabet.eos, alphabet.pad, temperature, dice)
    texts = [alphabet.decode(row) for row in out.responses()]
    by_problem = [texts[i : i + samples] for i in range(0, len(texts), samples)]
    right = torch.tensor([[accuracy(p, t) > 0 for t in row] for p, row in zip(problems, by_problem, strict=True)])
    answers = [[answer_of(t) for t in row] for row in by_problem]
    worked = sum(THINK + END_THINK not in t for t in texts) / len(texts)
    return Score(right, answers, out.lengths.float().mean().item(), worked, by_problem)
