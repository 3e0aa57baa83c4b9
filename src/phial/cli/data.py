"""`phial data`: from raw text to token shards, all stages or one at a time; each command is a file data_NAME.py.

A command imports the libraries of the data extra inside its function, so that help stays instant.
"""

from __future__ import annotations

import typer

from phial.cli import (
    data_annotate,
    data_clean,
    data_decontaminate,
    data_dedup,
    data_mix,
    data_optimal,
    data_prefer,
    data_quality,
    data_report,
    data_run,
    data_synthesize,
    data_vocabulary,
    options,
)

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
data.command(epilog="Example: phial data clean pages/ --output runs/clean --language en,de")(data_clean.clean)
data.command(epilog="Example: phial data annotate 03-dedup --answers a.jsonl -m phi-3-mini-4k")(data_annotate.annotate)
data.command(epilog="Example: phial data classifier answers.jsonl --output quality.npz")(data_quality.classifier)
data.command(epilog="Example: phial data score runs/corpus/03-dedup -o runs/corpus/04-quality")(data_quality.score)
data.command(epilog="Example: phial data dedup runs/corpus/02-clean -o runs/corpus/03-dedup")(data_dedup.dedup)
data.command(epilog="Example: phial data decontaminate 04-quality -o 05-clean -b gsm8k=g.jsonl")(
    data_decontaminate.decontaminate
)
data.command(epilog="Example: phial data synthesize --ask qa=9 --licence Apache-2.0 -o qa")(data_synthesize.synthesize)
data.command(epilog="Example: phial data prefer prefer.toml --output runs/pairs")(data_prefer.prefer)
data.command(epilog="Example: phial data vocabulary books/ -o vocabulary --size 32000")(data_vocabulary.vocabulary)
data.command(epilog="Example: phial data mix 05-decontaminate -c corpus.toml -o 06-mix")(data_mix.mix)
data.command(epilog="Example: phial data optimal optimal.toml --output runs/optimal")(data_optimal.optimal)
data.command(epilog="Example: phial data report runs/corpus")(data_report.report)


@data.callback()
def group(helped: options.Help = False) -> None:
    """From raw text to token shards: sources, cleaning, deduplication, quality, decontamination, mixing."""
