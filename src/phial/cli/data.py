"""`phial data`: from raw text to token shards, all stages or one at a time; each command is a file data_NAME.py.

A command imports the libraries of the data extra inside its function, so that help stays instant.
"""

from __future__ import annotations

import typer

from phial.cli import data_run, options

data = typer.Typer(
    name="data",
    help="From raw text to token shards: sources, cleaning, deduplication, quality, decontamination, mixing.",
    epilog="Example: phial data run corpus.toml --output runs/corpus",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    add_help_option=False,
)

data.command(epilog="Example: phial data run corpus.toml --output runs/corpus --workers 2")(data_run.run)


@data.callback()
def group(helped: options.Help = False) -> None:
    """From raw text to token shards: sources, cleaning, deduplication, quality, decontamination, mixing."""
