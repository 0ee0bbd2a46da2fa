"""The conversation on a terminal, with scripted lines and a stand-in engine."""

import re
import time

import pytest

from logo_local.chat import chat
from logo_local.chat.commands import COMMANDS, complete
from logo_local.chat.session import that_fits
from logo_local.chat.settings import OPTIONS, shown, stop_texts
from logo_local.completions import Sampling
from logo_local.console import terminal
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

        sampling = settings.pop("sampling", Sampling(max_tokens=9, temp=0.5))
        chat(llm, sampling, read=read, **settings)
        assert not waiting
        return capsys.readouterr()

    return talk


def test_a_conversation_keeps_its_history(talk):
    llm = FakeLoGo(SCORES, [["apple ", "pear"], "done"])
    out, err = talk(llm, "sort: pear apple", "", "thanks", "/bye")
    assert out == "apple pear\ndone\n"
    assert err.startswith(
        "fake with 2 adapters (all with example prompts)\nSend a message (/? for help)\n"
    )
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
    assert re.search(r"^/clear +clear the conversation$", err, re.M)
    assert "There is no answer yet\n" in err
    assert re.search(r"^reverse .*\nsort-words ", err, re.M)
    assert "norm · one-pass · blk.3.attn_q.weight" in err
    assert "error: there is no command /nonsense\nhint: /? lists them; two slashes " in err
    assert len(llm.history) == 1


def test_base_switches_routing_off_and_on(talk):
    """Line 16: the base from the chat; the prompt shows it."""
    llm, prompts = FakeLoGo(SCORES, ["yes"]), []
    lines = ["one", "/base", "two", "/retry", "/show", "/base", "three", "/base", "/auto", "four"]

    def read(prompt):
        prompts.append(prompt)
        if not lines:
            raise EOFError
        return lines.pop(0)

    chat(llm, Sampling(), read=read)
    normal, base = ">>> ", "base >>> "
    assert prompts == [normal, normal, base, base, base, base, normal, normal, base, normal, normal]


@pytest.mark.parametrize("back", ["/base", "/auto", "/pin reverse"])
def test_after_base_routing_comes_back(talk, back):
    llm = FakeLoGo(SCORES, ["yes"])
    routes = []
    llm.on_route = lambda route: routes.append(route.names)
    err = talk(llm, "one", "/base", "two", "/why", back, "three").err
    assert [bool(names) for names in routes] == [True, False, True]
    assert "The base model answers until /base or /auto\n" in err
    assert "none" not in err


def test_base_without_any_adapters_says_so(talk):
    llm = FakeLoGo({}, ["yes"])
    llm.pool.folder = None
    err = talk(llm, "/base", "/show").err
    assert "The base model always answers: no adapters are loaded\n" in err


@pytest.mark.parametrize("word", ["exit", "quit", "Exit", "/exit", "/quit", "/bye"])
def test_words_that_leave(talk, word):
    """Line 17: exit and quit leave."""
    llm = FakeLoGo(SCORES, ["yes"])
    talk(llm, "how do I quit", word)
    assert [call.prompt for call in llm.history] == ["how do I quit"]


@pytest.mark.parametrize("answer", ["", "\n"])
def test_an_empty_answer_says_so(talk, answer):
    err = talk(FakeLoGo(SCORES, [answer]), "one").err
    assert "The answer is empty\n" in err


@pytest.mark.parametrize(
    ("scores", "self_profile", "opening"),
    [
        ({}, "kept", "fake with no adapters"),
        ({"a": 1.0}, "kept", "fake with 1 adapter (all with example prompts)"),
        ({"a": 1.0, "b": 1.0}, False, "fake with 2 adapters"),
    ],
)
def test_the_opening_counts_examples_where_they_are_known(talk, scores, self_profile, opening):
    llm = FakeLoGo(scores).opened("m", self_profile=self_profile)
    assert talk(llm).err.splitlines()[0] == opening


def test_background_work_is_visible(talk):
    """Line 17: its state in /show, and a line when it is done."""
    states = ["generating", "generating", "generating", "", ""]
    err = talk(FakeLoGo(SCORES), "/show", "", "", "", background=lambda: states.pop(0)).err
    assert re.search("^background +generating$", err, re.M)
    assert err.count("The example prompts are ready\n") == 1
    assert "ready" not in talk(FakeLoGo(SCORES), "/show").err


def test_clear_forgets(talk):
    llm = FakeLoGo(SCORES, ["yes"])
    talk(llm, "one", "/clear", "two", "/bye")
    assert [m["content"] for m in llm.history[1].messages] == ["two"]


def test_explain_says_once_that_the_base_answers_alone(talk):
    err = talk(FakeLoGo({"a": 0.0}, ["yes"]), "one", explain=True).err
    assert err.splitlines().count("base alone") == 1


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
    assert "First send the message" in err
    assert llm.taught == {"reverse": ["turn it: a b"]}
    _, err = talk(llm, "/unteach reverse", "/unteach reverse")
    assert llm.taught == {}
    assert "Removed the last example of reverse\nreverse has no added examples\n" in err


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


def contents(call):
    return [message["content"] for message in call.messages]


# Commands


def test_the_help_is_the_table(talk):
    err = talk(FakeLoGo(SCORES), "/?").err
    for command in COMMANDS:
        assert re.search(rf"^{re.escape(command.usage)} +{re.escape(command.help[:20])}", err, re.M)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/cler", "did you mean /clear? /? lists them"),
        ("/etc/passwd says", "two slashes begin a message: //etc/passwd"),
        ("/pin", "hint: /pin NAME"),
        ("/clear all", "/clear takes nothing after it"),
        ("/set topk 3", "there is no option topk (did you mean top-k?)"),
        ("/set top-k 0", "top-k: 0 is not in the range x>=1"),
        ("/set signal loud", "signal: 'loud' is not one of"),
        ("/set temp nan", "temp: nan is not a number"),
        ("/set stop 'a", "stop: a quotation mark is not closed"),
        ("/load nowhere.json", "nowhere.json cannot be read"),
    ],
)
def test_a_wrong_command_is_an_error_that_changes_nothing(talk, line, words):
    llm = FakeLoGo(SCORES)
    err = talk(llm, line, "go on").err
    assert f"error: {words}" in err or words in err
    assert (err.count("error: "), err.count("hint: ")) == (1, 1)
    assert [call.prompt for call in llm.history] == ["go on"]
    assert (llm.routing.top_k, llm.routing.signal) == (3, "auto")
    assert llm.history[0].options == {"max_tokens": 9, "temperature": 0.5, "stream": True}


@pytest.mark.parametrize(
    ("lines", "sent"),
    [
        (["//etc is a folder"], ["/etc is a folder"]),
        (['"""', "first", "  second", '"""'], ["first\n  second"]),
        (['"""one', "/bye", 'three"""'], ["one\n/bye\nthree"]),
        (['"""one line"""'], ["one line"]),
        (["two\nlines of an editor"], ["two\nlines of an editor"]),
        (['"""begun', KeyboardInterrupt(), "another"], ["another"]),
        (['say """x"""'], ['say """x"""']),
        (["  "], []),
    ],
)
def test_what_is_sent(talk, lines, sent):
    llm = FakeLoGo(SCORES)
    talk(llm, *lines)
    assert [call.prompt for call in llm.history] == sent


def test_bye_has_other_names(talk):
    for line in ("/bye", "/exit", "/quit"):
        llm = FakeLoGo(SCORES)
        talk(llm, line)
        assert llm.history == []


def test_what_changed_since_the_turn_before(talk):
    def scores(text):
        return {"a": 3.0, "b": 1.0, "c": 0.0} if text == "one" else {"a": 1.0, "b": 0.0, "c": 1.0}

    llm = FakeLoGo(scores, names=["a", "b", "c"])
    err = talk(llm, "one", "/why").err
    assert "added" not in err
    err = talk(FakeLoGo(scores, names=["a", "b", "c"]), "one", "two", "/why").err
    assert "added: c 0.50\nremoved: b 0.25\nchanged: a 0.75 → 0.50\n" in err
    err = talk(FakeLoGo(scores, names=["a", "b", "c"]), "one", "one", "/why").err
    assert "unchanged since the turn before\n" in err


def test_nothing_that_is_drawn_reaches_a_pipe(talk):
    err = talk(FakeLoGo(SCORES), "one", "/why", "/adapters", "/show", "/set", explain=True).err
    assert not re.search(r"[\x1b█▏▎▍▌▋▊▉]", err)
    assert ">>>" not in err


def test_the_adapters_and_which_are_pinned_or_off(talk):
    llm = FakeLoGo(SCORES)
    err = talk(llm, "hello", "/off reverse", "/pin sort-words", "/adapters").err
    rows = [line.split() for line in err.splitlines()]
    assert ["reverse", "0.25", "4", "2.0", "KB", "off"] in rows
    assert ["sort-words", "0.75", "4", "2.0", "KB", "pinned"] in rows


def test_off_leaves_an_adapter_out_until_auto(talk):
    llm = FakeLoGo(SCORES)
    talk(llm, "/off sort-words", "hello")
    assert llm.last_route.names == ("reverse",)
    assert "the base answers alone" in talk(llm, "/off reverse", "hello").err
    assert llm.last_route.is_base
    talk(llm, "/auto", "hello")
    assert llm.last_route.names == ("sort-words", "reverse")


def test_a_pin_leaves_what_is_off_and_a_wrong_name_leaves_the_pin(talk):
    llm = FakeLoGo({**SCORES, "upper": 2.0})
    talk(llm, "/off upper", "/pin reverse", "/pin nobody")
    assert (llm.pool.pinned, llm.pool.excluded) == (("reverse",), ("upper",))
    talk(llm, "/pin upper")
    assert (llm.pool.pinned, llm.pool.excluded) == (("upper",), ())


# Settings


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("/set temp 0.8", {"temperature": 0.8}),
        ("/set max-tokens 5", {"max_tokens": 5}),
        ("/set seed 7", {"seed": 7}),
        ("/set top-p 0.5", {"top_p": 0.5}),
        ("/set min-p 0", {"min_p": 0.0}),
        ("/set repeat-penalty 1.1", {"repeat_penalty": 1.1}),
        ('/set stop END "a b" \\n', {"stop": ["END", "a b", "\n"]}),
    ],
)
def test_settings_of_the_sampling_and_back(talk, line, options):
    llm = FakeLoGo(SCORES)
    name = line.split()[1]
    talk(llm, line, "one", f"/set {name} default", "two")
    plain = {"max_tokens": 9, "temperature": 0.5, "stream": True}
    assert [call.options for call in llm.history] == [{**plain, **options}, plain]


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("/set top-k 1", "top_k", 1),
        ("/set signal norm", "signal", "norm"),
        ("/set mixture scales", "mixture", "scales"),
    ],
)
def test_settings_of_the_engine_and_back(talk, line, name, value):
    llm = FakeLoGo(SCORES)
    before = getattr(llm.routing, name)
    talk(llm, line)
    assert getattr(llm.routing, name) == value != before
    llm = FakeLoGo(SCORES)
    talk(llm, line, f"/set {line.split()[1]} default")
    assert getattr(llm.routing, name) == before


def test_the_system_message_comes_first_and_is_never_in_the_conversation(talk):
    llm = FakeLoGo(SCORES, ["yes"])
    lines = ("one", "/set system Be long.", "/set system", "two", "/set system default", "three")
    err = talk(llm, *lines, system="Be brief.").err
    assert [contents(call)[0] for call in llm.history] == ["Be brief.", "Be long.", "Be brief."]
    assert [call.messages[0]["role"] for call in llm.history] == ["system"] * 3
    assert contents(llm.history[2])[1:] == ["one", "yes", "two", "yes", "three"]
    assert "\nBe long.\n" in err
    talk(llm, '/set system """', "a", 'b"""', "four")
    assert contents(llm.history[3]) == ["a\nb", "four"]


def test_a_system_message_without_a_template_is_said_to_have_no_effect(talk):
    llm = FakeLoGo(SCORES, chat_template=False)
    assert "--system has no effect" in talk(llm, system="Be brief.").err
    assert "It has no effect" in talk(llm, "/set system Be brief.", "one").err
    assert llm.history[0].prompt == "one"


def test_all_options_are_listed_with_their_values(talk):
    lines = talk(FakeLoGo(SCORES), "/set").err.splitlines()
    listed = {line.split("  ")[0].strip(): line for line in lines}
    assert set(OPTIONS) <= set(listed)
    assert re.match(r"top-k +3 ", listed["top-k"])
    assert re.match(r"temp +0.5 ", listed["temp"])
    assert re.match(r"seed +not set ", listed["seed"])
    assert "\n3\n" in talk(FakeLoGo(SCORES), "/set top-k").err


def test_show_says_what_is_in_use(talk):
    llm = FakeLoGo(SCORES, ["four words make it"], n_ctx=64)
    llm.timings_ms |= {"prefill": 20.0, "probe": 5.0, "decode": 300.0}
    err = talk(llm, "one two", "/pin reverse", "/show", system="Be brief.").err
    shown = dict(re.findall(r"^(\S+(?: answer)?) {2,}(.*)$", err, re.M))
    assert shown["model"] == "fake, llama: fake.gguf"
    assert shown["adapters"] == "2 in adapters"
    assert shown["context"] == "8 of 64 tokens used"
    assert shown["pinned"] == "reverse"
    assert shown["last answer"] == "prompt 2 tokens in 25 ms · answer 4 tokens at 10.0 tokens/s"
    assert (shown["system"], shown["max-tokens"]) == ("Be brief.", "9")


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("a b", ("a", "b")),
        ("'a b' \"c'd\" #", ("a b", "c'd", "#")),
        ("\\n\\n", ("\n\n",)),
        (["a b", "\n"], ("a b", "\n")),
    ],
)
def test_texts_that_stop(value, texts):
    assert stop_texts(value) == texts


@pytest.mark.parametrize("value", ["'a", 5, [1], [""], None])
def test_what_are_no_texts_to_stop_at(value):
    with pytest.raises(ValueError, match=r"text|quotation"):
        stop_texts(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "not set"),
        ((), "not set"),
        (("a b", "\n"), '"a b" "\\n"'),
        (0.0, "0"),
        ("two\nlines", "two lines"),
        ("x" * 25, "x" * 23 + "…"),
    ],
)
def test_values_in_a_list(value, text):
    assert shown(value) == text


# Asking again, and a full context


def test_retry_drops_the_last_answer_and_asks_again(talk):
    llm = FakeLoGo(SCORES, ["a", "b", "c", "d"])
    out, err = talk(llm, "/retry", "one", "two", "/retry", "three")
    assert out == "a\nb\nc\nd\n"
    assert contents(llm.history[2]) == ["one", "a", "two"]
    assert contents(llm.history[3]) == ["one", "a", "two", "c", "three"]
    assert "There is no answer yet" in err
    assert "answer is the same" not in err


def test_retry_says_when_the_answer_can_only_be_the_same(talk):
    assert (
        "The answer is the same"
        in talk(FakeLoGo(SCORES, ["a"]), "one", "/retry", sampling=Sampling(temp=0.0)).err
    )
    assert "The answer is the same" not in talk(FakeLoGo(SCORES, ["a"]), "one", "/retry").err


def test_retry_after_a_failure_asks_what_failed(talk):
    llm = FakeLoGo(SCORES, ["a", [PromptError("no")], "b"])
    talk(llm, "one", "two", "/retry")
    assert contents(llm.history[2]) == ["one", "a", "two"]


def test_retry_without_a_conversation(talk):
    llm = FakeLoGo(SCORES, ["a"])
    talk(llm, "one", "/retry", "/clear", "/retry", raw=True)
    assert [call.prompt for call in llm.history] == ["one", "one"]


def words(n):
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": "x " * 10} for i in range(n)]


@pytest.mark.parametrize(
    ("n_turns", "n_ctx", "longest", "n_kept"),
    [
        (1, 100, 50, 1),
        (7, 100, 25, 7),  # 70 tokens leave 30
        (7, 100, 50, 7),  # a quarter of the context is enough
        (9, 100, 10, 9),
        (9, 100, 11, 5),  # then half of it is left
        (9, 19, 50, 1),  # more than half, with no room to speak of, but it fits
        (9, 10, 50, 9),  # the last one alone does not fit: others say so
        (9, 50, 50, 1),  # three would leave room, yet not half
        (11, 38, 9, 1),
    ],
)
def test_the_oldest_turns_go_when_the_context_is_full(n_turns, n_ctx, longest, n_kept):
    turns = words(n_turns)
    count = lambda some: min(n_ctx, 10 * len(some))  # noqa: E731
    assert that_fits(turns, count, n_ctx, longest) == turns[-n_kept:]


def test_a_full_context_is_said_and_the_system_message_stays(talk):
    llm = FakeLoGo(SCORES, ["six words are in this answer"], n_ctx=32)
    lines = [f"message number {i} has seven words now" for i in range(4)]
    err = talk(llm, *lines, system="Be very brief.").err
    assert "error" not in err
    assert "The oldest 4 messages are dropped: the context of 32 tokens is full\n" in err
    asked = [contents(call) for call in llm.history]
    assert all(one[0] == "Be very brief." for one in asked)
    assert asked[1][1:] == [lines[0], "six words are in this answer", lines[1]]
    assert asked[2][1:] == [lines[2]]  # all three would be 36, and two are more than half
    assert all(sum(map(len, map(str.split, one))) <= 24 for one in asked)


def test_a_message_that_never_fits_forgets_nothing(talk):
    llm = FakeLoGo(SCORES, ["yes"], n_ctx=16)
    err = talk(llm, "one", "word " * 20, "two").err
    assert "error: the prompt does not fit" in err
    assert "forgotten" not in err
    assert contents(llm.history[-1]) == ["one", "yes", "two"]


@pytest.mark.parametrize(
    ("n_ctx", "line"),
    [
        (64, "The answer ends here: it has 9 tokens (/set max-tokens)"),
        (12, "The answer ends here: the context is full (/clear, or --ctx-size)"),
    ],
)
def test_an_answer_that_was_cut_off_says_why(talk, n_ctx, line):
    llm = FakeLoGo(SCORES, ["w " * 9], n_ctx=n_ctx)
    assert f"{line}\n" in talk(llm, "one two three").err
    assert "ends here" not in talk(FakeLoGo(SCORES, ["w"]), "one").err


# Files


def test_a_conversation_is_saved_and_gone_on_with(talk, tmp_path):
    path = tmp_path / "my chat.json"
    llm = FakeLoGo({**SCORES, "upper": 2.0}, ["yes"])
    lines = ("one", "/set temp 0.25", "/set stop END", "/set top-k 2", "/pin reverse", "/off upper")
    err = talk(llm, *lines, f"/save {path}", system="Be brief.").err
    assert f"2 messages were saved to {path}" in err
    other = FakeLoGo({**SCORES, "upper": 2.0}, ["no"])
    err = talk(other, "before", f"/load {path}", "two", "/teach upper", "/retry").err
    assert f"2 messages were loaded from {path}" in err
    assert contents(other.history[1]) == ["Be brief.", "one", "yes", "two"]
    assert other.history[1].options["temperature"] == 0.25
    assert other.history[1].options["stop"] == ["END"]
    assert (other.pool.pinned, other.pool.excluded) == (("reverse",), ("upper",))
    assert other.routing.top_k == 2
    assert contents(other.history[2]) == ["Be brief.", "one", "yes", "two"]
    err = talk(FakeLoGo({"sort-words": 1.0}), f"/load {path}").err
    assert "warning: reverse is not one of the adapters here\n" in err


def test_a_loaded_conversation_can_be_retried(talk, tmp_path):
    path = tmp_path / "chat.json"
    talk(FakeLoGo(SCORES, ["yes"]), "one", f"/save {path}")
    llm = FakeLoGo(SCORES, ["no"])
    talk(llm, f"/load {path}", "/retry")
    assert contents(llm.history[0]) == ["one"]


def test_settings_that_cannot_be_used_load_nothing(talk, tmp_path):
    path = tmp_path / "chat.json"
    talk(FakeLoGo(SCORES, ["yes"]), "one", f"/save {path}")
    path.write_text(path.read_text().replace('"top-k": 3', '"top-k": 0, "tpo-k": 1'))
    llm = FakeLoGo(SCORES)
    err = talk(llm, f"/load {path}", "two").err
    assert "error: nothing was set\n  top-k: 0 is not in the range" in err
    assert "there is no option tpo-k" in err
    assert contents(llm.history[0]) == ["two"]


# Tab


@pytest.mark.parametrize(
    ("text", "n", "found"),
    [
        ("/pi", 3, ["/pin "]),
        ("/te", 3, ["/teach "]),
        ("/cl", 3, ["/clear"]),
        ("/s", 2, ["/set ", "/show", "/save "]),
        ("/pin s", 1, ["sort-words"]),
        ("/teach ", 0, ["reverse", "sort-words"]),
        ("/set t", 1, ["top-k ", "temp ", "top-p "]),
        ("/set signal prof", 4, ["profile"]),
        ("/set mixture ", 0, ["auto", "stacked", "scales", "default"]),
        ("/set temp ", 0, ["default"]),
        ("/set nothing ", 0, []),
        ("/clear ", 0, []),
        ("/nothing x", 1, []),
        ("hello s", 0, []),
        ("", 0, []),
        ("/pin\ns", 0, []),
    ],
)
def test_what_tab_offers(text, n, found):
    assert complete(text, ("reverse", "sort-words")) == (n, found)


def test_tab_offers_files(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    for name in ("chat.json", "sub/charm.json", ".hidden"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert complete("/load ", ()) == (0, ["chat.json", "sub/"])
    assert complete("/save ch", ()) == (2, ["chat.json"])
    assert complete("/save .h", ()) == (2, [".hidden"])
    assert complete("/load sub/", ()) == (0, ["charm.json"])
    assert complete(f"/load {tmp_path}/s", ()) == (1, ["sub/"])
    assert complete("/load ~/s", ()) == (1, ["sub/"])
    assert complete("/load nowhere/", ()) == (0, [])


# What a terminal would obey


def test_control_characters_are_seen_on_a_terminal_and_stay_in_a_pipe(talk, monkeypatch):
    pieces = ["\x1b", "]0;title\x07", "a\tb"]
    assert talk(FakeLoGo(SCORES, [pieces]), "one").out == "\x1b]0;title\x07a\tb\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert talk(FakeLoGo(SCORES, [pieces]), "one").out == "␛]0;title␇a\tb\n"
    llm = FakeLoGo(SCORES, [pieces])
    talk(llm, "one", "two")
    assert contents(llm.history[1])[1] == "".join(pieces)  # the model's own words stay


def test_every_control_character_is_visible():
    import unicodedata

    kept = {"\t", "\n"}
    for code in range(0x3000):
        char = chr(code)
        bidi = unicodedata.bidirectional(char) in {
            *("LRE", "RLE", "LRO", "RLO", "PDF"),
            *("LRI", "RLI", "FSI", "PDI"),
        }
        if (unicodedata.category(char) == "Cc" or bidi) and char not in kept:
            assert terminal.visible(char).isprintable()
        elif not 0xD800 <= code < 0xE000:
            assert terminal.visible(char) == char


def test_the_opening_names_model_adapters_and_prompts_to_try(capsys):
    llm = FakeLoGo({"a": 1.0, "b": 1.0})
    llm.unprofiled = ["b"]
    chat(llm, Sampling(), read=lambda _prompt: "/bye", suggestions=["Sort: b a"])
    assert capsys.readouterr().err.splitlines()[:4] == [
        "fake with 2 adapters (1 with example prompts)",
        "Some prompts to try:",
        "  Sort: b a",
        "Send a message (/? for help)",
    ]
