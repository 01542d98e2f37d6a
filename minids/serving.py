"""Serving: requests come and go, and all that are there decode together; prefill and decode may be two processes.

Paper: DeepSeek-V3 section 3.4: prefilling and decoding run on different units, and the cache travels between them.
Continuous batching is Orca's (OSDI 2022).

    waiting -> prefill (one prompt at once, `latent`) -> a free row of the slots -> one token a step with all others
            -> "stop", "length" or "context": the last row moves into the place, the row is free

Two measures of what a user feels, and one of what the machine earns:

    TTFT      time to the first token: waiting and prefill
    TPOT      time per output token after it
    goodput   requests a second that met both bounds

`Engine` is one decode unit. `prefill` gives what travels, a `Handover`: C + R values a token and layer, and the first
token; `Engine.admit` takes it. The same functions serve one process and two (`pools`), so that the tokens are the same.

Differs from the paper: units of one process on a CPU instead of 32 and 320 GPUs; requests are admitted one by one.
Left out: chunked prefill, prefix caching, preemption.
Notebook: 17_serving.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from minids.generate import Sampling, Tokens, draw, penalised
from minids.mla import LatentCache, SlotCache
from minids.model import Transformer

GREEDY = Sampling(temperature=0.0)


@dataclass
class Request:
    """One text to write. `seed` makes its draws its own, whoever else is in the batch.

    `written` are tokens that it has already: it goes on behind them, to the text that it would have got.
    """

    name: str
    prompt: list[int]
    max_new_tokens: int
    sampling: Sampling = GREEDY
    stop_ids: tuple[int, ...] = ()
    seed: int = 0
    written: tuple[int, ...] = ()


class Handover(NamedTuple):
    """What prefill gives to decode: the cache of the prompt, the next token, and where its random numbers stand."""

    kv: Float[Tensor, "L T CR"]
    token: int
    dice: Tensor

    @property
    def nbytes(self) -> int:
        """What travels."""
        return self.kv.numel() * self.kv.element_size()


class Event(NamedTuple):
    """A token of a request; with the last one comes the reason of its end."""

    name: str
    token: int
    reason: str  # "" while it goes on


@dataclass
class Measured:
    """When a request came, got its first token, and ended; seconds of the engine's clock."""

    came: float
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0

    @property
    def ttft(self) -> float:
        return self.first - self.came

    @property
    def tpot(self) -> float:
        return (self.last - self.first) / (self.tokens - 1) if self.tokens > 1 else 0.0


class Full(RuntimeError):
    """More requests wait than the engine accepts."""


@dataclass
class _Row:
    request: Request
    result: Tokens
    dice: torch.Generator
    counts: Tensor | None
    token: int


@torch.inference_mode()
def prefill(model: Transformer, request: Request) -> Handover:
    """Read a prompt at once. ValueError, as from `check`, for one that cannot be served."""
    check(model, request)
    ids = [*request.prompt, *request.written]
    cache = model.new_cache(1, len(ids))
    h, _ = model.hidden(torch.tensor([ids], device=model.embed.weight.device), cache, "latent")
    dice, counts = dice_of(request, model.cfg.vocab_size), counts_of(request, model.cfg.vocab_size)
    token = _draw(model.head(h[:, -1])[0].float(), request, dice, counts)
    kv = torch.stack([layer.kv[0] for layer in cache if isinstance(layer, LatentCache)])
    return Handover(kv.clone(), token, dice.get_state())


def dice_of(request: Request, vocab: int) -> torch.Generator:
    """A request's own random numbers, moved on by one draw for each token written.

    How far a draw moves them depends on the size of the vocabulary alone, so the draws are made again from nothing.
    """
    dice, blank = torch.Generator().manual_seed(request.seed), torch.zeros(1, vocab)
    for _ in request.written:
        draw(blank, request.sampling.temperature, 1.0, dice)
    return dice


def counts_of(request: Request, vocab: int) -> Tensor | None:
    """How often each token was written, where a penalty asks for it."""
    if not request.sampling.frequency_penalty:
        return None
    return torch.bincount(torch.tensor(request.written, dtype=torch.long), minlength=vocab).float()


def check(model: Transformer, request: Request) -> None:
    """ValueError, with the rule, the value and the remedy, for a request that cannot be served."""
    limit, n = model.cfg.max_seq_len, len(request.prompt) + len(request.written)
    if model.cfg.attn != "mla":
        raise ValueError(f"serving keeps latent caches, so the model needs MLA; it has attn={model.cfg.attn!r}.")
    if not 0 < n < limit:
        raise ValueError(f"a prompt has 1 to {limit - 1} tokens (the context holds {limit}); got {n}. Shorten it.")
    bad = next((t for t in (*request.prompt, *request.written) if not 0 <= t < model.cfg.vocab_size), None)
    if bad is not None:
        raise ValueError(f"token ids lie from 0 to {model.cfg.vocab_size - 1}; got {bad}. Use the model's tokenizer.")
    least = len(request.written) + 1
    if request.max_new_tokens < least:
        raise ValueError(f"max_new_tokens is at least {least}; got {request.max_new_tokens}. Ask for a token or more.")
    request.sampling.check()


class Engine:
    """Decodes up to `slots` requests together. Not for several threads: one loop calls `step`."""

    def __init__(
        self,
        model: Transformer,
        slots: int = 16,
        max_waiting: int = 1000,
        clock: Callable[[], float] = time.perf_counter,
    ):
        if slots < 1:
            raise ValueError(f"an engine has at least one slot; got {slots}. 16 suit a laptop.")
        self.model, self.slots, self.max_waiting, self.clock = model, slots, max_waiting, clock
        w, width = model.embed.weight, model.cfg.kv_lora_rank + model.cfg.qk_rope_head_dim
        self.cache = [SlotCache(slots, model.cfg.max_seq_len, width, w.device, w.dtype) for _ in model.layers]
        self.rows: list[_Row] = []
        self.waiting: deque[tuple[Request, Handover | None]] = deque()
        self.measured: dict[str, Measured] = {}

    @property
    def idle(self) -> bool:
        return not self.rows and not self.waiting

    def submit(self, request: Request, handover: Handover | None = None) -> None:
        """Queue a request, prefilled elsewhere or not. ValueError for a bad one, `Full` when too many wait."""
        check(self.model, request)
        if len(self.waiting) >= self.max_waiting:
            raise Full(f"{len(self.waiting)} requests wait already, the most there may be. Try again later.")
        if request.name in self.measured and self.measured[request.name].last == 0:
            raise ValueError(f"a request's name is its own while it runs; {request.name!r} is taken. Take another.")
        self.measured[request.name] = Measured(self.clock())
        self.waiting.append((request, handover))

    def cancel(self, name: str) -> bool:
        """Forget a request whose client has left, and free its slot. Whether it was there."""
        for item in self.waiting:
            if item[0].name == name:
                self.waiting.remove(item)
                return True
        for i, row in enumerate(self.rows):
            if row.request.name == name:
                self._free(i)
                return True
        return False

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Admit what fits, then one token for each row. The events of this step."""
        events = []
        while self.waiting and len(self.rows) < self.slots:
            request, handover = self.waiting.popleft()
            events += self.admit(request, handover or prefill(self.model, request))
        n = len(self.rows)
        if n:
            tokens = torch.tensor([[row.token] for row in self.rows], device=self.model.embed.weight.device)
            h, _ = self.model.hidden(tokens, [layer.first(n) for layer in self.cache], "absorb")
            logits = self.model.head(h[:, -1]).float()
            drawn = [
                _draw(line, row.request, row.dice, row.counts) for line, row in zip(logits, self.rows, strict=True)
            ]
            events += [self._add(row, token) for row, token in zip(self.rows, drawn, strict=True)]
            for i in reversed(range(n)):
                if events[len(events) - n + i].reason:
                    self._free(i)
        return events

    def admit(self, request: Request, handover: Handover) -> list[Event]:
        """Take a prefilled request into a free row; its first token is an event."""
        dice, counts = torch.Generator(), counts_of(request, self.model.cfg.vocab_size)
        dice.set_state(handover.dice)
        if counts is not None:
            counts[handover.token] += 1
        row = _Row(request, Tokens(request.written), dice, counts, handover.token)
        event = self._add(row, handover.token)
        if not event.reason:
            T = handover.kv.shape[1]
            for layer, kv in zip(self.cache, handover.kv, strict=True):
                layer.kv[len(self.rows), :T] = kv
                layer.lengths[len(self.rows)] = T
            self.rows.append(row)
        return [event]

    def _add(self, row: _Row, token: int) -> Event:
        request, result = row.request, row.result
        now, measured = self.clock(), self.measured[request.name]
        measured.first = measured.first or now
        measured.tokens += 1
        row.token = token
        result.add(token, request.stop_ids)
        room = self.model.cfg.max_seq_len - len(request.prompt)
        reason = "stop" if result.reason == "stop" else ""
        if not reason and len(result) >= min(request.max_new_tokens, room):
            reason = "length" if len(result) == request.max_new_tokens else "context"
        if reason:
            measured.last = now
        return Event(request.name, token, reason)

    def _free(self, i: int) -> None:
        """The last row moves into place i, so that rows in use are the first ones."""
        last = len(self.rows) - 1
        for layer in self.cache:
            if i != last:
                n = int(layer.lengths[last])
                layer.kv[i, :n] = layer.kv[last, :n]
                layer.lengths[i] = layer.lengths[last]
            layer.lengths[last] = 0
        self.rows[i] = self.rows[last]
        self.rows.pop()

    def run(self) -> Iterator[Event]:
        """Step until nothing is left."""
        while not self.idle:
            yield from self.step()


def serve_all(engine: Engine, requests: list[Request]) -> dict[str, Tokens]:
    """The texts of all requests, by name."""
    for request in requests:
        engine.submit(request)
    results = {request.name: Tokens() for request in requests}
    stops = {request.name: request.stop_ids for request in requests}
    for event in engine.run():
        results[event.name].add(event.token, stops[event.name])
        if event.reason:
            results[event.name].reason = event.reason
    return results


@dataclass
class Report:
    """TTFT and TPOT of ended requests, in seconds, and how many a second met both bounds."""

    ttft: list[float] = field(default_factory=list)
    tpot: list[float] = field(default_factory=list)
    goodput: float = 0.0
    tokens_per_second: float = 0.0


def report(measured: dict[str, Measured], ttft: float, tpot: float) -> Report:
    """What the measured requests say under the bounds `ttft` and `tpot` (seconds)."""
    ended = [m for m in measured.values() if m.last]
    if not ended:
        return Report()
    span = max(m.last for m in ended) - min(m.came for m in ended) or 1e-9
    good = sum(m.ttft <= ttft and m.tpot <= tpot for m in ended)
    tokens = sum(m.tokens for m in ended)
    return Report([m.ttft for m in ended], [m.tpot for m in ended], good / span, tokens / span)


def _draw(logits: Float[Tensor, "W"], request: Request, dice: torch.Generator, counts: Tensor | None) -> int:
    how = request.sampling
    if counts is not None:
        logits = penalised(logits, counts, how.frequency_penalty)
    token = int(draw(logits[None], how.temperature, how.top_p, dice))
    if counts is not None:
        counts[token] += 1
    return token
