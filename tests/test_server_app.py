"""What each address says, on a scripted engine: shapes, routes, errors, and clients that go."""

import json
import threading
import time

import httpx2 as httpx
import pytest
from serving import serving
from starlette.testclient import TestClient

from logo_local.completions import Sampling
from logo_local.errors import (
    AdapterError,
    AdapterMemoryError,
    MixtureError,
    NativeError,
    PoolError,
    PromptError,
)
from logo_local.fake import FakeLoGo
from logo_local.server.app import create_app

SCORES = {"reverse": 1.0, "sort-words": 3.0}
HI = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture
def fake():
    return FakeLoGo(SCORES, ["apple pear"])


@pytest.fixture
def client(fake):
    with TestClient(create_app([fake]), base_url="http://localhost") as one:
        yield one


def events_of(text):
    """The values of a stream of events, without the end."""
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def error_of(answer, status):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def test_a_chat_completion_carries_the_route(client, fake):
    answer = client.post(CHAT, json={"messages": HI}).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "apple pear"}
    assert answer["model"] == "auto"
    assert answer["usage"]["completion_tokens"] == 2
    assert [a["name"] for a in answer["logo"]["route"]["adapters"]] == ["sort-words", "reverse"]
    assert fake.history[-1].options == {"max_tokens": 2048, "temperature": 0.0, "stream": False}


def test_a_stream_carries_the_route_at_both_ends(client, fake):
    fake._answers = [["app", "le"]]
    body = {"messages": HI, "stream": True, "stream_options": {"include_usage": True}}
    answer = client.post(CHAT, json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    first, second, last, usage = events_of(answer.text)
    assert (
        first["choices"][0]["delta"]["content"] + second["choices"][0]["delta"]["content"]
        == "apple"
    )
    assert first["logo"]["route"] == last["logo"]["route"]
    assert last["choices"][0]["finish_reason"] == "stop"
    assert "timings_ms" in last["logo"]
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 3)
    assert all("usage" not in chunk for chunk in (first, second, last))


@pytest.mark.parametrize(
    ("asked", "penalty"),
    [
        ({}, 1.1),
        ({"repeat_penalty": 1.2}, 1.2),
        ({"response_format": {"type": "json_object"}}, None),
        ({"response_format": {"type": "json_object"}, "repeat_penalty": 1.2}, 1.2),
        ({"response_format": {"type": "text"}}, 1.1),
    ],
)
def test_json_may_repeat_its_brackets(fake, asked, penalty):
    app = create_app([fake], defaults=Sampling(repeat_penalty=1.1))
    with TestClient(app, base_url="http://localhost") as client:
        assert client.post(CHAT, json={"messages": HI, **asked}).status_code == 200
    assert fake.history[-1].options.get("repeat_penalty") == penalty


@pytest.mark.parametrize("prompt", ["hi", ["hi"], [1, 2, 3]])
def test_completions_take_text_and_tokens(client, fake, prompt):
    answer = client.post(TEXT, json={"prompt": prompt, "max_tokens": 3}).json()
    assert answer["choices"][0]["text"] == "apple pear"
    assert fake.history[-1].prompt == ("1 2 3" if prompt == [1, 2, 3] else "hi")
    assert fake.history[-1].options["max_tokens"] == 3


@pytest.mark.parametrize(
    ("asked", "weights"),
    [
        ({}, {"sort-words": 0.75, "reverse": 0.25}),
        ({"model": "auto"}, {"sort-words": 0.75, "reverse": 0.25}),
        ({"model": "base"}, {}),
        ({"model": "base:reverse"}, {"reverse": 1.0}),
        ({"lora": {"reverse": 0.5, "sort-words": -1.0}}, {"reverse": 0.5, "sort-words": -1.0}),
        ({"lora": {}}, {}),
        ({"logo": {"top_k": 1}}, {"sort-words": 1.0}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_whose_answer_it_is(client, asked, weights, stream):
    answer = client.post(CHAT, json={"messages": HI, "stream": stream, **asked})
    route = (events_of(answer.text)[-1] if stream else answer.json())["logo"]["route"]
    assert {a["name"]: a["weight"] for a in route["adapters"]} == weights


def test_settings_of_one_request_are_not_those_of_the_next(client, fake):
    asked = {"logo": {"top_k": 1, "signal": "entropy"}}
    answer = client.post(CHAT, json={"messages": HI, **asked}).json()
    assert answer["logo"]["route"]["signal"] == "entropy"
    answer = client.post(CHAT, json={"messages": HI}).json()
    assert (answer["logo"]["route"]["signal"], fake.routing.top_k) == ("norm", 3)


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"model": "gpt-4"}, 404, "no model 'gpt-4'"),
        ({"model": "reverse"}, 404, "base:NAME"),
        ({"model": "base:revers"}, 404, "did you mean reverse"),
        ({"lora": {"nobody": 1.0}}, 404, "nobody"),
        ({"model": "base", "lora": {"reverse": 1.0}}, 400, "contradict"),
        ({"lora": {"reverse": 1.0}, "logo": {"top_k": 1}}, 400, "lora sets the weights"),
        ({"logo": {"signal": "magic"}}, 400, "logo.signal"),
        ({"logo": {"top_k": 0}}, 400, "logo.top_k"),
        ({"logo": {"topk": 1}}, 400, "logo.topk"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"max_tokens": 1.5}, 400, "max_tokens"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"n": 17}, 400, "n:"),
        ({"stop": [""]}, 400, "stop"),
        ({"top_logprobs": 1}, 400, "top_logprobs needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
        ({"logprobs": True, "tools": [TOOL]}, 400, "cannot be combined with tools"),
        ({"functions": []}, 400, "functions"),
        ({"logit_bias": {"100": 1}}, 400, "token '100'"),
        ({"logit_bias": {"-1": 1}}, 400, "token '-1'"),
        ({"logit_bias": {"x": 1}}, 400, "token 'x'"),
        ({"logit_bias": {"0000000099": 1}}, 400, "token '0000000099'"),
        ({"logit_bias": {"0" * 5000: 1}}, 400, "token '00000"),
        ({"lora": {"reverse": 1e308}}, 400, "lora.reverse"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "boss", "content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0"),
        ({"tool_choice": "required"}, 400, "no tools"),
        ({"response_format": {"type": "xml"}}, 400, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
            400,
            "response_format.json_schema.schema",
        ),
    ],
)
def test_requests_that_are_refused_by_name(client, fake, asked, status, words):
    error = error_of(client.post(CHAT, json={"messages": HI, **asked}), status)
    assert words in error["message"]
    assert not fake.history


def test_all_that_is_wrong_is_said_at_once(client):
    body = {"prompt": "x", "top_p": 3, "modl": "auto", "seed": "one"}
    error = error_of(client.post(TEXT, json=body), 400)
    assert {problem.split(":")[0] for problem in error["problems"]} == {"top_p", "modl", "seed"}


def test_fields_that_clients_send_unasked_are_taken(client):
    unused = {"user": "u", "store": False, "metadata": {"a": "b"}, "parallel_tool_calls": True}
    assert client.post(CHAT, json={"messages": HI, **unused}).status_code == 200


def test_options_reach_llama_cpp_under_its_names(client, fake):
    asked = {
        **{"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repeat_penalty": 1.1},
        **{
            "presence_penalty": 0.2,
            "frequency_penalty": 0.3,
            "stop": ["x"],
            "logit_bias": {"7": 1},
        },
    }
    client.post(CHAT, json={"messages": HI, "seed": -1, "max_completion_tokens": 9, **asked})
    options = fake.history[-1].options
    assert options == {
        **asked, "seed": 2**32 - 2, "max_tokens": 9, "stream": False, "logit_bias": {7: 1},
    }  # fmt: skip


def test_the_longest_answer_is_the_servers_to_say(fake):
    defaults = Sampling(max_tokens=20, temp=0.7, min_p=0.2)
    with TestClient(create_app([fake], defaults=defaults), base_url="http://localhost") as client:
        for asked, expected in (({}, 20), ({"max_tokens": 5}, 5), ({"max_tokens": 10**6}, 20)):
            client.post(TEXT, json={"prompt": "hi", **asked})
            assert fake.history[-1].options["max_tokens"] == expected
        client.post(TEXT, json={"prompt": "hi", "min_p": 0.1})
        options = fake.history[-1].options
        assert (options["temperature"], options["min_p"]) == (0.7, 0.1)


def test_messages_as_the_template_gets_them(client, fake):
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "done"},
        {"role": "user", "content": "go on"},
    ]
    assert client.post(CHAT, json={"messages": messages}).status_code == 200
    seen = fake.history[-1].messages
    assert [message["role"] for message in seen] == ["system", "user", "assistant", "tool", "user"]
    assert [message["content"] for message in seen] == ["be brief", "ab", "", "done", "go on"]
    assert seen[2]["tool_calls"][0]["function"]["name"] == "f"


def test_a_model_without_a_template_completes_only():
    llm = FakeLoGo(SCORES, ["yes"], chat_template=False)
    with TestClient(create_app([llm]), base_url="http://localhost") as client:
        assert "/v1/completions" in error_of(client.post(CHAT, json={"messages": HI}), 400)["hint"]
        error_of(client.post("/v1/route", json={"messages": HI}), 400)
        assert client.post(TEXT, json={"prompt": "hi"}).status_code == 200


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (PromptError("the prompt does not fit"), 400),
        (MixtureError("the mixture makes numbers that are not finite"), 409),
        (NativeError("llama_decode returned 1"), 503),
        (AdapterMemoryError("this mixture takes 9 bytes and 8 are allowed"), 400),
    ],
)
def test_failures_before_the_first_token_have_a_status(client, fake, failure, status):
    for stream in (False, True):
        fake._answers = [[failure]]
        error = error_of(client.post(CHAT, json={"messages": HI, "stream": stream}), status)
        assert str(failure) in error["message"]


def test_a_value_error_of_ours_is_a_bug_and_logged(client, fake, caplog):
    fake._answers = [[ValueError("not in list")]]
    error = error_of(client.post(CHAT, json={"messages": HI}), 500)
    assert (error["code"], "not in list" in error["message"]) == ("bug", False)
    assert "not in list" in caplog.text


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (AdapterError("/home/me/a.gguf cannot be read", problems=["/home/me"]), 409),
        (PoolError("the folder of adapters /home/me does not exist"), 503),
    ],
)
def test_where_files_lie_is_for_the_log(client, fake, caplog, failure, status):
    fake._answers = [[failure]]
    error = error_of(client.post(CHAT, json={"messages": HI}), status)
    assert error["code"] == "pool_unusable"
    assert "/home" not in str(error)
    assert "/home/me" in caplog.text


def test_failures_in_mid_stream_are_an_event(client, fake):
    fake._answers = [["app", PromptError("the context is full", hint="ask anew")]]
    first, error = events_of(client.post(CHAT, json={"messages": HI, "stream": True}).text)
    assert first["choices"][0]["delta"]["content"] == "app"
    assert error["error"]["hint"] == "ask anew"


def test_a_bug_is_logged_and_not_shown(client, fake, caplog):
    fake._answers = [[ZeroDivisionError("secret detail")]]
    error = error_of(client.post(CHAT, json={"messages": HI}), 500)
    assert "secret" not in error["message"]
    assert "secret detail" in caplog.text
    fake._answers = ["fine"]
    assert client.post(CHAT, json={"messages": HI}).status_code == 200


def test_the_names_of_models(client):
    names = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert names == ["auto", "base", "base:reverse", "base:sort-words"]
    assert client.get("/v1/models/base:reverse").json()["id"] == "base:reverse"
    assert "nobody" in error_of(client.get("/v1/models/nobody"), 404)["message"]


def test_the_adapters_without_any_path(client):
    found = client.get("/v1/adapters").json()
    assert found["adapters"][0] == {
        **{"name": "reverse", "kind": "gguf", "rank": "4", "lora_alpha": 8.0},
        **{"modules": 1, "n_bytes": 2048},
    }
    assert found["problems"] == []
    assert found["base"] == {"name": "fake", "architecture": "llama"}


def test_a_route_without_an_answer(client, fake):
    for asked in ({"prompt": "hi"}, {"messages": HI}, {"prompt": "hi", "logo": {"top_k": 1}}):
        route = client.post("/v1/route", json=asked).json()["route"]
        assert route["scores"] == SCORES
        assert len(route["adapters"]) == (1 if "logo" in asked else 2)
    assert {call.method for call in fake.history} == {"route"}
    for wrong in ({}, {"prompt": "a", "messages": HI}, {"prompt": "a", "model": "base"}):
        error_of(client.post("/v1/route", json=wrong), 400)


def test_rescanning_reaches_every_engine():
    engines = [FakeLoGo(SCORES), FakeLoGo(SCORES)]
    seen = []
    for llm in engines:
        rescan = llm.pool.rescan
        llm.pool.rescan = lambda llm=llm, rescan=rescan: seen.append(llm) or rescan()
    with TestClient(create_app(engines), base_url="http://localhost") as client:
        answer = client.post("/v1/adapters/rescan")
    assert answer.json() == {"added": [], "removed": [], "changed": [], "n_adapters": 2}
    assert sorted(map(id, seen)) == sorted(map(id, engines))


def test_rescans_do_not_pile_up():
    gate = threading.Event()
    llm = FakeLoGo(SCORES, [[lambda: str(gate.wait(20))], "next"])
    with (
        serving(create_app([llm])) as address,
        httpx.Client(base_url=address, timeout=20) as client,
    ):
        threads = [
            threading.Thread(target=client.post, args=(CHAT,), kwargs={"json": {"messages": HI}})
        ]
        threads[0].start()
        while not client.get("/health").json()["running"]:
            time.sleep(0.01)
        answers = []
        for _ in range(3):
            threads.append(
                threading.Thread(
                    target=lambda: answers.append(client.post("/v1/adapters/rescan").status_code)
                )
            )
            threads[-1].start()
        deadline = time.monotonic() + 20
        while len(answers) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert answers == [429, 429]
        gate.set()
        for thread in threads:
            thread.join()
    assert sorted(answers) == [200, 429, 429]


def test_texts_to_embed_can_be_stopped():
    llm = FakeLoGo(SCORES)
    begun, embed = [], llm.embeddings
    llm.embeddings = lambda texts: begun.append(1) or time.sleep(0.05) or embed(texts)
    with TestClient(create_app([llm], seconds=0.2), base_url="http://localhost") as client:
        error_of(client.post("/v1/embeddings", json={"input": ["x"] * 60}), 503)
    assert 0 < len(begun) < 30


def test_what_is_sampled_is_not_decided_by_the_request_before(client, fake):
    for asked in ({"seed": 1, "temperature": 1}, {"temperature": 1}, {"temperature": 1}):
        client.post(TEXT, json={"prompt": "hi", **asked})
    seeds = [call.options["seed"] for call in fake.history]
    assert seeds[0] == 1
    assert len(set(seeds)) == 3


def test_embeddings_as_numbers_and_as_bytes(client):
    body = {"input": ["a b", "c"], "model": "base"}
    answer = client.post("/v1/embeddings", json=body).json()
    assert [row["embedding"] for row in answer["data"]] == [[2.0, 3.0], [1.0, 1.0]]
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    answer = client.post("/v1/embeddings", json={**body, "encoding_format": "base64"}).json()
    assert answer["data"][1]["embedding"] == "AACAPwAAgD8="
    error_of(client.post("/v1/embeddings", json={**body, "model": "auto"}), 404)


def test_what_prometheus_sees(client):
    client.post(CHAT, json={"messages": HI})
    client.post(CHAT, json={"messages": HI, "stream": True})
    client.post(CHAT, json={"messages": []})
    text = client.get("/metrics").text
    for line in (
        'logo_requests_total{endpoint="/v1/chat/completions",status="200"} 2.0',
        'logo_requests_total{endpoint="/v1/chat/completions",status="400"} 1.0',
        'logo_routed_total{adapter="sort-words"} 2.0',
        'logo_tokens_total{kind="answer"} 4.0',
        "logo_wait_seconds_count 2.0",
        "logo_adapters 2.0",
        "logo_running 0.0",
    ):
        assert line in text
    assert "hi" not in text.split()


def test_an_address_that_is_not_there(client):
    assert error_of(client.get("/v2/models"), 404)["code"] == "no_such_address"
    assert client.get(CHAT).status_code == 405


def slow(begun, n=10_000):
    """An answer that takes half a minute, and says so when it begins."""

    def piece():
        begun.set()
        time.sleep(0.003)
        return "x "

    return [piece] * n


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_frees_the_engine(stream):
    begun = threading.Event()
    llm = FakeLoGo(SCORES, [slow(begun), "next"])
    with serving(create_app([llm])) as address:
        body = {"messages": HI, "stream": stream}
        with httpx.Client(base_url=address, timeout=20) as client:
            if stream:
                with client.stream("POST", CHAT, json=body) as answer:
                    next(answer.iter_lines())
            else:
                with pytest.raises(httpx.TimeoutException):
                    client.post(CHAT, json=body, timeout=0.3)
            assert begun.is_set()
            started = time.monotonic()
            answer = client.post(CHAT, json={"messages": HI}).json()
    assert answer["choices"][0]["message"]["content"] == "next"
    assert time.monotonic() - started < 15  # the first would have taken thirty


def test_a_client_that_goes_while_it_waits_leaves_the_line():
    begun = threading.Event()
    gate = threading.Event()
    llm = FakeLoGo(SCORES, [[lambda: begun.set() or (gate.wait(20) and "one")], "two"])
    app = create_app([llm])
    with serving(app) as address, httpx.Client(base_url=address, timeout=20) as client:
        first = threading.Thread(
            target=client.post, args=(CHAT,), kwargs={"json": {"messages": HI}}
        )
        first.start()
        assert begun.wait(20)
        with pytest.raises(httpx.TimeoutException):
            client.post(CHAT, json={"messages": HI}, timeout=0.2)
        deadline = time.monotonic() + 20
        while client.get("/health").json()["waiting"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert client.get("/health").json() == {"status": "busy", "running": 1, "waiting": 0}
        gate.set()
        first.join()
    assert len(llm.history) == 1


def test_the_line_has_a_bound_that_clients_are_told():
    gate = threading.Event()
    llm = FakeLoGo(SCORES, [[lambda: str(gate.wait(20))]])
    with (
        serving(create_app([llm], most_waiting=1)) as address,
        httpx.Client(base_url=address, timeout=20) as client,
    ):
        ask = {"target": client.post, "args": (CHAT,), "kwargs": {"json": {"messages": HI}}}
        threads = [threading.Thread(**ask) for _ in range(2)]
        for i, thread in enumerate(threads):
            thread.start()
            while sum(client.get("/health").json()[k] for k in ("running", "waiting")) <= i:
                time.sleep(0.01)
        refused = client.post(CHAT, json={"messages": HI})
        assert error_of(refused, 429)["type"] == "rate_limit_error"
        assert int(refused.headers["retry-after"]) >= 1
        gate.set()
        for thread in threads:
            thread.join()
        assert client.post(CHAT, json={"messages": HI}).status_code == 200


def test_an_answer_ends_when_its_time_is_over():
    llm = FakeLoGo(SCORES, [slow(threading.Event())])
    with TestClient(create_app([llm], seconds=0.2), base_url="http://localhost") as client:
        text = client.post(TEXT, json={"prompt": "hi"}).json()["choices"][0]["text"]
    assert 0 < len(text.split()) < 5_000
