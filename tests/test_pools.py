"""Two processes: the tokens of one, whichever of the two dies and when, and nothing is left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minids.config import tiny
from minids.generate import Sampling
from minids.model import Transformer
from minids.pools import AHEAD, NO_TOKEN, Pools, Worker, from_bytes, to_bytes
from minids.serving import Engine, Event, Full, Request, prefill, report, serve_all

pytestmark = pytest.mark.slow  # each new process imports torch
W, LIMIT = 31, 40
HOW = (Sampling(0.0), Sampling(1.0), Sampling(0.8, 0.7), Sampling(0.0, 1.0, 1.5), Sampling(1.0, 1.0, -0.5))
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model() -> Transformer:
    cfg = replace(tiny(), vocab_size=W, n_layers=2, n_mtp_modules=0, max_seq_len=LIMIT, original_seq_len=LIMIT)
    made = Transformer(cfg, torch.Generator().manual_seed(0)).eval()
    made.head.weight.data *= 8
    return made


@pytest.fixture(scope="module")
def shared(model: Transformer) -> Iterator[Pools]:
    with Pools(model, slots=3) as pools:
        yield pools


def requests(n: int, longest: int = 13) -> list[Request]:
    """Prompts and texts of all lengths, greedy and drawn, with and without a penalty; some stop early."""
    dice = torch.Generator().manual_seed(n)
    found = []
    for i in range(n):
        prompt = torch.randint(W, (1 + (7 * i) % 11,), generator=dice).tolist()
        found.append(Request(f"r{i}", prompt, 1 + (5 * i) % longest, HOW[i % 5], (3,), i))
    return found


def served(pools: Pools, asked: list[Request], meanwhile: Callable[[int], None] = lambda n: None) -> dict[str, list]:
    """[token, .., reason] of each request; `meanwhile` hears after each step how many events have come."""
    for request in asked:
        pools.submit(request)
    got: dict[str, list] = {request.name: [] for request in asked}
    count = 0
    while not pools.idle:
        for event in pools.step():
            got[event.name] += [event.token, *filter(None, [event.reason])]
            count += 1
        meanwhile(count)
    return got


def alone(model: Transformer, asked: list[Request]) -> dict[str, list]:
    """The same from one engine in this process."""
    engine, got = Engine(model, 3), {request.name: [] for request in asked}
    for request in asked:
        engine.submit(request)
    for event in engine.run():
        got[event.name] += [event.token, *filter(None, [event.reason])]
    return got


def kill(worker: Worker) -> None:
    worker.process.kill()  # SIGKILL where there are signals


def test_two_processes_write_what_one_writes_greedy_and_drawn(model: Transformer, shared: Pools) -> None:
    asked = requests(17)
    assert served(shared, asked) == alone(model, asked)
    assert {shared.prefill.process.pid, shared.decode.process.pid}.isdisjoint({os.getpid(), None})


def test_times_and_bytes_are_measured(model: Transformer, shared: Pools) -> None:
    before, asked = shared.handed_bytes, [Request(f"m{i}", [1] * (5 + i), 4) for i in range(3)]
    served(shared, asked)
    values = model.cfg.kv_lora_rank + model.cfg.qk_rope_head_dim
    caches = 4 * model.cfg.n_layers * values * (5 + 6 + 7)
    assert caches < shared.handed_bytes - before < caches + 3 * 6000  # the dice are 5,056 bytes
    found = report({r.name: shared.measured[r.name] for r in asked}, ttft=60, tpot=60)
    assert len(found.ttft) == 3 and min(found.ttft) > 0 and min(found.tpot) > 0 and found.goodput > 0


def test_a_handover_is_the_same_after_its_journey(model: Transformer) -> None:
    sent = prefill(model, Request("a", [1, 2, 3], 5, Sampling(1.0)))
    came = from_bytes(to_bytes(sent))
    assert torch.equal(came.kv, sent.kv) and torch.equal(came.dice, sent.dice) and came.token == sent.token


@pytest.mark.parametrize("how", HOW)
def test_a_request_goes_on_behind_the_tokens_that_it_has(model: Transformer, how: Sampling) -> None:
    whole = Request("a", [1, 2, 3], 12, how, (), 5)
    text = serve_all(Engine(model, 1), [whole])["a"]
    for n in (1, 4, 11):
        rest = [event.token for event in _engine(model, replace(whole, written=tuple(text[:n]))).run()]
        assert [*text[:n], *rest] == text
    first = prefill(model, whole)
    after = prefill(model, replace(whole, written=tuple(text[:3])))
    assert torch.equal(first.dice, after.dice) == (how.temperature == 0)  # a draw moves the dice, a greedy choice not


def _engine(model: Transformer, request: Request) -> Engine:
    engine = Engine(model, 2)
    engine.submit(request)
    return engine


def test_a_killed_decode_process_loses_no_token(model: Transformer, shared: Pools) -> None:
    asked = [Request(f"r{i}", [1 + i] * (2 + i), 20, HOW[i % 5], (), i) for i in range(7)]
    before, killed = shared.restarts, []

    def meanwhile(count: int) -> None:
        if count >= 15 * (1 + len(killed)) and len(killed) < 2:
            killed.append(count)
            kill(shared.decode)

    assert served(shared, asked, meanwhile) == alone(model, asked)
    assert shared.restarts - before == 2


def test_a_killed_prefill_process_loses_no_request(model: Transformer, shared: Pools) -> None:
    asked, before, killed = requests(23), shared.restarts, []

    def meanwhile(count: int) -> None:
        if shared.prefill.jobs and count >= 20 * len(killed) and len(killed) < 2:
            killed.append(count)
            kill(shared.prefill)

    assert served(shared, asked, meanwhile) == alone(model, asked)
    assert shared.restarts - before == len(killed) == 2


def test_200_requests_and_a_kill_of_each_process_lose_none(model: Transformer, shared: Pools) -> None:
    asked, before, killed = requests(200), shared.restarts, set()

    def meanwhile(count: int) -> None:
        for worker, when in ((shared.decode, 300), (shared.prefill, 700)):
            if count >= when and worker.name not in killed:
                killed.add(worker.name)
                kill(worker)

    assert served(shared, asked, meanwhile) == alone(model, asked)
    assert shared.restarts - before == 2 and all(shared.measured[r.name].last for r in asked)


def test_a_request_over_which_processes_keep_dying_is_answered_by_an_error(model: Transformer) -> None:
    with Pools(model, slots=1, tries=1) as pools:
        got = served(pools, [Request("poison", [1, 2], 30)], lambda count: pools.decode.jobs and kill(pools.decode))
        assert got["poison"][-2:] == [NO_TOKEN, "error: processes died over it 2 times, the decode process last"]
        good = [Request("good", [1, 2], 5)]
        assert served(pools, good) == alone(model, good)


def test_only_the_prompt_that_is_being_read_is_blamed(model: Transformer) -> None:
    asked = [Request(f"r{i}", [1 + i], 3) for i in range(1 + AHEAD)]
    with Pools(model, slots=1, tries=0) as pools:
        kill(pools.prefill)
        got = served(pools, asked)
    assert got["r0"] == [NO_TOKEN, "error: processes died over it 1 times, the prefill process last"]
    assert {name: got[name] for name in ("r1", "r2")} == alone(model, asked[1:])


def test_a_request_that_fails_in_the_process_is_an_error_for_it_alone(model: Transformer, shared: Pools) -> None:
    broken = Request("b", [2], 9, Sampling(1e-320))  # above 0, but 0 in fp32: the draw divides by it
    asked, restarts = [Request("a", [1, 2], 9), broken, Request("c", [4], 9)], shared.restarts
    got = served(shared, asked)
    assert got["b"][0] == NO_TOKEN and got["b"][1].startswith("error: RuntimeError")
    assert {name: got[name] for name in ("a", "c")} == alone(model, [asked[0], asked[2]])
    assert shared.restarts == restarts


def test_a_request_that_cannot_be_served_is_refused_at_once(shared: Pools) -> None:
    with pytest.raises(ValueError, match="got 40"):
        shared.submit(Request("a", [1] * 40, 3))
    shared.submit(Request("a", [1], 30))
    with pytest.raises(ValueError, match="'a' is taken"):
        shared.submit(Request("a", [1], 3))
    assert shared.cancel("a") and shared.idle


def test_a_full_queue_is_refused(model: Transformer, shared: Pools) -> None:
    shared.max_waiting, most = 2, shared.max_waiting
    for i in range(2):
        shared.submit(Request(f"r{i}", [1], 3))
    with pytest.raises(Full, match="2 requests wait already"):
        shared.submit(Request("c", [1], 3))
    shared.max_waiting = most
    assert len(list(shared.run())) == 6


def test_a_client_that_leaves_frees_its_slot_wherever_its_request_is(model: Transformer) -> None:
    asked = [Request(f"r{i}", [i, i + 1], 35) for i in range(6)]
    with Pools(model, slots=1) as pools:
        left = []

        def meanwhile(count: int) -> None:
            if count >= 5 and not left:
                left.extend(name for name in ("r0", "r1", "r5", "r0") if pools.cancel(name))

        got = served(pools, asked, meanwhile)
        again = replace(asked[0], prompt=[9])  # under the name of one that left
        assert served(pools, [again]) == alone(model, [again])
    assert left == ["r0", "r1", "r5"]  # was being written, had been read, waited
    others = [r for r in asked if r.name not in left]
    assert {r.name: got[r.name] for r in others} == alone(model, others)
    assert 5 <= len(got["r0"]) < 35 and got["r1"] == got["r5"] == []


def test_an_interrupt_in_the_middle_of_a_message_loses_nothing(
    model: Transformer, shared: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, before = requests(9), shared.restarts
    for request in asked:
        shared.submit(request)
    got: dict[str, list] = {request.name: [] for request in asked}
    hear, heard = shared._hear, []

    def interrupted(worker: Worker, message: object) -> None:
        heard.append(message)
        if len(heard) == 8:
            raise KeyboardInterrupt
        hear(worker, message)

    monkeypatch.setattr(shared, "_hear", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _collect(shared.run(), got)
    _collect(shared.run(), got)
    assert shared.restarts - before == 2
    assert got == alone(model, asked)


def _collect(events: Iterator[Event], got: dict[str, list]) -> None:
    for event in events:
        got[event.name] += [event.token, *filter(None, [event.reason])]


def test_close_leaves_no_process_and_takes_no_request(model: Transformer) -> None:
    before = set(multiprocessing.active_children())
    with Pools(model) as pools:
        pools.submit(Request("a", [1], 30))
        assert len(set(multiprocessing.active_children()) - before) == 2
    assert set(multiprocessing.active_children()) == before
    pools.close()  # twice is no error
    assert pools.idle and [worker.process.exitcode for worker in pools.workers] == [0, 0]
    with pytest.raises(ValueError, match="closed pools serve no more"):
        pools.submit(Request("a", [1], 3))


def test_no_slot_is_refused(model: Transformer) -> None:
    with pytest.raises(ValueError, match="at least one slot; got 0"):
        Pools(model, slots=0)


SCRIPT = """
import sys
from dataclasses import replace
from minids.config import tiny
from minids.model import Transformer
from minids.pools import Pools
from minids.serving import Request

if sys.argv[1] == "unguarded" or __name__ == "__main__":
    cfg = replace(tiny(), vocab_size=31, n_layers=1, n_dense_layers=1, n_mtp_modules=0)
    with Pools(Transformer(cfg), tries=0) as pools:
        pools.submit(Request("a", [1], 1000))
        pools.step()
        print("started", flush=True)
        if sys.argv[1] == "serves":
            for event in pools.run():
                pass
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], subprocess.Popen]:
    """Starts SCRIPT in a group and with a folder for temporary files of its own."""
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    (tmp_path / "tmp").mkdir()
    folder = {name: str(tmp_path / "tmp") for name in ("TMPDIR", "TEMP", "TMP")}

    def start(how: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, str(tmp_path / "script.py"), how],
            env=os.environ | folder | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    return start


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups and no SIGINT for one")
@pytest.mark.parametrize("number", ["SIGKILL", "SIGINT"])
def test_the_processes_end_with_their_parent(script: Callable, tmp_path: Path, number: str) -> None:
    parent = script("serves")
    assert parent.stdout.readline() == "started\n"
    if number == "SIGINT":
        os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: the children get it too
    else:
        parent.kill()
    # they hold the parent's stdout: its end comes when the last of them is gone
    out, err = parent.communicate(timeout=60)
    assert out == "" and err.count("Traceback") == (number == "SIGINT") and parent.returncode
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_script_without_its_guard_gets_an_error_and_no_endless_starts(script: Callable) -> None:
    _, err = script("unguarded").communicate(timeout=60)
    assert "process ended 1 times before it could work" in err and "__main__" in err
