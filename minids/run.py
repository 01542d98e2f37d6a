"""A run: all that training changes (weights, average, moments, data position, plan, history), and one step of it.

Paper: DeepSeek-V3 section 4.2 (hyper-parameters), 2.1.2 (balancing), 2.2 (the MTP loss in the sum).

    a step   loss = main + lambda mtp + alpha balance, over all micro-batches     `Run.backward`
             gradients clipped to norm 1; AdamW at the schedule's rate            `Run.advance`
             each gate's bias moves by gamma, from the load of the whole batch
             the average of the weights follows

A checkpoint holds all that a step reads (`Run.tensors`, `Run.state`), so a run that was killed ends with the same bits
as one that was not (same machine, same number of threads). `minids.train` drives a run; `minids.parallel` is the same
run over several processes.

Differs from the paper: nothing but the numbers (`recipe`).
Left out: rolling back after a bad step (V3 never needed it).
Notebook: 08_pretrain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from minids import checkpoint
from minids.config import Config
from minids.corpus import DOMAINS, eval_rows
from minids.fp8_layers import convert
from minids.layers import head_loss
from minids.model import Transformer
from minids.optim import averaged, make_optimizer
from minids.recipe import Plan, TrainConfig
from minids.router import Gate, max_violation
from minids.tokenizer import Tokenizer


@runtime_checkable
class Data(Protocol):
    """Where batches come from: `minids.corpus.Packed`, or anything alike."""

    def batch(self, batch_size: int) -> Tensor: ...  # [B S+1]
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Run:
    """All that training changes: weights, average, moments, data position, plan, history. `advance` is one step."""

    def __init__(
        self,
        model_cfg: Config,
        cfg: TrainConfig,
        data: Data,
        device: torch.device,
        clock: Callable[[], float],
        tokenizer: Tokenizer | None = None,
    ):
        self.cfg, self.data, self.device, self.clock, self.tokenizer = cfg, data, device, clock, tokenizer
        self.build(Transformer(model_cfg, torch.Generator().manual_seed(cfg.seed)).to(device))
        self.plan = Plan(cfg.steps, 60.0 * cfg.minutes, cfg.decay_start)
        self.step, self.saved, self.tokens, self.history = 0, 0, 0, []
        self.started = self.saved_at = clock()
        self.load = torch.zeros(0, 0, dtype=torch.long)  # [L_moe E] of the last step, for whoever watches

    def build(self, model: Transformer) -> None:
        """Around a model with its first weights: its products' precision, optimizer and average."""
        if self.cfg.precision == "fp8":
            convert(model)
        self.model, self.optimizer = model, self.make_optimizer(model)
        self.ema = averaged(model, self.cfg.ema_decay) if self.cfg.ema_decay else None
        self.named = dict(model.named_parameters())

    def make_optimizer(self, model: Transformer) -> Any:
        """Anything with `param_groups`, `state`, `step` and `zero_grad`."""
        return make_optimizer(model, self.cfg.lr, self.cfg.weight_decay, self.cfg.betas, moments=self.cfg.moments)

    @property
    def done(self) -> bool:
        return 0 < self.plan.total <= self.step

    @property
    def first(self) -> bool:
        """Does this process speak for the run?"""
        return True

    @property
    def elapsed(self) -> float:
        return self.clock() - self.started

    @property
    def average(self) -> Transformer | None:
        return None if self.ema is None else self.ema.module  # type: ignore[return-value]

    def exported(self) -> Transformer:
        """The model that the run is for: the last weights or their average."""
        return self.average if self.cfg.export == "ema" and self.average is not None else self.model

    def advance(self) -> dict[str, Any]:
        """One step of the optimizer. Returns its record."""
        begin, cfg, share = self.elapsed, self.cfg, self.plan.share(self.step)
        lr = cfg.schedule.at(self.step + 1, share)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        tokens = self.data.batch(cfg.ramp.at(self.tokens)).to(self.device)
        record, load = self.backward(tokens, cfg.mtp_lambda[share >= cfg.decay_start])
        norm = self.clip()
        if not math.isfinite(record["loss"] + norm):
            raise FloatingPointError(
                f"loss {record['loss']:.3g}, gradient norm {norm:.3g} in step {self.step + 1}: training has diverged. "
                "Start again in another directory with a lower lr, or a longer warm-up."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        # balancing without a loss: only now, so that the batch never sees its own load
        for row, gate in self.gates():
            gate.update_bias(load[row], cfg.gamma if share < cfg.gamma_off else 0.0)
        self.load = load
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        self.step += 1
        self.tokens += tokens[:, 1:].numel()
        record |= {"lr": lr, "grad_norm": norm, "max_vio": max_violation(load).tolist() if len(load) else []}
        return self._log(record, tokens[:, 1:].numel(), begin)

    def backward(self, tokens: Int[Tensor, "B S1"], mtp_lambda: float) -> tuple[dict[str, Any], Tensor]:
        """Gradients of a batch, one micro-batch after the other. Returns (its mean losses, the load of it all)."""
        sums, load = torch.zeros(4), torch.zeros((), dtype=torch.long, device=self.device)
        for part in tokens.split(self.cfg.micro_batch or len(tokens)):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.cfg.precision == "bf16"):
                losses = self.model.losses(part)
                # L = L_main + lambda L_MTP + alpha L_Bal
                loss = losses.main + mtp_lambda * losses.mtp + self.cfg.balance_alpha * losses.balance
            weight = len(part) / len(tokens)
            (loss * weight).backward()
            sums += weight * torch.stack([loss, losses.main, losses.mtp, losses.balance]).detach().float().cpu()
            load = load + losses.load
        return dict(zip(("loss", "main", "mtp", "balance"), sums.tolist(), strict=True)), load

    def clip(self) -> float:
        """Scale the gradients to a norm of at most `grad_clip`. Returns the norm before."""
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.grad_clip).item()

    def gates(self) -> list[tuple[int, Gate]]:
        """The gates, each with its row in the load."""
        return list(enumerate(self.model.gates()))

    def agreed(self, stop: bool) -> bool:
        """Shall the run stop here? With several processes: does one of them want to?"""
        return stop

    def _log(self, record: dict[str, Any], n: int, begin: float) -> dict[str, Any]:
        seconds = self.elapsed
        record |= {"step": self.step, "tokens": self.tokens, "seconds": seconds}
        record["tokens_per_second"] = n / max(seconds - begin, 1e-9)
        if self.plan.fix(self.step, seconds):
            self.saved_at = -math.inf  # save now: from here on the run is determined
        if self.cfg.eval_every and (self.step % self.cfg.eval_every == 0 or self.done):
            record["bits_per_byte"] = self.evaluate()
            self.started += self.elapsed - seconds  # evaluating is not training
        self.history.append(record)
        return record

    def evaluate(self) -> dict[str, float]:
        """Bits per byte of each domain, of what would be exported now."""
        if self.tokenizer is None:
            return {}
        cfg = self.cfg
        domains = cfg.weights or (DOMAINS if cfg.corpus is None else (*DOMAINS, "file"))
        return evaluate(self.exported(), self.tokenizer, cfg.seq_len, cfg.eval_rows, tuple(domains), cfg.corpus)

    # what is saved

    def save_due(self) -> bool:
        """Is a checkpoint due? Always at the step that fixed the plan: from there the run is determined."""
        by_steps = self.cfg.save_every and self.step % self.cfg.save_every == 0
        return bool(by_steps or self.clock() - self.saved_at >= self.cfg.save_seconds)

    def save(self, out: Path) -> Path:
        """Write a checkpoint of everything that the next step reads."""
        path = checkpoint.save(out, self.step, self.tensors(), self.state(), self.cfg.keep)
        self.saved, self.saved_at = self.step, self.clock()
        return path

    def publish(self, out: Path) -> None:
        """Write the finished model."""
        checkpoint.save_model(out, self.exported(), self.tokenizer)

    def tensors(self) -> dict[str, Tensor]:
        """Weights, average, moments and random state by name."""
        found = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        if self.average is not None:
            found |= {f"ema.{name}": t for name, t in self.average.state_dict().items()}
        for name, p in self.named.items():
            found |= {f"optim.{key}.{name}": t for key, t in self.optimizer.state.get(p, {}).items()}
        found |= {f"data.{key}": v for key, v in self.data.state_dict().items() if isinstance(v, Tensor)}
        return found | {f"rng.{kind}": t for kind, t in _random_state(self.device).items()}

    def state(self) -> dict[str, Any]:
        """What is not a tensor."""
        return {
            "model": asdict(self.model.cfg),
            "train": self.cfg.binding,
            "export": self.cfg.export,
            "step": self.step,
            "total_steps": self.plan.total,
            "tokens": self.tokens,
            "seconds": self.elapsed,
            "data": {key: v for key, v in self.data.state_dict().items() if not isinstance(v, Tensor)},
            "history": self.history,
        }

    def resume(self, out: Path) -> bool:
        """Take up the last checkpoint of `out`, if there is one."""
        path = checkpoint.latest(out)
        if path is None:
            return False
        tensors, state = checkpoint.load(path, {"model": asdict(self.model.cfg), "train": self.cfg.binding})
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optim": {}, "data": {}, "rng": {}}
        for name, t in self.mine(tensors).items():
            part, rest = name.split(".", 1)
            parts[part][rest] = t
        self.model.load_state_dict(parts["model"])
        if self.ema is not None and self.average is not None:
            self.average.load_state_dict(parts["ema"])
            self.ema.n_averaged.fill_(state["step"])
        for name, t in parts["optim"].items():
            key, parameter = name.split(".", 1)
            p = self.named[parameter]
            self.optimizer.state[p][key] = t.to(p.device)
        _set_random_state(parts["rng"], self.device)
        self.data.load_state_dict(state["data"] | parts["data"])
        self.step = self.saved = state["step"]
        self.plan.total, self.tokens = state["total_steps"], state["tokens"]
        self.history = state["history"]
        self.started = self.clock() - state["seconds"]
        return True

    def mine(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What this process takes of a checkpoint's tensors: all."""
        return tensors


def evaluate(
    model: Transformer,
    tokenizer: Tokenizer,
    seq_len: int = 256,
    n_rows: int = 16,
    domains: Iterable[str] = DOMAINS,
    corpus: str | Path | None = None,
) -> dict[str, float]:
    """Bits per byte of held-out text, by domain: comparable between tokenizers, as the loss a token is not."""
    path = None if corpus is None else Path(corpus)
    return {d: bits_per_byte(model, *eval_rows(d, tokenizer, seq_len, n_rows, corpus=path)) for d in domains}


@torch.no_grad()
def bits_per_byte(model: Transformer, rows: Int[Tensor, "B S1"], n_bytes: int) -> float:
    """-log2 p(targets of `rows`) / the bytes that they stand for."""
    training = model.training
    model.eval()
    nats = 0.0
    for part in rows.to(model.head.weight.device).split(8):
        h, _ = model.hidden(part[:, :-1])
        nats += head_loss(h, model.head.weight, part[:, 1:]).item()
    model.train(training)
    return nats / math.log(2) / n_bytes


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
