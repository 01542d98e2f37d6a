"""Speculative decoding: the MTP module drafts the next tokens, the main model checks them all in one step.

Paper: DeepSeek-V3 section 5.4.3 (second token accepted in 85 to 90 %, 1.8 times the tokens a second); the acceptance
rule is arXiv 2302.01318 and 2211.17192.

One cycle. The caches hold t_0 .. t_(n-1); t_n is drawn and not yet read:

    draft    (h_(n-1), t_n) -> d_1;  (the module's own state, d_1) -> d_2;  ..     mtp[0], again for each draft
    verify   t_n d_1 .. d_K through the main model at once: p_0 .. p_K
    accept   d_i with probability min(1, p_(i-1)(d_i) / q_i(d_i)), up to the first refusal
    correct  the token after the accepted ones from p, or after a refusal from max(p - q, 0), renormalised
    roll back both caches to what was accepted: their lengths are set back, nothing is copied

A cycle gives 1 to K + 1 tokens. The result has the same distribution as plain decoding; greedy, it is the same text:
with temperature 0, p and q are one-hot, and "accept" means equal.

Differs from the paper: drafts deeper than one repeat the one module, which was trained for depth one.
Left out: batches (rows would accept different numbers), trees of drafts, the frequency penalty.
Notebook: 16_decode.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minids.generate import Sampling, Tokens, draw, probabilities
from minids.mla import LatentCache
from minids.model import Transformer
from minids.mtp import module_of


@dataclass
class Acceptance:
    """What became of the drafts: `tried[i]` and `kept[i]` count the drafts of depth i + 1 that were looked at."""

    tried: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    cycles: int = 0
    tokens: int = 0

    @property
    def rate(self) -> float:
        """The share of first drafts that were accepted: the paper's 85 to 90 %."""
        return self.kept[0] / self.tried[0] if self.tried and self.tried[0] else 0.0

    @property
    def tokens_per_cycle(self) -> float:
        """1 without any acceptance, K + 1 with all."""
        return self.tokens / self.cycles if self.cycles else 0.0

    def add(self, other: Acceptance) -> None:
        """Count what became of another text's drafts as well."""
        self.cycles, self.tokens = self.cycles + other.cycles, self.tokens + other.tokens
        self.tried = [a + b for a, b in zip_longest(self.tried, other.tried, fillvalue=0)]
        self.kept = [a + b for a, b in zip_longest(self.kept, other.kept, fillvalue=0)]

    def count(self, accepted: int, drafted: int) -> None:
        """One cycle: drafts after the first refusal were not looked at."""
        self.cycles += 1
        self.tokens += accepted + 1
        for i in range(min(accepted + 1, drafted)):
            if i == len(self.tried):
                self.tried.append(0)
                self.kept.append(0)
            self.tried[i] += 1
            self.kept[i] += i < accepted


def speculate(
    model: Transformer,
    ids: Sequence[int],
    max_new_tokens: int,
    drafts: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop_ids: Collection[int] = (),
    generator: torch.Generator | None = None,
) -> tuple[Tokens, Acceptance]:
    """(what `generate` gives for one prompt, the fate of the drafts). `drafts` a cycle; 1 is the paper's.

    ValueError for a model without an MTP module, an empty prompt, one that leaves no room, or a negative `drafts`.
    """
    _check(model, ids, drafts)
    Sampling(temperature, top_p).check()
    result, fate = Tokens(), Acceptance()
    steps = min(max_new_tokens, model.cfg.max_seq_len - len(ids))
    run = Speculator(model, ids, steps, drafts, temperature, top_p, generator)
    for tokens in run.cycles(fate):
        for token in tokens[: steps - len(result)]:
            result.add(token, stop_ids)
        if result.reason == "stop" or len(result) >= steps:
            break
    result.close(max_new_tokens)
    return result, fate


class Speculator:
    """One sequence: the main model's caches, the module's own, and what it has not read yet."""

    def __init__(
        self,
        model: Transformer,
        ids: Sequence[int],
        steps: int,
        drafts: int,
        temperature: float,
        top_p: float,
        generator: torch.Generator | None,
    ):
        self.model, self.module = model, module_of(model)
        self.drafts, self.steps = drafts, steps
        self.temperature, self.top_p, self.generator = temperature, top_p, generator
        room = min(len(ids) + steps + drafts + 1, model.cfg.max_seq_len)
        caches = [*model.new_cache(1, room), self.module.block.attn.new_cache(1, room)]  # type: ignore[union-attr,operator]
        self.cache = [c for c in caches[:-1] if isinstance(c, LatentCache)]
        self.draft_cache = caches[-1]
        self.prompt = torch.tensor([list(ids)], device=model.embed.weight.device)

    @torch.inference_mode()
    def cycles(self, fate: Acceptance) -> Iterator[list[int]]:
        """The new tokens of each cycle, without end; the first cycle reads the prompt and gives one token."""
        h, _ = self.model.hidden(self.prompt, list(self.cache), "latent")
        token = draw(self.model.head(h[:, -1]), self.temperature, self.top_p, self.generator)  # [1]
        unread, ahead = h, torch.cat([self.prompt[:, 1:], token[None]], 1)  # the module reads h_i with t_(i+1)
        yield token.tolist()
        done = 1
        while True:
            depth = max(min(self.drafts, self.steps - done - 1), 0)
            guess, q = self.draft(unread, ahead, depth)
            h, _ = self.model.hidden(torch.cat([token[None], guess], 1), list(self.cache), "absorb")
            accepted, token = self.verify(guess, q, self.model.head(h[0]))
            for layer in self.cache:  # t_n and the accepted drafts stay
                layer.length -= depth - accepted
            unread, ahead = h[:, : accepted + 1], torch.cat([guess[:, :accepted], token[None]], 1)
            fate.count(accepted, depth)
            done += accepted + 1
            yield ahead[0].tolist()

    def draft(
        self, h: Float[Tensor, "1 S D"], ahead: Int[Tensor, "1 S"], depth: int
    ) -> tuple[Int[Tensor, "1 K"], list[Tensor]]:
        """(K guesses, the distribution each was drawn from); reads h with the tokens after it first."""
        guesses, q = [ahead[:, :0]], []
        length = self.draft_cache.length + h.shape[1]
        for _ in range(depth):
            start = self.draft_cache.length
            angles = self.model.freqs_cis[start : start + h.shape[1]]
            h = self.module.last(h, self.model.embed(ahead), angles, self.draft_cache)
            logits = self.model.head(h[:, 0])
            if self.temperature == 0:
                ahead = logits.argmax(-1)[None]
            else:
                q.append(probabilities(logits, self.temperature, self.top_p)[0])
                ahead = torch.multinomial(q[-1], 1, generator=self.generator)[None]
            guesses.append(ahead)
        if depth:
            self.draft_cache.length = length  # guesses leave: their states were the module's own
        return torch.cat(guesses, 1), q

    def verify(
        self, guess: Int[Tensor, "1 K"], q: list[Tensor], logits: Float[Tensor, "K1 W"]
    ) -> tuple[int, Int[Tensor, "1"]]:
        """(how many guesses stay, the token after them)."""
        K = guess.shape[1]
        if self.temperature == 0:
            best = logits.argmax(-1)  # [K+1]
            same = (best[:K] == guess[0]).tolist()
            accepted = same.index(False) if False in same else K
            return accepted, best[accepted : accepted + 1]
        p = probabilities(logits, self.temperature, self.top_p)  # [K+1 W]
        for i, token in enumerate(guess[0].tolist()):
            # accept with probability min(1, p / q)
            if torch.rand((), generator=self.generator) * q[i][token] >= p[i][token]:
                rest = (p[i] - q[i]).clamp(min=0)
                return i, torch.multinomial(rest, 1, generator=self.generator)
        return K, torch.multinomial(p[K], 1, generator=self.generator)


def _check(model: Transformer, ids: Sequence[int], drafts: int) -> None:
    module_of(model)
    limit = model.cfg.max_seq_len
    if drafts < 0:
        raise ValueError(f"drafts a cycle are 0 or more; got {drafts}. The paper has 1.")
    if not 0 < len(ids) < limit:
        raise ValueError(f"a prompt has 1 to {limit - 1} tokens (max_seq_len {limit}); got {len(ids)}. Change it.")
