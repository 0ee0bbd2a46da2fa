"""The conversation on a terminal, with scripted lines and a stand-in engine."""

import time

import pytest

from logo_local.ask import Sampling
from logo_local.chat import chat
from logo_local.errors import PromptError
from logo_local.fake import FakeLoGo

SCORES = {"sort-words": 3.0, "reverse": 1.0}


@pytest.fixture
def talk(capsys):
    """talk(llm, *lines, **settings) -> (stdout, stderr); an exception as a line is raised."""

    def talk(llm, *lines, **settings):
        waiting = list(lines)

        def read(_prompt):
            line = waiting.pop(0) if waiting else EOFError()
            if isinstance(line, BaseException):
                raise line
            return line

        chat(llm, Sampling(max_tokens=9, temp=0.5), read=read, **settings)
        assert not waiting
        return capsys.readouterr()

    return talk


def test_a_conversation_keeps_its_history(talk):
    llm = FakeLoGo(SCORES, [["apple ", "pear"], "done"])
    out, err = talk(llm, "sort: pear apple", "", "thanks", "/bye")
    assert out == "apple pear\ndone\n"
    assert err.startswith("Send a message (/? for help)\n")
    assert err.count("sort-words 0.75 · reverse 0.25\n") == 2
    first, second = llm.history
    assert first.messages == ({"role": "user", "content": "sort: pear apple"},)
    assert [message["content"] for message in second.messages] == [
        "sort: pear apple",
        "apple pear",
        "thanks",
    ]
    assert first.options == {"max_tokens": 9, "temperature": 0.5, "stream": True}


def test_the_end_of_input_leaves(talk):
    assert talk(FakeLoGo(SCORES)).out == ""


def test_ctrl_c_stops_the_answer_and_keeps_the_session(talk):
    llm = FakeLoGo(SCORES, [["half ", KeyboardInterrupt()], "whole"])
    out, err = talk(llm, "one", "two", "/bye")
    assert out == "half \nwhole\n"
    assert "stopped\n" in err
    assert [m["content"] for m in llm.history[1].messages] == ["one", "half ", "two"]


def test_ctrl_c_before_the_first_word_takes_the_message_back(talk):
    llm = FakeLoGo(SCORES, [[KeyboardInterrupt()], "whole"])
    talk(llm, "one", "two", "/bye")
    assert [m["content"] for m in llm.history[1].messages] == ["two"]


def test_ctrl_c_at_the_prompt_says_how_to_leave(talk):
    assert "Ctrl+D or /bye leaves" in talk(FakeLoGo(SCORES), KeyboardInterrupt(), "/bye").err


def test_a_failure_ends_the_answer_only(talk):
    error = PromptError("the prompt does not fit", hint="shorten it")
    llm = FakeLoGo(SCORES, [[error], "better"])
    out, err = talk(llm, "long", "short", "/bye")
    assert "error: the prompt does not fit\nhint: shorten it\n" in err
    assert out == "better\n"
    assert [m["content"] for m in llm.history[1].messages] == ["short"]


def test_commands(talk):
    llm = FakeLoGo(SCORES, ["yes"])
    out, err = talk(llm, "/?", "/why", "/adapters", "hello", "/why", "/nonsense now", "/bye")
    assert out == "yes\n"
    assert "/clear      forget the conversation" in err
    assert "Nothing was asked yet\n" in err
    assert "reverse\nsort-words\n" in err
    assert "norm · one-pass · blk.3.attn_q.weight" in err
    assert "There is no command /nonsense; /? lists them\n" in err
    assert len(llm.history) == 1


def test_clear_forgets(talk):
    llm = FakeLoGo(SCORES, ["yes"])
    talk(llm, "one", "/clear", "two", "/bye")
    assert [m["content"] for m in llm.history[1].messages] == ["two"]


def test_explain_shows_the_scores_after_each_answer(talk):
    err = talk(FakeLoGo(SCORES, ["yes"]), "one", "two", explain=True).err
    assert err.count("norm · one-pass · blk.3.attn_q.weight") == 2


@pytest.mark.parametrize(("template", "raw"), [(False, False), (True, True)])
def test_without_a_template_each_line_stands_alone(talk, template, raw):
    llm = FakeLoGo(SCORES, ["yes"], chat_template=template)
    err = talk(llm, "one", "two", raw=raw).err
    assert "Each line is completed by itself" in err
    assert [(call.method, call.prompt) for call in llm.history] == [
        ("create_completion", "one"),
        ("create_completion", "two"),
    ]


def test_pinning_an_adapter_and_letting_go(talk):
    llm = FakeLoGo(SCORES)
    talk(llm, "/pin reverse", "hello")
    assert llm.last_route.names == ("reverse",)
    talk(llm, "/auto", "hello")
    assert llm.last_route.names == ("sort-words", "reverse")


def test_a_message_becomes_an_example_and_can_be_taken_back(talk):
    llm = FakeLoGo(SCORES)
    _, err = talk(llm, "/teach reverse", "turn it: a b", "/teach reverse")
    assert "Send the message first" in err
    assert llm.taught == {"reverse": ["turn it: a b"]}
    talk(llm, "/unteach reverse")
    assert llm.taught == {}


@pytest.mark.parametrize("command", ["/pin", "/teach", "/unteach"])
def test_an_unknown_adapter_is_an_error_that_keeps_the_session(talk, command):
    out, err = talk(FakeLoGo(SCORES, ["hi"]), "one", f"{command} revers", "two")
    assert "did you mean reverse" in err
    assert out == "hi\nhi\n"


def test_the_conversation_is_read_while_nobody_asks(talk):
    llm = FakeLoGo(SCORES, ["apple", "pear"])
    talk(llm, "one", "two", "/bye")
    assert [[m["content"] for m in call.messages] for call in llm.ahead] == [
        ["one", "apple"],
        ["one", "apple", "two", "pear"],
    ]


def test_nothing_is_asked_before_the_reading_is_over(talk):
    class Slow(FakeLoGo):
        def read_ahead(self, prompt):
            time.sleep(0.05)
            super().read_ahead(prompt)

        def create_chat_completion(self, *args, **kwargs):
            assert len(self.ahead) == len(self.history)
            return super().create_chat_completion(*args, **kwargs)

        def teach(self, *args):
            assert len(self.ahead) == len(self.history)
            return super().teach(*args)

    llm = Slow(SCORES, ["apple", "pear"])
    talk(llm, "one", KeyboardInterrupt(), "two", "/teach reverse", "three")
    assert len(llm.ahead) == len(llm.history) == 3  # the last one is waited for as well


def test_what_goes_wrong_while_reading_is_for_the_next_message_to_say(talk):
    class Broken(FakeLoGo):
        def read_ahead(self, prompt):
            raise PromptError("too long")

    out, err = talk(Broken(SCORES, ["apple", "pear"]), "one", "two")
    assert out == "apple\npear\n"
    assert "too long" not in err


def test_a_line_by_itself_is_not_read_ahead(talk):
    llm = FakeLoGo(SCORES, ["apple"])
    talk(llm, "one", raw=True)
    assert not llm.ahead
