"""A service: one thread runs the serving engine, and asyncio tasks hand it requests and get their text back in pieces.

Paper: none; DeepSeek-V3 section 3.4 says what a deployment computes, not how its users reach it.

    an asyncio task                       the engine's thread
      submit(request) -> Job  --orders-->   engine.submit
      await job.next()        <--pieces--   engine.step(): tokens -> whole characters, up to a stop string
      cancel(job)             --orders-->   engine.cancel: the slot is free before the next step

Only that thread touches the engine, so a step needs no lock, and a step that takes long never keeps the event loop from
answering others. A piece crosses by `call_soon_threadsafe`.

Full means: `slots` requests are written and `max_waiting` more wait. An error of a step cannot be laid to one request,
as all share the step: all of them end with `Failed`, and a new engine takes what comes next.

Differs from the paper: prefill and decode share one engine.
Left out: more than one engine, priorities.
Notebook: 17_serving.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Sequence
from typing import NamedTuple

from minids.generate import Text
from minids.model import Transformer
from minids.serving import Engine, Event, Full, Request, check
from minids.tokenizer import Tokenizer

SHUT = "the service is shut down. Send the request again when it is back."


class Failed(RuntimeError):
    """The engine could not go on with what it had; the request may be sent again."""


class Piece(NamedTuple):
    """Text of a request; the last one has the reason of its end ("stop", "length" or "context")."""

    text: str
    reason: str = ""


class Job:
    """One request under way. `tokens` counts what was written so far, without the stop token."""

    def __init__(self, request: Request, text: Text):
        self.request, self.tokens = request, 0
        self._text, self._loop = text, asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece | Failed] = asyncio.Queue()

    async def next(self) -> Piece:
        """The next piece. Raises `Failed` when the engine failed. After the last one nothing comes."""
        piece = await self._pieces.get()
        if isinstance(piece, Failed):
            raise piece
        return piece

    def add(self, event: Event) -> Piece:
        """A token's text; called by the engine's thread."""
        if event.reason == "stop":  # the stop token itself is not part of the text
            return Piece(self._text.close(), "stop")
        self.tokens += 1
        text = self._text.add(event.token)
        if event.reason and not self._text.stopped:
            text += self._text.close()
        return Piece(text, "stop" if self._text.stopped else event.reason)

    def send(self, piece: Piece | Failed) -> None:
        """Hand a piece to the task that waits for it; called by the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the event loop has ended, and with it the task
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)


class Service:
    """A model that writes for whoever asks. `start` it, `submit` from one event loop, `stop` it."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, slots: int = 16, max_waiting: int = 64):
        if max_waiting < 0:
            raise ValueError(f"0 or more requests may wait; got max_waiting={max_waiting}. 64 suit a laptop.")
        check(model, Request("any", [0], 1))  # that the model can be served at all
        self.model, self.tokenizer, self.slots, self.max_waiting = model, tokenizer, slots, max_waiting
        self._engine = self._new_engine()
        self._orders: queue.SimpleQueue[tuple[str, Job | None]] = queue.SimpleQueue()
        self._jobs: dict[str, Job] = {}  # added to by the event loop, taken from by the thread
        self._thread = threading.Thread(target=self._work, name="minids-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, wait: bool = True) -> None:
        """End after the step under way. What is not ended fails."""
        self._orders.put(("stop", None))
        if wait:
            self._thread.join()

    @property
    def running(self) -> int:
        """Requests that have a slot."""
        return len(self._engine.rows)

    @property
    def waiting(self) -> int:
        """Requests that have none yet."""
        return max(0, len(self._jobs) - self.running)

    def submit(self, request: Request, stop: Sequence[str] = ()) -> Job:
        """Take a request on. ValueError for a bad one, `Full` when no more may wait, `Failed` after `stop`."""
        check(self.model, request)
        most = self.slots + self.max_waiting
        if not self._thread.is_alive():
            raise Failed(SHUT)
        if len(self._jobs) >= most:
            raise Full(f"at most {most} requests are taken on at once, and so many are there. Try again in a second.")
        if request.name in self._jobs:
            raise ValueError(f"a request's name is its own while it runs; {request.name!r} is taken. Take another.")
        job = self._jobs[request.name] = Job(request, Text(self.tokenizer, stop))
        self._orders.put(("submit", job))
        return job

    def cancel(self, job: Job) -> None:
        """Forget a request whose client has left. One that has ended stays as it is."""
        self._orders.put(("cancel", job))

    # --- the engine's thread

    def _new_engine(self) -> Engine:
        return Engine(self.model, self.slots, self.slots + self.max_waiting)

    def _work(self) -> None:
        while True:
            try:
                if not self._obey():
                    return self._fail(SHUT)
                for event in self._engine.step():
                    self._deliver(event)
            except Exception as error:
                self._engine = self._new_engine()
                self._fail(f"the engine failed ({type(error).__name__}: {error}) and was started anew. Send it again.")

    def _obey(self) -> bool:
        """Carry out the orders that are there, waiting for one when there is nothing else to do. False: stop."""
        while not self._orders.empty() or self._engine.idle:
            what, job = self._orders.get()
            if job is None:
                return False
            if self._jobs.get(job.request.name) is not job:  # it has ended
                continue
            if what == "submit":
                self._engine.submit(job.request)
            else:
                self._forget(job)
        return True

    def _deliver(self, event: Event) -> None:
        job = self._jobs.get(event.name)
        if job is None:  # its text ended earlier in this step
            return
        piece = job.add(event)
        if piece.reason:
            self._forget(job)
        if piece.text or piece.reason:
            job.send(piece)

    def _forget(self, job: Job) -> None:
        self._engine.cancel(job.request.name)
        self._engine.measured.pop(job.request.name, None)
        del self._jobs[job.request.name]

    def _fail(self, message: str) -> None:
        for name in list(self._jobs):
            self._jobs.pop(name).send(Failed(message))
