"""`serve --upstream` before real llama-servers, with a small model."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx2 as httpx
import llama_server
import pytest
import small_model
from serving import serving

from logo_local import LoGo
from logo_local.server import upstreams as upstreams_module
from logo_local.server.app import create_app
from logo_local.server.upstreams import conversation_key

pytestmark = pytest.mark.skipif(
    not llama_server.IS_INSTALLED,
    reason="needs a llama-server: the package xllamacpp is not installed",
)
CHAT = "/v1/chat/completions"
ADAPTERS = sorted(small_model.ADAPTERS.glob("*.gguf"))
KEY = llama_server.API_KEY


def prompts():
    """An example prompt of each adapter, changed a little."""
    for path in sorted(small_model.ADAPTERS.glob("*.prompts.txt")):
        for line in path.read_text("utf-8").splitlines()[2:3]:
            yield f"{line} please"


@pytest.fixture(scope="module")
def engine():
    settings = {"n_threads": 1, "n_threads_batch": 1, "past": False, "self_profile": "kept"}
    with LoGo(small_model.MODEL, small_model.ADAPTERS, **settings) as llm:
        yield llm


@pytest.fixture(scope="module")
def routes(engine):
    """The route of each of `prompts`, by the engine itself."""
    found = {}
    for prompt in prompts():
        found[prompt] = engine.route([{"role": "user", "content": prompt}])
    assert len({route.names for route in found.values()}) > 2
    return found


@pytest.fixture(scope="module")
def servers():
    """Two llama-servers that loaded the adapters in different orders; the first has a key."""
    with ExitStack() as stack:
        start = llama_server.llama_server
        yield [
            stack.enter_context(start(small_model.MODEL, adapters, key=KEY))
            for adapters in (ADAPTERS, ADAPTERS[::-1])
        ]


@pytest.fixture
def address(engine, routes, servers, monkeypatch):
    """The server before both."""
    monkeypatch.setattr(upstreams_module, "INTERVAL", 0.2)
    urls = [url for _, url in servers]
    with serving(create_app([engine], upstreams=urls, upstream_key=KEY)) as found:
        yield found


def post(url, **body):
    headers = {"authorization": f"Bearer {KEY}"}
    settings = {"temperature": 0, "max_tokens": 12} | body
    return httpx.post(url + CHAT, json=settings, headers=headers, timeout=60)


def asked(prompt):
    return [{"role": "user", "content": prompt}]


def as_shown(route):
    rows = [f"{name}={weight:.4f}" for name, weight in route.applied.items()]
    return ", ".join(rows) or "base"


def text_of(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def test_answers_are_those_of_a_llama_server_asked_with_the_same_weights(address, servers, routes):
    by_base = 0
    for prompt, route in routes.items():
        for _, url in servers:
            rows = httpx.get(f"{url}/lora-adapters", headers={"authorization": f"Bearer {KEY}"})
            scales = [
                {
                    "id": row["id"],
                    "scale": route.applied.get(row["path"].split("/")[-1][:-5], 0.0),
                }
                for row in rows.json()
            ]
            expected = text_of(post(url, messages=asked(prompt), lora=scales))
        answer = post(address, messages=asked(prompt))
        assert text_of(answer) == expected
        assert answer.headers["x-logo-route"] == as_shown(route)
        base = post(address, messages=asked(prompt), model="base")
        none = [{"id": i, "scale": 0.0} for i in range(len(ADAPTERS))]
        assert text_of(base) == text_of(post(url, messages=asked(prompt), lora=none))
        by_base += text_of(base) != expected
    assert by_base > 0


def test_what_the_local_server_cannot_do_is_the_upstreams(address, routes):
    prompt = next(iter(routes))
    answer = post(address, messages=asked(prompt), n=2, logprobs=True, top_logprobs=2).json()
    assert len(answer["choices"]) == 2
    assert len(answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 2
    schema = {"type": "object", "properties": {"k": {"type": "integer"}}, "required": ["k"]}
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    answer = post(address, messages=asked(prompt), response_format=wanted, max_tokens=64)
    assert json.loads(text_of(answer)).keys() == {"k"}
    wrong = post(address, messages=asked(prompt), response_format={"type": "nonsense"})
    assert wrong.status_code == 400
    assert wrong.json()["error"].keys() == {"code", "message", "type"}  # llama-server's


def stream(address, prompt, **given):
    """The events of an answer of 400 tokens, unless it ends before."""
    body = {"messages": asked(prompt), "stream": True, "ignore_eos": True, "max_tokens": 400}
    with httpx.stream("POST", address + CHAT, json=body | given, timeout=60) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line[6:])


def test_a_stream_carries_the_route(address, routes):
    prompt, route = next(iter(routes.items()))
    events = list(stream(address, prompt, max_tokens=5))
    assert events[0]["logo"]["route"]["adapters"] == route.as_dict()["adapters"]
    last = next(one for one in events if one["choices"][0]["finish_reason"])
    assert last["logo"]["route"]["adapters"] == route.as_dict()["adapters"]


def test_one_without_an_adapter_does_not_get_its_requests(engine, servers, routes):
    without = [path for path in ADAPTERS if path.stem != "sort-words"]
    route = next(route for route in routes.values() if "sort-words" in route.names)
    prompt = next(prompt for prompt, one in routes.items() if one is route)
    with llama_server.llama_server(small_model.MODEL, without) as (_, url):
        urls = [url, servers[1][1]]
        with serving(create_app([engine], upstreams=urls, upstream_key=KEY)) as address:
            shown = [post(address, messages=asked(f"{prompt} {i}")) for i in range(4)]
            names = [one.headers["x-logo-route"].partition("=")[0] for one in shown]
            other = post(address, messages=asked("hi"), model="base")
    assert "sort-words" in names
    assert all("not loaded" not in one.text for one in shown)
    assert other.status_code == 200


def test_one_that_is_killed_loses_a_stream_and_nothing_else(engine, routes, monkeypatch):
    """Its stream ends with an error; all other requests are answered under their routes."""
    monkeypatch.setattr(upstreams_module, "INTERVAL", 0.2)
    with ExitStack() as stack:
        start = llama_server.llama_server
        running = [
            stack.enter_context(start(small_model.MODEL, ADAPTERS, slots=3)) for _ in range(2)
        ]
        app = create_app([engine], upstreams=[url for _, url in running])
        address = stack.enter_context(serving(app))
        wrong, started = [], threading.Event()

        def ask(i):
            prompt = list(routes)[i % len(routes)]
            if i == 9:
                started.set()
            answer = post(address, messages=asked(prompt), max_tokens=32, ignore_eos=True)
            shown = answer.headers.get("x-logo-route")
            if (answer.status_code, shown) != (200, as_shown(routes[prompt])):
                wrong.append((answer.text, shown))

        with ThreadPoolExecutor(6) as threads:
            done = [threads.submit(ask, i) for i in range(36)]
            assert started.wait(60)
            events = stream(address, "Tell me more")
            assert next(events)["logo"]["route"]
            conversation = conversation_key(asked("Tell me more"))
            upstream = app.state.upstreams._last[conversation][0]
            victim = next(process for process, url in running if url == upstream.url)
            victim.kill()
            rest = list(events)
            assert [one.result(60) for one in done] == [None] * 36
        assert wrong == []
        assert rest[-1]["error"]["code"] == "upstream_lost"
        health = httpx.get(f"{address}/health").json()
        assert sorted(one["up"] for one in health["upstreams"]) == [False, True]
        assert health["status"] == "ready"


@pytest.mark.parametrize("mib", [64, 0])
def test_a_prompt_cache_that_mixes_blends_is_found_out(engine, mib):
    """Answers under one blend must not depend on what was asked under another before."""
    wanted = {"messages": asked("hi"), "max_tokens": 1}
    with ExitStack() as stack:
        start = llama_server.llama_server(small_model.MODEL, ADAPTERS, cache=mib)
        app = create_app([engine], upstreams=[stack.enter_context(start)[1]])
        address = stack.enter_context(serving(app))
        assert app.state.upstreams.all[0].mixes_blends == bool(mib)
        usage = [post(address, **wanted, model="base").json()["usage"] for _ in range(2)]
    assert (usage[1]["prompt_tokens_details"]["cached_tokens"] == 0) == bool(mib)
