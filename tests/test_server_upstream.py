"""`serve --upstream` before scripted llama-servers: what is forwarded, and what fails how."""

import asyncio
import json
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx2 as httpx
import pytest
from fake_upstream import ANSWER, FakeUpstream, chunk
from serving import serving
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from logo_local.fake import FakeLoGo
from logo_local.server import upstreams as upstreams_module
from logo_local.server.app import create_app
from logo_local.server.middleware import Rules

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.fixture(autouse=True)
def short_interval(monkeypatch):
    monkeypatch.setattr(upstreams_module, "INTERVAL", 0.2)


@pytest.fixture
def behind():
    """behind(*upstreams, **settings): a client of a server before these, all of them ended."""
    with ExitStack() as stack:

        def start(*upstreams, llm=None, scores=None, **settings):
            urls = [
                one if isinstance(one, str) else stack.enter_context(serving(one.app))
                for one in upstreams
            ]
            llm = llm or FakeLoGo(scores or {"a": 3.0, "b": 1.0})
            app = create_app([llm], upstreams=urls, **settings)
            client = stack.enter_context(TestClient(app, base_url="http://localhost"))
            client.llm, client.urls, client.pool = llm, urls, app.state.upstreams
            return client

        yield start


def events_of(answer):
    assert answer.status_code == 200, answer.text
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


# What is forwarded, and what comes back


def test_the_body_is_forwarded_as_it_came_with_the_scales(behind):
    upstream = FakeUpstream()
    client = behind(upstream)
    body = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hé\u2028"}]}],
        "tools": TOOLS,
        "logprobs": True,
        "n": 2,
        "mirostat": 2,  # a field of llama-server that is unknown here
    }
    answer = client.post(CHAT, json={**body, "model": "auto", "logo": {"top_k": 2}})
    assert answer.status_code == 200
    sent = upstream.bodies[0]
    assert sent.pop("lora") == [{"id": 0, "scale": 0.75}, {"id": 1, "scale": 0.25}]
    assert sent == body
    assert upstream.paths == [CHAT]
    assert client.llm.history[-1].messages == ({"role": "user", "content": "hé\u2028"},)
    assert client.llm.history[-1].options == {"routing": {"top_k": 2}}


def test_the_answer_carries_the_route(behind):
    answer = behind(FakeUpstream()).post(CHAT, json={"messages": HI})
    body = answer.json()
    assert {**body, "model": ANSWER["model"], "logo": None} == {**ANSWER, "logo": None}
    assert body["model"] == "auto"
    route = body["logo"]["route"]
    assert {one["name"]: one["weight"] for one in route["adapters"]} == {"a": 0.75, "b": 0.25}
    assert route["mixture"] == "scales"
    timings = body["logo"]["timings_ms"]
    assert (timings["prefill"], timings["decode"]) == (7.0, 9.0)
    assert {"probe", "score", "wait"} <= timings.keys()
    assert answer.headers["x-logo-route"] == "a=0.7500, b=0.2500"
    assert len(answer.headers["x-logo-blend"]) == 16


@pytest.mark.parametrize(
    ("given", "lora", "shown"),
    [
        ({"model": "base"}, [{"id": 0, "scale": 0.0}], "base"),
        ({"model": "base:b"}, [{"id": 1, "scale": 1.0}], "b=1.0000"),
        ({"lora": {"b": 0.5}}, [{"id": 1, "scale": 0.5}], "b=0.5000"),
        ({"logo": {"top_k": 1}}, [{"id": 0, "scale": 1.0}], "a=1.0000"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_our_own_fields_keep_their_meaning_and_stay_here(behind, given, lora, shown, path):
    """An empty list would mean the scales that the server was started with."""
    upstream = FakeUpstream()
    prompt = {"messages": HI} if path == CHAT else {"prompt": "hi"}
    answer = behind(upstream).post(path, json={**prompt, **given})
    assert answer.status_code == 200
    assert upstream.bodies == [{**prompt, "lora": lora}]
    assert answer.headers["x-logo-route"] == shown


def test_what_is_wrong_with_our_own_fields_is_said_here(behind):
    client = behind(upstream := FakeUpstream())
    for given, status in (
        ({"model": "gpt-4o"}, 404),
        ({"model": "base:nobody"}, 404),
        ({"lora": {"nobody": 1.0}}, 404),
        ({"lora": [{"id": 0, "scale": 1.0}]}, 400),
        ({"logo": {"top_k": 0}}, 400),
        ({"model": "base", "lora": {"a": 1.0}}, 400),
        ({"messages": "hi"}, 400),
        ({"messages": []}, 400),
    ):
        answer = client.post(CHAT, json={"messages": HI, **given})
        assert answer.status_code == status, given
        assert answer.json()["error"]["message"]
    for content in (b"{", b"[]", b"[" * 100_000):
        headers = {"content-type": "application/json"}
        assert client.post(CHAT, content=content, headers=headers).status_code == 400
    assert client.post(TEXT, json={"prompt": ["one", "two"]}).status_code == 400
    assert client.post(TEXT, json={"prompt": [5, 100]}).status_code == 400
    assert upstream.bodies == []


def test_prompts_of_token_ids_and_several_prompts_under_given_weights(behind):
    client = behind(upstream := FakeUpstream())
    assert client.post(TEXT, json={"prompt": [5, 6]}).status_code == 200
    assert client.llm.history[-1].prompt == "5 6"
    two = {"prompt": ["one", "two"], "lora": {"a": 1.0}}
    assert client.post(TEXT, json=two).status_code == 200
    assert upstream.bodies[-1]["prompt"] == ["one", "two"]


def test_a_name_that_means_auto_goes_on_to_the_upstream(behind):
    client = behind(upstream := FakeUpstream(), any_model=True)
    answer = client.post(CHAT, json={"model": "gpt-4o", "messages": HI})
    assert answer.json()["model"] == "gpt-4o"
    assert upstream.bodies[0]["model"] == "gpt-4o"


def test_a_stream_carries_the_route_in_its_first_chunk_and_with_the_finish_reason(behind):
    upstream = FakeUpstream()
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}

    async def script(body):
        chunks = [chunk(role="assistant"), chunk(content="a\u2028\u0085é"), chunk("stop"), usage]
        return upstream.stream(chunks)

    upstream.script = script
    client = behind(upstream)
    answer = client.post(CHAT, json={"messages": HI, "stream": True})
    first, text, last, counts = events_of(answer)
    assert first["logo"]["route"]["adapters"][0]["name"] == "a"
    assert text["choices"][0]["delta"]["content"] == "a\u2028\u0085é"
    assert "logo" not in text
    assert last["logo"]["route"] == first["logo"]["route"]
    assert "probe" in last["logo"]["timings_ms"]
    assert counts["usage"] == usage["usage"]
    assert {one["model"] for one in (first, text, last)} == {"auto"}
    assert answer.headers["x-logo-route"] == "a=0.7500, b=0.2500"
    until(lambda: 'logo_tokens_total{kind="answer"} 2.0' in client.get("/metrics").text)
    assert client.pool.n_running == 0


def test_metrics_have_the_state_of_each_upstream(behind):
    client = behind(FakeUpstream(), FakeUpstream())
    one, other = client.pool.all
    other.state = "down"
    found = client.get("/metrics").text.splitlines()
    assert f'logo_upstream_up{{upstream="{one.url}"}} 1.0' in found
    assert f'logo_upstream_up{{upstream="{other.url}"}} 0.0' in found
    assert f'logo_upstream_running{{upstream="{one.url}"}} 0.0' in found


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
def test_errors_of_the_upstream_pass_as_they_are(behind, status):
    body = b'{"error":{"code":1,"message":"as \xc3\xa9"} }'

    async def script(_):
        headers = {"content-type": "application/json; charset=utf-8", "retry-after": "3"}
        return Response(body, status, headers)

    client = behind(FakeUpstream(script=script), other := FakeUpstream(script=script))
    for stream in (False, True):
        answer = client.post(CHAT, json={"messages": HI, "stream": stream})
        assert (answer.status_code, answer.content) == (status, body)
        assert answer.headers["retry-after"] == "3"
    assert len(other.bodies) <= 1
    assert all(one.is_up for one in client.pool.all)


def test_the_cache_of_an_upstream_that_mixes_blends_is_not_used(behind, caplog):
    caplog.set_level(logging.WARNING)
    mixing, exact = FakeUpstream(), FakeUpstream()
    mixing.n_cached = 8
    client = behind(mixing, exact)
    for i in range(2):
        body = {"messages": [{"role": "user", "content": f"{i}"}], "cache_prompt": True}
        assert client.post(CHAT, json=body).status_code == 200
    assert [one.bodies[0]["cache_prompt"] for one in (mixing, exact)] == [False, True]
    lines = [line for line in caplog.messages if "--cache-ram 0" in line]
    assert lines == [
        f"upstream {client.urls[0]} reuses cached prompts of other adapters; its cache is not used "
        "until you start it with --cache-ram 0"
    ]


# Which upstream


def test_a_conversation_stays_where_it_was(behind):
    two = FakeUpstream(), FakeUpstream()
    client = behind(*two)
    for i in range(6):
        start = [{"role": "system", "content": "s"}, {"role": "user", "content": f"{i}"}]
        for turns in range(3):
            later = [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]
            body = {"messages": start + later * turns}
            assert client.post(CHAT, json=body).status_code == 200
    seen = [{body["messages"][1]["content"] for body in one.bodies} for one in two]
    assert seen[0].isdisjoint(seen[1])
    assert [len(one.bodies) for one in two] == [9, 9]


def test_new_conversations_go_to_the_least_busy_and_no_more_than_it_takes(behind):
    """A slow one gets fewer; each gets its slots and two more at most, and the others wait."""

    def one(seconds):
        async def script(_):
            await asyncio.sleep(seconds)
            return JSONResponse(ANSWER)

        return FakeUpstream(script=script, slots=2)

    slow, quick = one(0.5), one(0.02)
    client = behind(slow, quick, most_waiting=32)

    def ask(i):
        return client.post(CHAT, json={"messages": [{"role": "user", "content": f"{i}"}]})

    with ThreadPoolExecutor(16) as threads:
        statuses = {answer.status_code for answer in threads.map(ask, range(40))}
    assert statuses == {200}
    assert slow.most_at_work <= 4
    assert quick.most_at_work <= 4
    assert len(quick.bodies) > len(slow.bodies)


def test_too_many_that_wait_are_rejected(behind):
    release = threading.Event()

    async def script(_):
        while not release.is_set():
            await asyncio.sleep(0.01)
        return JSONResponse(ANSWER)

    upstream = FakeUpstream(script=script, slots=1)
    client = behind(upstream, most_waiting=1)
    with ThreadPoolExecutor(4) as threads:
        running = []
        try:
            for n in range(1, 5):  # one by one: while they are routed they wait in another queue
                running.append(threads.submit(client.post, CHAT, json={"messages": HI}))
                until(lambda n=n: client.pool.n_waiting + upstream.at_work == n)
            health = client.get("/health").json()
            refused = client.post(CHAT, json={"messages": HI})
        finally:
            release.set()  # or the threads would never end
        assert (health["status"], health["running"], health["waiting"]) == ("busy", 3, 1)
        assert {one.result().status_code for one in running} == {200}
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert client.get("/health").json()["status"] == "ready"


def test_an_adapter_that_one_upstream_lacks_is_not_routed_there(behind, caplog):
    whole, part = FakeUpstream(), FakeUpstream(loras=["/models/a.gguf"])
    caplog.set_level(logging.WARNING)
    client = behind(part, whole)
    for i in range(4):
        body = {"messages": [{"role": "user", "content": f"{i}"}]}
        assert client.post(CHAT, json=body).status_code == 200
    assert part.bodies == []
    time.sleep(0.6)  # some more checks
    lines = [line for line in caplog.messages if "did not load" in line]
    assert lines == [
        f"upstream {client.urls[0]} did not load b; requests there are answered without them"
    ]
    for i in range(2):  # both have this one
        body = {"messages": [{"role": "user", "content": f"a{i}"}], "model": "base:a"}
        assert client.post(CHAT, json=body).status_code == 200
    assert len(part.bodies) == 1  # they take turns, as long as none is busy


def test_without_any_upstream_that_has_an_adapter_the_route_says_so(behind):
    client = behind(upstream := FakeUpstream(loras=["x", "/m/a.gguf"]))
    answer = client.post(CHAT, json={"messages": HI})
    assert upstream.bodies[0]["lora"] == [{"id": 1, "scale": 1.0}]
    assert answer.headers["x-logo-route"] == "a=1.0000"
    route = answer.json()["logo"]["route"]
    assert "b not loaded by the upstream" in route["reason"]
    refused = client.post(CHAT, json={"messages": HI, "model": "base:b"})
    assert refused.status_code == 409
    assert "loaded b" in refused.json()["error"]["message"]


def test_an_upstream_without_adapters_gets_no_scales(behind):
    client = behind(upstream := FakeUpstream(loras=[]))
    assert client.post(CHAT, json={"messages": HI}).status_code == 200
    assert "lora" not in upstream.bodies[0]


# What fails


def test_an_upstream_that_answers_503_is_left_until_its_health_is_well(behind, caplog):
    caplog.set_level(logging.WARNING)

    async def script(_):
        return JSONResponse({"error": {"message": "Loading model"}}, 503)

    ill, well = FakeUpstream(script=script), FakeUpstream()
    client = behind(ill, well)
    ill.health = 503
    statuses = [client.post(CHAT, json={"messages": HI * (i + 1)}).status_code for i in range(6)]
    assert statuses == [200] * 6
    until(lambda: not client.pool.all[0].is_up)
    health = client.get("/health").json()
    assert [one["up"] for one in health["upstreams"]] == [False, True]
    assert health["status"] == "ready"
    ill.health, ill.script = 200, ill.answer
    until(lambda: client.pool.all[0].is_up)
    assert f"upstream {client.urls[0]} is back" in caplog.messages


def test_the_503_of_the_only_upstream_passes_as_it_is(behind):
    async def script(_):
        return JSONResponse({"error": {"message": "Loading model"}}, 503)

    client = behind(FakeUpstream(script=script))
    answer = client.post(CHAT, json={"messages": HI})
    assert answer.status_code == 503
    assert answer.json() == {"error": {"message": "Loading model"}}


@pytest.mark.parametrize("stream", [False, True])
def test_what_fails_before_the_first_byte_goes_to_another_upstream(behind, stream):
    dead = f"http://127.0.0.1:{free_port()}"
    client = behind(dead, well := FakeUpstream())
    client.pool.all[0].state = "up"  # it was, until now
    for i in range(4):
        body = {"messages": [{"role": "user", "content": f"{i}"}], "stream": stream}
        assert client.post(CHAT, json=body).status_code == 200
    assert len(well.bodies) == 4


@pytest.mark.parametrize("stream", [False, True])
def test_a_connection_that_breaks_before_the_first_byte(behind, stream):
    """Twice at most: the request itself may be what breaks them."""
    broken = []

    def breaking():
        upstream = FakeUpstream()

        async def empty(_):
            broken.append(1)
            return upstream.stream([], error=OSError("ended"))

        upstream.script = empty
        return upstream

    client = behind(breaking(), breaking(), breaking())
    answer = client.post(CHAT, json={"messages": HI, "stream": True})
    assert answer.status_code == 502
    assert len(broken) == 2
    client = behind(breaking(), FakeUpstream())
    for i in range(3):
        body = {"messages": HI * (i + 1), "stream": stream}
        assert client.post(CHAT, json=body).status_code == 200


@pytest.mark.parametrize("ended", [OSError("died"), None])
def test_a_stream_that_dies_ends_with_an_error_and_is_not_repeated(behind, ended):
    upstream = FakeUpstream()

    async def script(_):
        chunks = [chunk(role="assistant"), chunk(content="one")]
        return upstream.stream(chunks, done=False, error=ended)

    upstream.script = script
    client = behind(upstream, other := FakeUpstream(script=script))
    *chunks, error = events_of(client.post(CHAT, json={"messages": HI, "stream": True}))
    assert [one["choices"][0]["delta"] for one in chunks] == [
        {"role": "assistant"},
        {"content": "one"},
    ]
    assert error["error"]["code"] == "upstream_lost"
    assert len(upstream.bodies) + len(other.bodies) == 1
    assert client.pool.n_running == 0


def test_an_answer_that_takes_too_long(behind):
    upstream = FakeUpstream()

    async def script(body):
        if body.get("stream"):
            return upstream.stream([chunk(content="x")] * 100, seconds=0.1)
        await asyncio.sleep(2)

    upstream.script = script
    client = behind(upstream, seconds=0.5)
    answer = client.post(CHAT, json={"messages": HI})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "time_limit")
    *_, error = events_of(client.post(CHAT, json={"messages": HI, "stream": True}))
    assert error["error"]["code"] == "time_limit"
    assert client.pool.n_running == 0
    assert client.pool.all[0].is_up


def test_an_upstream_that_stops_to_answer_loses_its_requests_to_another(behind, monkeypatch):
    """As one whose machine lost its network: nothing is refused, and nothing comes."""
    monkeypatch.setattr("logo_local.server.upstream.CHECK_SECONDS", 0.2)
    hanging = threading.Event()
    frozen, well = FakeUpstream(), FakeUpstream()
    healthy = frozen._health

    async def script(_):
        hanging.set()
        await asyncio.sleep(3)

    async def health(request):
        if hanging.is_set():
            await asyncio.sleep(3)
        return await healthy(request)

    frozen.script = script
    frozen.app.router.routes[0] = Route("/health", health)
    client = behind(frozen, well)
    assert client.post(CHAT, json={"messages": HI}).status_code == 200
    assert len(frozen.bodies) == len(well.bodies) == 1


def test_an_upstream_in_a_long_batch_stays_up(behind, monkeypatch):
    """llama-server lists its adapters only between two batches; its health it always answers."""
    monkeypatch.setattr("logo_local.server.upstream.CHECK_SECONDS", 0.1)
    busy = FakeUpstream()
    listed, in_batch, n_timeouts = busy._adapters, threading.Event(), []

    async def adapters(request):
        if in_batch.is_set():
            n_timeouts.append(1)
            await asyncio.sleep(1)
        return await listed(request)

    async def script(body):
        in_batch.set()
        while len(n_timeouts) < 4:
            await asyncio.sleep(0.01)
        return await busy.answer(body)

    busy.script = script
    busy.app.router.routes[1] = Route("/lora-adapters", adapters)
    client = behind(busy)
    assert client.post(CHAT, json={"messages": HI}).status_code == 200
    assert len(busy.bodies) == 1
    assert client.pool.all[0].is_up
    # Without requests of ours it is not waited for.
    until(lambda: not client.pool.all[0].is_up)


def test_without_an_upstream_there_is_an_error_and_a_bad_health(behind, caplog):
    caplog.set_level(logging.WARNING)
    client = behind(url := f"http://127.0.0.1:{free_port()}")
    answer = client.post(CHAT, json={"messages": HI})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_upstream")
    assert answer.headers["retry-after"] == "1"
    assert client.llm.history == []  # no prompt is read in vain
    health = client.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "unavailable")
    assert caplog.messages == [f"upstream {url} is not used: cannot connect"]
    assert client.post("/v1/route", json={"prompt": "hi"}).status_code == 200


def test_servers_that_cannot_be_upstreams(behind, caplog):
    caplog.set_level(logging.WARNING)
    other_base = FakeUpstream()
    other_base.n_embd = 2048
    locked = FakeUpstream()
    locked.key = "right"
    local = create_app([FakeLoGo({"a": 1.0})])
    with serving(local) as address:
        client = behind(other_base, locked, address, upstream_key="wrong")
        reasons = [one.why for one in client.pool.all]
    assert reasons[0] == "it has another base model: n_embd is 2048 there and 64 here"
    assert reasons[1].startswith("it rejects the API key; set LOGO_LOCAL_UPSTREAM_KEY")
    assert reasons[2].startswith("it is not a llama-server")
    assert client.post(CHAT, json={"messages": HI}).status_code == 503


def test_a_server_that_came_back_with_its_adapters_in_another_order(behind):
    client = behind(upstream := FakeUpstream())
    upstream.loras.reverse()
    until(lambda: client.pool.all[0].ids == {"a": 1, "b": 0})
    client.post(CHAT, json={"messages": HI, "model": "base:a"})
    assert upstream.bodies[-1]["lora"] == [{"id": 1, "scale": 1.0}]


def test_the_client_that_leaves_takes_its_request_along(behind):
    upstream = FakeUpstream()

    async def script(_):
        return upstream.stream([chunk(content="x")] * 200, seconds=0.05)

    upstream.script = script
    with serving(upstream.app) as url:
        app = create_app([FakeLoGo({"a": 1.0})], upstreams=[url])
        with serving(app) as address:
            body = {"messages": HI, "stream": True}
            with httpx.stream("POST", address + CHAT, json=body) as answer:
                next(answer.iter_lines())
            until(lambda: upstream.cancelled == 1)
            until(lambda: app.state.upstreams.n_running == 0)


def test_keep_route_holds_within_a_conversation(behind):
    scores = iter([{"a": 3.0, "b": 1.0}, {"a": 2.9, "b": 1.1}, {"a": 1.0, "b": 3.0}])
    llm = FakeLoGo(lambda _: next(scores), names=["a", "b"])
    llm.configure(keep_route=0.1)
    client = behind(FakeUpstream(), llm=llm)
    shown = [
        client.post(CHAT, json={"messages": HI}).headers["x-logo-route"].split(", ")
        for _ in range(3)
    ]
    assert shown == [["a=0.7500", "b=0.2500"]] * 2 + [["b=0.7500", "a=0.2500"]]


def test_the_key_of_the_upstreams_is_sent_and_never_logged_nor_that_of_clients(behind, caplog):
    caplog.set_level(logging.DEBUG)
    upstream = FakeUpstream()
    upstream.key = "upstream-secret"

    async def script(_):
        raise OSError("ended")

    client = behind(
        upstream,
        f"http://127.0.0.1:{free_port()}",
        upstream_key="upstream-secret",
        rules=Rules(api_key="client-secret"),
    )
    headers = {"authorization": "Bearer client-secret"}
    assert client.post(CHAT, json={"messages": HI}, headers=headers).status_code == 200
    assert upstream.headers[0]["authorization"] == "Bearer upstream-secret"
    upstream.script = script
    answer = client.post(CHAT, json={"messages": HI}, headers=headers)
    assert answer.status_code == 500
    upstream.key = "another"
    until(lambda: not client.pool.all[0].is_up)
    assert caplog.messages
    assert "secret" not in caplog.text + answer.text + client.get("/health").text
