"""The file of /save and /load: what goes in comes out, nothing foreign is overwritten, damaged files are named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phial.cli.conversation import Conversation
from phial.errors import ArgumentError, FormatError

text = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.none() | text, st.lists(text))
def test_a_saved_conversation_loads_as_it_was(tmp_path_factory, system, contents) -> None:
    path = tmp_path_factory.mktemp("chat") / "chat.json"
    saved = Conversation(system)
    saved.turns = [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]
    saved.save(path)
    loaded = Conversation.load(path)
    assert (loaded.system, loaded.turns) == (system, saved.turns)
    assert [p.name for p in path.parent.iterdir()] == ["chat.json"]


def test_saving_again_replaces_a_conversation_but_nothing_else(tmp_path) -> None:
    path, foreign = tmp_path / "chat.json", tmp_path / "thesis.txt"
    Conversation("one").save(path)
    Conversation("two").save(path)
    assert Conversation.load(path).system == "two"
    foreign.write_text("years of work")
    with pytest.raises(ArgumentError, match="not a saved conversation"):
        Conversation().save(foreign)
    assert foreign.read_text() == "years of work"


def test_a_save_that_fails_leaves_the_old_file_whole(tmp_path, monkeypatch) -> None:
    path = tmp_path / "chat.json"
    Conversation("old").save(path)
    monkeypatch.setattr(json, "dump", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        Conversation("new").save(path)
    monkeypatch.undo()
    assert Conversation.load(path).system == "old"
    assert len(list(tmp_path.iterdir())) == 1


HEAD = {"format": "phial-chat", "version": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a saved conversation"),
        ("[" * 100_000, "not a saved conversation"),
        ("[]", "not a saved conversation"),
        ('{"format": "other"}', "not a saved conversation"),
        (json.dumps({**HEAD, "version": 2, "messages": []}), "version 2"),
        (json.dumps(HEAD), "`messages`"),
        (json.dumps({**HEAD, "messages": {}}), "`messages`"),
        (json.dumps({**HEAD, "messages": [], "extra": 1}), "'extra'"),
        (json.dumps({**HEAD, "messages": ["hi"]}), "message 0"),
        (json.dumps({**HEAD, "messages": [{"role": "user"}]}), "message 0"),
        (json.dumps({**HEAD, "messages": [{"role": "tool", "content": ""}]}), "'tool'"),
        (json.dumps({**HEAD, "messages": [{"role": ["user"], "content": ""}]}), "message 0"),
        (json.dumps({**HEAD, "messages": [{"role": "user", "content": 5}]}), "`content`"),
        (json.dumps({**HEAD, "messages": [{"role": "user", "content": "\ud800"}]}), "`content`"),
        (
            json.dumps({**HEAD, "messages": [{"role": "user", "content": ""}, {"role": "system", "content": ""}]}),
            "message 1",
        ),
    ],
)
def test_a_file_of_another_shape_is_refused(tmp_path, content, message) -> None:
    path = tmp_path / "chat.json"
    path.write_text(content)
    with pytest.raises(FormatError) as caught:
        Conversation.load(path)
    assert message in caught.value.message


def test_bytes_that_are_no_text_are_refused(tmp_path) -> None:
    path = tmp_path / "chat.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError):
        Conversation.load(path)
