"""Serving in two processes: one reads prompts, one writes, and a third, the caller's, passes on what goes between them.

Paper: DeepSeek-V3 section 3.4, where prefilling and decoding run on machines of their own.

    submit -> waiting -> prefill process: `serving.prefill`  -> the caller's process -> decode process: `serving.Engine`
                         one prompt after another               bytes of the cache      all rows a token at once
    step   <- events  <---------------------------------------------------------------  one for each token

What crosses is data: requests, and the weights, caches and dice as bytes of the safetensors format. The weights are
those of the moment when `Pools` was made.

A process may die at any moment. All that it knew, the caller's process knows too: the requests, and the tokens that
came of each. So a process that has died is started anew, and its requests wait again in front of all others, each
with the tokens `written`: prompt and tokens are read at once, the dice are moved on by as many draws, and the text goes
on as it would have. A request over which processes died more than `tries` times is answered by an error: in prefill
that is the one that was being read, in decode all that were being written, since nobody knows which of them it was.

The processes end with the caller's: when the pipe to it closes, they leave at once, in the middle of a step. Ctrl-C
reaches the caller alone. It may come in the middle of a message, so both processes are then started anew, too.

Differs from the paper: one unit of each kind, and the cache goes through the caller's process. In the paper's cluster
it goes from GPU to GPU.
Left out: several processes of a kind, a process that hangs and does not die, models that were converted to FP8.
Notebook: 17_serving.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.multiprocessing as mp
from safetensors.torch import load as tensors_from_bytes

from minids.checkpoint import pack
from minids.config import Config
from minids.model import Transformer
from minids.serving import Engine, Event, Full, Handover, Measured, Request, check, prefill

AHEAD = 2  # prompts read before there is a slot for them
NO_TOKEN = -1  # the token of an event that is an error
WEIGHTS, READY = "weights", "ready"  # what a process says when it wants the weights, and when it has them


@dataclass
class _Job:
    """A request, the tokens that came of it, and how often a process died over it.

    It travels under a number of its own: a name may come again after `cancel`, a number does not.
    """

    number: int
    request: Request
    written: list[int] = field(default_factory=list)
    deaths: int = 0

    def now(self) -> Request:
        """What is to be done from here on."""
        return replace(self.request, name=str(self.number), written=tuple(self.written))


class Worker:
    """A process, the pipe to it, and the jobs that it was given and has not answered, oldest first."""

    def __init__(self, name: str, work: Callable[..., None], cfg: Config, slots: int, threads: int):
        self.name, self.args = name, (work, cfg, slots, threads)
        self.jobs: dict[int, _Job] = {}
        self.failed = 0  # starts, one after another, that came to nothing
        self.start()

    def start(self) -> None:
        context = mp.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_child, args=(theirs, *self.args), daemon=True, name=self.name)
        self.process.start()
        theirs.close()
        self.ready = False

    def send(self, message: Any) -> None:
        with contextlib.suppress(OSError):  # a process that has died is noticed where its pipe is read
            self.pipe.send(message)

    def end(self) -> None:
        """The closed pipe ends it; one that does not notice is killed."""
        self.pipe.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class Pools:
    """A prefill and a decode process, and all requests on their way. Not for several threads: one loop calls `step`.

        with Pools(model) as pools:
            pools.submit(Request("one", prompt, 20))
            for event in pools.run(): ...

    `measured` has the times of each request, by `clock` (for `serving.report`); `handed_bytes` and `restarts` count.
    In a script, make it under `if __name__ == "__main__":`, since the new processes import the script.
    RuntimeError when a process cannot be started. After `tries` deaths over a request its event is an error.
    """

    def __init__(
        self,
        model: Transformer,
        slots: int = 16,
        tries: int = 3,
        max_waiting: int = 1000,
        threads: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ):
        if slots < 1:
            raise ValueError(f"a decode process has at least one slot; got {slots}. 16 suit a laptop.")
        self.model, self.weights = model, pack(model.state_dict())
        self.slots, self.tries, self.max_waiting, self.clock = slots, tries, max_waiting, clock
        self.jobs: dict[str, _Job] = {}  # all on their way, by name, in order of arrival
        self.waiting: deque[_Job] = deque()  # those of them that no process has
        self.events: list[Event] = []
        self.measured: dict[str, Measured] = {}
        self.handed_bytes = self.restarts = 0
        self.closed = False
        self._numbers = itertools.count()
        self.prefill = Worker("prefill", _read, model.cfg, slots, threads)
        self.decode = Worker("decode", _write, model.cfg, slots, threads)
        self.workers = (self.prefill, self.decode)
        try:
            while not all(worker.ready for worker in self.workers):
                self._route(None)
        except BaseException:
            self.close()
            raise

    @property
    def idle(self) -> bool:
        return not self.jobs and not self.events

    def submit(self, request: Request) -> None:
        """Queue a request. ValueError for a bad one, `Full` when too many wait."""
        check(self.model, request)
        if self.closed:
            raise ValueError("closed pools serve no more; got a request after close(). Make new ones.")
        if len(self.waiting) >= self.max_waiting:
            raise Full(f"{len(self.waiting)} requests wait already, the most there may be. Try again later.")
        if request.name in self.jobs:
            raise ValueError(f"a request's name is its own while it runs; {request.name!r} is taken. Take another.")
        job = self.jobs[request.name] = _Job(next(self._numbers), request, list(request.written))
        self.measured[request.name] = Measured(self.clock())
        self.waiting.append(job)

    def cancel(self, name: str) -> bool:
        """Forget a request whose client has left, and free its slot. Whether it was there."""
        job = self.jobs.pop(name, None)
        if job is None:
            return False
        self._not_waiting(job)
        self.prefill.jobs.pop(job.number, None)  # it may be read, but goes nowhere
        if self.decode.jobs.pop(job.number, None):
            self.decode.send(str(job.number))
        return True

    def step(self, timeout: float | None = None) -> list[Event]:
        """Wait for the processes, at most `timeout` seconds, pass on what they say; the events that came of it.

        The last event of a request has a reason: those of `serving.Engine`, or "error: ..." with the token -1.
        """
        if self.jobs and not self.events:
            try:
                self._route(timeout)
            except BaseException:
                self._anew()
                raise
        events, self.events = self.events, []
        return events

    def run(self) -> Iterator[Event]:
        """Step until nothing is left."""
        while not self.idle:
            yield from self.step()

    def close(self) -> None:
        """End both processes. Requests on their way are lost; the events that came stay to be had from `step`."""
        self.closed = True
        for worker in self.workers:
            worker.end()
        self.jobs.clear()

    def __enter__(self) -> Pools:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _route(self, timeout: float | None) -> None:
        """Give the prefill process what fits, then hear one message of each process that says something."""
        if self.prefill.ready:
            self._feed()
        # what was read waits in the prefill process while the decode process starts
        heard = [w.pipe for w in self.workers if w is self.decode or self.decode.ready or not w.ready]
        speaking = wait(heard, timeout)
        for worker in self.workers:
            if worker.pipe in speaking:
                try:
                    message = worker.pipe.recv()
                except (EOFError, OSError):
                    self._died(worker)
                else:
                    self._hear(worker, message)

    def _feed(self) -> None:
        while self.waiting and len(self.prefill.jobs) + len(self.decode.jobs) < self.slots + AHEAD:
            job = self.waiting.popleft()
            self.prefill.jobs[job.number] = job
            self.prefill.send(job.now())

    def _hear(self, worker: Worker, message: Any) -> None:
        if message == WEIGHTS:
            worker.send(self.weights)
        elif message == READY:
            worker.ready, worker.failed = True, 0
        elif worker is self.decode:
            for event in message:
                self._wrote(*event)
        else:
            self._was_read(*message)

    def _was_read(self, number: str, found: bytes | str) -> None:
        """The prefill process has read a prompt, or says why it cannot."""
        job = self.prefill.jobs.pop(int(number), None)
        if job is None:  # its client has left
            return
        if isinstance(found, str):
            self._end(job, NO_TOKEN, f"error: {found}")
            return
        self.handed_bytes += len(found)
        self.decode.jobs[job.number] = job
        self.decode.send((job.now(), found))

    def _wrote(self, number: str, token: int, reason: str) -> None:
        """A token has come."""
        job = self.decode.jobs.get(int(number))
        if job is None:  # its client has left
            return
        job.written.append(token)
        now, measured = self.clock(), self.measured[job.request.name]
        measured.first = measured.first or now
        measured.tokens += 1
        if reason:
            measured.last = now
            del self.decode.jobs[job.number]
            self._end(job, token, reason)
        else:
            self.events.append(Event(job.request.name, token, ""))

    def _end(self, job: _Job, token: int, reason: str) -> None:
        self.events.append(Event(job.request.name, token, reason))
        del self.jobs[job.request.name]

    def _died(self, worker: Worker) -> None:
        """Start it anew; its jobs wait again, or are given up. RuntimeError when it never gets as far as to work."""
        worker.end()
        lost = list(worker.jobs.values())
        if worker.ready:
            for job in lost[:1] if worker is self.prefill else lost:
                job.deaths += 1
        else:
            worker.failed += 1
        if worker.failed > self.tries:
            self.close()
            raise RuntimeError(
                f"the {worker.name} process ended {worker.failed} times before it could work (exit code "
                f"{worker.process.exitcode}). Its own message is above; a script needs `if __name__ == '__main__':`."
            )
        self._restart(worker)
        for job in lost:
            if job.deaths > self.tries:
                self._not_waiting(job)
                reason = f"error: processes died over it {job.deaths} times, the {worker.name} process last"
                self._end(job, NO_TOKEN, reason)

    def _restart(self, worker: Worker) -> None:
        """End what is left of it, put its jobs in front of those that wait, and start it."""
        worker.end()
        self.waiting.extendleft(reversed(worker.jobs.values()))
        worker.jobs = {}
        self.restarts += 1
        worker.start()

    def _anew(self) -> None:
        """After an interrupt nobody knows how much of a message was read or sent: all start anew, as they arrived."""
        if not self.closed:
            for worker in self.workers:
                self._restart(worker)
            self.waiting = deque(self.jobs.values())

    def _not_waiting(self, job: _Job) -> None:
        self.waiting = deque(other for other in self.waiting if other is not job)


def _child(pipe: Connection, work: Callable[..., None], cfg: Config, slots: int, threads: int) -> None:
    """What a new process does: get the weights, then work until the caller's process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller's process, which ends this one
    torch.set_num_threads(threads)
    inbox = _listen(pipe)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        pipe.send(WEIGHTS)
        model = Transformer(cfg).eval()
        model.load_state_dict(tensors_from_bytes(inbox.get()), assign=True)
        pipe.send(READY)
        work(pipe, inbox, model, slots)


def _listen(pipe: Connection) -> queue.SimpleQueue:
    """A queue of what the caller says. A thread of its own fills it, so that the caller never waits for a step."""
    inbox: queue.SimpleQueue = queue.SimpleQueue()

    def receive() -> None:
        try:
            while True:
                inbox.put(pipe.recv())
        except (EOFError, OSError):
            os._exit(0)  # the caller has closed the pipe, or is gone

    threading.Thread(target=receive, daemon=True).start()
    return inbox


def _read(pipe: Connection, inbox: queue.SimpleQueue, model: Transformer, slots: int) -> None:
    """The prefill process."""
    while True:
        request = inbox.get()
        try:
            answer: bytes | str = to_bytes(prefill(model, request))
        except Exception as error:  # this request cannot be read; the next one can
            answer = f"{type(error).__name__}: {error}"
        pipe.send((request.name, answer))


def _write(pipe: Connection, inbox: queue.SimpleQueue, model: Transformer, slots: int) -> None:
    """The decode process. It hears all that was said before each step, and waits only when there is nothing to do."""
    engine = Engine(model, slots)
    while True:
        while engine.idle or not inbox.empty():
            message = inbox.get()
            if isinstance(message, str):
                engine.cancel(message)
            else:
                request, data = message
                engine.submit(request, from_bytes(data))
        pipe.send(engine.step())


def to_bytes(handover: Handover) -> bytes:
    """A handover as it travels."""
    return pack({"kv": handover.kv, "token": torch.tensor(handover.token), "dice": handover.dice})


def from_bytes(data: bytes) -> Handover:
    """What `to_bytes` packed."""
    found = tensors_from_bytes(data)
    return Handover(found["kv"], int(found["token"]), found["dice"])
