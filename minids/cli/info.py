"""`minids info`: parameters, activated parameters, cache and operations, counted by formula and on the built model."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from minids import checkpoint
from minids.cli.options import Command
from minids.config import PRESETS, Config, preset
from minids.costs import cache_values_per_token, forward_flops_per_token, kv_bytes_per_token, params
from minids.hf_config import config_from_hf
from minids.model import Transformer


def add(command: Command) -> None:
    info = command("info", _info, "count parameters, cache and operations of a preset or a model directory")
    info.add_argument("what", nargs="?", default="tiny", help=f"{', '.join(PRESETS)}, or a directory")
    info.add_argument("--no-build", action="store_true", help="do not check the formula by building the model")


def _info(args: argparse.Namespace) -> None:
    cfg = _config(args.what)
    p = params(cfg)
    rows = [
        ("input embedding", p.embedding), ("attention", p.attention), ("dense FFNs", p.dense_ffn),
        ("routed experts", p.experts), ("shared experts", p.shared_experts), ("gates", p.gates), ("norms", p.norms),
        ("output head", p.head),
    ]  # fmt: skip
    print(f"{args.what}: {cfg.n_layers} layers ({cfg.n_moe_layers} with experts), dim {cfg.dim}, {cfg.n_heads} heads\n")
    for name, n in rows:
        print(f"  {name:<32}{n:>20,}   {n / p.total:6.1%}")
    print(f"  {'total':<32}{p.total:>20,}   100.0%")
    print(f"  {'MTP modules, beside the total':<32}{f'+{p.mtp:,}':>20}\n")
    convention = "without the input embedding, the papers' convention"
    print(f"  activated by one token          {p.activated:>20,}   {_short(p.activated)} {convention}")
    everything = p.activated_with_embedding
    print(f"  activated, embedding included   {everything:>20,}   {_short(everything)}\n")
    per_layer = cache_values_per_token(cfg)
    print(f"  cache of one token in BF16      {kv_bytes_per_token(cfg):>20,}   bytes: {per_layer} values x "
          f"{cfg.n_layers} layers x 2")  # fmt: skip
    print(f"  operations of one token         {forward_flops_per_token(cfg):>20,}   forward, at an empty context")
    if not args.no_build:
        counted = _count_on_meta(cfg, p.total + p.mtp)
        print(f"  counted on the meta device      {counted:>20,}   total and MTP, tensor by tensor")


def _short(n: int) -> str:
    """36,625,618,432 as 36.6B."""
    return f"{n / 1e9:.1f}B" if n >= 1e9 else f"{n / 1e6:.1f}M"


def _count_on_meta(cfg: Config, expected: int) -> int:
    """The same number from the model itself, built without memory."""
    with torch.device("meta"), _NothingDrawn():
        model = Transformer(cfg)
    found = sum(t.numel() for t in model.state_dict().values())
    if found != expected:
        raise ValueError(
            f"formula and model must agree; got {expected:,} and {found:,}. This is a bug in minids.costs."
        )
    return found


class _NothingDrawn(TorchFunctionMode):
    """First weights are not drawn: there is no memory to fill, and trying makes torch load its compiler."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.__name__ in ("normal_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _config(what: str) -> Config:
    """A preset's name, a directory of minids, or one of Hugging Face."""
    path = Path(what)
    if not path.is_dir():
        if "/" in what or os.sep in what or path.exists():
            raise FileNotFoundError(f"there is no directory {what}. Give one, or a preset: {', '.join(PRESETS)}.")
        return preset(what)
    if (path / "config.json").is_file():
        found = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if "model_type" in found:
            return config_from_hf(found, found.get("num_nextn_predict_layers") or 0)
    return checkpoint.read_config(path)
