"""`phial chat`: a conversation at the terminal, or line by line from a pipe.

Ctrl-C stops an answer and keeps what was said; Ctrl-D or /exit leaves. Each turn re-encodes the whole conversation
through the model's template and the session keeps the prefix it has already read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phial.cli import console, editor, loading, options, stdin
from phial.cli.conversation import Conversation
from phial.errors import ArgumentError, PhialError

if TYPE_CHECKING:
    from phial.cli.answer import Speaker

HELP = """\
/system [TEXT]  set the system message, or show it; `/system off` removes it
/reset          forget the conversation, keep the system message
/save FILE      write the conversation as JSON
/load FILE      go on with a saved one
/help           this list
/exit           leave, as does Ctrl-D
Enter sends, Esc Enter starts a new line, Ctrl-C stops an answer; begin with a space to send text that starts with /."""


@options.with_sampling
def chat(
    model: options.Model = options.DEFAULT_MODEL,
    system: options.System = None,
    template: options.Template = None,
    max_tokens: options.MaxTokens = None,
    ctx: options.Context = None,
    threads: options.Threads = None,
    cache_type: options.CacheType = "f16",
    lora: options.Lora = None,
    rope_switch: options.RopeSwitch = "reprefill",
    draft: options.Draft = None,
    no_speculation: options.NoSpeculation = False,
    *,
    sampling: dict[str, Any],
) -> None:
    """Talk with a model. /help inside lists the commands."""
    from phial import hub
    from phial.cli.answer import Speaker
    from phial.engine.sampling import SamplingParams

    params = SamplingParams(**sampling)
    loading.check_drafting(draft, no_speculation)
    conversation = Conversation(None if system is None else stdin.valid(system, "system message"))
    read = editor.reader(hub.home() / "chat_history")
    with (
        loading.engine(model, threads, cache_type, on_disk=True, rope_switch=rope_switch) as engine,
        loading.speculation(engine, draft, no_speculation, threads, ctx) as guessing,
    ):
        n_ctx = loading.context_size(engine.config, ctx)
        adapters = loading.adapters(engine, lora)
        told = {"max_tokens": max_tokens, "template": template, "adapters": adapters, **guessing}
        speaker = Speaker(engine, n_ctx, params, **told)
        if sys.stdin.isatty():
            console.note(f"{engine.config.name or model}: /help for commands, Ctrl-D leaves")
        try:
            _converse(read, conversation, speaker)
        finally:
            console.note(speaker.summary())


def _converse(read: Callable[[], str], conversation: Conversation, speaker: Speaker) -> None:
    """Reads and answers until the input ends. At a terminal a mistake is reported and the conversation goes on."""
    while True:
        try:
            line = read()
        except EOFError:
            return
        try:
            if line.startswith("/"):
                if _command(line, conversation) == "exit":
                    return
            elif line.strip():
                _answer(line, conversation, speaker)
        except (PhialError, OSError) as error:
            if isinstance(error, BrokenPipeError) or not sys.stdin.isatty():
                raise
            console.explain(error)


def _answer(text: str, conversation: Conversation, speaker: Speaker) -> None:
    """One turn. An answer that fails or is stopped before its first word leaves the conversation as it was."""
    question = {"role": "user", "content": stdin.valid(text, "message")}
    said, stopped = "", False
    try:
        for piece in speaker.chat([*conversation.messages, question]):
            console.write(piece)
            said += piece
    except KeyboardInterrupt:
        stopped = True
    if said:
        console.write("" if said.endswith("\n") else "\n")
        conversation.turns += [question, {"role": "assistant", "content": said}]
    if not stopped:
        speaker.say_if_cut()
    else:
        console.note("(stopped)" if said else "(stopped; the message is forgotten)")


def _command(line: str, conversation: Conversation) -> str:
    """Obeys a line that begins with a slash and returns the command's name."""
    name, _, rest = line[1:].partition(" ")
    rest = rest.strip()
    if name == "help":
        for each in HELP.splitlines():
            console.note(each)
    elif name == "system":
        _system(rest, conversation)
    elif name == "reset":
        conversation.reset()
    elif name == "save":
        conversation.save(_path(name, rest))
        console.note(f"saved {len(conversation.turns)} messages to {rest}")
    elif name == "load":
        loaded = Conversation.load(_path(name, rest))
        conversation.system, conversation.turns = loaded.system, loaded.turns
        console.note(f"loaded {len(loaded.turns)} messages from {rest}")
    elif name != "exit":
        raise ArgumentError(
            f"unknown command /{name}", "/help lists the commands; begin with a space to send it as text"
        )
    return name


def _system(text: str, conversation: Conversation) -> None:
    if text:
        conversation.system = None if text == "off" else stdin.valid(text, "system message")
    else:
        console.note("no system message" if conversation.system is None else conversation.system)


def _path(command: str, text: str) -> Path:
    if not text:
        raise ArgumentError(f"/{command} needs a file name", f"for instance /{command} knight.json")
    return Path(stdin.valid(text, "file name")).expanduser()
