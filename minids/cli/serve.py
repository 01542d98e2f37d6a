"""`minids serve`: the model behind an HTTP API in OpenAI's shapes, for the clients that speak it."""

from __future__ import annotations

import argparse
import importlib
import ipaddress
from contextlib import suppress
from pathlib import Path

from minids import checkpoint
from minids.cli.options import Command, load, model_options
from minids.http_params import Limits
from minids.service import Service

EXTRA = {"starlette", "uvicorn", "h11", "anyio", "click"}
LIMITS = {
    "body": "bytes of a request's body",
    "prompt": "tokens of a prompt; 0: what the context holds",
    "tokens": "tokens of an answer",
    "connections": "open connections",
    "arrival": "seconds within which a request must be there whole",
    "idle": "seconds that a connection may rest between requests",
}


def add(command: Command) -> None:
    parser = command("serve", _serve, "serve a model over HTTP, as OpenAI's API does: completions, chat, streaming")
    model_options(parser)
    parser.add_argument("--name", help="what clients call the model; its directory's name by default")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; the default: this machine alone")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0: a free one")
    parser.add_argument("--slots", type=int, default=16, help="requests that are written together")
    parser.add_argument("--max-waiting", type=int, default=64, help="requests that may wait for a slot")
    for name, text in LIMITS.items():
        default = getattr(Limits, name)
        parser.add_argument(f"--max-{name}", type=type(default), default=default, help=f"at most so many {text}")


def _serve(args: argparse.Namespace) -> None:
    try:
        http = importlib.import_module("minids.http_server")  # here: only this command needs the extra
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in EXTRA:
            raise
        raise ValueError(
            f'serving needs the extra "serve"; {error.name} is not installed. Install it: pip install -e ".[serve]"'
        ) from None
    limits = Limits(**{name: getattr(args, f"max_{name}") for name in LIMITS}).check()
    name = args.name or Path(args.model or checkpoint.shipped()).resolve().name
    sock = http.listen(args.host, args.port)
    with sock:
        server = http.Server(Service(*load(args), args.slots, args.max_waiting), name, limits)
        print(f'"{name}" at {http.url_of(sock)}/v1; Ctrl-C ends it.', flush=True)
        if not _loopback(args.host):
            print(
                "Whoever reaches this address can use it: there are no keys. 127.0.0.1 keeps it to yourself.",
                flush=True,
            )
        with suppress(KeyboardInterrupt):
            server.run(sockets=[sock])
        print("\nstopped.")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
