"""The built-in page in a real browser, in front of a real server and a scripted engine."""

import json
import shutil
import threading
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from serving import serving

from logo_local.errors import LogoError
from logo_local.fake import FakeLoGo
from logo_local.files.folder import Problem
from logo_local.server.app import create_app
from logo_local.server.middleware import PAGE, Rules

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
if CHROMIUM is None:
    pytest.skip("needs chromium", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

SCORES = {"other": 0.0, "reverse": 1.0, "sort-words": 3.0}
LOST = "The connection to the server is lost. Is it still running?"
HTML = "<img src=x onerror='window.hit=1'><b>bold</b>"


class Gate:
    """A piece of an answer that comes when the gate is opened."""

    def __init__(self, text=""):
        self.text, self.reached, self._open = text, threading.Event(), threading.Event()

    def __call__(self):
        self.reached.set()
        assert self._open.wait(60), "nobody opened the gate"
        return self.text

    def open(self):
        self._open.set()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Visits:
    """Opens pages, and knows what they asked for and complained of."""

    def __init__(self, browser, stack):
        self.browser, self.stack = browser, stack
        self.requests, self.complaints, self.refused = [], [], []

    def __call__(self, llm=None, *, gates=(), rules=None, most_waiting=32, path="/", **context):
        """The page of a server of its own; `gates` are opened at the end at the latest."""
        app = create_app([llm or FakeLoGo(SCORES)], rules=rules, most_waiting=most_waiting)
        self.base = self.stack.enter_context(serving(app))
        for gate in gates:
            self.stack.callback(gate.open)
        opened = self.browser.new_context(**{"reduced_motion": "reduce"} | context)
        self.stack.callback(opened.close)
        page = opened.new_page()
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("response", self._answered)
        page.clock.install()
        page.goto(self.base + path)
        return page

    def paths(self):
        return [urlsplit(url).path for url in self.requests]

    def _heard(self, message):
        # What the server refuses is in `refused`; Chromium reports it here as well.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def _answered(self, response):
        if response.status >= 400:
            self.refused.append(response.status)


@pytest.fixture
def visit(browser):
    """Opens the page; afterwards no page may have asked anybody else or complained."""
    with ExitStack() as stack:
        visits = Visits(browser, stack)
        yield visits
    assert visits.complaints == []
    assert {
        url for url in visits.requests if not url.startswith(("http://127.0.0.1:", "data:"))
    } == set()


def say(page, text):
    page.locator("#prompt").press_sequentially(text)
    page.keyboard.press("Enter")


def until(page, condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        page.wait_for_timeout(10)  # in which the browser's events are heard


def cell(page, name):
    return page.locator("#map").get_by_role("option", name=name)


def failure(page):
    return page.locator("#log .error:not(:empty)")


def lit(locator):
    return float(locator.evaluate("e => e.style.getPropertyValue('--light')"))


def bars(page):
    """Names and weights of what was blended."""
    return [
        (item.locator(".name").inner_text(), item.locator(".share").inner_text())
        for item in page.locator("#bars > li").all()
    ]


def test_an_answer_streams_in_and_its_route_is_there_before_its_end(visit):
    gate = Gate("pear")
    page = visit(FakeLoGo(SCORES, [["apple ", gate]]), gates=[gate])
    say(page, "sort: pear apple")
    expect(page.locator(".prompt")).to_have_text("sort: pear apple")
    expect(page.locator(".answer")).to_have_text("apple ")
    expect(page.locator("#send")).to_have_text("Stop")
    expect(page.locator("#log")).to_have_attribute("aria-busy", "true")
    assert bars(page) == [("sort-words", "0.75"), ("reverse", "0.25")]
    widths = [
        item.evaluate("e => parseFloat(getComputedStyle(e, '::before').width) / e.clientWidth")
        for item in page.locator("#bars .bar").all()
    ]
    assert widths == pytest.approx([0.75, 0.25], abs=0.01)
    gate.open()
    expect(page.locator(".answer")).to_have_text("apple pear")
    expect(page.locator(".note")).to_have_text("sort-words 0.75, reverse 0.25")
    expect(page.locator("#send")).to_have_text("Send")
    expect(page.locator("#log")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#timings")).to_have_text(
        "probe 0 ms, score 0 ms, mixture 0 ms, prefill 0 ms, decode 0 ms, wait 0 ms"
    )


def test_the_map_shows_every_score_relative_to_the_highest(visit):
    page = visit()
    expect(page.get_by_role("listbox", name="The pool")).to_be_visible()
    assert [lit(cell(page, name)) for name in SCORES] == [0, 0, 0]
    say(page, "hello")
    expect(cell(page, "sort-words, score 3, weight 0.75")).to_have_attribute(
        "aria-selected", "true"
    )
    expect(cell(page, "reverse, score 1, weight 0.25")).to_have_attribute("aria-selected", "true")
    expect(cell(page, "other, score 0")).to_have_attribute("aria-selected", "false")
    shown = [lit(cell(page, name)) for name in ("other", "reverse", "sort-words")]
    assert shown == pytest.approx([0, 1 / 3, 1])


@pytest.mark.parametrize(
    ("model", "scores", "summary", "shown", "note", "light"),
    [
        ("base", SCORES, "The base model alone.", [], "the base model alone", [0, 0, 0]),
        ("base:reverse", SCORES, "Chosen by you: nothing was scored.", [("reverse", "1.00")],
         "reverse 1.00", [0, 1, 0]),
        ("auto", dict.fromkeys(SCORES, 0.0), "The base model alone: no adapter fits.", [],
         "the base model alone", [0, 0, 0]),
    ],
)  # fmt: skip
def test_the_model_can_be_chosen(visit, model, scores, summary, shown, note, light):
    page = visit(FakeLoGo(scores, ["done"]))
    page.get_by_label("Model").select_option(model)
    say(page, "hello")
    expect(page.locator(".note")).to_have_text(note)
    expect(page.locator("#summary")).to_have_text(summary)
    assert bars(page) == shown
    assert [lit(cell(page, name)) for name in SCORES] == light


@pytest.mark.parametrize("way", ["button", "escape"])
def test_an_answer_can_be_stopped(visit, way):
    gate, after = Gate(), []
    llm = FakeLoGo(SCORES, [["first ", gate, lambda: after.append(1) or "never"], "second"])
    page = visit(llm, gates=[gate])
    say(page, "go on for ever")
    expect(page.locator(".answer")).to_have_text("first ")
    assert gate.reached.wait(60)
    if way == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    expect(page.locator(".note")).to_have_text("Stopped. sort-words 0.75, reverse 0.25")
    expect(page.locator("#send")).to_have_text("Send")
    until(page, lambda: llm.should_stop())  # the server knows as well
    gate.open()
    say(page, "again")
    expect(page.locator(".answer").last).to_have_text("second")
    assert after == []


def test_a_stop_before_the_first_token(visit):
    gate = Gate("late")
    page = visit(FakeLoGo(SCORES, [[gate], "second"]), gates=[gate])
    say(page, "hello")
    assert gate.reached.wait(60)
    page.keyboard.press("Escape")
    expect(page.locator(".note")).to_have_text("Stopped. ")
    expect(page.locator(".answer")).to_have_text("")


def test_everything_works_from_the_keyboard(visit):
    gate = Gate()
    page = visit(FakeLoGo(SCORES, [["one ", gate], "two"]), gates=[gate])
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("hello")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("there")
    page.keyboard.press("Enter")
    expect(page.locator(".prompt")).to_have_text("hello\nthere")
    expect(page.locator(".answer")).to_have_text("one ")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Stop")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".note")).to_contain_text("Stopped.")
    expect(page.locator("#prompt")).to_be_focused()
    gate.open()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Send")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#settings summary")).to_be_focused()
    page.keyboard.press("Tab")
    expect(cell(page, "other")).to_be_focused()
    page.keyboard.press("End")
    expect(cell(page, "sort-words")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(cell(page, "reverse")).to_be_focused()
    style = cell(page, "reverse").evaluate("e => getComputedStyle(e).outlineStyle")
    assert style == "solid"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    expect(cell(page, "reverse")).to_be_focused()  # one stop, where it was left
    for place in (
        *("#settings summary", "#send", "#prompt"),
        *(f".actions button:text({name!r})" for name in ("Edit", "Regenerate", "Copy")),
        *("#log", "#delete", "#fresh", "#conversation", "#model"),
    ):
        page.keyboard.press("Shift+Tab")
        expect(page.locator(place)).to_be_focused()
    page.keyboard.type("base")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("article")).to_have_count(0)
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("hello")
    page.keyboard.press("Enter")
    expect(page.locator(".note")).to_have_text("the base model alone")


def test_a_conversation_goes_on_and_a_new_one_forgets(visit):
    llm = FakeLoGo(SCORES, ["one", "two", "three"])
    page = visit(llm)
    for prompt, answer in (("first", "one"), ("second", "two")):
        say(page, prompt)
        expect(page.locator(".answer").last).to_have_text(answer)
        expect(page.locator("#send")).to_have_text("Send")
    page.get_by_role("button", name="New").click()
    expect(page.locator("article")).to_have_count(0)
    expect(page.locator("#welcome")).to_be_visible()
    assert bars(page) == []
    say(page, "third")
    expect(page.locator(".answer")).to_have_text("three")
    said = [[message["content"] for message in call.messages] for call in llm.history]
    assert said == [["first"], ["first", "one", "second"], ["third"]]


def test_the_last_prompt_can_be_edited(visit):
    llm = FakeLoGo(SCORES, ["one", "two", "three"])
    page = visit(llm)
    for prompt, answer in (("first", "one"), ("secnod", "two")):
        say(page, prompt)
        expect(page.locator(".answer").last).to_have_text(answer)
        expect(page.locator("#send")).to_have_text("Send")
    page.keyboard.press("ArrowUp")
    expect(page.locator("#prompt")).to_have_value("secnod")
    expect(page.get_by_text("Enter replaces the last prompt")).to_be_visible()
    dashed = page.locator(".prompt").last.evaluate("e => getComputedStyle(e).borderStyle")
    assert dashed == "dashed"
    page.keyboard.press("Escape")
    expect(page.locator("#prompt")).to_have_value("")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Control+a")
    say(page, "second")
    expect(page.locator(".answer").last).to_have_text("three")
    assert page.locator(".prompt").all_inner_texts() == ["first", "second"]
    last = [message["content"] for message in llm.history[-1].messages]
    assert last == ["first", "one", "second"]


def test_a_prompt_without_an_answer_is_not_sent_again(visit):
    llm = FakeLoGo(SCORES, [[LogoError("it is broken")], "two"])
    page = visit(llm)
    say(page, "first")
    expect(failure(page)).to_contain_text("it is broken")
    say(page, "second")
    expect(page.locator(".answer").last).to_have_text("two")
    assert [message["content"] for message in llm.history[-1].messages] == ["second"]
    assert visit.refused == [400]


def test_an_adapter_that_is_gone(visit):
    llm = FakeLoGo(SCORES)
    page = visit(llm)
    page.get_by_label("Model").select_option("base:reverse")
    del llm.pool.adapters["reverse"]
    say(page, "hello")
    expect(failure(page)).to_contain_text("reverse")
    assert visit.refused == [404]
    page.get_by_label("Model").select_option("auto")
    say(page, "hello")  # and the page goes on
    expect(page.locator(".note").last).to_contain_text("sort-words 1.00")


def test_an_adapter_that_is_new(visit):
    llm = FakeLoGo(lambda text: dict.fromkeys(llm.pool.adapters, 1.0), names=["old"])
    page = visit(llm)
    expect(cell(page, "old")).to_be_visible()
    llm.pool.adapters["new"] = replace(llm.pool.adapters["old"], name="new")
    say(page, "hello")
    expect(cell(page, "new, score 1, weight 0.50")).to_be_visible()
    assert bars(page) == [("new", "0.50"), ("old", "0.50")]
    expect(page.locator("#model")).to_contain_text("new")


@pytest.mark.parametrize(
    ("error", "text"),
    [(LogoError("the file has gone", hint="put it back"), "the file has gone. put it back"),
     (RuntimeError("secret"), "an internal error; the server's log says more")],
)  # fmt: skip
def test_an_error_within_the_answer(visit, error, text):
    page = visit(FakeLoGo(SCORES, [["half an ", error], "whole"]))
    say(page, "hello")
    expect(failure(page)).to_have_text(text)
    expect(page.locator(".answer")).to_have_text("half an ")
    say(page, "again")
    expect(page.locator(".answer").last).to_have_text("whole")


def test_a_connection_that_breaks(visit):
    page = visit()
    page.route("**/health", lambda route: route.abort())
    page.route("**/v1/chat/completions", lambda route: route.abort())
    say(page, "hello")
    expect(failure(page)).to_have_text(LOST)
    piece = {"choices": [{"delta": {"content": "half"}, "finish_reason": None}]}
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(body=f'data: {json.dumps(piece)}\n\ndata: {{"cho'),
    )
    say(page, "hello")
    expect(page.locator(".answer").last).to_have_text("half")
    expect(failure(page)).to_have_text([LOST, LOST])
    expect(page.locator("#offline")).to_be_visible()


def occupied(base, gate):
    """A thread in which somebody else is being answered."""
    body = json.dumps({"messages": [{"role": "user", "content": "mine"}]}).encode()
    request = urllib.request.Request(
        base + "/v1/chat/completions", body, {"Content-Type": "application/json"}
    )
    thread = threading.Thread(target=lambda: urllib.request.urlopen(request).close())
    thread.start()
    assert gate.reached.wait(60)
    return thread


def n_running(base):
    with urllib.request.urlopen(base + "/health") as answer:
        return json.load(answer)["running"]


def test_a_full_queue_is_asked_again_when_it_said(visit):
    gate = Gate("theirs")
    page = visit(FakeLoGo(SCORES, [[gate], "mine"]), gates=[gate], most_waiting=0)
    other = occupied(visit.base, gate)
    say(page, "hello")
    expect(page.locator(".note")).to_have_text("Too many are waiting. Trying again in 1 s.")
    gate.open()
    other.join()
    until(page, lambda: n_running(visit.base) == 0)
    page.clock.fast_forward(1000)
    expect(page.locator(".answer")).to_have_text("mine")
    expect(page.locator(".note")).to_have_text("sort-words 0.75, reverse 0.25")


def test_a_queue_that_stays_full(visit):
    gate = Gate("theirs")
    page = visit(FakeLoGo(SCORES, [[gate], "mine"]), gates=[gate], most_waiting=0)
    other = occupied(visit.base, gate)
    say(page, "hello")
    expect(page.locator(".note")).to_contain_text("Trying again in 1 s.")
    page.clock.fast_forward(1000)
    expect(failure(page)).to_contain_text("try again in 1 s")
    expect(page.locator("#send")).to_have_text("Send")
    say(page, "hello")
    expect(page.locator(".note").last).to_contain_text("Trying again in 1 s.")
    page.keyboard.press("Escape")
    expect(page.locator(".note").last).to_have_text("Stopped. ")
    gate.open()
    other.join()
    assert visit.refused == [429] * 3


def test_text_is_never_html(visit):
    scores = {f"a{HTML}": 1.0, "constructor": 0.5, "__proto__": 0.25}
    llm = FakeLoGo(scores, [[f"say {HTML}"], [LogoError(HTML)]])
    llm.pool.problems = (Problem(f"bad{HTML}", Path("bad.gguf"), HTML),)
    page = visit(llm)
    say(page, HTML)
    expect(page.locator(".prompt")).to_have_text(HTML)
    expect(page.locator(".answer")).to_have_text(f"say {HTML}")
    expect(page.locator("#problems")).to_contain_text(f"bad{HTML} is left out: {HTML}")
    assert bars(page)[0] == (f"a{HTML}", "0.57")
    expect(cell(page, "constructor, score 0.5")).to_have_attribute("aria-selected", "true")
    expect(cell(page, "__proto__, score 0.25")).to_have_attribute("aria-selected", "true")
    expect(cell(page, "onerror")).to_contain_text(HTML)
    expect(page.locator("#model")).to_contain_text(HTML)
    say(page, "again")
    expect(failure(page)).to_have_text(HTML)
    assert page.locator("img, b").count() == 0
    assert page.evaluate("window.hit") is None


def test_what_is_asked_for_and_how_often(visit):
    page = visit(FakeLoGo(SCORES, ["done"]))
    say(page, "hello")
    expect(page.locator(".answer")).to_have_text("done")
    page.wait_for_load_state("networkidle")
    assert sorted(visit.paths()) == sorted(
        [*PAGE, "/v1/adapters", "/v1/chat/completions", "/v1/models"]
    )
    blocked = page.evaluate("fetch('http://localhost:9/').catch(error => error.message)")
    assert blocked == "Failed to fetch"
    assert "Content Security Policy" in " ".join(visit.complaints)
    visit.complaints.clear()  # that one was asked for, and shows that they are heard
    visit.requests.clear()


@pytest.mark.parametrize("width", [320, 360, 700, 1200])
@pytest.mark.parametrize("n", [1, 28, 1000])
def test_it_fits_every_screen_and_pool(visit, width, n):
    scores = {f"adapter-{i:04}": float(i) for i in range(1, n)} | {"x" * 120: 2000.0}
    llm = FakeLoGo(scores, ["long " + "y" * 300], top_k=20)
    page = visit(llm, viewport={"width": width, "height": 700})
    say(page, "z" * 300)
    expect(page.locator(".answer")).to_contain_text("yyy")
    expect(page.locator("#map [role=option]")).to_have_count(n)
    expect(page.locator("#bars > li")).to_have_count(min(20, n))
    assert page.locator("[role=option][aria-selected=true]").count() == min(20, n)
    assert page.locator("[role=option][tabindex='0']").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for part in ("#log", "#prompt", "#map", "aside", "header"):
        box = page.locator(part).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


def test_the_name_of_a_cell_is_in_sight_in_a_long_map(visit):
    page = visit(FakeLoGo({f"a{i:04}": 1.0 for i in range(1000)}))
    expect(cell(page, "a0000")).to_be_attached()
    cell(page, "a0000").hover()
    expect(page.locator("#pointed")).to_have_text("a0000")
    expect(page.locator("#pointed")).to_be_in_viewport(ratio=1)
    before = page.locator("#map").bounding_box()
    cell(page, "a0001").hover()
    expect(page.locator("#pointed")).to_have_text("a0001")
    assert page.locator("#map").bounding_box() == before


CONTRASTS = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const ground = (e) => {
    const found = numbers(getComputedStyle(e).backgroundColor);
    return found.length === 3 || found[3] === 1 ? found : ground(e.parentElement);
  };
  const texts = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  return [...document.querySelectorAll("body *")]
    .filter((e) => e.checkVisibility() && (texts(e) || e.matches("input, textarea, select")))
    .flatMap((e) => ["", "::placeholder"]
      .filter((pseudo) => !pseudo || e.placeholder)
      .map((pseudo) => [e.tagName + "#" + e.id + "." + e.className + pseudo,
        numbers(getComputedStyle(e, pseudo).color), ground(e),
        getComputedStyle(e, pseudo).opacity]));
}"""


def luminance(colour):
    """WCAG 2's relative luminance."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (channel / 255 for channel in colour[:3])
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(visit, scheme):
    llm = FakeLoGo(SCORES, ["done `code`", [LogoError("broken")]])
    page = visit(llm, color_scheme=scheme, rules=Rules(api_key="key"))
    expect(page.locator("#key-why")).to_be_visible()
    seen = page.evaluate(CONTRASTS)
    page.keyboard.type("key")
    page.keyboard.press("Enter")
    for _ in range(2):
        say(page, "hello")
        expect(page.locator("#send")).to_have_text("Send")
    expect(failure(page).last).to_be_visible()
    seen += page.evaluate(CONTRASTS)
    kinds = " ".join(what for what, *_ in seen)
    assert all(kind in kinds for kind in ("H1", "SELECT", "CODE", ".error", "quiet", "::place"))
    dark = luminance(next(ground for what, _, ground, _ in seen if what.startswith("H1"))) < 0.1
    assert dark == (scheme == "dark")
    for what, colour, ground, opacity in seen:
        above, below = sorted((luminance(colour), luminance(ground)), reverse=True)
        assert opacity == "1", what
        assert (above + 0.05) / (below + 0.05) >= 4.5, what


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_motion_only_where_it_is_liked(visit, motion):
    gate = Gate()
    page = visit(FakeLoGo(SCORES, [["one ", gate]]), gates=[gate], reduced_motion=motion)
    say(page, "hello")
    expect(page.locator(".answer")).to_have_text("one ")
    names = [
        page.locator(".answer p").evaluate("e => getComputedStyle(e, '::after').animationName"),
        page.locator("#bars .bar").first.evaluate(
            "e => getComputedStyle(e, '::before').animationName"
        ),
    ]
    assert names == (["none", "none"] if motion == "reduce" else ["breathe", "grow"])


def test_an_api_key_is_asked_for_and_kept_for_the_session(visit):
    llm = FakeLoGo(SCORES, ["done"])
    page = visit(llm, rules=Rules(api_key="right"))
    key = page.get_by_label("API key")
    expect(key).to_be_focused()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    until(page, lambda: visit.refused == [401] * 4)
    expect(key).to_be_focused()
    expect(page.locator("#key-why")).to_contain_text("the API key is missing or wrong")
    page.keyboard.type("right")
    page.keyboard.press("Enter")
    expect(key).to_be_hidden()
    expect(cell(page, "reverse")).to_be_visible()
    say(page, "hello")
    expect(page.locator(".answer")).to_have_text("done")
    page.reload()
    expect(cell(page, "reverse")).to_be_visible()
    expect(key).to_be_hidden()
    assert "right" not in page.evaluate("JSON.stringify(localStorage)")
    page.evaluate("sessionStorage.clear()")
    say(page, "a long prompt")  # refused: the prompt is not lost
    expect(key).to_be_focused()
    expect(page.locator("#prompt")).to_have_value("a long prompt")
    page.keyboard.type("right")
    page.keyboard.press("Enter")
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_text(["done", "done"])


def test_no_key_field_where_there_is_no_key(visit):
    page = visit()
    expect(cell(page, "reverse")).to_be_visible()
    expect(page.locator("#key-form")).to_be_hidden()


def type_and_pause(page, text):
    page.locator("#prompt").press_sequentially(text)
    page.clock.fast_forward(400)


def test_the_map_looks_ahead_while_somebody_types(visit):
    llm = FakeLoGo(SCORES, ["done", "done"])
    page = visit(llm)
    expect(cell(page, "reverse")).to_be_visible()
    page.locator("#prompt").press_sequentially("hello")
    page.clock.fast_forward(300)
    page.locator("#prompt").press_sequentially(" there")
    page.clock.fast_forward(300)
    assert "/v1/route" not in visit.paths()
    page.clock.fast_forward(100)
    expect(cell(page, "sort-words, score 3, weight 0.75")).to_be_visible()
    assert bars(page) == []  # nothing has been blended
    assert [(call.method, call.prompt) for call in llm.history] == [("route", "hello there")]


def looks_ahead(visit, page, llm):
    """Whether a pause makes it ask; by what the engine has heard when an answer is there."""
    before = len(llm.history)
    type_and_pause(page, "hello")
    page.keyboard.press("Enter")
    expect(page.locator("#send")).to_have_text("Send")
    return "route" in [call.method for call in llm.history[before:]] or "/v1/route" in visit.paths()


def test_no_look_ahead_where_the_pool_has_problems(visit):
    llm = FakeLoGo(SCORES, ["done"])
    llm.pool.problems = (Problem("bad", Path("bad.gguf"), "it has NaNs"),)
    page = visit(llm)
    expect(page.locator("#problems")).to_have_text("bad is left out: it has NaNs")
    assert not looks_ahead(visit, page, llm)


@pytest.mark.parametrize("model", ["base", "base:reverse"])
def test_no_look_ahead_where_nothing_is_routed(visit, model):
    llm = FakeLoGo(SCORES, ["done"])
    page = visit(llm)
    page.get_by_label("Model").select_option(model)
    assert not looks_ahead(visit, page, llm)


def test_no_look_ahead_after_one_that_failed(visit):
    llm = FakeLoGo(SCORES, ["done"])
    page = visit(llm)
    expect(cell(page, "reverse")).to_be_visible()
    page.route("**/v1/route", lambda route: route.fulfill(status=503, body="{}"))
    type_and_pause(page, "hello")
    until(page, lambda: visit.refused == [503])
    page.wait_for_load_state("networkidle")
    visit.requests.clear()
    assert not looks_ahead(visit, page, llm)
    assert failure(page).count() == 0  # it was only a courtesy


def test_no_look_ahead_after_one_that_took_long(visit):
    gate = Gate()
    llm = FakeLoGo(lambda text: (gate(), SCORES)[1], ["done"], names=list(SCORES))
    page = visit(llm, gates=[gate])
    expect(cell(page, "reverse")).to_be_visible()
    type_and_pause(page, "hello")
    assert gate.reached.wait(60)
    page.clock.fast_forward(600)
    gate.open()
    expect(cell(page, "sort-words, score 3")).to_be_visible()
    visit.requests.clear()
    assert not looks_ahead(visit, page, llm)


def test_no_look_ahead_for_what_has_been_sent(visit):
    llm = FakeLoGo(SCORES, ["done"])
    page = visit(llm)
    expect(cell(page, "reverse")).to_be_visible()
    page.evaluate("""() => {
        const prompt = document.getElementById("prompt");
        prompt.value = "hello";
        prompt.dispatchEvent(new Event("input"));
        prompt.form.requestSubmit();
    }""")
    expect(page.locator(".answer")).to_have_text("done")
    page.clock.fast_forward(400)
    say(page, "again")
    expect(page.locator(".answer").last).to_have_text("done")
    expect(page.locator("#send")).to_have_text("Send")
    assert [call.method for call in llm.history] == ["create_chat_completion"] * 2
    assert "/v1/route" not in visit.paths()


def test_no_look_ahead_while_an_answer_comes(visit):
    gate = Gate()
    llm = FakeLoGo(SCORES, [["one ", gate]])
    page = visit(llm, gates=[gate])
    say(page, "hello")
    expect(page.locator(".answer")).to_have_text("one ")
    type_and_pause(page, "more")
    gate.open()
    expect(page.locator("#send")).to_have_text("Send")
    assert "/v1/route" not in visit.paths()
    expect(page.locator("#prompt")).to_have_value("more")


def test_a_server_that_does_not_answer_at_first(visit):
    page = visit(path="/health")
    away = [True]
    page.route("**/v1/*", lambda route: route.abort() if away else route.continue_())
    page.route("**/health", lambda route: route.abort() if away else route.continue_())
    page.goto(visit.base)
    expect(page.locator("#offline")).to_contain_text("The connection to the server is lost.")
    page.clock.fast_forward(2000)
    expect(page.locator("#offline")).to_be_visible()
    away.clear()
    page.clock.fast_forward(2000)
    expect(page.locator("#offline")).to_be_hidden()
    expect(cell(page, "reverse")).to_be_visible()


def test_a_prompt_is_repeated_once_when_the_server_is_back(visit):
    page = visit(FakeLoGo(SCORES, ["first", "second"]))
    say(page, "hello")
    expect(page.locator(".answer")).to_have_text("first")
    page.route("**/v1/chat/completions", lambda route: route.abort())
    say(page, "again")
    expect(failure(page)).to_have_text(LOST)
    page.clock.fast_forward(2000)  # the server is there, and the prompt fails again
    until(page, lambda: visit.paths().count("/v1/chat/completions") == 3)
    expect(page.locator("#offline")).to_be_visible()
    before = visit.paths().count("/v1/adapters")
    page.clock.fast_forward(2000)
    until(page, lambda: visit.paths().count("/v1/adapters") > before)
    expect(page.locator("#offline")).to_be_hidden()
    assert visit.paths().count("/v1/chat/completions") == 3  # not for ever
    page.unroute("**/v1/chat/completions")
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator(".answer").last).to_have_text("second")
    assert page.locator(".prompt").all_inner_texts() == ["hello", "again"]


MARKDOWN = """## A heading

Some **bold** text, `code`, a [link](https://example.org/) and [another](javascript:alert(1)).

| a | b |
|---|--:|
| 1 | 2 |

- [x] done
- ![a picture](http://example.org/x.png)

```python
print("<b>1 & 2</b>")
```
"""


def test_answers_are_shown_as_markdown(visit):
    page = visit(FakeLoGo(SCORES, [[MARKDOWN[:60], MARKDOWN[60:]]]), permissions=["clipboard-read"])
    say(page, "hello")
    expect(page.locator("#send")).to_have_text("Send")
    answer = page.locator(".answer")
    expect(answer.get_by_role("heading", level=5)).to_have_text("A heading")
    expect(answer.locator("strong")).to_have_text("bold")
    expect(answer.locator("td")).to_have_text(["1", "2"])
    expect(answer.locator("li").first).to_contain_text("☑ done")
    links = answer.get_by_role("link")
    expect(links).to_have_text(["link", "a picture"])
    assert links.first.get_attribute("rel") == "noopener noreferrer"
    assert answer.locator("img, a[href^=javascript]").count() == 0
    expect(answer.locator(".code-bar")).to_contain_text("python")
    answer.get_by_role("button", name="Copy code").click()
    expect(answer.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == 'print("<b>1 & 2</b>")'
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.locator(".actions").get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == MARKDOWN


def test_copying_without_the_clipboard_of_secure_pages(visit):
    page = visit(FakeLoGo(SCORES, ["`x`\n\n    y = 1"]), permissions=["clipboard-read"])
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    say(page, "hello")
    page.get_by_role("button", name="Copy code").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    page.locator("#prompt").fill("")
    page.locator("#prompt").focus()
    page.keyboard.press("Control+v")
    expect(page.locator("#prompt")).to_have_value("y = 1")


# Each would run a script or load something in a page that does not sanitise Markdown.
ATTACKS = [
    "<script>window.hit=1</script>",
    "<img src=x onerror=window.hit=1>",
    "a\n\n<svg onload=window.hit=1>\n\nb",
    "[x](javascript:window.hit=1)",
    "[x](data:text/html,<script>window.hit=1</script>)",
    "[x](  JaVaScRiPt:window.hit=1)",
    '![x](x "onerror=window.hit=1")',
    '![x"onerror="window.hit=1](x)',
    '```x"onmouseover="window.hit=1\ny\n```',
    "<a href='javascript:window.hit=1'>x</a>",
    "<iframe src='/v1/models'></iframe>",
    "<style>body{display:none}</style>",
    "<form action='http://localhost:9/'><button>x</button></form>",
    "<math><mtext><table><mglyph><style><img src onerror=window.hit=1>",
    "[x]: javascript:window.hit=1\n\n[x]",
    "&lt;img src=x onerror=window.hit=1&gt;",
]


def test_no_answer_can_run_a_script_or_load_anything(visit):
    page = visit(FakeLoGo(SCORES, ATTACKS))
    for number, _ in enumerate(ATTACKS, 1):
        say(page, "hello")
        expect(page.locator("article")).to_have_count(number)
        expect(page.locator("#send")).to_have_text("Send")
    inside = page.locator(".answer")
    assert inside.locator("script, img, svg, iframe, style, form, math, input").count() == 0
    for link in inside.locator("a").all():
        assert not link.get_attribute("href") or link.get_attribute("href").startswith("http")
        link.click(force=True, no_wait_after=True)
    names = inside.evaluate_all(
        "es => es.flatMap(e => [...e.querySelectorAll('*')]).flatMap(e => e.getAttributeNames())"
    )
    assert set(names) <= {"class", "href", "target", "rel", "type", "title", "start", "align"}
    assert page.evaluate("window.hit") is None
    page.wait_for_load_state("networkidle")
    assert set(visit.paths()) == {
        *PAGE, "/v1/adapters", "/v1/chat/completions", "/v1/models",
    }  # fmt: skip


def test_nothing_but_the_sanitiser_can_make_html(visit):
    page = visit()
    error = page.evaluate("try { document.body.innerHTML = '<b>x</b>' } catch (e) { e.name }")
    assert error == "TypeError"
    until(page, lambda: "TrustedHTML" in " ".join(visit.complaints))
    visit.complaints.clear()  # that one was asked for


def test_conversations_survive_a_reload(visit):
    llm = FakeLoGo(SCORES, ["one", "two", "three", "four"])
    page = visit(llm)
    for prompt, answer in (("first", "one"), ("second", "two")):
        say(page, prompt)
        expect(page.locator(".answer").last).to_have_text(answer)
        expect(page.locator("#send")).to_have_text("Send")
    page.get_by_role("button", name="New").click()
    say(page, "another one")
    expect(page.locator(".note")).to_have_text("sort-words 0.75, reverse 0.25")
    page.reload()
    expect(page.locator(".prompt")).to_have_text(["another one"])
    expect(page.locator(".note")).to_have_text("sort-words 0.75, reverse 0.25")
    assert bars(page) == [("sort-words", "0.75"), ("reverse", "0.25")]
    expect(page.locator("#summary")).to_have_text("2 of 3 adapters.")
    page.get_by_label("Stored conversations").select_option("first")
    expect(page.locator(".answer")).to_have_text(["one", "two"])
    say(page, "third")  # and it goes on where it was
    expect(page.locator(".answer").last).to_have_text("four")
    said = [message["content"] for message in llm.history[-1].messages]
    assert said == ["first", "one", "second", "two", "third"]
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete").click()
    expect(page.locator("article")).to_have_count(0)
    page.reload()
    titles = page.get_by_label("Stored conversations").locator("option")
    expect(titles).to_have_text(["New conversation", "another one"])


def test_a_reload_in_the_middle_of_an_answer_keeps_what_has_come(visit):
    gate = Gate("never")
    page = visit(FakeLoGo(SCORES, [["half ", gate], "whole"]), gates=[gate])
    say(page, "hello")
    expect(page.locator(".answer")).to_have_text("half")
    page.reload()
    expect(page.locator(".answer")).to_have_text("half")
    gate.open()
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator(".answer")).to_have_text("whole")


@pytest.mark.parametrize(
    "spoil",
    ["localStorage.setItem = null; Storage.prototype.setItem = () => { throw new Error() }",
     "Object.defineProperty(window, 'localStorage', {get() { throw new Error() }})",
     "localStorage.setItem('logo-local:conversation:x', '{');"
     "localStorage.setItem('logo-local:conversation:y', '{\"turns\": [{\"prompt\": 1}]}');"
     "localStorage.setItem('logo-local:settings', '[1')"],
)  # fmt: skip
def test_storage_that_is_refused_or_damaged(visit, spoil):
    page = visit(FakeLoGo(SCORES, ["one"]), path="/health")
    page.add_init_script(spoil)
    page.goto(visit.base)
    say(page, "hello")
    expect(page.locator(".answer")).to_have_text("one")
    expect(page.locator("#send")).to_have_text("Send")


def test_full_storage_loses_the_oldest_conversation(visit):
    page = visit(FakeLoGo(SCORES, ["one"]), path="/health")
    page.evaluate("""() => {
        const turns = [{prompt: "old", text: "x".repeat(1e5)}];
        localStorage.setItem("logo-local:conversation:a", JSON.stringify({changed: 1, turns}));
        for (let n = 4e6, i = 0; n >= 1; i++) {
            try { localStorage.setItem(`other-${i}`, "x".repeat(n)) } catch { n = n / 2 }
        }
    }""")
    page.goto(visit.base)
    expect(page.locator(".prompt")).to_have_text("old")
    page.get_by_role("button", name="New").click()
    say(page, "a new one")
    expect(page.locator("#send")).to_have_text("Send")
    expect(page.locator("#conversation option")).to_have_text(["a new one"])


def test_the_last_answer_can_be_regenerated_and_edited(visit):
    llm = FakeLoGo(SCORES, ["one", "two", "three", "four"])
    page = visit(llm)
    say(page, "first")
    expect(page.locator(".answer").last).to_have_text("one")
    expect(page.locator("#send")).to_have_text("Send")
    say(page, "second")
    expect(page.locator(".answer").last).to_have_text("two")
    expect(page.locator("#send")).to_have_text("Send")
    assert page.get_by_role("button", name="Regenerate").count() == 1  # of the last one only
    page.locator("#prompt").fill("a draft")
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator(".answer")).to_have_text(["one", "three"])
    expect(page.locator("#prompt")).to_have_value("a draft")
    expect(page.locator("#send")).to_have_text("Send")
    page.get_by_role("button", name="Edit").click()
    expect(page.locator("#prompt")).to_be_focused()
    expect(page.locator("#prompt")).to_have_value("second")
    page.keyboard.press("Control+a")
    say(page, "other")
    expect(page.locator(".answer")).to_have_text(["one", "four"])
    said = [[m["content"] for m in call.messages] for call in llm.history]
    assert said == [
        *(["first"], ["first", "one", "second"], ["first", "one", "second"]),
        ["first", "one", "other"],
    ]


def test_system_prompt_and_temperature(visit):
    llm = FakeLoGo(SCORES, ["done"])
    page = visit(llm)
    page.get_by_text("Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.7")
    expect(page.locator("#settings summary")).to_have_text(
        "Settings: system prompt, temperature 0.7"
    )
    page.reload()  # they are kept
    say(page, "hello")
    expect(page.locator("#send")).to_have_text("Send")
    assert [(m["role"], m["content"]) for m in llm.history[-1].messages] == [
        ("system", "Be brief."), ("user", "hello"),
    ]  # fmt: skip
    assert llm.history[-1].options["temperature"] == 0.7
    page.locator("#settings").evaluate("e => (e.open = false)")
    page.get_by_label("Temperature").evaluate("e => (e.value = '7')")
    n = len(llm.history)
    say(page, "again")
    expect(page.get_by_label("Temperature")).to_be_focused()
    assert len(llm.history) == n
    page.get_by_label("Temperature").fill("")
    page.get_by_label("System prompt").fill(" ")
    page.locator("#prompt").focus()
    page.keyboard.press("Enter")
    expect(page.locator("article")).to_have_count(2)
    expect(page.locator("#send")).to_have_text("Send")
    assert llm.history[-1].messages[0]["role"] == "user"
    assert llm.history[-1].options["temperature"] == 0.0  # the server's


def test_small_pools_are_lists_of_names_and_large_ones_maps(visit):
    scores = {f"adapter-{i:02}": float(i) for i in range(40)}
    llm = FakeLoGo(scores)
    page = visit(llm)
    say(page, "hello")
    row = cell(page, "adapter-39, score 39")
    expect(row).to_have_text("adapter-3939")  # its name and its score
    widths = [
        cell(page, f"adapter-{i}").locator(".bar").evaluate(
            "e => parseFloat(getComputedStyle(e, '::before').width) / e.clientWidth"
        )
        for i in (39, 13)
    ]  # fmt: skip
    assert widths == pytest.approx([1, 1 / 3], abs=0.01)
    llm.pool.adapters["one-more"] = replace(llm.pool.adapters["adapter-00"], name="one-more")
    page.reload()
    expect(page.locator("#map [role=option]")).to_have_count(41)
    expect(cell(page, "adapter-39")).to_have_text("")
    cell(page, "adapter-39").hover()
    expect(page.locator("#pointed")).to_contain_text("adapter-39")


def test_the_name_of_the_model_is_in_the_header(visit):
    page = visit()
    expect(page.locator("header")).to_contain_text("fake")  # of fake.gguf
    expect(page).to_have_title("fake · logo-local")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("n", [3, 50, 300])
def test_empty_cells_and_bars_stand_out(visit, scheme, n):
    """WCAG 2's 1.4.11: what is needed to see a graphic has a contrast of 3 to 1."""
    page = visit(FakeLoGo({f"a{i}": 0.0 for i in range(n)}), color_scheme=scheme)
    part = page.locator("#map .bar" if n <= 40 else "#map [role=option]").first
    edge, ground = part.evaluate("""e => [
        getComputedStyle(e).borderTopColor, getComputedStyle(document.body).backgroundColor,
    ].map((colour) => colour.match(/[\\d.]+/g).map(Number))""")
    above, below = sorted((luminance(edge), luminance(ground)), reverse=True)
    assert (above + 0.05) / (below + 0.05) >= 3
    assert part.evaluate("e => getComputedStyle(e).borderTopStyle") == "solid"
