"""`phial tokenize`: how a text becomes tokens. Reads the vocabulary only, never the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from phial.cli import console, loading, options, stdin
from phial.errors import ArgumentError

if TYPE_CHECKING:
    from phial.tokenizer.tokenizer import Tokenizer


def tokenize(
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="The text; without it, standard input.")] = None,
    model: options.Model = options.DEFAULT_MODEL,
    ids: Annotated[bool, typer.Option("--ids", metavar="", help="Only the ids, on one line.")] = False,
    count: Annotated[bool, typer.Option("--count", metavar="", help="Only the number of tokens.")] = False,
    special: Annotated[
        bool, typer.Option("--special", metavar="", help="Read <|end|> and the like as control tokens.")
    ] = False,
    bos: Annotated[
        bool | None,
        typer.Option("--bos/--no-bos", metavar="", help="Begin with the BOS token.", show_default="the model's rule"),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show the tokens of a text, one per line: id and characters."""
    if ids + count + as_json > 1:
        raise ArgumentError("--ids, --count and --json exclude each other", "choose one")
    given = stdin.text_or_stdin(text, "text")
    tokenizer = loading.tokenizer(model)
    tokens = tokenizer.encode(given, add_bos=bos, special=special)
    if count:
        console.write(f"{len(tokens)}\n")
    elif ids:
        console.write(" ".join(map(str, tokens)) + "\n")
    elif as_json:
        console.write_json({"count": len(tokens), "tokens": [_described(tokenizer, token) for token in tokens]})
    else:
        console.write("".join(f"{token}\t{_shown(tokenizer.token_bytes(token))}\n" for token in tokens))


def _described(tokenizer: Tokenizer, token: int) -> dict[str, object]:
    data = tokenizer.token_bytes(token)
    return {"id": token, "text": data.decode("utf-8", errors="replace"), "bytes": data.hex()}


def _shown(data: bytes) -> str:
    """The characters in quotes, or the bytes where they are only part of a character."""
    try:
        return repr(data.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(data)
