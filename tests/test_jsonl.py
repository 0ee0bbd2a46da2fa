"""The loop: every request's events, in order, whatever goes wrong; cancelled when it is wished."""

import io
import json
import os
import threading

import pytest

from logo_local import __version__
from logo_local.completions import Sampling
from logo_local.engine import LoGo
from logo_local.errors import PromptError
from logo_local.fake import FakeLoGo
from logo_local.jsonl.session import Events, Session

DEFAULTS = Sampling()
SCORES = {"sort-words": 3.0, "reverse": 1.0, "silent": 0.0}


@pytest.fixture
def llm():
    return FakeLoGo(SCORES, [["Apple ", "pear"]])


def played(llm, *requests, sampling=DEFAULTS):
    """All events of a session that reads these requests: values, or lines as they are."""
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in requests]
    out = io.BytesIO()
    Session(llm, Events(out.write), sampling).run(io.BytesIO(b"\n".join(lines)).read)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def brief(events):
    """Each event's name and id, and the text of tokens, without the first event."""
    assert events[0]["event"] == "ready"
    return [tuple(e[k] for k in ("event", "id", "text") if k in e) for e in events[1:]]


class Conversation:
    """A session whose input is written while its output is read, each in one thread.

    The requests of `first` are there from the start. `on` says what happens after an event, by its
    name and id: a request is sent, and the session goes on only once it has been taken in; b"" is
    the end of the input; a function is called.
    """

    def __init__(self, llm, first):
        self.first = [json.dumps(request).encode() + b"\n" for request in first]
        self.on, self.events = {}, []
        self.session = Session(llm, Events(self.write), Sampling())
        self.idle, self.sent = threading.Semaphore(0), threading.Semaphore(0)
        self.line = b""

    def read(self, _n):
        if self.first:
            return self.first.pop(0)
        self.idle.release()
        self.sent.acquire()
        return self.line

    def send(self, line):
        self.idle.acquire()
        self.line = line
        self.sent.release()
        if line:
            self.idle.acquire()  # it was taken in
            self.idle.release()

    def write(self, line):
        event = json.loads(line)
        self.events.append(event)
        for item in self.on.pop((event["event"], event.get("id")), ()):
            if callable(item):
                item()
            else:
                self.send(item if item == b"" else json.dumps(item).encode() + b"\n")

    def run(self):
        thread = threading.Thread(target=self.session.run, args=(self.read,), daemon=True)
        thread.start()
        thread.join(30)
        assert not thread.is_alive()
        return self.events


# Answers


def test_it_says_what_it_is_first(llm):
    assert played(llm) == [
        {
            "event": "ready",
            "protocol": 1,
            "version": __version__,
            "model": {"path": "fake.gguf", "architecture": "llama", "name": "fake"},
            "chat_template": True,
            "adapters": sorted(SCORES),
        }
    ]


def test_an_answer(llm):
    _ready, route, *tokens, done = played(llm, {"id": 1, "prompt": "sort pear apple"})
    assert (route["event"], route["id"]) == ("route", 1)
    assert [a["name"] for a in route["route"]["adapters"]] == ["sort-words", "reverse"]
    assert route["route"]["scores"] == SCORES
    assert tokens == [
        {"event": "token", "id": 1, "text": "Apple "},
        {"event": "token", "id": 1, "text": "pear"},
    ]
    assert done == {
        "event": "done",
        "id": 1,
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        "timings_ms": llm.timings_ms,
    }


def test_requests_are_answered_in_order(llm):
    events = played(llm, {"id": "b", "prompt": "x"}, {"id": "a", "route": "y"}, {"rescan": True})
    assert brief(events) == [
        ("route", "b"),
        ("token", "b", "Apple "),
        ("token", "b", "pear"),
        ("done", "b"),
        ("route", "a"),
        ("done", "a"),
        ("rescan",),
    ]


MESSAGES = [{"role": "user", "content": "a"}]
GIVEN = {"max_tokens": 5, "temperature": 0.5, "seed": 3, "stop": ["x"]}


@pytest.mark.parametrize(
    ("request_", "method", "options"),
    [
        ({"prompt": "a"}, "create_chat_completion", {"max_tokens": 9, "temperature": 0.25}),
        ({"prompt": "a", **GIVEN}, "create_chat_completion", GIVEN),
        ({"prompt": "a", "raw": True, **GIVEN}, "create_completion", GIVEN),
        ({"messages": MESSAGES, **GIVEN}, "create_chat_completion", GIVEN),
    ],
)
def test_what_the_engine_is_asked(llm, request_, method, options):
    played(llm, {"id": 1, **request_}, sampling=Sampling(9, 0.25))
    (call,) = llm.history
    assert (call.method, call.prompt) == (method, "a")
    assert call.options == {**options, "stream": True}


def test_routing_as_one_request_wants_it(llm):
    events = played(
        llm,
        {"id": 1, "prompt": "a", "top_k": 1},
        {"id": 2, "prompt": "a", "lora": {"silent": 0.5, "reverse": -1}},
        {"id": 3, "prompt": "a", "lora": {}},
        {"id": 4, "route": "a", "top_k": 1, "signal": "entropy"},
        {"id": 5, "prompt": "a"},
    )
    weights = {
        e["id"]: {a["name"]: a["weight"] for a in e["route"]["adapters"]}
        for e in events
        if e["event"] == "route"
    }
    assert weights == {
        1: {"sort-words": 1.0},
        2: {"silent": 0.5, "reverse": -1.0},
        3: {},
        4: {"sort-words": 1.0},
        5: {"sort-words": 0.75, "reverse": 0.25},
    }


def test_a_signal_holds_for_its_request_only(llm):
    events = played(llm, {"id": 1, "prompt": "a", "signal": "entropy"}, {"id": 2, "prompt": "a"})
    routes = [event["route"] for event in events if event["event"] == "route"]
    assert [route["signal"] for route in routes] == ["entropy", "norm"]
    assert llm.history[0].options["routing"] == {"signal": "entropy"}
    assert "routing" not in llm.history[1].options


def test_the_list_of_adapters(llm):
    (event,) = played(llm, {"id": 1, "adapters": True})[1:]
    assert event == {
        "event": "adapters",
        "id": 1,
        "adapters": [{"name": name, "n_bytes": 2048} for name in sorted(SCORES)],
        "left_out": [],
    }


def test_a_rescan(llm):
    assert played(llm, {"rescan": True})[1:] == [
        {"event": "rescan", "added": [], "removed": [], "changed": []}
    ]


# What goes wrong


def test_a_line_that_is_no_request_is_an_event_and_the_rest_is_answered(llm):
    events = played(
        llm, b"what?", b"", {"id": 1, "prompt": "a", "bad": 1}, {"id": 2, "prompt": "a"}
    )
    first, second = events[1:3]
    assert first.keys() == {"event", "line", "kind", "message", "problems", "hint"}
    assert (first["event"], first["line"], first["kind"]) == ("error", 1, "RequestError")
    assert (second["id"], second["line"]) == (1, 3)
    assert second["problems"] == ["bad: unknown field"]
    assert events[-1]["event"] == "done"


FAILURES = [
    (PromptError("too long", problems=["a", "b"], hint="shorten it"), "PromptError", "too long"),
    (ValueError("of a  template\n"), "ValueError", "of a template"),
    (OSError(5, "no such disk"), "OSError", "[Errno 5] no such disk"),
]


@pytest.mark.parametrize(("failure", "kind", "message"), FAILURES)
def test_a_failure_in_the_middle_ends_one_answer(llm, failure, kind, message):
    llm._answers = [["Apple ", failure], "later"]
    events = played(llm, {"id": 1, "prompt": "a"}, {"id": 2, "prompt": "a"})
    assert [e[:2] for e in brief(events)] == [
        *(("route", 1), ("token", 1), ("error", 1)),
        *(("route", 2), ("token", 2), ("done", 2)),
    ]
    error = events[3]
    assert (error["kind"], error["message"]) == (kind, message)
    assert error["problems"] == list(getattr(failure, "problems", ()))
    assert error["hint"]


def test_an_unknown_adapter(llm):
    events = played(
        llm, {"id": 1, "prompt": "a", "lora": {"sort-word": 1}}, {"id": 2, "route": "a"}
    )
    assert events[1]["kind"] == "UnknownAdapterError"
    assert "did you mean sort-words" in events[1]["hint"]
    assert brief(events)[1:] == [("route", 2), ("done", 2)]


def test_messages_need_a_chat_template(llm):
    llm.metadata = {}
    events = played(llm, {"id": 1, "messages": MESSAGES}, {"id": 2, "prompt": "a"})
    assert (events[1]["event"], events[1]["id"]) == ("error", 1)
    assert "no chat template" in events[1]["message"]
    assert llm.history[0].method == "create_completion"


def test_a_writer_that_fails_ends_the_session(llm):
    def write(line):
        if b"ready" not in line:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        Session(llm, Events(write), Sampling()).run(io.BytesIO(b'{"id": 1, "prompt": "a"}\n').read)


def test_a_reader_that_fails_is_the_end_of_the_input(llm, caplog):
    def read(_n):
        raise OSError(5, "input/output error")

    out = io.BytesIO()
    Session(llm, Events(out.write), Sampling()).run(read)
    assert "input/output error" in caplog.text


def test_names_that_are_no_utf8_are_escaped(llm):
    out = io.BytesIO()
    Events(out.write)("token", text="é\u2028", id=os.fsdecode(b"\xff"))
    assert out.getvalue().decode() == '{"event": "token", "text": "é\u2028", "id": "\\udcff"}\n'


# Cancelling


def test_an_answer_is_cancelled_at_the_next_piece(llm):
    llm._answers = [["one ", "two ", "three "], ["next"]]
    talk = Conversation(llm, [{"id": 1, "prompt": "a b"}, {"id": 2, "prompt": "a"}])
    talk.on["token", 1] = [{"cancel": 1}, b""]
    events = talk.run()
    assert brief(events) == [
        ("route", 1),
        ("token", 1, "one "),
        ("done", 1),
        ("route", 2),
        ("token", 2, "next"),
        ("done", 2),
    ]
    done = events[3]
    assert done["finish_reason"] == "cancelled"
    assert done["usage"] == {"prompt_tokens": 2, "completion_tokens": 1}


def test_a_real_engine_stops_at_once_and_answers_the_next_as_ever(random_base, random_adapters):
    first = [{"id": n, "prompt": "alpha beta", "raw": True, "max_tokens": 100} for n in (1, 2, 3)]
    with LoGo(random_base, random_adapters, n_ctx=256, signal="norm") as llm:
        talk = Conversation(llm, first)
        talk.on["token", 2] = [{"cancel": 2}, b""]
        events = talk.run()
    text = {
        n: [e["text"] for e in events if e["event"] == "token" and e["id"] == n] for n in (1, 2, 3)
    }
    usage = {e["id"]: e["usage"] for e in events if e["event"] == "done"}
    assert text[2] == text[1][:1]
    assert text[3] == text[1]
    assert usage[2]["completion_tokens"] < 10 < usage[1]["completion_tokens"]
    assert usage[2]["prompt_tokens"] == usage[1]["prompt_tokens"] > 0


def test_what_waits_can_be_cancelled(llm):
    first = [{"id": 1, "prompt": "a"}, {"id": 2, "prompt": "a"}, {"id": "r", "route": "a"}]
    talk = Conversation(llm, first)
    talk.on["route", 1] = [{"cancel": 2}, {"cancel": "r"}, b""]
    reasons = {e["id"]: e["finish_reason"] for e in talk.run() if e["event"] == "done"}
    assert reasons == {1: "stop", 2: "cancelled", "r": "cancelled"}
    assert len(llm.history) == 1


def test_cancelling_what_is_not_there_is_an_error_without_an_id(llm):
    (error,) = played(llm, {"cancel": 3})[1:]
    assert (error["event"], error["line"], "id" in error) == ("error", 1, False)
    assert "no request 3" in error["message"]


def test_an_id_in_use_is_refused_and_is_free_again_after_its_end(llm):
    same = {"id": 1, "prompt": "a"}
    talk = Conversation(llm, [same])
    talk.on = {("route", 1): [same], ("done", 1): [same, b""]}
    events = talk.run()
    assert [e[0] for e in brief(events)] == [
        *("route", "token", "token", "done"),
        *("error", "route", "token", "token", "done"),
    ]
    assert "in use" in events[5]["message"]
    assert "id" not in events[5]  # it would end the one that runs


def test_stopping_cancels_what_runs_and_what_waits(llm):
    llm._answers = [["one ", "two "]]
    talk = Conversation(llm, [{"id": 1, "prompt": "a"}])
    talk.on["token", 1] = [{"id": 2, "prompt": "a"}, talk.session.stop]
    events = talk.run()
    assert brief(events) == [("route", 1), ("token", 1, "one "), ("done", 1), ("done", 2)]
    assert {e["finish_reason"] for e in events if e["event"] == "done"} == {"cancelled"}


def test_stopping_while_nothing_is_asked(llm):
    talk = Conversation(llm, [])
    talk.on["ready", None] = [talk.session.stop]
    assert [event["event"] for event in talk.run()] == ["ready"]
