"""`minids export-hf` and `minids import-hf`: weights to and from the Hugging Face format of DeepSeek-V3."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from minids import checkpoint
from minids.cli.options import DTYPES, Command
from minids.costs import params
from minids.hf import from_hf, to_hf
from minids.tokenizer import Tokenizer


def add(command: Command) -> None:
    out = command("export-hf", _export, "write a model in the Hugging Face format of DeepSeek-V3")
    out.add_argument("out", help="directory to write")
    out.add_argument("--model", help="directory of the model; the shipped one by default")
    out.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the weights on disk")
    out.add_argument(
        "--mtp", choices=("apart", "inside", "drop"), default="apart", help="where MTP weights go: see minids.hf"
    )
    back = command("import-hf", _import, "take over a DeepSeek-V3 or V2 model from the Hugging Face format")
    back.add_argument("source", help="directory that holds config.json and safetensors")
    back.add_argument("out", help="directory to write")
    back.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the weights on disk")


def _export(args: argparse.Namespace) -> None:
    model, tokenizer = checkpoint.load_model(Path(args.model) if args.model else checkpoint.shipped())
    to_hf(model, args.out, tokenizer, DTYPES[args.dtype], args.mtp)
    print(f'{args.out}: open it with transformers.AutoModelForCausalLM.from_pretrained("{args.out}").')


def _import(args: argparse.Namespace) -> None:
    model, found = from_hf(args.source), Path(args.source) / "tokenizer.json"
    tokenizer = None
    if found.is_file():
        try:
            tokenizer = Tokenizer.load(found)
        except (ValueError, KeyError) as error:
            print(f"minids: the weights are taken over, the tokenizer is not: {error}", file=sys.stderr)
    checkpoint.save_model(args.out, model, tokenizer, DTYPES[args.dtype])
    print(f"{args.out}: {params(model.cfg).total:,} parameters. Next: minids info {args.out}")
