"""Supervised fine-tuning: imitate demonstrations, with the loss on the response alone.

Paper: DeepSeek-V3 section 5.1 (SFT, sample masking); DeepSeek-R1 (arXiv 2501.12948) section 2.3.1 (cold start).

    row    <pad> <pad> 8 8 0 6 + 6 6 1 5 = | <think> ... </think> <answer> 1 5 4 2 1 </answer> <eos> <pad>
    loss   no     no   no ..               | yes ..                                           yes   no

The prompt is read, never learned: its tokens have no loss. `cold_start` stops by a gate, not by a number of steps: the
policy must solve some of the training problems when it is sampled, or reinforcement learning finds no reward; but far
from all, or nothing is left to learn.

Short samples may share a row (`pack_samples`): each token then sees its own sample alone, the paper's sample masking.
Positions run on across samples, since RoPE knows distances only.

Differs from the paper: demonstrations are programs' output, not a model's; `fine_tune` trains one sample a row.
Left out: a reference to a chat template (`Tokenizer.chat_with_mask` has it).
Notebook: 13_sft; 14_grpo begins with a cold start.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from minids.alphabet import Alphabet
from minids.model import Transformer
from minids.optim import make_optimizer
from minids.tasks import Problem

Pair = tuple[str, str]  # (prompt, response)


def demonstrations(source: Iterator[Problem], worked: float, seed: int = 0) -> Iterator[Pair]:
    """Each problem with a response, step by step with probability `worked`, else direct."""
    if not 0 <= worked <= 1:
        raise ValueError(f"worked is a share, from 0 to 1; got {worked}. 0.5 shows both forms as often.")
    rng = random.Random(f"form {seed}")
    for problem in source:
        yield problem.prompt, problem.worked if rng.random() < worked else problem.direct


def rows(pairs: Sequence[Pair], alphabet: Alphabet, width: int = 0) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """(tokens, mask): prompts padded on the left to `width`, responses on the right; the mask is true on responses.

    ValueError for a pair that would not come back as it was: a symbol that the alphabet reads otherwise.
    """
    for prompt, response in pairs:
        if alphabet.decode(alphabet.encode(prompt + response)) != prompt + response:
            raise ValueError(
                f"a sample must come back from the alphabet as it was; {prompt + response!r} does not. "
                "Keep <pad> and <eos> out of it."
            )
    prompts = alphabet.encode_prompts([prompt for prompt, _ in pairs], width)
    responses = [[*alphabet.encode(response), alphabet.eos] for _, response in pairs]
    longest = max(map(len, responses))
    body = torch.tensor([row + [alphabet.pad] * (longest - len(row)) for row in responses])
    lengths = torch.tensor([len(row) for row in responses])
    mask = torch.cat([torch.zeros_like(prompts), (torch.arange(longest) < lengths[:, None]).long()], 1).bool()
    return torch.cat([prompts, body], 1), mask


class PackedRows(NamedTuple):
    """Several samples a row. `segments` number the samples of each row from 1; 0 is padding, which sees itself."""

    tokens: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    segments: Int[Tensor, "B T"]


def pack_samples(samples: Sequence[tuple[Sequence[int], Sequence[bool]]], length: int, pad: int) -> PackedRows:
    """Samples, (ids, mask) each, in rows of `length`: the longest first, each into the first row with room.

    ValueError for a sample that is longer than a row, or whose first token has a loss: nothing in it comes before.
    """
    bins: list[list[int]] = []
    for i in sorted(range(len(samples)), key=lambda i: -len(samples[i][0])):
        ids, mask = samples[i]
        if not 0 < len(ids) <= length or len(ids) != len(mask) or mask[0]:
            raise ValueError(
                f"a sample has 1 to {length} ids, as many mask values, the first one False; sample {i} has {len(ids)}, "
                f"{len(mask)} and {mask[:1]}. Give longer rows, or leave it out."
            )
        home = next((b for b in bins if sum(len(samples[j][0]) for j in b) + len(ids) <= length), None)
        if home is None:
            bins.append(home := [])
        home.append(i)
    tokens = torch.full((len(bins), length), pad)
    mask, segments = torch.zeros_like(tokens, dtype=torch.bool), torch.zeros_like(tokens)
    for row, inside in enumerate(bins):
        at = 0
        for number, i in enumerate(inside, 1):
            here = slice(at, at := at + len(samples[i][0]))
            tokens[row, here], mask[row, here] = torch.tensor(samples[i][0]), torch.tensor(samples[i][1])
            segments[row, here] = number
    return PackedRows(tokens, mask, segments)


def sft_loss(
    model: Transformer,
    tokens: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    segments: Int[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    """Mean cross-entropy over the masked tokens, in nats a token; `segments` where a row holds several samples."""
    return _loss_and_load(model, tokens, mask, segments)[0]


def _loss_and_load(
    model: Transformer, tokens: Tensor, mask: Tensor, segments: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    h, routings = model.hidden(tokens[:, :-1], segments=None if segments is None else segments[:, :-1])
    wanted = mask[:, 1:]  # row t of h predicts token t + 1
    return F.cross_entropy(model.head(h[wanted]), tokens[:, 1:][wanted]), [r.load for r in routings]


class FineTuning:
    """The state of a fine-tuning run: `step` does one step on a batch of pairs."""

    def __init__(self, model: Transformer, alphabet: Alphabet, lr: float, width: int = 0, gamma: float = 0.01):
        self.model, self.alphabet, self.lr, self.width, self.gamma = model, alphabet, lr, width, gamma
        self.optimizer = make_optimizer(model, lr, weight_decay=0.01, betas=(0.9, 0.98))
        self.steps = 0

    def step(self, pairs: Sequence[Pair], scale: float = 1.0, warmup: int = 30) -> float:
        """One step of AdamW at lr * scale, after a warm-up. Returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * scale * min(1.0, (self.steps + 1) / warmup)
        loss, load = _loss_and_load(self.model, *rows(pairs, self.alphabet, self.width))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for gate, row in zip(self.model.gates(), load, strict=True):
            gate.update_bias(row, self.gamma)
        self.steps += 1
        return loss.item()


def fine_tune(
    model: Transformer,
    pairs: Iterator[Pair],
    alphabet: Alphabet,
    steps: int,
    batch: int = 64,
    lr: float = 4e-3,
    width: int = 0,
    decay: bool = True,
    progress: bool = True,
) -> list[float]:
    """`steps` steps on fresh pairs; with `decay` the rate falls linearly to 0. Returns the losses."""
    run, losses = FineTuning(model, alphabet, lr, width), []
    for i in tqdm(range(steps), unit="step", disable=not progress):
        scale = 1 - i / steps if decay else 1.0
        losses.append(run.step([next(pairs) for _ in range(batch)], scale))
    return losses


def cold_start(
    model: Transformer,
    pairs: Iterator[Pair],
    alphabet: Alphabet,
    measure: Callable[[], float],
    until: float = 0.2,
    every: int = 20,
    most: int = 2000,
    batch: int = 64,
    lr: float = 4e-3,
    width: int = 0,
    progress: bool = True,
    goal: str = "solved",
) -> list[tuple[int, float]]:
    """Fine-tune until `measure` (of training problems, sampled) reaches `until`. Returns (step, measured) pairs.

    `goal` is the word for what is measured.

    RuntimeError after `most` steps: the task is too hard for the model, or the gate too high.
    """
    run, found = FineTuning(model, alphabet, lr, width), []
    with tqdm(unit="step", disable=not progress) as bar:
        while run.steps < most:
            for _ in range(every):
                loss = run.step([next(pairs) for _ in range(batch)])
                bar.update()
            found.append((run.steps, measure()))
            bar.set_postfix_str(f"loss {loss:.3f}, {goal} {found[-1][1]:.0%} of {until:.0%}")  # type: ignore[possibly-undefined]
            if found[-1][1] >= until:
                return found
    raise RuntimeError(
        f"a cold start ends when {until:.0%} of the training problems are {goal}; after {most} steps it is "
        f"{found[-1][1]:.1%}. Lower `until`, raise `most`, or take an easier task."
    )
