"""A scripted llama-server, for what a real one does not do when it is wanted."""

from __future__ import annotations

import asyncio
import json

from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

ANSWER = {
    "object": "chat.completion",
    "model": "/secret/path/model.gguf",
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "yes"}}
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    "timings": {"prompt_ms": 7.0, "predicted_ms": 9.0},
}


def chunk(finish=None, **delta):
    """A chunk of a chat stream, as llama-server sends it."""
    return {
        "object": "chat.completion.chunk",
        "model": "/secret/path/model.gguf",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def event(value):
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


class FakeUpstream:
    """`script` is what to do with a request: a function of its body that returns a response.

    `bodies` and `headers` keep what came in. `health` is the status of /health, `loras` what it
    says it loaded, `key` what it wants to be shown, `n_embd` what its model states, if not
    None. `n_cached` is the answer to the test of its cache.
    """

    def __init__(self, loras=("/models/a.gguf", "C:\\models\\b.gguf"), script=None, slots=4):
        self.loras, self.script, self.slots = list(loras), script or self.answer, slots
        self.health, self.key, self.n_embd = 200, None, 64
        self.n_cached = 0  # tokens that it says it had cached
        self.bodies, self.headers, self.paths = [], [], []
        self.at_work = self.most_at_work = 0
        self.cancelled = 0
        self.app = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/lora-adapters", self._adapters),
                Route("/props", self._props),
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._complete, methods=["POST"]),
                Route("/v1/completions", self._complete, methods=["POST"]),
            ]
        )

    async def answer(self, body):
        if body.get("stream"):
            return self.stream([chunk(role="assistant"), chunk(content="yes"), chunk("stop")])
        return JSONResponse(ANSWER)

    def stream(self, chunks, *, done=True, seconds=0.0, error=None):
        async def events():
            try:
                for one in chunks:
                    yield event(one)
                    await asyncio.sleep(seconds)
                if error is not None:
                    raise error
                if done:
                    yield b"data: [DONE]\n\n"
            except asyncio.CancelledError:
                self.cancelled += 1
                raise

        return StreamingResponse(events(), media_type="text/event-stream")

    async def _complete(self, request):
        body = json.loads(await request.body())
        if "id_slot" in body:  # the test of its cache
            details = {"cached_tokens": self.n_cached}
            return JSONResponse({"usage": {"prompt_tokens": 9, "prompt_tokens_details": details}})
        self.headers.append(dict(request.headers))
        self.paths.append(request.url.path)
        self.bodies.append(body)
        self.at_work += 1
        self.most_at_work = max(self.at_work, self.most_at_work)
        try:
            return await self.script(body)
        finally:
            self.at_work -= 1

    def _refusal(self, request):
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"code": 401, "message": "Invalid API Key"}}, 401)
        return None

    async def _health(self, request):
        return JSONResponse({"status": "ok"}, self.health)

    async def _adapters(self, request):
        rows = [{"id": i, "path": path, "scale": 1.0} for i, path in enumerate(self.loras)]
        return self._refusal(request) or JSONResponse(rows)

    async def _props(self, request):
        if self.slots is None:
            return Response(status_code=404)
        return self._refusal(request) or JSONResponse({"total_slots": self.slots})

    async def _models(self, request):
        meta = None if self.n_embd is None else {"n_embd": self.n_embd, "n_vocab": 100}
        return self._refusal(request) or JSONResponse({"data": [{"id": "m", "meta": meta}]})
