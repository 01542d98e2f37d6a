"""The HTTP API: OpenAI's own client gets what `complete` writes, and nothing that a client does stops the service."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.client import HTTPConnection
from typing import Any

import openai
import pytest
import torch

from minids import checkpoint, http_params, service
from minids.cli import main
from minids.config import dense_active, tiny
from minids.generate import complete, generate
from minids.http_params import HARMLESS, NEUTRAL, SERVED, Limits
from minids.http_server import Background, most_connections
from minids.model import Transformer
from minids.serving import Engine
from minids.tokenizer import Tokenizer, default_tokenizer

CONTEXT = 200
SIZES = {"n_layers": 2, "dim": 32, "inter_dim": 40, "moe_inter_dim": 16, "init_std": 0.3}
CFG = replace(tiny(), **SIZES, max_seq_len=CONTEXT, original_seq_len=CONTEXT)
DEADLINE = 30  # seconds: far more than anything here takes


@pytest.fixture(scope="module")
def model() -> Transformer:
    return Transformer(CFG, torch.Generator().manual_seed(0)).eval()


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return default_tokenizer()


@pytest.fixture(scope="module")
def server(model: Transformer, tok: Tokenizer) -> Iterator[Background]:
    limits = Limits(body=20_000, prompt=150, tokens=60)
    with Background(service.Service(model, tok, slots=8, max_waiting=250), "small", limits) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Background) -> Iterator[openai.OpenAI]:
    with client_of(server) as made:
        yield made


def client_of(server: Background) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=DEADLINE)


def dice(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def call(server: Background, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
    """(status, headers, JSON) of one request; a body that is no bytes is sent as JSON."""
    with contextlib.closing(HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)) as connection:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        connection.request(method, path, data, sent)
        response = connection.getresponse()
        return response.status, response.headers, json.loads(response.read())


def health(server: Background) -> dict[str, Any]:
    return call(server, "GET", "/health")[2]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < end, "it did not happen in time"


def assert_error(got: tuple[int, Any, Any], status: int, message: str, param: str | None = None) -> None:
    assert got[0] == status and got[1]["content-type"] == "application/json"
    assert list(got[2]) == ["error"] and list(got[2]["error"]) == ["message", "type", "param", "code"]
    assert message in got[2]["error"]["message"] and got[2]["error"]["param"] == param
    assert got[2]["error"]["type"].endswith("_error") and "Traceback" not in got[2]["error"]["message"]


# --- what the official client gets


def test_the_one_model_is_listed_and_found(client: openai.OpenAI) -> None:
    assert [card.id for card in client.models.list()] == ["small"]
    assert client.models.retrieve("small").owned_by == "minids"


SAMPLINGS = [{"temperature": 0}, {"seed": 3}, {"seed": 5, "temperature": 0.8, "top_p": 0.7, "frequency_penalty": 1.5}]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_completion_streamed_or_whole_is_what_complete_writes(client, model, tok, sampling: dict[str, Any]) -> None:
    how = {"temperature": 1.0} | {k: v for k, v in sampling.items() if k != "seed"}
    want = complete(model, tok, "Mia 小明", 40, generator=dice(sampling.get("seed", 0)), **how)
    ids = tok.encode("Mia 小明", bos=True)
    alone: Any = generate(model, ids, 40, stop_ids=(tok.eos,), generator=dice(sampling.get("seed", 0)), **how)
    asked = {"model": "small", "prompt": "Mia 小明", "max_tokens": 40, **sampling}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True))
    assert whole.choices[0].text == want == "".join(c.choices[0].text for c in chunks)
    assert whole.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == alone.reason
    assert whole.usage.prompt_tokens == len(ids) and whole.usage.completion_tokens == len(alone)
    assert whole.usage.total_tokens == len(ids) + len(alone)
    assert len(chunks) > 10 and len({c.id for c in chunks}) == 1  # it came in pieces, of one answer


def test_a_chat_streamed_or_whole_is_what_complete_writes(client, model, tok) -> None:
    want = complete(model, tok, "What is 12 + 30?", 30, chat=True, generator=dice(4))
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "12 + 30?"}]
    asked: Any = {"model": "small", "messages": [{"role": "user", "content": parts}], "max_completion_tokens": 30}
    whole = client.chat.completions.create(**asked, seed=4)
    with client.chat.completions.create(**asked, seed=4, stream=True, stream_options={"include_usage": True}) as run:
        *chunks, last = list(run)
    assert whole.choices[0].message.content == want == "".join(c.choices[0].delta.content or "" for c in chunks)
    assert whole.choices[0].message.role == chunks[0].choices[0].delta.role == "assistant"
    assert last.choices == [] and last.usage == whole.usage and all(c.usage is None for c in chunks)


def test_a_conversation_is_read_by_the_chat_template(client, model, tok) -> None:
    talk: Any = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "<｜User｜> 1?"}]
    talk += [{"role": "assistant", "content": "<think>one</think> 1"}, {"role": "user", "content": "2?"}]
    ids = tok.chat(talk)
    want = tok.decode(generate(model, ids, 20, temperature=0, stop_ids=(tok.eos,)))
    got = client.chat.completions.create(model="small", messages=talk, temperature=0, max_tokens=20)
    assert got.choices[0].message.content == want and got.usage.prompt_tokens == len(ids)


def test_token_ids_are_a_prompt_as_they_are(client, model, tok) -> None:
    ids = tok.encode("Once upon a time", bos=True)
    for prompt in (ids, [ids], "Once upon a time", ["Once upon a time"]):
        got = client.completions.create(model="small", prompt=prompt, temperature=0)
        assert got.choices[0].text == complete(model, tok, "Once upon a time", 16, temperature=0)


def test_a_seed_repeats_a_text_and_without_one_texts_differ(client: openai.OpenAI) -> None:
    def texts(**seed: int) -> set[str]:
        run = (client.completions.create(model="small", prompt="Mia", max_tokens=20, **seed) for _ in range(3))
        return {answer.choices[0].text for answer in run}

    assert len(texts(seed=1)) == 1 and len(texts()) == 3


def test_a_stop_string_ends_a_text_and_is_not_in_it(client, model, tok) -> None:
    text = complete(model, tok, "Mia", 40, temperature=0)
    stop = text[10:13]
    want = text[: text.index(stop)]
    asked = {"model": "small", "prompt": "Mia", "max_tokens": 40, "temperature": 0}
    for stops in (stop, ["not in it", stop], [stop, stop + "no"]):
        whole = client.completions.create(**asked, stop=stops)
        chunks = list(client.completions.create(**asked, stop=stops, stream=True))
        assert whole.choices[0].text == want == "".join(c.choices[0].text for c in chunks)
        assert whole.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "stop"
        assert whole.usage.completion_tokens < 40
    assert client.completions.create(**asked, stop=text[-1] + "no").choices[0].text == text  # held back, then let go


def test_a_text_ends_with_the_context_and_with_the_end_of_a_document(client, model, tok) -> None:
    got = client.completions.create(model="small", prompt=[7] * 145, max_tokens=60, temperature=0)
    assert got.choices[0].finish_reason == "length" and got.usage.total_tokens == CONTEXT
    ended = replace_head(model, tok.eos)
    with Background(service.Service(ended, tok, 2), "ended") as other, client_of(other) as its:
        got = its.chat.completions.create(model="ended", messages=[{"role": "user", "content": "?"}])
        assert got.choices[0].finish_reason == "stop" and got.choices[0].message.content == ""
        assert got.usage.completion_tokens == 0


def replace_head(model: Transformer, token: int) -> Transformer:
    """A model that always says `token`."""
    made = Transformer(CFG, torch.Generator().manual_seed(0)).eval()
    plain = made.head.forward
    made.head.forward = lambda x: plain(x).index_fill(-1, torch.tensor([token]), 1e4)  # type: ignore[method-assign]
    return made


@pytest.mark.slow
def test_200_requests_at_once_get_what_each_gets_alone(server, model, tok) -> None:
    kinds = [(f"Mia {i}", 3 + i % 5, i) for i in range(20)]
    want = [complete(model, tok, prompt, n, generator=dice(seed)) for prompt, n, seed in kinds]

    async def all_at_once() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as many:
            asked = [many.completions.create(model="small", prompt=p, max_tokens=n, seed=s) for p, n, s in kinds * 10]
            return [answer.choices[0].text for answer in await asyncio.gather(*asked)]

    assert asyncio.run(all_at_once()) == want * 10
    assert health(server) == {"status": "ok", "slots": 8, "running": 0, "waiting": 0}


# --- what is refused, and how


GOOD = {"model": "small", "prompt": "Mia", "max_tokens": 3}
CHAT = {"model": "small", "messages": [{"role": "user", "content": "1?"}], "max_tokens": 3}
WRONG: dict[str, Any] = {
    "temperature": [-1, 2.5, "hot", True], "top_p": [1.1, []], "frequency_penalty": [3],
    "max_tokens": [0, 61, 1.5, "3"],
    "seed": [2**70, 1.5], "stop": ["", ["a"] * 5, [1], "x" * 300, {}], "stream": ["yes", 1], "model": [3],
    "prompt": [[], 7, {}, [True], [["a", "b"]], ["a", "b"], [1, "a"]], "n": [2, True], "logprobs": [5], "echo": [True],
    "stream_options": [{"include_usage": True}, [], {"more": 1}], "presence_penalty": [0.5], "tempature": [1],
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_parameter_is_refused_by_its_name(server: Background, name: str) -> None:
    for value in WRONG[name]:
        assert_error(call(server, "POST", "/v1/completions", GOOD | {name: value}), 400, ". ", name)


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hello", "messages"),
        (["hello"], "messages[0]"),
        ([{"role": "tool", "content": ""}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": "", "tool_calls": []}], "messages[0].tool_calls"),
        ([{"role": "user", "content": ""}, {"role": "system", "content": ""}], "messages"),
    ],
)
def test_wrong_messages_are_refused_with_their_place(server: Background, messages: Any, param: str) -> None:
    got = call(server, "POST", "/v1/chat/completions", CHAT | {"messages": messages})
    assert_error(got, 400, ". ", param)


def test_what_is_missing_is_named_and_a_text_for_the_other_path_is_refused(server: Background) -> None:
    for body, path, param in (
        ({"prompt": "a"}, "completions", "model"),
        ({"model": "small"}, "completions", "prompt"),
        ({"model": "small"}, "chat/completions", "messages"),
        (CHAT, "completions", "messages"),
        (CHAT | {"max_completion_tokens": 3}, "chat/completions", "max_completion_tokens"),
    ):
        assert_error(call(server, "POST", f"/v1/{path}", body), 400, ". ", param)


def test_what_changes_nothing_is_taken(server: Background) -> None:
    idle = {name: fits[0] for name, fits in NEUTRAL.items()} | {"user": "me", "metadata": {"a": "b"}, "seed": None}
    assert call(server, "POST", "/v1/completions", GOOD | idle)[0] == 200
    assert call(server, "POST", "/v1/chat/completions", CHAT | idle | {"name": None})[0] == 200
    assert not NEUTRAL.keys() & (set(SERVED["chat"]) | set(SERVED["completion"]))


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1]", b'"a"', b"\xff\xfe", b"[" * 9000, b'{"prompt": NaN}', b'{"prompt": "\\ud800"}', b"9" * 5000],
    ids=["nothing", "cut", "list", "text", "not UTF-8", "deep", "NaN", "half a pair", "long number"],
)
def test_a_body_that_is_no_json_object_is_refused(server: Background, body: bytes) -> None:
    assert_error(call(server, "POST", "/v1/completions", body), 400, "the body must be")


def test_whatever_a_body_holds_it_is_read_or_refused_in_words() -> None:
    dice, deep = random.Random(0), json.loads("[" * 400 + "]" * 400)
    values = [None, True, 0, -1, 1, 2.5, 1e999, 10**400, "", "a", "小" * 300, [], [[]], {}, ["a"], [1], {"a": 1}]
    contents = ("a", [], [{"type": "text"}])
    values += [deep, *([{"role": role, "content": c}] for role in ("user", "tool", 1, []) for c in contents)]
    names = [*SERVED["chat"], *SERVED["completion"], *HARMLESS, *NEUTRAL, "else", ""]
    read, refused = 0, set()
    for _ in range(1500):
        changes = {dice.choice(names): dice.choice(values) for _ in range(dice.choice([0, 1, 3]))}
        body = dice.choice([GOOD, CHAT]) | changes
        try:
            http_params.read(json.dumps(body).encode(), dice.choice(["chat", "completion"]), Limits())
            read += 1
        except http_params.ApiError as error:
            assert json.dumps(error.body()) and error.status == 400
            refused.add(error.param)
    assert read > 50 and len(refused) > 20


def test_a_prompt_that_is_too_long_is_refused_with_its_length(server: Background, client: openai.OpenAI) -> None:
    got = call(server, "POST", "/v1/completions", GOOD | {"prompt": [7] * 151})
    assert_error(got, 400, "at most 150 tokens; got 151. Shorten it.", "prompt")
    assert got[2]["error"]["code"] == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="at most 150 tokens") as caught:
        client.chat.completions.create(model="small", messages=[{"role": "user", "content": "a b " * 200}])
    assert caught.value.param == "messages"
    assert_error(call(server, "POST", "/v1/completions", GOOD | {"prompt": [CFG.vocab_size]}), 400, "2047", "prompt")


def test_an_unknown_model_path_or_method_is_refused(server: Background, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match='the model served here is "small"; got "large"') as caught:
        client.completions.create(model="large", prompt="")
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    assert_error(call(server, "GET", "/v1/models/large"), 404, '"large"', "model")
    for path in ("/", "/v1/completions/", "/v1/embeddings", "/%ff%fe"):
        assert_error(call(server, "POST", path, GOOD), 404, "no such path")
    got = call(server, "GET", "/v1/completions")
    assert_error(got, 405, 'no such method here: "GET /v1/completions"')
    assert got[1]["allow"] == "POST"


def test_a_body_that_is_too_large_is_refused_whether_its_length_is_said_or_not(server: Background) -> None:
    large = json.dumps(GOOD | {"user": "x" * 20_000}).encode()
    assert_error(call(server, "POST", "/v1/completions", large), 413, "at most 20,000 bytes")
    with contextlib.closing(HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)) as connection:
        pieces = iter([large[:15_000], large[15_000:]])
        connection.request("POST", "/v1/completions", pieces, {"Content-Type": "application/json"}, encode_chunked=True)
        response = connection.getresponse()
        assert_error((response.status, response.headers, json.loads(response.read())), 413, "at most 20,000 bytes")
        connection.request("GET", "/v1/models")  # the same connection goes on
        assert connection.getresponse().status == 200


def test_a_form_of_another_site_is_refused(server: Background) -> None:
    got = call(server, "POST", "/v1/completions", GOOD, Content_Type="text/plain")
    assert_error(got, 415, "application/json")


def test_what_is_no_http_is_refused_in_the_same_shape(server: Background) -> None:
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE) as raw:
        raw.sendall(b"hello\r\n\r\n")
        answer = b"".join(iter(lambda: raw.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 400") and b'{"error": {"message": "the request must be HTTP' in answer


# --- clients that leave, crowd or stall; an engine that fails


class Gate:
    """Lets an engine take a step for each `release`, so that a test decides how far it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.steps = threading.Semaphore(0)
        self.taken = 0
        gate = self

        class Gated(Engine):
            def step(self):
                assert gate.steps.acquire(timeout=DEADLINE)
                gate.taken += 1
                return super().step()

        monkeypatch.setattr(service, "Engine", Gated)

    def open(self) -> None:
        self.steps.release(10_000)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def ask(server: Background, stream: bool, n: int = 100) -> HTTPConnection:
    """A request whose answer nobody has read yet."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
    body = json.dumps({"model": "small", "prompt": "Mia", "max_tokens": n, "seed": 1, "stream": stream})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(gate: Gate, model, tok, stream: bool) -> None:
    with Background(service.Service(model, tok, slots=1), "small") as server:
        runs, waits = ask(server, stream), ask(server, stream)
        until(lambda: health(server)["waiting"] == 2)
        gate.steps.release(5)
        until(lambda: health(server)["running"] == 1)
        if stream:
            assert runs.getresponse().readline().startswith(b"data: ")
        waits.close()
        runs.close()

        def one_step_later() -> bool:
            gate.steps.release()
            return health(server) == {"status": "ok", "slots": 1, "running": 0, "waiting": 0}

        until(one_step_later)
        assert gate.taken < 50  # the text was not written to its end
        gate.open()
        got = call(server, "POST", "/v1/completions", GOOD | {"seed": 1})
        assert got[2]["choices"][0]["text"] == complete(model, tok, "Mia", 3, generator=dice(1))


def test_too_many_at_once_are_sent_away_and_told_when_to_come_back(gate: Gate, model, tok) -> None:
    with (
        Background(service.Service(model, tok, slots=2, max_waiting=1), "small") as server,
        client_of(server) as client,
    ):
        taken = [ask(server, False, 5) for _ in range(3)]
        until(lambda: health(server)["waiting"] == 3)
        got = call(server, "POST", "/v1/completions", GOOD)
        assert_error(got, 429, "at most 3 requests")
        assert got[1]["retry-after"] == "1"
        with pytest.raises(openai.RateLimitError):
            client.completions.create(model="small", prompt="Mia")
        gate.open()
        assert all(connection.getresponse().status == 200 for connection in taken)
        assert call(server, "POST", "/v1/completions", GOOD)[0] == 200
        for connection in taken:
            connection.close()


def test_an_engine_that_fails_answers_all_with_500_and_the_service_goes_on(monkeypatch, model, tok) -> None:
    fails = {"at": 3}  # the step at which the next failure comes
    long = GOOD | {"max_tokens": 40, "seed": 1}  # does not end before

    class Failing(Engine):
        def step(self):
            fails["at"] -= 1
            if fails["at"] == 0:
                raise FloatingPointError("a NaN")
            return super().step()

    monkeypatch.setattr(service, "Engine", Failing)
    with Background(service.Service(model, tok, slots=2), "small") as server, client_of(server) as client:
        assert_error(call(server, "POST", "/v1/completions", long), 500, "FloatingPointError: a NaN")
        fails["at"] = 1
        with pytest.raises(openai.InternalServerError, match="a NaN"):
            client.completions.create(model="small", prompt="Mia", stream=True)
        fails["at"] = 20
        with pytest.raises(openai.APIError, match="a NaN"):  # the answer had begun
            list(client.completions.create(**long, stream=True))
        got = call(server, "POST", "/v1/completions", GOOD | {"seed": 1})
        assert got[2]["choices"][0]["text"] == complete(model, tok, "Mia", 3, generator=dice(1))


def half_open(server: Background, n: int) -> Iterator[socket.socket]:
    head = b"POST /v1/completions HTTP/1.1\r\nHost:"
    starts = (b"", head, head + b" a\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{")
    for i in range(n):
        raw = socket.create_connection(("127.0.0.1", server.port), DEADLINE)
        raw.sendall(starts[i % 3])
        yield raw


@pytest.fixture
def many_files() -> Iterator[None]:
    """Allows this process the files that 1,000 connections take at both ends."""
    if sys.platform == "win32":
        yield  # no such limit
        return
    resource = importlib.import_module("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2500:
        pytest.skip(f"1,000 connections take 2,500 open files at both ends; the system allows {hard} (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2500), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_1000_half_open_connections_stop_nobody_and_are_closed_in_time(many_files, model, tok) -> None:
    want = complete(model, tok, "Mia", 3, generator=dice(1))
    with (
        Background(service.Service(model, tok, slots=2), "small", Limits(arrival=4)) as server,
        contextlib.ExitStack() as stack,
    ):
        stalled = [stack.enter_context(raw) for raw in half_open(server, 1000)]
        got = call(server, "POST", "/v1/completions", GOOD | {"seed": 1})
        assert got[2]["choices"][0]["text"] == want
        for raw in stalled:
            with contextlib.suppress(ConnectionResetError):
                assert raw.recv(1) == b""  # closed by the server, without a word


def test_beyond_the_limit_of_connections_the_one_that_waited_longest_makes_room(gate: Gate, model, tok) -> None:
    with (
        Background(service.Service(model, tok, slots=2), "small", Limits(connections=20, arrival=1000)) as server,
        contextlib.ExitStack() as stack,
    ):
        taken = ask(server, False, 5)
        until(lambda: health(server)["waiting"] == 1)
        stalled = [stack.enter_context(raw) for raw in half_open(server, 100)]
        assert health(server)["status"] == "ok"
        for raw in stalled[:80]:
            with contextlib.suppress(ConnectionResetError):
                assert raw.recv(1) == b""
        gate.open()
        assert taken.getresponse().status == 200  # one that is being answered stays
        taken.close()
    assert most_connections(20) == 20


def test_a_model_without_latents_and_a_port_that_is_taken_are_refused_at_the_start(server: Background, tok) -> None:
    with pytest.raises(ValueError, match="attn='gqa'"):
        service.Service(Transformer(replace(dense_active(), n_layers=1, n_dense_layers=1)), tok)
    with pytest.raises(OSError, match=f"port {server.port} .*Choose another"):
        Background(server.service, "again", port=server.port)
    with pytest.raises(ValueError, match="limit body is at least 1; got 0"):
        Limits(body=0).check()


# --- the command


def test_the_command_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["serve", "--help"])
    out = capsys.readouterr().out
    assert all(option in out for option in ("--model", "--host", "--port", "--slots", "--max-body", "--max-waiting"))
    assert "127.0.0.1" in out


def test_without_the_extra_the_command_says_how_to_install_it(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "minids.http_server")
    assert main(["serve"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and 'uvicorn is not installed. Install it: pip install -e ".[serve]"' in err


FEW_FILES = "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (256, r.getrlimit(r.RLIMIT_NOFILE)[1]))"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit on Windows")
def test_where_the_system_allows_256_files_1000_half_open_connections_stop_nobody(many_files, model, tok, tmp_path):
    checkpoint.save_model(tmp_path / "mine", model, tok)
    options = ["serve", "--model", str(tmp_path / "mine"), "--port", "0"]
    command = [sys.executable, "-c", f"{FEW_FILES}; from minids.cli import main; main({options!r})"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        port = int(process.stdout.readline().split("127.0.0.1:")[1].split("/")[0])
        with contextlib.ExitStack() as stack:
            for _ in range(1000):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), DEADLINE))
            with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=DEADLINE)) as connection:
                connection.request("GET", "/health")
                assert connection.getresponse().status == 200
            process.send_signal(signal.SIGINT)
            assert process.wait(DEADLINE) == 0 and process.stderr.read() == ""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C reaches a child process in another way on Windows")
def test_the_command_serves_until_ctrl_c(model, tok, tmp_path) -> None:
    checkpoint.save_model(tmp_path / "mine", model, tok)
    command = [
        sys.executable,
        "-m",
        "minids",
        "serve",
        "--model",
        str(tmp_path / "mine"),
        "--port",
        "0",
        "--threads",
        "1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        first = process.stdout.readline()
        assert first.startswith('"mine" at http://127.0.0.1:')
        with openai.OpenAI(base_url=first.split()[2].rstrip(";"), api_key="none") as client:
            run = iter(client.completions.create(model="mine", prompt="Mia", seed=1, max_tokens=20, stream=True))
            pieces = [next(run).choices[0].text]
            process.send_signal(signal.SIGINT)
            pieces += [chunk.choices[0].text for chunk in run]  # what runs is ended first
        assert "".join(pieces) == complete(model, tok, "Mia", 20, generator=dice(1))
        assert process.wait(DEADLINE) == 0
        assert process.stdout.read() == "\nstopped.\n" and process.stderr.read() == ""
