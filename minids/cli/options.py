"""What several commands share: how a command is registered, and the options that name a model and load it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from minids import checkpoint
from minids.model import Transformer
from minids.tokenizer import Tokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Command = Callable[[str, Any, str], argparse.ArgumentParser]  # (name, what runs it, one line of help) -> its parser


def model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="directory of a run or a model; the shipped one by default")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ..")
    parser.add_argument("--threads", type=int, help="processor threads")


def load(args: argparse.Namespace) -> tuple[Transformer, Tokenizer]:
    path = Path(args.model) if args.model else checkpoint.shipped()
    model, tokenizer = checkpoint.load_model(path, device=args.device)
    if tokenizer is None:
        raise ValueError(f"text needs a tokenizer, and {path} holds none. Put its tokenizer.json beside the weights.")
    return model.for_decoding(), tokenizer
