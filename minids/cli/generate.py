"""`minids generate`: write on from a prompt, or answer it."""

from __future__ import annotations

import argparse

import torch

from minids.cli.options import Command, load, model_options
from minids.generate import stream_text

STORY = "Once upon a time"


def add(command: Command) -> None:
    _generate_options(command("generate", _generate, "write on from a prompt, or answer it"))


def _generate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help=f'what to write on from; without one: "{STORY}"; "": anything')
    model_options(parser)
    parser.add_argument("--chat", action="store_true", help="the prompt is a user's message, the answer follows")
    parser.add_argument("--max-new-tokens", type=int, default=200, help="at most so many tokens")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 always takes the likeliest token")
    parser.add_argument("--top-p", type=float, default=0.95, help="draw from the likeliest tokens of this mass")
    parser.add_argument("--frequency-penalty", type=float, default=0.0, help="taken from a logit for each earlier use")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given several times"
    )
    parser.add_argument("--seed", type=int, help="the same seed writes the same text")


def _generate(args: argparse.Namespace) -> None:
    model, tokenizer = load(args)
    prompt = args.prompt if args.prompt is not None else "" if args.chat else STORY
    generator = torch.Generator(args.device)
    if args.seed is None:
        generator.seed()
    else:
        generator.manual_seed(args.seed)
    pieces = stream_text(
        model, tokenizer, prompt, args.max_new_tokens, args.chat, args.stop, temperature=args.temperature,
        top_p=args.top_p, frequency_penalty=args.frequency_penalty, generator=generator,
    )  # fmt: skip
    if not args.chat:
        print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
