"""`phial chat` in a pipe, line by line, and its parts: what is kept, what a command does, what is written where."""

from __future__ import annotations

import json

import pytest

from phial.cli import chat as chat_module
from phial.cli import editor
from phial.cli.conversation import Conversation
from phial.errors import ArgumentError

FEW = ["--max-tokens", "6", "--seed", "7"]


def test_every_line_gets_an_answer_and_the_speed_goes_to_stderr(invoke, tiny) -> None:
    done = invoke("chat", "-m", tiny, *FEW, stdin="once\n\nupon\n")
    assert done.status == 0
    assert done.out.endswith("\n") and len(done.out.splitlines()) >= 2
    *cut, last = done.err.splitlines()
    assert cut == 2 * ["note: the answer was cut after 6 tokens: --max-tokens"]
    assert last.startswith("2 answers, 12 tokens, ") and last.endswith(" tokens/s")


def test_the_model_sees_the_whole_conversation(invoke, tiny, tmp_path) -> None:
    """The second answer depends on the first turn; after /reset it does not."""
    alone = invoke("chat", "-m", tiny, *FEW, stdin="upon\n").out
    after = invoke("chat", "-m", tiny, *FEW, stdin="once\nupon\n").out
    reset = invoke("chat", "-m", tiny, *FEW, stdin="once\n/reset\nupon\n").out
    assert not after.endswith(alone)
    assert reset.endswith(alone)


def test_save_load_and_going_on_equal_going_on_at_once(invoke, tiny, tmp_path) -> None:
    at_once = invoke("chat", "-m", tiny, *FEW, "-s", "the end", stdin="once\nupon\n").out
    first = invoke("chat", "-m", tiny, *FEW, "-s", "the end", stdin="once\n/save talk.json\n")
    second = invoke("chat", "-m", tiny, *FEW, stdin="/load talk.json\nupon\n/save more.json\n")
    assert first.out + second.out == at_once
    saved = json.loads((tmp_path / "talk.json").read_text())
    more = json.loads((tmp_path / "more.json").read_text())["messages"]
    assert [message["content"] for message in more if message["role"] == "user"] == ["once", "upon"]
    assert [message["role"] for message in saved["messages"]] == ["system", "user", "assistant"]
    assert saved["messages"][2]["content"] == first.out.rstrip("\n")


def test_commands_write_to_stderr_only(invoke, tiny) -> None:
    done = invoke(
        "chat", "-m", tiny, stdin="/help\n/system\n/system Be brief.\n/system\n/system off\n/system\n/exit\nnever\n"
    )
    assert (done.status, done.out) == (0, "")
    lines = done.err.splitlines()
    assert lines[7:] == ["no system message", "Be brief.", "no system message", "0 answers, 0 tokens"]


@pytest.mark.parametrize("line", ["/nonsense", "/save", "/load", "/load missing.json", "/etc/passwd"])
def test_in_a_pipe_a_wrong_command_ends_the_chat_with_2(invoke, tiny, line) -> None:
    done = invoke("chat", "-m", tiny, stdin=line + "\nonce\n")
    assert (done.status, done.out) == (2, "")
    assert "error: " in done.err and "hint: " in done.err


def test_a_line_that_starts_with_a_space_is_text_even_with_a_slash(invoke, tiny) -> None:
    assert invoke("chat", "-m", tiny, *FEW, stdin=" /etc\n").err.splitlines()[-1].startswith("1 answer, ")


def test_input_that_is_no_utf8_is_refused(invoke, tiny) -> None:
    assert invoke("chat", "-m", tiny, *FEW, stdin=b"\xff\n").status == 2


def test_lines_lose_their_end_and_nothing_else(monkeypatch) -> None:
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("a \r\n\n ü".encode())))
    read = editor._lines()
    assert [read(), read(), read()] == ["a ", "", " ü"]
    with pytest.raises(EOFError):
        read()


class Interrupted:
    """A speaker that Ctrl-C stops after its pieces."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    def chat(self, messages):
        yield from self.pieces
        raise KeyboardInterrupt


def test_ctrl_c_keeps_the_part_that_was_said(capsys) -> None:
    conversation = Conversation()
    chat_module._answer("why?", conversation, Interrupted("be", "cause"))
    assert [turn["content"] for turn in conversation.turns] == ["why?", "because"]
    assert capsys.readouterr() == ("because\n", "(stopped)\n")


def test_ctrl_c_before_the_first_word_forgets_the_question(capsys) -> None:
    conversation = Conversation()
    chat_module._answer("why?", conversation, Interrupted())
    assert conversation.turns == []
    assert capsys.readouterr().out == ""


def test_at_a_terminal_a_mistake_is_reported_and_the_chat_goes_on(capsys, monkeypatch) -> None:
    lines = iter(["/nonsense", "/exit"])
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    chat_module._converse(lambda: next(lines), Conversation(), Interrupted())
    assert capsys.readouterr().err.startswith("error: unknown command /nonsense\nhint: ")


def test_a_failed_answer_leaves_the_conversation_as_it_was() -> None:
    class Failing:
        def chat(self, messages):
            raise ArgumentError("too long", "")

    conversation = Conversation()
    with pytest.raises(ArgumentError):
        chat_module._answer("why?", conversation, Failing())
    assert conversation.turns == []
