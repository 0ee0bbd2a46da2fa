"""The command line: arguments and input in; exit code, output, and files out."""

import errno
import inspect
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from peft_folder import factors, write_peft
from random_gguf import write_adapter

from logo_local import __version__, chat, convert
from logo_local.commands import cli, serve
from logo_local.console import background, opening, options
from logo_local.errors import ModelError, PromptError
from logo_local.fake import FakeLoGo
from logo_local.routing.settings import OPTIONS

SCORES = {"sort-words": 3.0, "reverse": 1.0, "silent": 0.0}
BLEND = "sort-words 0.75 · reverse 0.25\n"
MODEL = ("m.gguf", "--adapters", "pool")
FIVE = {"max_tokens": 5, "repeat_penalty": 1.1, "stream": True}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A user folder of its own for each test."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("LOGO_LOCAL_HOME", str(folder))
    return folder


@pytest.fixture
def llm():
    return FakeLoGo(SCORES, [["Apple ", "pear"]])


@pytest.fixture
def call(llm):
    """call(*args, stdin="", env=None) -> click's result; the engine is `llm`."""

    def call(*args, stdin="", env=None, engine=llm.opened):
        args = [str(arg) for arg in args]
        given = {"input": stdin, "env": env, "obj": engine, "prog_name": "logo-local"}
        result = CliRunner().invoke(cli.cli, args, **given)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception  # it would have been a traceback
        return result

    return call


def failed(result, code, *stderr):
    """Check the shape of a failure: nothing on stdout, `error:` first, `hint:` last."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert lines[-1].startswith("hint: ")
    assert all(line.startswith("  ") for line in lines[1:-1])
    for part in stderr:
        assert part in result.stderr
    return lines


# run


@pytest.mark.parametrize(
    ("args", "stdin", "prompt", "method"),
    [
        (["hello"], "", "hello", "create_chat_completion"),
        (["hello"], "from a pipe\n", "from a pipe\n\nhello", "create_chat_completion"),
        (["hello"], "\ufefffrom Windows\r\n", "from Windows\n\nhello", "create_chat_completion"),
        ([], "from a pipe\n", "from a pipe", "create_chat_completion"),
        ([], "two\nlines\r\n", "two\nlines", "create_chat_completion"),
        (["--raw", "hello"], "", "hello", "create_completion"),
        (["--", "--hello"], "", "--hello", "create_chat_completion"),
    ],
)
def test_run(call, llm, args, stdin, prompt, method):
    result = call("run", *MODEL, *args, stdin=stdin)
    assert (result.exit_code, result.stdout) == (0, "Apple pear\n")
    assert result.stderr == BLEND
    (asked,) = llm.history
    assert (asked.method, asked.prompt) == (method, prompt)
    assert asked.options == {
        **{"max_tokens": 512, "temperature": 0.0, "repeat_penalty": 1.1, "stream": True}
    }
    assert llm.closed


def test_an_answer_comes_as_it_is_made(call, llm):
    seen = []
    llm._answers = [["a ", "b"]]

    class Out(io.StringIO):
        def write(self, text):
            seen.append(text)
            return super().write(text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", None)
        patch.setattr(sys, "stdout", Out())
        with pytest.raises(SystemExit):
            cli.cli.main(["run", *MODEL, "hello"], obj=llm.opened)
    assert [text for text in seen if text] == ["a ", "b", "\n"]


def test_run_without_a_template_completes(call, llm):
    llm.metadata = {}
    call("run", *MODEL, "hello")
    assert llm.history[0].method == "create_completion"


def test_an_answer_that_ends_its_line_gets_no_second_end(call, llm):
    llm._answers = ["done\n"]
    assert call("run", *MODEL, "hello").stdout == "done\n"


def test_run_json(call):
    result = call("run", *MODEL, "sort pear apple", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    made = json.loads(result.stdout)
    assert made["text"] == "Apple pear"
    assert made["usage"] == {"prompt_tokens": 3, "completion_tokens": 2}
    assert made["route"]["scores"] == SCORES
    assert [a["name"] for a in made["route"]["adapters"]] == ["sort-words", "reverse"]


def test_explain_goes_to_stderr(call):
    result = call("run", *MODEL, "hello", "--explain")
    assert result.stdout == "Apple pear\n"
    assert "norm · one-pass · blk.3.attn_q.weight" in result.stderr
    assert "█" in result.stderr
    assert result.stderr.endswith(BLEND)
    assert "\x1b" not in result.stderr  # no colours in a pipe


def test_run_json_and_explain_do_not_mix(call):
    result = call("run", *MODEL, "hello", "--json", "--explain")
    assert json.loads(result.stdout)["text"] == "Apple pear"
    assert "█" in result.stderr


ALL_OPTIONS = {
    "signal": "entropy",
    "top_k": 2,
    "mixture": "scales",
    "mixture_type": "q8_0",
    "adapter_memory": 512 * 2**20,
    "cache_memory": 0,
    "n_gpu_layers": -1,
}


def test_a_system_message_comes_first(call, llm):
    assert call("run", *MODEL, "hello", "--system", "Be brief.").stderr == BLEND
    assert [m["content"] for m in llm.history[0].messages] == ["Be brief.", "hello"]
    assert [m["role"] for m in llm.history[0].messages] == ["system", "user"]


@pytest.mark.parametrize("args", [["--raw"], []])
def test_a_system_message_needs_a_template(call, llm, args):
    if not args:
        llm.metadata = {}
    result = call("run", *MODEL, "hello", "--system", "Be brief.", *args)
    assert "warning: --system has no effect without a chat template\n" in result.stderr
    assert llm.history[0].prompt == "hello"


def test_sampling_reaches_the_engine(call, llm):
    args = ("--top-p=0.5", "--min-p=0.25", "--repeat-penalty=1.5")
    call("run", *MODEL, "hello", *args)
    assert llm.history[0].options == {
        **{"max_tokens": 512, "temperature": 0.0, "stream": True},
        **{"top_p": 0.5, "min_p": 0.25, "repeat_penalty": 1.5},
    }


def test_options_reach_the_engine(call, llm):
    args = [f"--{name.replace('_', '-')}={value}" for name, value in ALL_OPTIONS.items()]
    args += ["--threads=3", "--ctx-size=512", "--seed=7", "--max-tokens=5", "--temp=0.5"]
    args += ["--no-self-profile", "--no-past", "--escape-special"]
    args += ['--chat-template-kwargs={"enable_thinking": false}']
    assert call("run", *MODEL, "hello", *args).exit_code == 0
    assert callable(llm.settings.pop("progress"))
    assert str(llm.settings.pop("adapters")) == "pool"
    llama = {"n_threads": 3, "n_threads_batch": 3, "n_ctx": 512, "seed": 7}
    llama |= {"self_profile": False, "past": False, "escape_special": True}
    llama |= {"chat_template_kwargs": {"enable_thinking": False}}
    assert llm.settings == {"model_path": "m.gguf", **ALL_OPTIONS, **llama}
    assert llm.history[0].options == FIVE | {"temperature": 0.5}


def test_defaults_are_the_engines_own(call, llm):
    from logo_local.engine import LoGo

    call("score", *MODEL, "hello")
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(LoGo).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    del llm.settings["progress"], llm.settings["model_path"], llm.settings["adapters"]
    assert 0 < llm.settings.pop("seed") < 2**32  # drawn anew: llama_cpp's own never changes
    assert llm.settings.pop("n_gpu_layers") is None  # all, if there is a GPU: `devices.placed`
    assert llm.settings == {name: defaults[name] for name in llm.settings}


def test_options_for_research_belong_to_eval():
    """Each of the routing's settings is an option of eval, and the common ones of run."""
    names = {name: {p.name for p in cli.cli.commands[name].params} for name in ("run", "eval")}
    common = {n for n, option in OPTIONS.items() if option.metadata["common"]}
    assert common == OPTIONS.keys() & names["run"]
    assert {"probe", "layer", "tap", "keep_route", "prefill"} == OPTIONS.keys() - names["run"]
    # eval compares the first two, and what it answers does not depend on earlier prompts.
    assert OPTIONS.keys() - names["eval"] == {"signal", "top_k", "past", "cache_memory"}


def test_signals_of_all_commands_are_those_of_the_papers_and_the_best():
    (signal,) = (p for p in cli.cli.commands["run"].params if p.name == "signal")
    assert set(signal.type.choices) == {
        "auto",
        "norm",
        "entropy",
        "each-entropy",
        "profile",
        "mixed",
    }


def test_run_shows_what_people_use_and_names_the_rest(call):
    shown = call("run", "--help").stdout
    options = re.findall(r"^  .*?(--[a-z-]+)", shown.partition("Rarely needed")[0], re.M)
    assert options[0] == "--model"
    assert len(options) <= 23
    assert "--top-p" not in options
    assert "--no-self-profile" in shown.partition("Rarely needed")[2]


def test_outtypes_are_the_converters_own():
    assert options.OUTTYPES == convert.OUTTYPES


def test_base_only_reads_no_adapters(call, llm, tmp_path):
    assert call("run", "m.gguf", "hello", "--base-only").exit_code == 0
    assert (llm.settings["model_path"], llm.settings["adapters"]) == ("m.gguf", None)
    call("run", *MODEL, "hello", "--base-only")
    assert llm.settings["adapters"] is None
    call("run", "demo", "hello", "--base-only")  # by its name the demo would bring its adapters
    assert llm.settings["model_path"].endswith("SmolLM2-135M-Instruct.Q4_1.gguf")
    result = call("run", "m.gguf", "hello")
    assert "or --base-only" in result.stderr


@pytest.mark.parametrize("command", ["bench", "eval"])
def test_what_compares_adapters_needs_some(call, tmp_path, command):
    data = ("--data", tmp_path / "task.jsonl") if command == "eval" else ()
    result = call(command, "m.gguf", "--adapters", tmp_path, *data, engine=FakeLoGo({}).opened)
    failed(result, 1, "there are no adapters in")


@pytest.mark.parametrize(
    ("args", "model", "prompt"),
    [
        (["hello"], "usual.gguf", "hello"),
        (["-p", "hello"], "usual.gguf", "hello"),
        (["other.gguf", "hello"], "other.gguf", "hello"),
        (["demo", "hello"], "demo", "hello"),
        (["demo", "-p", "hello"], "demo", "hello"),
        (["-m", "m.gguf", "hello"], "m.gguf", "hello"),
        (["-m", "m.gguf", "demo"], "m.gguf", "demo"),
        (["other.gguf", "hello", "-m", "usual.gguf"], None, "only one argument is left, PROMPT"),
        (["hello", "-p", "hello"], None, "several prompts"),
    ],
)
def test_the_model_may_be_set_for_good(call, llm, home, args, model, prompt):
    """Line 16: `model` in config.toml."""
    (home / "config.toml").write_text('model = "usual.gguf"\nadapters = "pool"')
    result = call("run", *args)
    if model is None:
        failed(result, 2, prompt)
        return
    assert result.exit_code == 0
    assert (llm.settings["model_path"], llm.history[0].prompt) == (model, prompt)


def test_run_and_serve_need_no_arguments_then(call, llm, home, monkeypatch):
    (home / "config.toml").write_text('model = "~/usual.gguf"\nadapters = "pool"')
    monkeypatch.setattr(chat, "is_terminal", lambda: True)
    assert call("run", stdin="hello\n").stdout == "Apple pear\n"
    assert llm.settings["model_path"] == os.path.expanduser("~/usual.gguf")
    seen = []
    monkeypatch.setattr(serve, "_engines", lambda _ctx, model, _given: seen.append(model) or [llm])
    monkeypatch.setattr("logo_local.server.http.listen", lambda *_args, **_given: None)
    assert call("serve", "--port", "0").exit_code == 0
    assert seen == [os.path.expanduser("~/usual.gguf")]


def test_prompt_and_system_message_from_files(call, llm, tmp_path, home):
    prompt, system = tmp_path / "prompt.txt", tmp_path / "system.txt"
    prompt.write_bytes("\ufeffSort:\r\npear apple\n".encode())
    system.write_text("Be brief.\n")
    assert call("run", *MODEL, "-f", prompt, "--system-file", system).exit_code == 0
    assert [m["content"] for m in llm.history[-1].messages] == ["Be brief.", "Sort:\npear apple"]
    (home / "config.toml").write_text(f'system-file = "{system}"')
    call("run", *MODEL, "hello", "-sys", "Be kind.")  # what is typed comes before what is set
    assert [m["content"] for m in llm.history[-1].messages] == ["Be kind.", "hello"]
    call("run", *MODEL, "hello", "-sysf", system, env={"LOGO_LOCAL_SYSTEM": "Be kind."})
    assert [m["content"] for m in llm.history[-1].messages] == ["Be brief.", "hello"]
    failed(call("run", *MODEL, "hello", "-sys", "a", "-sysf", system), 2, "cannot go together")
    failed(call("run", *MODEL, "-f", tmp_path / "none"), 2, "cannot be read")
    prompt.write_bytes(b"\xff\xff")
    failed(call("run", *MODEL, "-f", prompt), 2, "cannot be used")


def test_short_options_are_those_of_llama_cpp(call, llm):
    args = ["-c", "512", "-n", "5", "-t", "3", "-ngl", "-1", "-s", "7", "--temp", "0.5"]
    assert call("run", "-m", "m.gguf", "--adapters", "pool", "-p", "hello", *args).exit_code == 0
    expected = {"n_ctx": 512, "n_threads": 3, "n_threads_batch": 3, "n_gpu_layers": -1, "seed": 7}
    assert expected.items() <= llm.settings.items()
    assert llm.history[0].options == FIVE | {"temperature": 0.5}


def test_quiet_and_verbose(call, llm, monkeypatch):
    llm.unprofiled = ["reverse"]
    for command in ("run", "score"):
        assert call(command, *MODEL, "hello", "-q").stderr == ""
    monkeypatch.setattr(chat, "is_terminal", lambda: True)
    result = call("run", *MODEL, "--no-self-profile", "-q", stdin="hello\n/off silent\n")
    assert (result.stdout, result.stderr) == ("Apple pear\n", "silent is off until /auto\n")
    llm.unprofiled, lines = [], call("run", *MODEL, "hello", "-v").stderr.splitlines()
    assert lines[0] == "loaded fake.gguf with 3 adapters in 0 ms"
    assert lines[-1] == "prompt 1 tokens in 0 ms · answer 2 tokens"
    result = call("run", *MODEL, "-v", stdin="hello\n")
    assert result.stderr.endswith(BLEND + "prompt 1 tokens in 0 ms · answer 2 tokens\n")
    assert call("run", *MODEL, "hello").stderr == BLEND  # the next command is as usual


def test_verbose_shows_what_the_log_says(call, llm):
    def opened(*args, **given):
        logging.getLogger("logo_local.routing").info("reading 8 example prompts")
        return llm.opened(*args, **given)

    line = "reading 8 example prompts\n"
    assert line in call("run", *MODEL, "hello", "-v", engine=opened).stderr
    assert line not in call("run", *MODEL, "hello", engine=opened).stderr


def test_check_quietly_shows_what_does_not_fit(call, random_base, tmp_path):
    write_adapter(tmp_path / "good.gguf", seed=1)
    assert call("check", tmp_path, "--base", random_base, "-q").stdout == ""
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    lines = call("check", tmp_path, "--base", random_base, "-q").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["adapter", "broken.gguf"]


def test_profile_quietly_only_answers(call, random_adapters, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Sort: pear apple")
    adapter = random_adapters / "ad0.gguf"
    assert call("profile", adapter, "-q").stderr == ""
    result = call("profile", adapter, "--prompts", prompts, "-q")
    assert (result.stdout, result.stderr) == ("added: Sort: pear apple\n", "")
    call("profile", adapter, "--forget", "-q")


def test_the_demo_needs_no_folder(call, llm):
    assert call("run", "demo", "hello").exit_code == 0
    assert (llm.settings["model_path"], llm.settings["adapters"]) == ("demo", None)


@pytest.mark.parametrize(
    ("args", "stdin", "code", "stderr"),
    [
        (["run"], "", 2, "no model given"),
        (["run", "m.gguf", "hi"], "", 2, "logo-local run m.gguf --adapters DIR"),
        (["score", "m.gguf", "hi"], "", 2, "logo-local score m.gguf --adapters DIR"),
        (["run", *MODEL], "", 2, "the prompt is empty"),
        (["run", *MODEL, "  \n"], "", 2, "the prompt is empty"),
        (["run", *MODEL], b"\xff\xff", 2, "not text in UTF-8"),
        (["run", *MODEL, "hi", "--top-k", "0"], "", 2, "'--top-k': 0 is not in the range"),
        (["run", *MODEL, "hi", "--signal", "loud"], "", 2, "'loud' is not one of"),
        (["run", *MODEL, "hi", "--adapter-memory", "lots"], "", 2, "write it like 512M or 2G"),
        (["run", *MODEL, "hi", "--cache-memory", "-1"], "", 2, "write it like 512M or 2G"),
        (["run", *MODEL, "hi", "--max-tokens", "0"], "", 2, "'--max-tokens'"),
        (["run", *MODEL, "hi", "--temp", "-1"], "", 2, "'--temp'"),
        (["run", *MODEL, "hi", "--tpo-k", "1"], "", 2, "No such option"),
        (["run", *MODEL, "hi", "there"], "", 2, "unexpected extra argument"),
        (["rum", *MODEL, "hi"], "", 2, "No such command 'rum'"),
        (["score", *MODEL, "hi", "--temp", "1"], "", 2, "No such option"),
        (["convert", "x", "--out", "y"], "", 2, "Missing option '--base'"),
    ],
)
def test_wrong_usage(call, llm, args, stdin, code, stderr):
    failed(call(*args, stdin=stdin), code, stderr)
    assert llm.history == []


def test_errors_of_the_engine(call, llm):
    def broken(*_args, **_settings):
        raise ModelError("no model at m.gguf", problems=["first", "se\ncond"], hint="look\nthere")

    lines = failed(call("run", *MODEL, "hello", engine=broken), 1)
    assert lines == ["error: no model at m.gguf", "  first", "  se cond", "hint: look there"]
    llm._answers = [[PromptError("too long", hint="shorten it")]]
    failed(call("run", *MODEL, "hello"), 1, "error: too long")
    assert llm.closed


def test_an_answer_that_breaks_off(call, llm):
    llm._answers = [["half", PromptError("no more room", hint="a larger --ctx-size")]]
    result = call("run", *MODEL, "hello")
    assert (result.exit_code, result.stdout) == (1, "half\n")
    assert result.stderr == "error: no more room\nhint: a larger --ctx-size\n"


def test_ctrl_c_is_quiet(call, llm):
    llm._answers = [["half", KeyboardInterrupt()]]
    result = call("run", *MODEL, "hello")
    assert (result.exit_code, result.stdout, result.stderr.strip()) == (130, "half\n", "")
    assert llm.closed


def test_a_system_error_is_no_traceback(call, llm):
    llm._answers = [[OSError(errno.ENOSPC, "No space left on device", "/cache/x")]]
    result = call("run", *MODEL, "hello")
    assert failed(result, 1)[0] == "error: /cache/x: No space left on device"


def test_a_terminal_gets_a_chat(call, llm, monkeypatch):
    monkeypatch.setattr(chat, "is_terminal", lambda: True)
    args = ("--seed=7", "--system=Be brief.", "--temp=0.5", "--top-p=0.9")
    result = call("run", *MODEL, *args, stdin="hello\n/bye\n")
    assert result.stdout == "Apple pear\n"
    (asked,) = llm.history
    assert [message["content"] for message in asked.messages] == ["Be brief.", "hello"]
    sampling = {"temperature": 0.5, "top_p": 0.9, "repeat_penalty": 1.1, "seed": 7}
    assert asked.options == {"max_tokens": 512, **sampling, "stream": True}
    assert result.stderr.startswith(
        "fake with 3 adapters (all with example prompts)\nSend a message (/? for help)\n"
    )
    failed(call("run", *MODEL, "--json"), 2, "--json needs a prompt")
    failed(call("score", *MODEL), 2, "no prompt given")


def test_a_chat_asks_adapters_in_the_background(call, llm, monkeypatch):
    began = []

    @contextmanager
    def asking(model, adapters, settings):
        began.append((model, adapters, settings))
        yield SimpleNamespace(poll=lambda: None)

    monkeypatch.setattr(background, "making_self_profiles", asking)
    monkeypatch.setattr(chat, "is_terminal", lambda: True)
    call("run", *MODEL)
    assert (began, llm.settings["self_profile"]) == ([], "kept")
    llm.unprofiled = ["reverse"]
    result = call("run", *MODEL, "--adapter-memory=1M")
    assert result.stderr.startswith("Generating example prompts for 1 adapter in the background\n")
    assert began == [("fake.gguf", "adapters", {"signal": "auto", "adapter_memory": 2**20})]
    call("run", *MODEL, "--no-self-profile")
    assert llm.settings["self_profile"] is False


@pytest.mark.parametrize("command", ["run", "score"])
def test_adapters_without_examples_are_named(call, llm, command):
    llm.unprofiled = ["reverse"]
    words = "reverse has no example prompts"
    never = f"{words} and is never selected; add some: logo-local profile reverse --prompts FILE\n"
    assert never in call(command, *MODEL, "hello").stderr
    wait = call(command, *MODEL, "hello", "--self-profile").stderr
    assert f"{words}: it generates some first" in wait
    llm.unprofiled = []
    assert words not in call(command, *MODEL, "hello").stderr


# score


def test_score(call, llm):
    result = call("score", *MODEL, "hello")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "sort-words  0.7500  3\nreverse     0.2500  1\n"
    assert [asked.method for asked in llm.history] == ["route"]
    assert llm.history[0].messages == ({"role": "user", "content": "hello"},)


def test_an_empty_answer_says_so(call, llm):
    llm._answers = [""]
    result = call("run", *MODEL, "hello")
    assert (result.stdout, result.stderr) == ("", "The answer is empty\n" + BLEND)


def test_names_near_an_unknown_option_are_suggested(call):
    """Line 17."""
    assert "--top-k" in call("run", *MODEL, "hi", "--tpo-k", "1").stderr


def test_score_reads_a_pipe_and_explains(call):
    result = call("score", *MODEL, "--explain", stdin="hello\n")
    assert result.stdout.startswith("sort-words  0.7500")
    assert "█" in result.stderr


def test_score_json(call):
    made = json.loads(call("score", *MODEL, "hello", "--json").stdout)
    assert list(made) == ["route", "timings_ms"]
    assert "decode" not in made["timings_ms"]


def test_score_of_a_prompt_that_fits_no_adapter(call):
    result = call("score", *MODEL, "hello", engine=FakeLoGo({"a": 0.0}).opened)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "base alone\n")


@pytest.mark.parametrize("options", [[], ["--explain"]])
def test_run_says_once_that_the_base_answers_alone(call, options):
    result = call("run", *MODEL, "hello", *options, engine=FakeLoGo({"a": 0.0}).opened)
    assert result.stderr.splitlines().count("base alone") == 1


# Settings


def test_flag_then_environment_then_file_then_default(call, llm, home):
    def top_k(*args, env=None):
        call("score", *MODEL, "hello", *args, env=env)
        return llm.settings["top_k"]

    assert top_k() == 3
    (home / "config.toml").write_text("top-k = 5")
    assert top_k() == 5
    assert top_k(env={"LOGO_LOCAL_TOP_K": "6"}) == 6
    assert top_k("--top-k=7", env={"LOGO_LOCAL_TOP_K": "6"}) == 7


def test_everything_shared_can_stand_in_the_file(call, llm, home):
    (home / "config.toml").write_text(
        """
        adapters = "~/pool"
        signal = "entropy"
        adapter-memory = "1M"
        threads = 2
        temp = 0.25
        max_tokens = 5
        explain = true
        """
    )
    result = call("run", "m.gguf", "hello")
    assert result.exit_code == 0
    assert llm.settings["adapters"] == (llm.settings["adapters"].home() / "pool")
    assert llm.settings["adapter_memory"] == 2**20
    assert llm.settings["n_threads"] == 2
    assert llm.history[0].options == FIVE | {"temperature": 0.25}
    assert "█" in result.stderr


def test_what_may_be_given_several_times_is_a_list_in_the_file(home, monkeypatch):
    given = {}
    serve = cli.cli.commands["serve"]
    monkeypatch.setattr(serve, "callback", lambda **options: given.update(options))

    def names(*arguments, env=None):
        result = CliRunner().invoke(cli.cli, ["serve", "demo", *arguments], env=env)
        assert result.exit_code == 0, result.output
        return given["allowed_hosts"], given["allowed_origins"]

    assert names() == ((), ())
    (home / "config.toml").write_text(
        'allow-host = ["box.lan", "box"]\nallow_origin = ["https://example.org"]'
    )
    assert names() == (("box.lan", "box"), ("https://example.org",))
    env = {"LOGO_LOCAL_ALLOW_HOST": "one.lan  two.lan"}
    assert names(env=env) == (("one.lan", "two.lan"), ("https://example.org",))
    assert names("--allow-host=three.lan", env=env)[0] == ("three.lan",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('allow-host = "a"', """allow-host = 'a': it must be a list: ["one", "another"]"""),
        ("allow-host = [true]", "allow-host = [True]: it must be one text or number"),
        (
            'allowed-hosts = ["a"]',
            "unknown setting allowed-hosts = ['a'] (did you mean allow-host?)",
        ),
        ("topk = 5", "unknown setting topk = 5 (did you mean top-k?)"),
        ("top-k = 0", "top-k = 0: 0 is not in the range x>=1."),
        ('top-k = "many"', "top-k = 'many': 'many' is not a valid integer range."),
        ("top-k = true", "top-k = True: it must be one text or number"),
        ('explain = "yes"', "explain = 'yes': it must be true or false, without quotes"),
        ('signal = "loud"', "signal = 'loud': 'loud' is not one of"),
        ('adapter-memory = "lots"', "adapter-memory = 'lots': 'lots' is not a size"),
        ("signal = []", "signal = []: it must be one text or number"),
        ("json = true", "unknown setting json = True"),
        ("[run]\ntop-k = 5", "unknown setting run = {'top-k': 5}"),
        ("top-k = ", "is not TOML"),
    ],
)
def test_a_config_file_that_cannot_be_used(call, home, text, problem):
    (home / "config.toml").write_text(text)
    lines = failed(call("score", *MODEL, "hello"), 1, problem)
    assert str(home / "config.toml") in lines[0]


def test_an_environment_variable_that_means_nothing_is_named(call):
    result = call("score", *MODEL, "hello", env={"LOGO_LOCAL_TOPK": "5"})
    assert result.exit_code == 0
    assert result.stderr == "warning: LOGO_LOCAL_TOPK is set, but there is no such setting\n"


def test_a_bad_environment_variable_is_named(call):
    result = call("score", *MODEL, "hello", env={"LOGO_LOCAL_TOP_K": "many"})
    failed(result, 2, "--top-k", "LOGO_LOCAL_TOP_K", "many")


# convert


@pytest.fixture
def peft(tmp_path):
    """peft(name): a PEFT folder for `random_base`."""
    tensors = factors({"model.layers.0.self_attn.q_proj": (64, 64)})
    return lambda name: write_peft(tmp_path / name, tensors)


def test_convert_one(call, peft, random_base, tmp_path):
    out = tmp_path / "out.gguf"
    result = call("convert", peft("plain"), "--base", random_base, "--out", out)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{out}: rank ")
    assert out.read_bytes()[:4] == b"GGUF"


def test_convert_several_into_a_folder(call, peft, random_base, tmp_path):
    folder = tmp_path / "converted"
    sources = [peft("one"), peft("two")]
    failed(
        call("convert", *sources, "--base", random_base, "--out", folder),
        2,
        "--out must be an existing folder for 2 adapters",
        f"mkdir {folder}",
    )
    folder.mkdir()
    result = call("convert", *sources, "--base", random_base, "--out", folder, "--json")
    assert [row["out"] for row in json.loads(result.stdout)] == [
        str(folder / "one.gguf"),
        str(folder / "two.gguf"),
    ]
    assert sorted(path.name for path in folder.iterdir()) == ["one.gguf", "two.gguf"]


def test_two_adapters_of_one_name(call, peft, random_base, tmp_path):
    sources = [peft("a/same"), peft("b/same")]
    result = call("convert", *sources, "--base", random_base, "--out", tmp_path)
    failed(result, 2, "several adapters would be written to same.gguf")


def test_the_name_of_a_folder_given_by_a_dot(call, peft, random_base, tmp_path, monkeypatch):
    monkeypatch.chdir(peft("plain"))
    (tmp_path / "out").mkdir()
    assert call("convert", ".", "--base", random_base, "--out", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "plain.gguf").exists()


def test_an_existing_file_is_kept_unless_forced(call, peft, random_base, tmp_path):
    out = tmp_path / "out.gguf"
    out.write_text("precious")
    args = ("convert", peft("plain"), "--base", random_base, "--out", out)
    failed(call(*args), 1, f"{out} exists", "--force")
    assert out.read_text() == "precious"
    assert call(*args, "--dry-run").exit_code == 0
    assert out.read_text() == "precious"
    assert call(*args, "--force").exit_code == 0
    assert out.read_bytes()[:4] == b"GGUF"


def test_dry_run(call, peft, random_base, tmp_path):
    out = tmp_path / "out.gguf"
    args = ("convert", peft("plain"), "--base", random_base, "--out", out, "--dry-run")
    result = call(*args)
    assert result.exit_code == 0
    assert "q_proj" in result.stdout
    assert "blk.0.attn_q.weight" in result.stdout
    assert "rotary rows, 4 heads" in result.stdout
    assert result.stderr == "dry run: nothing was written\n"
    made = json.loads(call(*args, "--json").stdout)
    assert made[0]["modules"][0]["gguf"] == "blk.0.attn_q.weight"
    assert not out.exists()


def test_nothing_is_written_when_one_of_several_is_bad(call, peft, random_base, tmp_path):
    folder = tmp_path / "converted"
    folder.mkdir()
    good, bad = peft("good"), tmp_path / "bad"
    bad.mkdir()
    result = call("convert", good, bad, "--base", random_base, "--out", folder)
    failed(result, 1, "1 of 2 adapters cannot be converted; nothing was written", f"{bad}")
    assert list(folder.iterdir()) == []


def test_one_bad_adapter_is_reported_as_the_converter_says(call, random_base, tmp_path):
    result = call("convert", tmp_path / "no", "--base", random_base, "--out", tmp_path / "x.gguf")
    failed(result, 1, "it does not exist")


def test_convert_for_a_base_that_is_none(call, peft, tmp_path):
    result = call("convert", peft("plain"), "--base", "no.gguf", "--out", tmp_path / "x.gguf")
    failed(result, 1, "no model file at no.gguf")


# check


def test_check_where_all_fit(call, random_base, random_adapters):
    result = call("check", random_adapters, "--base", random_base)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["adapter", "kind", "rank", "alpha", "modules", "size", "fits"]
    assert [line[0] for line in lines[1:]] == [f"ad{i}" for i in range(5)]
    assert lines[1][1:5] == ["gguf", "2", "8", "21"]
    assert lines[1][-1] == "yes"


def test_check_where_one_does_not_fit(call, peft, random_base, tmp_path):
    folder = tmp_path / "pool"
    folder.mkdir()
    write_adapter(folder / "good.gguf", seed=1)
    (folder / "broken.gguf").write_bytes(b"GGUF")
    peft("pool/from-peft")
    result = call("check", folder, "--base", random_base)
    assert result.exit_code == 1
    table = result.stdout.splitlines()
    assert table[1].startswith("broken.gguf")
    assert " no: " in table[1]
    assert table[2].split()[:2] == ["from-peft", "peft"]
    assert table[3].split()[:2] == ["good", "gguf"]
    result = call("check", folder, "--base", random_base, "--json")
    assert result.exit_code == 1
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert [rows[name]["fits"] for name in ("broken", "from-peft", "good")] == [False, True, True]
    assert rows["broken"]["reason"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "broken.gguf",
        "from-peft",
        "good.gguf",
    ]


def test_check_where_none_fits(call, random_base, tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    result = call("check", tmp_path, "--base", random_base)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[1].startswith("broken.gguf")
    (row,) = json.loads(call("check", tmp_path, "--base", random_base, "--json").stdout)
    assert (row["name"], row["fits"]) == ("broken", False)


def test_check_of_an_empty_folder(call, random_base, tmp_path):
    folder = tmp_path / "pool"
    folder.mkdir()
    failed(call("check", folder, "--base", random_base), 1, str(folder))


# doctor, and the program itself


def test_doctor(call, home):
    result = call("doctor")
    assert result.exit_code == 0
    assert "llama-cpp-python" in result.stdout
    assert str(home) in result.stdout
    rows = json.loads(call("doctor", "--json").stdout)
    assert {"name", "ok", "value", "hint", "essential"} == set(rows[0])


def test_doctor_fails_when_something_essential_does(call, home):
    (home / "cache").write_text("in the way")
    result = call("doctor")
    assert result.exit_code == 1
    assert "problem" in result.stdout
    assert "hint: set LOGO_LOCAL_HOME" in result.stderr


def test_version_and_help(call):
    assert call("--version").stdout == f"logo-local, version {__version__}\n"
    assert "Commands:" in call("--help").stdout
    result = call()
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Commands:" in result.stderr


def program(*args, **settings):
    # Random adapters fit nothing, as "auto" sees rightly; the paper's norm always blends.
    env = {**os.environ, "LOGO_LOCAL_SIGNAL": "norm", **settings.pop("env", {})}
    command = [sys.executable, "-m", "logo_local", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False, **settings)


def test_the_program_end_to_end(random_base, random_adapters):
    args = ("run", random_base, "--adapters", random_adapters, "hello", "--max-tokens", 8)
    done = program(*args)
    assert (done.returncode, done.stdout[-1:]) == (0, "\n")
    assert done.stderr.count("\n") == 1  # the blend, and not a word of llama.cpp's
    assert " · " in done.stderr
    made = json.loads(program(*args, "--json").stdout)
    assert set(made["route"]["scores"]) == {f"ad{i}" for i in range(5)}
    assert made["timings_ms"]["probe"] > 0


def test_an_adapter_that_does_not_fit_is_left_out_with_a_line(
    random_base, random_adapters, tmp_path
):
    folder = tmp_path / "pool"
    shutil.copytree(random_adapters, folder)
    (folder / "broken.gguf").write_bytes(b"GGUF")
    done = program("score", random_base, "--adapters", folder, "hello")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: left out: broken.gguf: ")


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell")
@pytest.mark.parametrize(
    ("closed", "code", "stdout", "stderr"),
    [
        ("<&-", 2, "", "error: the prompt is empty"),
        ("hello >&-", 0, "", ""),
        ("hello 2>&-", 0, "ad", ""),
    ],
)
def test_streams_that_were_closed(random_base, random_adapters, closed, code, stdout, stderr):
    start = f"{sys.executable} -m logo_local score {random_base} --adapters {random_adapters}"
    start += " --signal norm"
    done = subprocess.run(
        ["/bin/sh", "-c", f"{start} {closed}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert done.stdout[:2] == stdout
    assert done.stderr.split("\n")[0] == stderr


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("process_ubatch: failed to compute graph, compute status: -1", True),
        ("process_ubatch: failed to compute graph, compute status: 1", False),
        ("graph_compute: ggml_backend_sched_graph_compute_async failed with error 1", False),
        ("llama_decode: failed to decode, ret = 2", False),
        ("llama_decode: failed to decode, ret = -3", True),
    ],
)
def test_what_ctrl_c_gave_up_is_no_error_of_llama_cpp(capsys, line, shown):
    opening._llama_log()._receive(4, line.encode() + b"\n", None)
    assert bool(capsys.readouterr().err) == shown


def test_llama_cpps_reasons_are_given(random_base, random_adapters, tmp_path):
    model = tmp_path / "model.gguf"
    content = random_base.read_bytes()
    model.write_bytes(content.replace(b"output_norm.weight", b"output_none.weight"))
    done = program("run", model, "--adapters", random_adapters, "hello")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: llama.cpp cannot use {model}: ")
    assert "tensor 'output_norm.weight' not found" in done.stderr
    assert "\nhint: is the file whole" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes of this kind")
def test_a_reader_that_goes_away_is_no_news(random_base, random_adapters):
    args = ["score", random_base, "--adapters", random_adapters, "hello", "--json"]
    args += ["--no-self-profile"]
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "logo_local", *map(str, args)],
        stdout=write_end,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write_end)
    assert done.stderr == b""
    assert done.returncode != 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_produced(call, shell):
    result = call(env={"_LOGO_LOCAL_COMPLETE": f"{shell}_source"})
    assert (result.exit_code, result.stderr) == (0, "")
    assert "_LOGO_LOCAL_COMPLETE=" in result.stdout
    assert f"{shell}_complete" in result.stdout


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("ad", "plain,adapters"),
        ("run --sig", "plain,--signal"),
        ("run --signal pro", "plain,profile"),
        ("run de", "plain,demo"),
        ("run mod", "file,mod"),
        ("run -m de", "plain,demo"),
    ],
)
def test_what_is_completed(call, words, found):
    env = {"COMP_WORDS": f"logo-local {words}", "COMP_CWORD": str(len(words.split()))}
    result = call(env={"_LOGO_LOCAL_COMPLETE": "bash_complete", **env})
    assert found in result.stdout.splitlines()


def test_help_is_quick_and_light():
    code = (
        "import sys; from logo_local.commands.cli import cli\n"
        "cli.main(['run', '--help'], standalone_mode=False)\n"
        "print(sorted({'llama_cpp', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


# profile --ask


def test_all_adapters_of_a_folder_are_asked_at_once(call, llm, tmp_path):
    llm.unprofiled = ["a", "b"]
    result = call("profile", tmp_path, "--ask", "--model", "m.gguf")
    assert (result.exit_code, llm.unprofiled) == (0, [])
    assert "2 adapters have generated example prompts" in result.stderr
    assert (llm.settings["model_path"], llm.settings["self_profile"]) == ("m.gguf", True)
    result = call("profile", tmp_path, "--ask", "--model", "m.gguf")
    assert "every adapter has example prompts or a description" in result.stderr


def test_what_was_asked_before_an_interrupt_is_kept_and_said(call, llm, tmp_path):
    llm.unprofiled = ["a", "b", "c"]

    def interrupted():
        del llm.unprofiled[0]
        raise KeyboardInterrupt

    llm.make_self_profiles = interrupted
    result = call("profile", tmp_path, "--ask", "--model", "m.gguf")
    assert result.exit_code == 130
    assert "1 of 3 adapters are done and kept" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--forget",), "--ask can only be combined with --model"),
        (("--json",), "--ask can only be combined with --model"),
        ((), "no model given"),
    ],
)
def test_asking_needs_a_model_and_nothing_else(call, tmp_path, more, words):
    result = call("profile", tmp_path, "--ask", *more)
    assert result.exit_code == 2
    assert words in result.stderr


def test_a_single_adapter_is_not_a_folder_to_ask(call, tmp_path):
    file = tmp_path / "x.gguf"
    file.write_bytes(b"")
    result = call("profile", file, "--ask", "--model", "m.gguf")
    assert "--ask takes a whole folder" in result.stderr
