"""The command line: count, train, use and measure a model, trade weights with Hugging Face, lay out pipelines.

Paper: none; each command is a thin shell over one module (`costs`, `train`, `generate`, `http_api`, ..)
and has a file of its own here with a function `add`, which registers it; `COMMANDS` lists them in the help's order.

    minids info v3                                   parameters, activated parameters, cache, operations
    minids train --minutes 10 --out runs/mine        train, or go on where that directory stands
    minids compare lr=2e-3 --seconds 60              a change against the reference, three seeds, with its spread
    minids r1 --minutes 8                            R1's recipe: cold start, RL, SFT, RL, and their table
    minids zero --minutes 8                          R1-Zero: reward alone, thinking of no fixed length
    minids generate "Mia found a red" --seed 1       write on, from the shipped model or --model DIR
    minids eval --model runs/mine                    bits per byte, grammatical stories, balanced experts
    minids export-hf out --model runs/mine           for transformers and what reads its format
    minids import-hf their/dir mine/                 the other way
    minids serve --port 8000                         an OpenAI-style HTTP API (the extra "serve")
    minids schedule dualpipe --ranks 8 --ops         the order of a pipeline's operations; --table compares

What a user can mend (a wrong path, a size that does not fit) ends with one line on stderr and exit code 2, Ctrl-C
with 130.

Differs from the paper: nothing to differ from.
Left out: training in several processes (`python -m minids.train --pp 2 --ep 2`).
Notebook: 00_start uses `info` and `generate`, 08_pretrain `train` and `eval`, 10_dualpipe `schedule`, 14_grpo `zero`,
15_r1 `r1`, 17_serving `serve`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch

from minids.cli import compare, convert, evaluate, generate, info, r1, schedule, serve, train, zero

COMMANDS = (info, train, compare, r1, zero, generate, evaluate, serve, convert, schedule)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0, 2 after a mistake that the user can mend, 130 after Ctrl-C)."""
    for out in (sys.stdout, sys.stderr):  # a Windows console may be unable to show Chinese
        if hasattr(out, "reconfigure"):
            out.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    args = _parser().parse_args(argv)
    try:
        if getattr(args, "threads", None):
            torch.set_num_threads(args.threads)
        return args.run(args) or 0
    except BrokenPipeError:  # the reader went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        print(f"minids {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nminids: stopped by Ctrl-C.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minids",
        description="Build, train and run a small DeepSeek-V3. Every command has its own --help.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        made.set_defaults(run=run)
        return made

    for module in COMMANDS:
        module.add(command)
    return parser


EXAMPLES = """examples:
  minids info v3                                    671,026,419,200 parameters, counted two ways
  minids info tiny
  minids train --minutes 10 --out runs/mine         the same command again goes on with a stopped run
  minids train --steps 200 --set n_layers=4 n_routed_experts=32 --out runs/wide
  minids compare n_activated_experts=2 --seconds 60
  minids r1 --minutes 8 --out runs/r1               how R1 was made: seven stages, one table
  minids zero --minutes 8 --out runs/zero           reward alone; --warning pays for length instead
  minids train --corpus my.txt --minutes 30 --out runs/my-text
  minids generate "Once upon a time" --temperature 0.8 --seed 1
  minids generate --chat "What is 12 + 30?" --model runs/mine
  minids eval --model runs/mine
  minids serve --model runs/mine --port 8000        for clients of OpenAI's API: base_url="http://127.0.0.1:8000/v1"
  minids export-hf out --model runs/mine            then: transformers.AutoModelForCausalLM.from_pretrained("out")
  minids import-hf out back
  minids schedule --table --ranks 8 --chunks 20     bubble and memory, by formula and simulated
  minids schedule dualpipe --draw figure5.png
"""
