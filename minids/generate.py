"""Writing text: the prompt is read at once (prefill), then each token is drawn from what the cache holds (decode).

Paper: DeepSeek-V3 section 3.4 parts prefill from decode; the absorbed form is in appendix C of DeepSeek-V2
(arXiv 2405.04434); top-p is arXiv 1904.09751.

    prefill   all prompt tokens at once; k and v are rebuilt from the latents (`latent`): many queries share that work
    decode    one token a step against the cache of C + R values a token (`absorb`); nothing is rebuilt

From logits to a token, in this order:

    1 frequency penalty   logits_i -= frequency_penalty * (how often token i was generated; the prompt does not count)
    2 temperature         p = softmax(logits / temperature); 0 means the largest logit, always (greedy)
    3 top-p               keep the likeliest tokens until their mass reaches top_p, at least the best; renormalise
    4 draw                from `generator`: the same seed gives the same text

Generation ends for one of three reasons: "stop" (a stop id or a stop string, which are not part of the result),
"length" (max_new_tokens) or "context" (prompt and answer fill max_seq_len). A stop string is looked for in the text and
may span tokens, so text that could be its beginning is held back until that is decided (`Text`).

Differs from the paper: one process does prefill and decode (17_serving parts them).
Left out: beam search, top-k, prompts of unequal length in one pass (they run in groups of equal length).
Notebook: 16_decode; 00_start uses it.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minids.kv8 import new_fp8_cache
from minids.model import Transformer
from minids.tokenizer import Tokenizer


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
            raise ValueError(f"frequency_penalty lies from -2 to 2; got {self.frequency_penalty}. 0 switches it off.")
        return self


# Where one answer is right, take the likeliest token, as DeepSeek's API guide does; for stories, dice without the tail.
PRESETS = {"maths": Sampling(0.0), "code": Sampling(0.0, 1.0, 0.1), "writing": Sampling(1.0, 0.9)}


class Tokens(list[int]):
    """Generated token ids, and in `reason` why they end: "stop", "length" or "context"."""

    def __init__(self, ids: Sequence[int] = (), reason: str = "length"):
        super().__init__(ids)
        self.reason = reason

    def add(self, token: int, stop_ids: Collection[int]) -> None:
        """Append a token, unless it or one before it was a stop id."""
        if token in stop_ids:
            self.reason = "stop"
        if self.reason != "stop":
            self.append(token)

    def close(self, max_new_tokens: int) -> None:
        """Name the reason of tokens that no stop id ended."""
        if self.reason != "stop":
            self.reason = "length" if len(self) == max_new_tokens else "context"


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
    ranked, order = torch.sort(p, stable=True, dim=-1, descending=True)
    # a token stays when the better ones have not reached top_p yet
    keep = ranked.cumsum(-1) - ranked < top_p
    keep[..., 0] = True
    ranked = ranked * keep
    return torch.zeros_like(p).scatter_(-1, order, ranked / ranked.sum(-1, keepdim=True))


def penalised(
    logits: Float[Tensor, "*batch W"], counts: Float[Tensor, "*batch W"], frequency_penalty: float
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
    stop_ids: Collection[int] = (),
    generator: torch.Generator | None = None,
    impl: str = "absorb",
) -> Tokens | list[Tokens]:
    """The tokens that follow a prompt: `Tokens`, a list that knows its `reason`; for several prompts a list of those.

    Prompts of equal length run together, others one group after another. `impl` is the form of the attention
    ("naive", "latent", "absorb"; they agree), or "fp8": absorb over a cache that rounds to FP8 (`kv8`). Raises
    ValueError for an empty prompt, one that leaves no room in the context, ids outside the vocabulary, and sampling
    values without a meaning.
    """
    rows, single = _rows(ids)
    how = Sampling(temperature, top_p, frequency_penalty).check()
    groups = [[i for i, row in enumerate(rows) if len(row) == n] for n in sorted({len(row) for row in rows})]
    prompts = [_prompt(model, [rows[i] for i in group], max_new_tokens) for group in groups]
    results = [Tokens() for _ in rows]
    for group, prompt in zip(groups, prompts, strict=True):
        running = [results[i] for i in group]
        for step in _run(model, prompt, max_new_tokens, how, generator, impl):
            for result, token in zip(running, step, strict=True):
                result.add(token, stop_ids)
            if all(result.reason == "stop" for result in running):
                break
        for result in running:
            result.close(max_new_tokens)
    return results[0] if single else results


def stream(
    model: Transformer,
    ids: Sequence[int] | Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    frequency_penalty: float = 0.0,
    stop_ids: Collection[int] = (),
    generator: torch.Generator | None = None,
    impl: str = "absorb",
) -> Generator[int, None, str]:
    """What `generate` gives for one prompt, each token as soon as it is drawn; the generator returns the reason."""
    rows, single = _rows(ids)
    if not single:
        raise ValueError(f"a stream follows one prompt; got {len(rows)}. Use generate for several.")
    how = Sampling(temperature, top_p, frequency_penalty).check()
    return _stream(_run(model, _prompt(model, rows, max_new_tokens), max_new_tokens, how, generator, impl), stop_ids,
                   max_new_tokens)  # fmt: skip


def stream_text(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int = 200,
    chat: bool = False,
    stop: str | Sequence[str] = (),
    **sampling: Any,
) -> Generator[str, None, str]:
    """The text that follows `prompt`, in pieces of whole characters; the generator returns the reason.

    With `chat` the prompt is what a user says, and the assistant's turn follows. `sampling`: temperature, top_p, .. of
    `generate`. A document's end stops it, and so does the first of the strings in `stop`, which is left out.
    """
    ids = tokenizer.chat([{"role": "user", "content": prompt}]) if chat else tokenizer.encode(prompt, bos=True)
    sampling = {"stop_ids": (tokenizer.eos,)} | sampling
    return _stream_text(stream(model, ids, max_new_tokens, **sampling), Text(tokenizer, stop))


def _stream_text(run: Generator[int, None, str], text: Text) -> Generator[str, None, str]:
    reason = ""
    while not reason:
        try:
            piece = text.add(next(run))
        except StopIteration as ended:
            piece, reason = text.close(), ended.value
        if piece:
            yield piece
        reason = "stop" if text.stopped else reason
    return reason


class Text:
    """Tokens in, whole characters out, up to the first stop string: what may become one is held back until it is clear.

    The first stop string is the one that is complete first; of two that end together the longer. So the text does not
    depend on where tokens begin and end. ValueError for a stop string without a character.
    """

    def __init__(self, tokenizer: Tokenizer, stop: str | Sequence[str] = ()):
        self._stop = [stop] if isinstance(stop, str) else list(stop)
        if "" in self._stop:
            raise ValueError(f"a stop string has at least one character; got {self._stop!r}. Leave the empty one out.")
        self._read, self._held, self.stopped = tokenizer.decoder(), "", False

    def add(self, token: int) -> str:
        """What is certain now to belong to the text, and new."""
        return self._upto(self._read(token))

    def close(self) -> str:
        """What was held back and belongs to the text after all, as no token follows."""
        rest, held, self._held = self._upto(self._read(None)), self._held, ""
        return rest + held

    def _upto(self, piece: str) -> str:
        if self.stopped:
            return ""
        text = self._held + piece
        found = [(at + len(s), at) for s in self._stop if (at := text.find(s)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        longest = max(map(len, self._stop), default=1) - 1
        tails = (text[-n:] for n in range(min(longest, len(text)), 0, -1))
        self._held = next((tail for tail in tails if any(s.startswith(tail) for s in self._stop)), "")
        return text[: len(text) - len(self._held)]


def complete(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int = 200,
    chat: bool = False,
    stop: str | Sequence[str] = (),
    **sampling: Any,
) -> str:
    """The text of `stream_text` in one piece, without the prompt."""
    return "".join(stream_text(model, tokenizer, prompt, max_new_tokens, chat, stop, **sampling))


def _stream(run: Iterator[list[int]], stop_ids: Collection[int], max_new_tokens: int) -> Generator[int, None, str]:
    result = Tokens()
    for (token,) in run:
        result.add(token, stop_ids)
        if result.reason == "stop":
            return "stop"
        yield token
    result.close(max_new_tokens)
    return result.reason


def _run(
    model: Transformer,
    prompt: Int[Tensor, "B S"],
    max_new_tokens: int,
    how: Sampling,
    generator: torch.Generator | None,
    impl: str,
) -> Iterator[list[int]]:
    """One drawn token for each row a step, until max_new_tokens or the context's end. Knows nothing of stopping."""
    B, S = prompt.shape
    steps = min(max_new_tokens, model.cfg.max_seq_len - S)
    fp8 = impl == "fp8"
    cache = new_fp8_cache(model, B, S + steps) if fp8 else model.new_cache(B, S + steps, impl)
    counts = torch.zeros(B, model.cfg.vocab_size, device=prompt.device) if how.frequency_penalty else None
    # many queries: rebuilding k and v once is cheaper than absorbing W_UK into each of them
    tokens, form = prompt, "latent" if impl in ("absorb", "fp8") else impl
    for _ in range(steps):
        # within a step and not around the loop: the caller's own mode holds while it handles the token
        with torch.inference_mode():
            h, _ = model.hidden(tokens, cache, form)
            token = _next(model.head(h[:, -1]).float(), counts, how, generator)  # [B]
        yield token.tolist()
        tokens, form = token[:, None], "absorb" if fp8 else impl


def _next(
    logits: Float[Tensor, "B W"], counts: Float[Tensor, "B W"] | None, how: Sampling, generator: torch.Generator | None
) -> Int[Tensor, "B"]:
    """Draw a token for each row, and count it where a penalty asks for that."""
    if counts is None:
        return draw(logits, how.temperature, how.top_p, generator)
    token = draw(penalised(logits, counts, how.frequency_penalty), how.temperature, how.top_p, generator)
    counts.scatter_add_(1, token[:, None], torch.ones_like(logits[:, :1]))
    return token


def _rows(ids: Sequence[int] | Sequence[Sequence[int]] | Tensor) -> tuple[list[list[int]], bool]:
    """(the prompts, whether it was a single one)."""
    plain: list = ids.tolist() if isinstance(ids, Tensor) else list(ids)
    if any(isinstance(row, (list, tuple)) for row in plain):
        return [list(row) for row in plain], False
    return [plain], True


def _prompt(model: Transformer, rows: list[list[int]], max_new_tokens: int) -> Int[Tensor, "B S"]:
    """Prompts of equal length as a tensor on the model's device, after the checks that `generate` promises."""
    W, limit, length = model.cfg.vocab_size, model.cfg.max_seq_len, len(rows[0])
    for token in (t for row in rows for t in row):
        if not isinstance(token, int) or token not in range(W):
            raise ValueError(f"token ids are integers from 0 to {W - 1}; got {token!r}. Use the model's own tokenizer.")
    if length == 0:
        raise ValueError("a prompt needs at least one token; got none. Begin with the tokenizer's start token.")
    if length >= limit:
        raise ValueError(f"prompt and answer must fit into max_seq_len = {limit}; the prompt has {length}. Shorten it.")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be 0 or more; got {max_new_tokens}. Say how many tokens you want.")
    return torch.tensor(rows, dtype=torch.long, device=model.embed.weight.device)
