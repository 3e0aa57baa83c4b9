"""`phial train`: from token shards to a model; each command is a file train_NAME.py.

A command imports PyTorch inside its function, so that help stays instant.
"""

from __future__ import annotations

import typer

from phial.cli import options, train_breakfix, train_dpo, train_embed, train_longrope, train_pretrain, train_sft

train = typer.Typer(
    name="train",
    help="Train and tune models, on text, chats and preferences.",
    epilog="Example: phial train pretrain pretrain.toml --output runs/model",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    add_help_option=False,
)

train.command(epilog="Example: phial train pretrain pretrain.toml --output runs/model")(train_pretrain.pretrain)
train.command(epilog="Example: phial train longrope model/ -t 32768 --texts books/ -o runs/long")(
    train_longrope.longrope
)
train.command(epilog="Example: phial train sft smollm2-135m chats.jsonl -o runs/sft")(train_sft.sft)
train.command(epilog="Example: phial train dpo runs/sft pairs.jsonl -o runs/dpo")(train_dpo.dpo)
train.command(epilog="Example: phial train breakfix breakfix.toml -o runs/safer")(train_breakfix.breakfix)
train.command(epilog="Example: phial train embed smollm2-135m pairs.jsonl -o runs/embed")(train_embed.embed)


@train.callback()
def group(helped: options.Help = False) -> None:
    """Train and tune models, on text, chats and preferences."""
