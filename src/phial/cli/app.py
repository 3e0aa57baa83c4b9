"""The command line `phial`: every command registered with its one example, and nothing heavy imported.

Each command lives in its own file, parses, calls, prints, and imports the engine, the hub or the tokenizer inside its
function, so that `phial --help` stays instant (tests/cli/test_startup.py holds that).
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from phial import __version__
from phial.cli import (
    bench,
    chat,
    console,
    convert,
    data,
    info,
    inspect,
    make,
    models,
    options,
    perplexity,
    quantize,
    run,
    tokenize,
    train,
)

app = typer.Typer(
    name="phial",
    help="Small language models on the machine in front of you.",
    epilog='Example: phial run "How to explain Internet to a medieval knight?"',
    rich_markup_mode=None,  # plain help: rich would cost a third of its time
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    add_help_option=False,  # the root has its own: typer's needs pydantic, which takes as long as all the rest
    add_completion=False,  # likewise
)

app.command(epilog='Example: phial run "Summarise this." < letter.txt')(run.run)
app.command(epilog="Example: phial chat -m phi-3-mini-4k --system 'Answer in one sentence.'")(chat.chat)
app.command(epilog="Example: phial pull phi-3-mini-4k")(models.pull)
app.command("list", epilog="Example: phial list")(models.list_models)
app.command(epilog="Example: phial rm phi-3-mini-4k")(models.rm)
app.command(epilog="Example: phial inspect phi-3-mini-4k --ctx 4096")(inspect.inspect)
app.command(epilog="Example: phial tokenize 'Hello world' --ids")(tokenize.tokenize)
app.command(epilog="Example: phial bench -m smollm2-135m --prefill 64,512 --depth 0,2048")(bench.bench)
app.command(epilog="Example: phial perplexity text.txt -m phi-3-mini-4k --windows 20")(perplexity.perplexity)
app.command(epilog="Example: phial convert ./Phi-3-mini-4k-instruct phi-3-mini.gguf --type q8_0")(convert.convert)
app.command(epilog="Example: phial quantize f16.gguf q4.gguf --type Q4_K_M --calibrate text.txt")(quantize.quantize)
app.command(epilog="Example: phial info")(info.info)
app.command(epilog="Example: phial make recipes/tiny.toml --output runs/tiny")(make.make)
app.add_typer(data.data)
app.add_typer(train.train)


def _show_version(wanted: bool) -> None:
    if wanted:
        console.write(f"phial {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", metavar="", is_eager=True, callback=_show_version, help="Show the version and exit."),
    ] = False,
    helped: options.Help = False,
) -> None:
    """Small language models on the machine in front of you."""


def main() -> None:
    """The entry point: runs the command line and exits with its status."""
    sys.exit(console.run(app, sys.argv[1:] or ["--help"]))
