"""Distillation: a small student imitates a large policy's right answers; beside it, the same student's own RL.

Paper: DeepSeek-R1 (arXiv 2501.12948), distillation: SFT alone on the 800K samples, no RL; on a small model it beat RL
at scale.

    distilled    student <- SFT on the teacher's kept samples                                     all the time
    reinforced   student <- cold start on the same demonstrations as its teacher -> GRPO          share, 1 - share

Both arms get the same processor time. What the teacher cost is in neither.

Differs from the paper: sizes; R1's students were pretrained models, these start blank.
Left out: distilling probabilities instead of samples.
Notebook: 15_r1.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import torch

from minids.alphabet import Alphabet
from minids.config import Config, policy
from minids.language_mixing import first_demonstrations, mixture, rule_reward, sft_mixture
from minids.model import Transformer
from minids.r1_stages import NEW, WIDTH, Imitation, spend
from minids.rl import Reward, RLConfig, RLRun
from minids.sft import Pair


def quarter(vocab_size: int) -> Config:
    """The policy at a quarter of its parameters, 80,000: as deep, half as wide or less inside."""
    return replace(policy(vocab_size), dim=32, inter_dim=64, kv_lora_rank=16, qk_nope_head_dim=8, v_head_dim=8,
                   moe_inter_dim=32)  # fmt: skip


def blank_student(alphabet: Alphabet, seed: int = 0) -> Transformer:
    """A student with random weights."""
    return Transformer(quarter(len(alphabet)), torch.Generator().manual_seed(seed))


def distilled(student: Transformer, kept: Sequence[Pair], alphabet: Alphabet, seconds: float = 0.0, steps: int = 0,
              lr: float = 4e-3, seed: int = 0) -> Transformer:  # fmt: skip
    """A copy of the student that has imitated the kept samples, and some other data, for so long."""
    student = deepcopy(student)
    spend(Imitation(student, sft_mixture(kept, seed), alphabet, lr, falls=True), seconds, steps)
    return student


def reinforced(student: Transformer, alphabet: Alphabet, seconds: float = 0.0, steps: int = 0, share: float = 0.5,
               lr: float = 4e-3, seed: int = 0, reward: Reward = rule_reward) -> Transformer:  # fmt: skip
    """A copy of the student that has gone its own way for as long: a cold start, a `share` of the time, then GRPO."""
    student = deepcopy(student)
    first = int(steps * share)
    spend(Imitation(student, first_demonstrations(seed), alphabet, lr, falls=False), seconds * share, first)
    cfg = RLConfig(steps=10**6, max_new=NEW, width=WIDTH, decay=False, seed=seed)
    run = RLRun(student, mixture(seed + 1000), reward, alphabet, cfg)
    spend(run, seconds * (1 - share), steps - first)
    return student
