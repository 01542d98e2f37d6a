"""An HTTP API in OpenAI's shapes over a `Service`: completions and chat, whole or streamed by server-sent events.

Paper: none; DeepSeek's own service speaks this API, so that its users need no new client.

    GET  /v1/models, /v1/models/NAME     the one model that is served
    POST /v1/completions                 prompt -> text
    POST /v1/chat/completions            messages -> the assistant's next
    GET  /health                         slots in use, requests that wait

    body -> `http_params.read` -> tokens -> service.submit -> pieces -> one JSON object, or with stream = true
        data: {"choices": [{"delta": {"content": "Once"}, ..}], ..}      an event for each piece
        data: [DONE]

Whatever is wrong comes back as {"error": {"message", "type", "param", "code"}}: 400 a parameter, 404 a path or a model,
405 a method, 413 a body too large, 415 not JSON, 429 (with Retry-After) too many at once, 500 the engine failed. In the
midst of a stream, where the status is sent already, the error is an event. A client that leaves frees its slot.

Differs from the paper: nothing to differ from.
Left out: keys and users (bind to loopback, or put a gateway before it), `<think>` parted from the answer.
Notebook: 17_serving.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from minids import serving
from minids.http_params import ApiError, Asked, Limits, read
from minids.service import Failed, Job, Piece, Service

T = TypeVar("T")


def create_app(service: Service, name: str, limits: Limits | None = None) -> Starlette:
    """The API as an ASGI application, for any ASGI server. It starts and stops the service with itself."""
    api = _Api(service, name, (limits or Limits()).check())

    @contextlib.asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.stop)

    routes = [
        Route("/health", api.health, methods=["GET"]),
        Route("/v1/models", api.models, methods=["GET"]),
        Route("/v1/models/{name:path}", api.model, methods=["GET"]),
        Route("/v1/completions", api.completions, methods=["POST"]),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {ApiError: _refused, HTTPException: _no_route, ClientDisconnect: _gone}
    handlers |= {Failed: _engine_failed, Exception: _broken}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=life)
    app.router.redirect_slashes = False
    return app


class _Api:
    def __init__(self, service: Service, name: str, limits: Limits):
        self.service, self.name, self.limits, self.since = service, name, limits, int(time.time())

    async def health(self, request: Request) -> Response:
        s = self.service
        return JSONResponse({"status": "ok", "slots": s.slots, "running": s.running, "waiting": s.waiting})

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._card())

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, "completion")

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, "chat")

    def _card(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self.since, "owned_by": "minids"}

    def _check_model(self, name: str) -> None:
        if name != self.name:
            shown = json.dumps(name[:60], ensure_ascii=False)
            message = f'the model served here is "{self.name}"; got {shown}. Ask for that one.'
            raise ApiError(message, "model", 404, "model_not_found")

    async def _answer(self, request: Request, kind: str) -> Response:
        asked = read(await _body(request, self.limits.body), kind, self.limits)
        self._check_model(asked.model)
        job = await self._submit(asked, kind)
        form = _Form(kind, self.name, len(job.request.prompt))
        try:
            first = await _while_there(request.receive, job.next())
            if first is None:
                raise ClientDisconnect
            if asked.stream:
                return _Events(self.service, job, _events(form, job, first, asked.include_usage))
            text = await _while_there(request.receive, _rest(job, first))
            if text is None:
                raise ClientDisconnect
            return JSONResponse(form.whole(text, job.tokens))
        except BaseException:
            self.service.cancel(job)
            raise

    async def _submit(self, asked: Asked, kind: str) -> Job:
        param = "messages" if kind == "chat" else "prompt"
        ids = await asyncio.to_thread(asked.ids, self.service.tokenizer)  # a long text takes a while
        room = self.service.model.cfg.max_seq_len - 1
        most = min(self.limits.prompt or room, room)
        if len(ids) > most:
            message = f"a prompt has at most {most} tokens; got {len(ids)}. Shorten it."
            raise ApiError(message, param, code="context_length_exceeded")
        seed = secrets.randbits(32) if asked.seed is None else asked.seed
        stop_ids = (self.service.tokenizer.eos,)
        wanted = serving.Request(_new_id(""), ids, asked.max_tokens, asked.sampling, stop_ids, seed)
        try:
            return self.service.submit(wanted, asked.stop)
        except serving.Full as error:
            raise ApiError(str(error), None, 429, "full", {"retry-after": "1"}) from error
        except ValueError as error:
            raise ApiError(str(error), param) from error


class _Form:
    """The shapes of an answer: a text completion or a chat message, whole or in chunks."""

    def __init__(self, kind: str, model: str, prompt_tokens: int):
        self.chat, self.prompt_tokens = kind == "chat", prompt_tokens
        self.head = {"id": _new_id("chatcmpl-" if self.chat else "cmpl-"), "created": int(time.time()), "model": model}

    def usage(self, tokens: int) -> dict[str, int]:
        total = self.prompt_tokens + tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": tokens, "total_tokens": total}

    def whole(self, piece: Piece, tokens: int) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": piece.text}} if self.chat else {"text": piece.text}
        name = "chat.completion" if self.chat else "text_completion"
        return {**self.head, "object": name, "choices": [self._choice(said, piece.reason)], "usage": self.usage(tokens)}

    def chunk(self, *choices: dict[str, Any], **more: Any) -> dict[str, Any]:
        name = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self.head, "object": name, "choices": list(choices), **more}

    def chunks(self, piece: Piece, first: bool) -> list[dict[str, Any]]:
        """The choices that a piece gives: the role before the first, the text, the reason after the last."""
        role = [self._choice({"delta": {"role": "assistant", "content": ""}}, "")] if self.chat and first else []
        said = {"delta": {"content": piece.text}} if self.chat else {"text": piece.text}
        text = [self._choice(said, "")] if piece.text else []
        last = [self._choice({"delta": {}} if self.chat else {"text": ""}, piece.reason)] if piece.reason else []
        return role + text + last

    def _choice(self, said: dict[str, Any], reason: str) -> dict[str, Any]:
        shown = "length" if reason == "context" else reason or None  # the API has no name of its own for a full context
        return {"index": 0, **said, "logprobs": None, "finish_reason": shown}


class _Events(StreamingResponse):
    """Server-sent events. When the client leaves, or all is said, the job's slot is free."""

    media_type = "text/event-stream"

    def __init__(self, service: Service, job: Job, events: AsyncIterator[str]):
        super().__init__(events, headers={"cache-control": "no-cache"})
        self._service, self._job = service, job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await _while_there(receive, self.stream_response(send))
        finally:
            self._service.cancel(self._job)


async def _events(form: _Form, job: Job, first: Piece, usage: bool) -> AsyncIterator[str]:
    more = {"usage": None} if usage else {}  # the last chunk has it, so the others say that they do not
    piece, begin = first, True
    try:
        while True:
            for choice in form.chunks(piece, begin):
                yield _event(form.chunk(choice, **more))
            if piece.reason:
                break
            piece, begin = await job.next(), False
    except Failed as error:
        yield _event(_failed(error).body())
        return
    if usage:
        yield _event(form.chunk(usage=form.usage(job.tokens)))
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


async def _rest(job: Job, piece: Piece) -> Piece:
    """All of a job's text in one piece."""
    texts = [piece.text]
    while not piece.reason:
        piece = await job.next()
        texts.append(piece.text)
    return Piece("".join(texts), piece.reason)


async def _while_there(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; None when the client leaves first, and the work is given up."""
    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        doing.cancel()
        leaving.cancel()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request, most: int) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a page of another site could send anything else without asking
        got = json.dumps(kind[:60])
        raise ApiError(f"the body is application/json; got {got}. Set the header Content-Type.", status=415)
    too_large = ApiError(f"a body has at most {most:,} bytes; this one has more. Shorten it.", status=413)
    if int(request.headers.get("content-length", 0)) > most:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise too_large
    return bytes(body)


def _new_id(prefix: str) -> str:
    return prefix + secrets.token_hex(12)


def _failed(error: Failed) -> ApiError:
    return ApiError(str(error), status=500, code="engine_failed")


# --- what is wrong, in the API's shape


async def _refused(request: Request, error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, error.headers)


async def _no_route(request: Request, error: HTTPException) -> Response:
    what = json.dumps(f"{request.method} {request.url.path}"[:80], ensure_ascii=False)
    there = "GET /v1/models, GET /health, POST /v1/completions and POST /v1/chat/completions"
    wrong = "method" if error.status_code == 405 else "path"
    message = f"there is no such {wrong} here: {what}. There are {there}."
    return await _refused(request, ApiError(message, None, error.status_code, headers=error.headers))


async def _engine_failed(request: Request, error: Failed) -> Response:
    return await _refused(request, _failed(error))


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=400)  # nobody reads it


async def _broken(request: Request, error: Exception) -> Response:
    return await _refused(request, ApiError("the server made a mistake; its log has more. Try again.", None, 500))
