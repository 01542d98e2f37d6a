"""Samples for reinforcement learning: every prompt G times, all at once, from the latent cache.

Paper: DeepSeekMath (arXiv 2402.03300) section 4.1 (a group of outputs for each question); DeepSeek-R1 (arXiv
2501.12948) section 2.2 (16 outputs for each of 32 questions, temperature 1).

    prompts [P S] -> prefill once a prompt -> repeat its cache G times -> decode all P G rows together (absorbed)
                                                                       -> a row that ended leaves batch and cache

Why it is fast: a step of 512 rows costs little more than a step of one; a prompt is read once, not G times; and a
finished row costs nothing. The log-probability of each token is kept as it is drawn, so that the old policy of GRPO's
ratio needs no second forward pass.

Differs from the paper: one process, one model in memory; R1's rollouts run on vLLM workers.
Left out: top-p and penalties (a policy must be sampled as it is), prompts of several lengths (pad them on the left).
Notebook: 14_grpo.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minids.mla import LatentCache
from minids.model import Cache, Transformer


class Rollout(NamedTuple):
    """Rows in the order of the prompts, each G times in a row. `tokens` holds prompt and response, then padding."""

    tokens: Int[Tensor, "N T"]
    logp: Float[Tensor, "N L"]  # of each response token when it was drawn, L = T - S; 0 after the end
    mask: Bool[Tensor, "N L"]  # response tokens, the end token included
    finished: Bool[Tensor, "N"]  # rows that ended by themselves; the others were cut at `max_new`
    entropy: float  # nats, mean over response tokens

    @property
    def lengths(self) -> Int[Tensor, "N"]:
        """Response tokens of each row, the end token included."""
        return self.mask.sum(1)

    def responses(self) -> list[list[int]]:
        """The response tokens of each row."""
        L = self.mask.shape[1]
        return [row[:n] for row, n in zip(self.tokens[:, -L:].tolist(), self.lengths.tolist(), strict=True)]


@torch.inference_mode()
def rollout(
    model: Transformer,
    prompts: Int[Tensor, "P S"],
    group: int,
    max_new: int,
    end: int,
    pad: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Rollout:
    """`group` samples for each prompt, of at most `max_new` tokens, each ended by `end` and then filled with `pad`.

    temperature 0 takes the likeliest token. The log-probabilities are those of the policy at temperature 1.
    ValueError for prompts that leave no room in the context.
    """
    P, S = prompts.shape
    N, limit = P * group, model.cfg.max_seq_len
    if S + max_new > limit or max_new < 1 or group < 1:
        raise ValueError(
            f"prompt and response fit into max_seq_len = {limit}, and group and max_new are at least 1; got "
            f"{S} + {max_new}, group {group}. Lower max_new."
        )
    cache = model.new_cache(P, S + max_new)
    h, _ = model.hidden(prompts, cache, "latent")
    _repeat(cache, group)
    logits = model.head(h[:, -1]).float().repeat_interleave(group, 0)
    tokens, logp = torch.full((N, max_new), pad), torch.zeros(N, max_new)
    rows, ended = torch.arange(N), torch.zeros(N, dtype=torch.bool)  # rows still in the batch, and which have ended
    entropy, length = 0.0, max_new
    for t in range(max_new):
        lp = logits.log_softmax(-1)
        token = draw(lp, temperature, generator)
        live = rows[~ended]
        tokens[live, t] = token[~ended]
        logp[live, t] = lp.gather(1, token[:, None])[~ended, 0]
        entropy -= (lp.exp() * lp)[~ended].sum().item()
        ended |= token == end
        if ended.all():
            length = t + 1
            break
        if ended.float().mean() > 0.2:  # copying the cache has its price: not for every row that ends
            kept = (~ended).nonzero().flatten()
            rows, token, ended = rows[kept], token[kept], ended[kept]
            for layer in _latent(cache):
                layer.kv = layer.kv.index_select(0, kept)
        if t + 1 < max_new:
            h, _ = model.hidden(token[:, None], cache, "absorb")
            logits = model.head(h[:, -1]).float()
    tokens, logp = tokens[:, :length], logp[:, :length]
    whole = torch.cat([prompts.repeat_interleave(group, 0), tokens], 1)
    mask, finished = _until(tokens, end), (tokens == end).any(1)
    # clones are ordinary tensors: what inference_mode makes cannot take part in a backward pass
    return Rollout(whole.clone(), logp.clone(), mask.clone(), finished.clone(), entropy / max(int(mask.sum()), 1))


def draw(logp: Float[Tensor, "N W"], temperature: float, generator: torch.Generator | None) -> Int[Tensor, "N"]:
    """One token a row from softmax(logp / temperature), by the exponential race: argmax p_i / e_i, e_i ~ Exp(1).

    The same distribution as torch.multinomial's, in a third of the time.
    """
    if temperature == 0:
        return logp.argmax(-1)
    race = torch.empty_like(logp).exponential_(generator=generator)
    return (logp / temperature - race.log()).argmax(-1)


def _repeat(cache: Cache, group: int) -> None:
    """Each row of each layer's cache `group` times: the prompt was read once for all of them."""
    for layer in _latent(cache):
        layer.kv = layer.kv.repeat_interleave(group, 0)


def _latent(cache: Cache) -> list[LatentCache]:
    """The layers' caches; ValueError for a model that has no latent ones."""
    found = [layer for layer in cache if isinstance(layer, LatentCache)]
    if len(found) < len(cache):
        raise ValueError("a rollout reads latent caches; got a model without MLA. Take attn='mla'.")
    return found


def _until(tokens: Int[Tensor, "N L"], end: int) -> Bool[Tensor, "N L"]:
    """True up to the first `end` of each row, that one included."""
    ended = (tokens == end).int()
    return ended.cumsum(1) - ended == 0
