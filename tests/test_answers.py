"""Answers on a terminal: line 17 of what people bring, words are not broken at the edge."""

import io
import sys

import pytest

from logo_local.console.answers import AnswerStream, WordWrap

WIDE = "\N{CJK UNIFIED IDEOGRAPH-65E5}"  # two columns


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("one two", "one two"),
        ("one two three four", "one two\nthree four"),
        ("0123456789 x", "0123456789\nx"),
        ("ab 0123456789", "ab\n0123456789"),
        ("ab 0123456789abc", "ab\n0123456789abc"),  # longer than a line: for the terminal to break
        ("one\ntwo three four", "one\ntwo three\nfour"),
        ("one  \n\n  two", "one  \n\n  two"),
        ("  - a list item", "  - a list\nitem"),
        ("a\tb c", "a\tb\nc"),
        (f"ab {WIDE * 5}", f"ab {WIDE * 3}\n{WIDE * 2}"),
        (
            "```\nint a = 1; // one\n```\none two three",
            "```\nint a = 1; // one\n```\none two\nthree",
        ),
    ],
)
@pytest.mark.parametrize("pieces", ["whole", "characters"])
def test_words_are_kept_whole(text, shown, pieces):
    wrap = WordWrap(lambda: 10)
    made = "".join(map(wrap.feed, text if pieces == "characters" else [text])) + wrap.end()
    assert made == shown


def test_a_word_is_shown_when_it_has_ended():
    wrap = WordWrap(lambda: 10)
    assert [wrap.feed(piece) for piece in ("he", "llo", " wo", "rld", "\n")] == [
        *("", "", "hello", "", "\nworld\n"),
    ]


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("kind", "shown"), [(Screen, "one\ntwo\n"), (io.StringIO, "one two\n")])
def test_only_a_terminal_is_wrapped(monkeypatch, kind, shown):
    monkeypatch.setenv("COLUMNS", "5")
    monkeypatch.setattr(sys, "stdout", kind())
    stream = AnswerStream()
    stream.write("one ")
    stream.write("two")
    stream.end()
    assert sys.stdout.getvalue() == shown


def test_a_pipe_gets_escape_sequences_as_they_are(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    AnswerStream().write("a \x1b[31mred\x1b[0m")
    assert sys.stdout.getvalue() == "a \x1b[31mred\x1b[0m"


def test_nothing_that_came_ends_no_line(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Screen())
    AnswerStream().end()
    assert sys.stdout.getvalue() == ""
