"""DeepSeek-R1's whole recipe at the size of a laptop: six stages, one table.

Paper: DeepSeek-R1 (arXiv 2501.12948) section 2.3 and its supplement.

    cold start             imitate worked and direct answers, words of two languages mixed         2.3.1
    reasoning RL           GRPO, accuracy + language share, added                                  2.3.2
    rejection sampling     sample that policy, keep what is right and readable                     2.3.3
    SFT on the mixture     start again from the *cold* model: kept samples and other data, 3 to 1  2.3.3
    reward model           a reader's choices between two of its responses                         2.3.4
    final RL               the rules again, temperature 0.7 ..                                     2.3.4
    .. with preferences    .. and, in the last quarter, open prompts that the reward model scores

A stage is a row of `RECIPE`: what it does and its share of the time. `R1Run.advance` is one step of the current stage;
its time is processor time, so a busy machine changes nothing. A run is saved with all that its next step reads, and the
same command goes on with it. After each stage the policy is examined on held-out problems (`examine`).

Differs from the paper: base and cold start are one model here, so the SFT restarts from the cold start (R1: from
V3-Base); the problems are sums; the clip is 0.2 (R1: 10) and beta 0 (R1: 0.001).
Left out: the safety reward model, format rewards apart from the accuracy's parser, generated judgements as a reward.
Notebook: 15_r1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minids import checkpoint, tasks
from minids.alphabet import CHINESE, ENGLISH, Alphabet
from minids.config import Config, policy
from minids.language_mixing import EXAMS, first_demonstrations, mixture, rule_reward, sft_mixture
from minids.model import Transformer
from minids.r1_stages import NEW, WIDTH, Imitation, JudgedRun, Rejection, go_on, with_open, work_state
from minids.reward_model import Preferences, RewardModel, counting, liking, sample
from minids.rl import BAR, RLConfig, Score, measure
from minids.sft import Pair
from minids.tasks import Problem, thinking_of, words_of
from minids.train import patient_ctrl_c

# --- the examination


@dataclass
class Exam:
    """A row of the table: shares, but `thinking` in tokens, `liking` in the reader's points, `score` in the model's."""

    stage: str
    solved: dict[str, float]
    thinking: float
    language: float
    liking: float
    score: float | None = None
    seconds: float = 0.0
    note: str = ""


def examine(model: Transformer, alphabet: Alphabet, stage: str = "", n: int = 128, samples: int = 4,
            judge: RewardModel | None = None) -> Exam:  # fmt: skip
    """Sampled at temperature 1: pass@1 on `n` held-out problems a task, their thinking, the spoken ones' language."""
    solved, thoughts = {}, []
    language = 0.0
    for name, task in EXAMS.items():
        problems = tasks.take(task, n, "test", 7)
        score = measure(model, problems, alphabet, samples, NEW, WIDTH)
        solved[name] = score.accuracy
        thoughts += [len(alphabet.encode(thinking_of(t))) for row in score.texts for t in row]
        if name == "spoken":
            language = spoken_share(problems, score)
    asked = [p for _, p in zip(range(64), counting(), strict=False)]
    texts = sample(model, asked, alphabet, WIDTH, 4, NEW, torch.Generator().manual_seed(0))
    open_pairs = [(p, t) for p, row in zip(asked, texts, strict=True) for t in row]
    paid = None
    if judge is not None:
        with torch.no_grad():
            paid = judge.score([(p.prompt, t) for p, t in open_pairs]).mean().item()
    liked = sum(liking(p, t) for p, t in open_pairs) / len(open_pairs)
    return Exam(stage, solved, sum(thoughts) / len(thoughts), language, liked, paid)


def spoken_share(problems: Sequence[Problem], score: Score) -> float:
    """Words of the language asked for / all words, over the thinking of all samples; 0 where nobody thinks in words."""
    right = total = 0
    for problem, row in zip(problems, score.texts, strict=True):
        words = [w for t in row for w in words_of(thinking_of(t))]
        right += sum(w in (ENGLISH if problem.language == "en" else CHINESE) for w in words)
        total += len(words)
    return right / total if total else 0.0


# --- the run


@dataclass(frozen=True)
class Stage:
    """A stage of the recipe: what kind of work, and its share of the time."""

    name: str
    kind: str  # imitate, reinforce, sample or prefer
    share: float


RECIPE = (
    Stage("cold start", "imitate", 0.17),
    Stage("reasoning RL", "reinforce", 0.30),
    Stage("rejection sampling", "sample", 0.05),
    Stage("SFT on the mixture", "imitate", 0.16),
    Stage("reward model", "prefer", 0.05),
    Stage("final RL", "reinforce", 0.17),
    Stage("final RL with preferences", "reinforce", 0.05),
)
EXAMINED = ("imitate", "reinforce")  # kinds of stages after which the policy is another one


@dataclass(frozen=True)
class R1Config:
    """How the recipe is run: `minutes` of processor time in all, or so many `steps` of every stage.

    Raises ValueError, with the rule, the value and the remedy.
    """

    minutes: float = 8.0
    seed: int = 0
    steps: int = 0
    lr: float = 5e-4  # of reinforcement
    temperature: float = 0.7  # of the final reinforcement
    questions: int = 32  # a step of reinforcement; four times as many to sample from, and as pairs for the reader
    group: int = 16

    def __post_init__(self):
        if self.minutes <= 0 or self.steps < 0:
            raise ValueError(
                f"a run takes some minutes, or some steps a stage; got {self.minutes} and {self.steps}. "
                "8 minutes are enough for all stages."
            )


class R1Run:
    """All that the recipe changes. `advance` is one step of the current stage; `table` has a row an examination."""

    def __init__(self, cfg: R1Config, alphabet: Alphabet | None = None, model: Config | None = None):
        self.cfg, self.alphabet = cfg, alphabet or Alphabet()
        self.sizes = model or policy(len(self.alphabet))
        self.policy = Transformer(self.sizes, torch.Generator().manual_seed(cfg.seed))
        self.cold = deepcopy(self.policy)  # what the second SFT starts from
        self.judge: RewardModel | None = None
        self.kept: list[Pair] = []
        self.table: list[Exam] = []
        self.history: list[dict[str, Any]] = []
        self.stage, self.spent, self.total, self.steps = 0, 0.0, 0.0, 0
        self.work = self._begin()

    @property
    def finished(self) -> bool:
        return self.stage == len(RECIPE)

    @property
    def done(self) -> float:
        """The share of the current stage that is over."""
        if self.cfg.steps:
            return self.work.step / self.cfg.steps
        return self.spent / (60 * self.cfg.minutes * RECIPE[self.stage].share)

    def advance(self) -> dict[str, Any]:
        """One step; where it ends its stage, the examination and the beginning of the next one."""
        begin, stage = time.process_time(), RECIPE[self.stage]
        work = self.work
        record = work.advance(self.done) if isinstance(work, Imitation) else work.advance()
        self.steps += 1
        self.history.append({"stage": stage.name, **record})
        self._tick(begin)
        if self.done >= 1:
            begin = time.process_time()
            self._end(stage)
            self.stage, before = self.stage + 1, self.spent
            if not self.finished:
                self.work = self._begin()
            self._tick(begin)
            if stage.kind in EXAMINED:
                self.table[-1].seconds = before
            self.spent = 0.0
        return self.history[-1]

    def _tick(self, begin: float) -> None:
        spent = time.process_time() - begin
        self.spent += spent
        self.total += spent

    # --- the stages

    def _begin(self) -> Any:
        """The work of the current stage, at its start."""
        stage, seed, a = RECIPE[self.stage], self.cfg.seed, self.alphabet
        if stage.name == "cold start":
            return Imitation(self.policy, first_demonstrations(seed), a, 4e-3, falls=False)
        if stage.kind == "sample":
            return Rejection(self.policy, mixture(seed + 2000), a, seed, questions=4 * self.cfg.questions)
        if stage.kind == "imitate":
            self.policy = deepcopy(self.cold)
            return Imitation(self.policy, sft_mixture(self.kept, seed), a, 2e-3, falls=True)
        if stage.kind == "prefer":
            return Preferences(self.policy, a, WIDTH, pairs=4 * self.cfg.questions, max_new=NEW, seed=seed)
        heat = self.cfg.temperature if "final" in stage.name else 1.0
        rl = RLConfig(steps=10**6, questions=self.cfg.questions, group=self.cfg.group, max_new=NEW, width=WIDTH,
                      lr=self.cfg.lr, decay=False, temperature=heat, seed=seed + self.stage)  # fmt: skip
        opened = "preferences" in stage.name
        problems = with_open(mixture(seed + 1000 * self.stage), 0.5 * opened, seed)
        return JudgedRun(self.policy, problems, rule_reward, a, rl, self.judge)

    def _end(self, stage: Stage) -> None:
        """Take over what the stage made, and examine."""
        if stage.name == "cold start":
            self.cold = deepcopy(self.policy)
        if stage.kind == "sample":
            self.kept = self.work.kept
        if stage.kind == "prefer":
            self.judge = self.work.model.requires_grad_(False)
        if stage.kind in EXAMINED:
            self.table.append(examine(self.policy, self.alphabet, stage.name, judge=self.judge))

    # --- what is saved

    def save(self, directory: str | Path) -> Path:
        """A checkpoint of everything that the next step reads."""
        tensors = {f"{part}.{name}": t for part, module in self._modules().items()
                   for name, t in module.state_dict().items()}  # fmt: skip
        if not self.finished:
            tensors |= work_state(self.work)
        state = {
            "r1": asdict(self.cfg), "model": asdict(self.sizes), "stage": self.stage, "spent": self.spent,
            "total": self.total, "steps": self.steps, "kept": self.kept, "history": self.history,
            "table": [asdict(row) for row in self.table],
            "work": {} if self.finished else {"step": self.work.step, "kept": getattr(self.work, "kept", [])},
        }  # fmt: skip
        return checkpoint.save(directory, self.steps, tensors, state)

    def _modules(self) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {"policy": self.policy, "cold": self.cold}
        if self.judge is not None:
            found["judge"] = self.judge
        if not self.finished and RECIPE[self.stage].kind == "prefer":
            found["learner"] = self.work.model
        return found

    def resume(self, directory: str | Path) -> bool:
        """Take up the last checkpoint of `directory`, if there is one. ValueError where it comes from another run."""
        path = checkpoint.latest(directory)
        if path is None:
            return False
        tensors, state = checkpoint.load(path, {"r1": asdict(self.cfg), "model": asdict(self.sizes)})
        parts: dict[str, dict[str, Tensor]] = {}
        for name, t in tensors.items():
            part, rest = name.split(".", 1)
            parts.setdefault(part, {})[rest] = t
        self.stage, self.spent, self.total = state["stage"], state["spent"], state["total"]
        self.steps, self.history = state["steps"], state["history"]
        self.kept = [(prompt, response) for prompt, response in state["kept"]]
        self.table = [Exam(**row) for row in state["table"]]
        self.cold.load_state_dict(parts["cold"])
        self.policy.load_state_dict(parts["policy"])
        if "judge" in parts:
            self.judge = RewardModel(self.policy, self.alphabet, WIDTH).requires_grad_(False)
            self.judge.load_state_dict(parts["judge"])
        if not self.finished:
            self.work = self._begin()
            self.policy.load_state_dict(parts["policy"])  # a second SFT has begun with the cold start's
            if "learner" in parts:
                self.work.model.load_state_dict(parts["learner"])
            go_on(self.work, state["work"], parts)
        return True


def train_r1(run: R1Run, out: str | Path | None = None, save_every: float = 30.0, progress: bool = True,
             on_exam: Callable[[R1Run], Any] | None = None) -> R1Run:  # fmt: skip
    """Advance a run to its end, from the last checkpoint in `out` if there is one.

    `save_every` in seconds of processor time. Ctrl-C finishes the step, saves and returns; a second one stops at once.
    """
    if out is not None:
        run.resume(out)
    saved, whole = run.total, run.cfg.steps * len(RECIPE) or 60 * run.cfg.minutes
    with patient_ctrl_c() as pressed, tqdm(total=whole, unit="step" if run.cfg.steps else "s", disable=not progress,
                                           bar_format=BAR) as bar:  # fmt: skip
        while not run.finished and not pressed:
            rows = len(run.table)
            record = run.advance()
            bar.set_postfix_str(said(record), refresh=False)
            bar.update((run.steps if run.cfg.steps else run.total) - bar.n)
            if on_exam and len(run.table) > rows:
                on_exam(run)
            if out is not None and (run.total - saved > save_every or run.finished or pressed):
                run.save(out)
                saved = run.total
    if pressed and not run.finished:
        where = f"saved in {out}; start the same command again to go on" if out else "not saved: it had no directory"
        print(f"\nStopped in the stage {RECIPE[run.stage].name!r} after {run.total:.0f} s, {where}.")
    return run


def said(record: dict[str, Any]) -> str:
    """A step's record in a few words."""
    words = ("reward", "accuracy", "thinking", "loss", "kept", "agrees")
    values = [f"{w} {record[w]:.2f}" if isinstance(record[w], float) else f"{w} {record[w]}"
              for w in words if w in record]  # fmt: skip
    return f"{record['stage']}: {', '.join(values[:3])}"


def table(rows: Sequence[Exam]) -> str:
    """The examinations as a table in markdown."""
    names = list(rows[0].solved) if rows else list(EXAMS)
    head = ["stage", *(f"pass@1 {n}" for n in names), "thinking", "language", "liking", "judged", "seconds"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        judged = "" if row.score is None else f"{row.score:.2f}"
        lines.append([row.stage, *(f"{v:.3f}" for v in row.solved.values()), f"{row.thinking:.1f}",
                      f"{row.language:.2f}", f"{row.liking:.2f}", judged, f"{row.seconds:.0f}"])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
