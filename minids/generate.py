"""Writing text: read the prompt once (prefill), then one token at a time from the cache (decode), each drawn by chance.

Paper: DeepSeek-V3 section 3.4 separates prefill from decode; top-p is arXiv 1904.09751; DeepSeek-V2 appendix C gives the absorbed form.

    prefill   all prompt tokens at once; keys and values are rebuilt from the latents (`latent`): many queries share that work
    decode    one token a step against the cache of C + R values a token (`absorb`): nothing is rebuilt

From logits to a token, in this order:

    1 frequency penalty   logits_i -= frequency_penalty * (how often token i was generated so far; the prompt does not count)
    2 temperature         p = softmax(logits / temperature); 0 means the largest logit, always (greedy)
    3 top-p               keep the most likely tokens until their mass reaches top_p, the best one in any case; renormalise
    4 draw                from `generator`: the same seed gives the same text

Generation ends for one of three reasons: "stop" (a stop id, which is not part of the result), "length" (max_new_tokens)
or "context" (prompt and answer fill max_seq_len).

Differs from the paper: one process does prefill and decode (17_serving parts them).
Left out: beam search, top-k, batches of unequal prompts in one pass (they are run in groups of equal length).
Notebook: 16_decode; 00_start uses it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minids.mla import LatentCache
from minids.model import Transformer


class Sampling(NamedTuple):
    """How a token is drawn from logits; see the module's table."""

    temperature: float = 1.0
    top_p: float = 1.0
    frequency_penalty: float = 0.0

    def check(self) -> Sampling:
        """Itself, or ValueError for values without a meaning."""
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 (greedy) or more; got {self.temperature}. 0.7 is a usual choice.")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p is a share of probability, from 0 to 1; got {self.top_p}. 1 keeps all tokens.")
        if not -2 <= self.frequency_penalty <= 2:
            raise ValueError(f"frequency_penalty lies between -2 and 2; got {self.frequency_penalty}. 0 switches it off.")
        return self


class Tokens(list[int]):
    """Generated token ids, and in `reason` why they end: "stop", "length" or "context"."""

    def __init__(self, ids: Sequence[int] = (), reason: str = "length"):
        super().__init__(ids)
        self.reason = reason


def probabilities(
    logits: Float[Tensor, "*batch W"], temperature: float = 1.0, top_p: float = 1.0
) -> Float[Tensor, "*batch W"]:
    """The distribution that a token is drawn from; all mass on the largest logit when `temperature` is 0."""
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    # the largest logit is taken away first: a small temperature would overflow
    p = ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)
    return p if top_p == 1 else nucleus(p, top_p)


def nucleus(p: Float[Tensor, "*batch W"], top_p: float) -> Float[Tensor, "*batch W"]:
    """p with the least likely tokens at 0: the most likely ones are kept until their mass reaches top_p."""
    ranked, order = p.sort(-1, descending=True, stable=True)
    # a token stays when the better ones have not reached top_p yet
    keep = ranked.cumsum(-1) - ranked < top_p
    keep[..., 0] = True
    ranked = ranked * keep
    return torch.zeros_like(p).scatter_(-1, order, ranked / ranked.sum(-1, keepdim=True))


def penalised(
    logits: Float[Tensor, "*batch W"], counts: Int[Tensor, "*batch W"], frequency_penalty: float
) -> Float[Tensor, "*batch W"]:
    """logits_i - frequency_penalty * counts_i, counts being how often each token was generated."""
    return logits - frequency_penalty * counts


def draw(
    logits: Float[Tensor, "B W"], temperature: float, top_p: float, generator: torch.Generator | None = None
) -> Int[Tensor, "B"]:
    """One token for each row."""
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(probabilities(logits, temperature, top_p), 1, generator=generator).squeeze(1)


def generate(
    model: Transformer,
    ids: Sequence[int] | Sequence[Sequence[int]] | Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    frequency_penalty: float = 0.0,
    stop_ids: Sequence[int] = (),
    generator: torch.Generator | None = None,
    impl: str = "absorb",
) -> Tokens | list[Tokens]:
    """The tokens that follow a prompt (`Tokens`: a list that knows its `reason`), or a list of them for several prompts.

    Prompts of equal length run together, others one group after another. `impl` is the form of the attention
    ("naive", "latent", "absorb"; they agree). Raises ValueError for an empty prompt, one that leaves no room in
    the context, ids outside the vocabulary, and sampling values without a meaning.
    """
    prompts = ids.tolist() if isinstance(ids, Tensor) else [list(p) if isinstance(p, Sequence) else p for p in ids]
    single = not (prompts and isinstance(prompts[0], list))
    rows: list[list[int]] = [prompts] if single else prompts  # type: ignore[list-item]
    how = Sampling(temperature, top_p, frequency_penalty).check()
    results = [Tokens() for _ in rows]
    for length in sorted({len(row) for row in rows}):
        group = [i for i, row in enumerate(rows) if len(row) == length]
        done: set[int] = set()
        run = _run(model, [rows[i] for i in group], max_new_tokens, how, stop_ids, generator, impl)
        for step in run:
            for i, token in zip(group, step, strict=True):
                if i not in done and token in stop_ids:
                    results[i].reason = "stop"
                    done.add(i)
                elif i not in done:
                    results[i].append(token)
            if len(done) == len(group):
                run.close()
        for i in set(group) - done:
            results[i].reason = "length" if len(results[i]) == max_new_tokens else "context"
    return results[0] if single else results


def stream(
    model: Transformer,
    ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    frequency_penalty: float = 0.0,
    stop_ids: Sequence[int] = (),
    generator: torch.Generator | None = None,
    impl: str = "absorb",
) -> Iterator[int]:
    """What `generate` gives for one prompt, each token as soon as it is drawn. The generator's return value is the reason."""
    how = Sampling(temperature, top_p, frequency_penalty).check()
    n = 0
    for (token,) in _run(model, [list(ids)], max_new_tokens, how, stop_ids, generator, impl):
        if token in stop_ids:
            return "stop"
        n += 1
        yield token
    return "length" if n == max_new_tokens else "context"


@torch.inference_mode()
def _run(
    model: Transformer, rows: list[list[int]], max_new_tokens: int, how: Sampling, stop_ids, generator, impl: str
) -> Iterator[list[int]]:
    """One drawn token for each row a step, until max_new_tokens or the context's end. Knows nothing of stopping."""
    prompt = _prompt(model, rows, max_new_tokens)
    B, S = prompt.shape
    steps = min(max_new_tokens, model.cfg.max_seq_len - S)
    cache = model.new_cache(B, S + steps, impl)
    counts = torch.zeros(B, model.cfg.vocab_size, dtype=torch.long, device=prompt.device)
    # many queries: rebuilding k and v once is cheaper than absorbing W_UK into each of them
    prefill = "latent" if isinstance(cache[0], LatentCache) and S > 1 else impl
    tokens = prompt
    for n in range(steps):
        h, _ = model.hidden(tokens, cache, impl if n else prefill)
        logits = model.head(h[:, -1]).float()
        if how.frequency_penalty:
            logits = penalised(logits, counts, how.frequency_penalty)
        token = draw(logits, how.temperature, how.top_p, generator)
        counts.scatter_add_(1, token[:, None], torch.ones_like(token[:, None]))
        yield token.tolist()
        tokens = token[:, None]


def _prompt(model: Transformer, rows: list[list[int]], max_new_tokens: int) -> Tensor:
    """The prompts as a tensor [B S] on the model's device, after the checks that `generate` promises."""
    W, limit = model.cfg.vocab_size, model.cfg.max_seq_len
    bad = [t for row in rows for t in row if not (isinstance(t, int) and 0 <= t < W)]
    if bad:
        raise ValueError(f"token ids are integers from 0 to {W - 1}; got {bad[0]!r}. Encode with the model's own tokenizer.")
    if not rows[0]:
        raise ValueError("a prompt needs at least one token; got none. Begin with the tokenizer's start token.")
    if len(rows[0]) >= limit:
        raise ValueError(f"prompt and answer must fit into max_seq_len = {limit} tokens; got a prompt of {len(rows[0])}. Shorten it.")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be 0 or more; got {max_new_tokens}. Say how many tokens you want.")
    return torch.tensor(rows, dtype=torch.long, device=model.embed.weight.device)
