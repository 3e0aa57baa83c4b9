"""The options several commands share, declared once so that a flag means the same everywhere.

`with_sampling` gives a command every sampling flag; the command receives them as one dictionary, ready for
`SamplingParams(**sampling)`. Ranges are checked there, not here.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Annotated, Any

import typer

from phial.cli import console
from phial.errors import ArgumentError

DEFAULT_MODEL = "smollm2-135m"


def _show_help(context: typer.Context, wanted: bool) -> None:
    if wanted:
        console.write(context.get_help() + "\n")
        raise typer.Exit


Help = Annotated[  # of groups: typer's own option needs pydantic, which takes as long as all the rest
    bool,
    typer.Option("--help", "-h", metavar="", is_eager=True, callback=_show_help, help="Show this page and exit."),
]

Model = Annotated[
    str, typer.Option("--model", "-m", metavar="MODEL", help="Catalogue name, hf:owner/repo/file.gguf, or a path.")
]
Context = Annotated[
    int | None,
    typer.Option(
        "--ctx", "-c", metavar="N", help="Most tokens of prompt and answers.", show_default="the model's, up to 4096"
    ),
]
Threads = Annotated[
    int | None, typer.Option("--threads", "-t", metavar="N", help="CPU threads.", show_default="one per physical core")
]
CacheType = Annotated[
    str, typer.Option("--cache-type", metavar="TYPE", help="Key-value cache: f16, bf16, or q8_0 for about half.")
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora", metavar="PATH[:SCALE]", help="Add a LoRA adapter, a PEFT folder or a GGUF file; repeatable."
    ),
]
RopeSwitch = Annotated[
    str,
    typer.Option(
        "--rope-switch",
        metavar="HOW",
        help="When a text passes LongRoPE's original context: reprefill is exact, rerotate fast.",
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens", "-n", metavar="N", help="Most tokens of an answer.", show_default="to the end of the context"
    ),
]
System = Annotated[str | None, typer.Option("--system", "-s", metavar="TEXT", help="System message.")]
Template = Annotated[
    str | None,
    typer.Option(
        "--template", metavar="NAME", help="Built-in chat template, as phi3-v2.", show_default="the model's own"
    ),
]
Draft = Annotated[
    str | None,
    typer.Option("--draft", metavar="MODEL", help="A smaller model of the same vocabulary that guesses tokens ahead."),
]
NoSpeculation = Annotated[
    bool,
    typer.Option("--no-speculation", metavar="", help="Guess no tokens ahead from what the text repeats."),
]
Json = Annotated[bool, typer.Option("--json", metavar="", help="JSON on stdout, for programs.")]

# name, type, default (those of SamplingParams, which a test compares), help
SAMPLING_FLAGS: tuple[tuple[str, Any, Any, str], ...] = (
    ("temperature", float, 0.8, "0 always takes the likeliest token."),
    ("top_k", int, 40, "Keep the K likeliest tokens; 0 keeps all."),
    ("top_p", float, 0.95, "Keep the likeliest tokens that sum to P."),
    ("min_p", float, 0.05, "Drop tokens below P times the likeliest."),
    ("typical_p", float, 1.0, "Locally typical sampling; 1 is off."),
    ("repeat_penalty", float, 1.0, "Divide the logits of recent tokens; 1 is off."),
    ("presence_penalty", float, 0.0, "Subtract once for a recent token."),
    ("frequency_penalty", float, 0.0, "Subtract for each time a token is recent."),
    ("penalty_last_n", int, 64, "How many tokens count as recent."),
    ("mirostat_mode", int, 0, "2 is mirostat v2, 0 is off."),
    ("mirostat_tau", float, 5.0, "Mirostat's target surprise, in bits."),
    ("mirostat_eta", float, 0.1, "Mirostat's learning rate."),
    ("logit_bias", list[str] | None, None, "Add X to the logit of token ID, as ID=X; repeatable."),
    ("seed", int | None, None, "Same seed, same text."),
)
_FLAG_NAMES = {"mirostat_mode": "--mirostat"}


def with_sampling(command: Callable[..., None]) -> Callable[..., None]:
    """Replaces the parameter `sampling: dict[str, Any]` of a command by one option per sampling flag."""

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        sampling = {name: values.pop(name) for name, *_ in SAMPLING_FLAGS}
        sampling["logit_bias"] = _biases(sampling["logit_bias"])
        command(**values, sampling=sampling)

    flags = [_flag(*flag) for flag in SAMPLING_FLAGS]
    kept = [p for p in inspect.signature(command).parameters.values() if p.name != "sampling"]
    hints = typing.get_type_hints(command, include_extras=True)
    parameters = [p.replace(annotation=hints[p.name]) for p in kept] + flags
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return wrapper


def _flag(name: str, kind: Any, default: Any, text: str) -> inspect.Parameter:
    option = typer.Option(
        _FLAG_NAMES.get(name, "--" + name.replace("_", "-")),
        metavar={float: "X", int: "N"}.get(kind, "ID=X" if name == "logit_bias" else "N"),
        help=text,
        show_default="a new one each time" if name == "seed" else True,
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _biases(pairs: list[str] | None) -> dict[int, float] | None:
    """["5=1.5", "7=-2"] as {5: 1.5, 7: -2.0}; ArgumentError naming the pair that is none."""
    biases: dict[int, float] = {}
    for pair in pairs or []:
        token, _, bias = pair.partition("=")
        try:
            biases[int(token)] = float(bias)
        except ValueError:
            raise ArgumentError(f"--logit-bias {pair!r} is not ID=X", "for instance --logit-bias 42=-5") from None
    return biases or None
