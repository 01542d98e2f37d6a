"""Runs the HTTP API: a socket, patience with slow clients and its end, a server in the foreground or in a thread.

Paper: none.

A server on the open side of a socket meets clients that connect and say nothing, or one byte a second. Each holds a
file descriptor, of which a process has a limited number (often 1,024, 256 on macOS). So

    a request must be there whole within `limits.arrival` seconds of its first byte (or of the connection)
    a connection rests at most `limits.idle` seconds between two requests (uvicorn does that)
    beyond `limits.connections`, the one that has waited longest without a request makes room for the new one

A connection that is being answered is never closed for another's sake.

    with Background(service, "tiny") as server:      # in a notebook or a test
        print(server.url)                            # http://127.0.0.1:PORT, a free one

Differs from the paper: nothing to differ from.
Left out: TLS and several processes (a gateway such as nginx does both); a limit on how slowly an answer may be read.
Notebook: 17_serving.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import socket
import sys
import threading
from types import TracebackType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from minids.http_api import create_app
from minids.http_params import ApiError, Limits
from minids.service import Service

BACKLOG = 2048  # connections that the system keeps until they are accepted
AT_ONCE = 16  # connections accepted in one turn of the event loop: each is open for some turns before it can be counted
SPARE_FILES = 64 + 6 * AT_ONCE  # file descriptors for everything that is no connection, or none that is counted yet
GRACE = 5  # seconds that requests may go on after Ctrl-C


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is a free one. OSError says when the port is taken or the host is not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise OSError(
            f"cannot listen on {host} port {port} ({error.strerror or error}). Choose another --port."
        ) from None


def url_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """The API of a service; `run(sockets=[listen(..)])` serves until Ctrl-C. `ready` is set when it answers."""

    def __init__(self, service: Service, name: str, limits: Limits | None = None):
        limits = (limits or Limits()).check()
        config = uvicorn.Config(
            create_app(service, name, limits), http=patient(limits), ws="none", lifespan="on", loop="asyncio",
            log_config=None, access_log=False, server_header=False, backlog=AT_ONCE,
            h11_max_incomplete_event_size=16_384, timeout_keep_alive=max(1, round(limits.idle)),
            timeout_graceful_shutdown=2 * GRACE,
        )  # fmt: skip
        super().__init__(config)
        self.service, self.ready = service, threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for sock in sockets or []:
            sock.listen(BACKLOG)  # asyncio's `backlog` is both this and how many it accepts in one turn
        self.ready.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let what is being written end; what takes too long ends with an error."""
        late = asyncio.get_running_loop().call_later(GRACE, self.service.stop, False)
        await super().shutdown(sockets)
        late.cancel()


class Background:
    """A server in a thread of this process, on loopback. A context manager; `url` is where it is."""

    def __init__(self, service: Service, name: str, limits: Limits | None = None, port: int = 0):
        self.service, self._server, self._socket = service, Server(service, name, limits), listen("127.0.0.1", port)
        self.url = url_of(self._socket)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="minids-http", daemon=True
        )

    def start(self) -> Background:
        self._thread.start()
        while not self._server.ready.wait(0.1):
            if not self._thread.is_alive():
                raise RuntimeError("the server ended before it answered; what it printed says why.")
        return self

    def stop(self) -> None:
        """End after the requests under way, at most a few seconds later."""
        self._server.should_exit = True
        self._thread.join()

    def __enter__(self) -> Background:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


def most_connections(wanted: int) -> int:
    """`wanted`, or fewer where the system does not allow this process so many open files."""
    if sys.platform == "win32":
        return wanted
    resource = importlib.import_module("resource")
    return max(16, min(wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FILES))


def patient(limits: Limits) -> type[H11Protocol]:
    """uvicorn's protocol for one server, with `limits` on how long and how many connections may wait for a request."""
    waiting: dict[H11Protocol, None] = {}  # in the order of their waiting: dicts keep it
    most = most_connections(limits.connections)

    class Patient(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            waiting[self] = None
            self._follow()
            if len(self.connections) > most:
                longest = next(iter(waiting))
                waiting.pop(longest)
                longest.transport.abort()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._follow()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
                waiting[self] = None

        def connection_lost(self, exc: Exception | None) -> None:
            waiting.pop(self, None)
            self._rest()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            """As uvicorn's, in the API's shape."""
            body = json.dumps(ApiError(f"the request must be HTTP/1.1. {msg} Use an HTTP client.").body()).encode()
            headers: list[Any] = [(b"content-type", b"application/json"), (b"connection", b"close")]
            headers.append((b"content-length", str(len(body)).encode()))
            try:
                for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event) or b"")
            except h11.LocalProtocolError:  # an answer is under way already
                pass
            self.transport.close()

        def _follow(self) -> None:
            """The clock runs while a request is not whole."""
            if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
                waiting.pop(self, None)
                self._rest()
            elif self._timer is None:
                self._timer = self.loop.call_later(limits.arrival, self.transport.abort)

        def _rest(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Patient
