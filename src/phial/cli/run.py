"""`phial run`: one prompt, one answer, streamed to stdout. What is piped in goes before the prompt, as its material."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phial.cli import console, loading, options, stdin
from phial.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from phial.cli.answer import Speaker

_Raw = Annotated[
    bool,
    typer.Option("--raw", metavar="", help="Continue the text as it is: no chat template, <|end|> is a control token."),
]


@options.with_sampling
def run(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The question; piped text goes before it, or is it.")
    ] = None,
    model: options.Model = options.DEFAULT_MODEL,
    system: options.System = None,
    template: options.Template = None,
    max_tokens: options.MaxTokens = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="End the answer before TEXT; repeatable.")
    ] = None,
    ctx: options.Context = None,
    threads: options.Threads = None,
    cache_type: options.CacheType = "f16",
    lora: options.Lora = None,
    rope_switch: options.RopeSwitch = "reprefill",
    draft: options.Draft = None,
    no_speculation: options.NoSpeculation = False,
    raw: _Raw = False,
    as_json: options.Json = False,
    *,
    sampling: dict[str, Any],
) -> None:
    """Answer one prompt."""
    from phial.cli.answer import Speaker
    from phial.engine.sampling import SamplingParams

    if raw and (system is not None or template is not None):
        raise ArgumentError("--raw uses no chat template and no system message", "leave out one of them")
    params = SamplingParams(**sampling)
    loading.check_drafting(draft, no_speculation)
    text = _question(prompt)
    system = None if system is None else stdin.valid(system, "system message")
    started = time.perf_counter()
    with (
        loading.engine(model, threads, cache_type, on_disk=True, rope_switch=rope_switch) as engine,
        loading.speculation(engine, draft, no_speculation, threads, ctx) as guessing,
    ):
        n_ctx = loading.context_size(engine.config, ctx)
        adapters = loading.adapters(engine, lora)
        told = {"max_tokens": max_tokens, "stop": stop or (), "template": template, "adapters": adapters, **guessing}
        speaker = Speaker(engine, n_ctx, params, **told)
        loaded = time.perf_counter() - started
        pieces = speaker.continue_text(text) if raw else speaker.chat(_messages(system, text))
        if as_json:
            answer = "".join(pieces)
            console.write_json({"model": model, "text": answer, **_numbers(speaker, loaded)})
        else:
            _stream(pieces)
            speaker.say_if_cut()


def _question(prompt: str | None) -> str:
    """Piped text, an empty line, the prompt; or the one of them that is there."""
    piped = stdin.piped()
    material = (piped or "").rstrip("\r\n")
    if prompt is None and not material:
        what = "no prompt" if piped is None else "no prompt, and standard input is empty"
        raise ArgumentError(what, 'for instance: phial run "Why is the sky blue?"')
    return "\n\n".join(part for part in (material, stdin.valid(prompt or "", "prompt")) if part)


def _messages(system: str | None, text: str) -> list[dict[str, str]]:
    head = [] if system is None else [{"role": "system", "content": system}]
    return [*head, {"role": "user", "content": text}]


def _stream(pieces: Iterator[str]) -> None:
    """Writes the answer as it grows and ends its last line, also when Ctrl-C ends it; no answer, no line."""
    last = "\n"
    try:
        for last in pieces:
            console.write(last)
    finally:
        if not last.endswith("\n"):
            console.write("\n")


def _numbers(speaker: Speaker, loaded: float) -> dict[str, Any]:
    """Everything but the text that --json says."""
    answer = speaker.answers[-1]
    n_prompt, n_new = answer.prompt_tokens, answer.completion_tokens
    return {
        "finish_reason": answer.finish_reason,
        "seed": answer.seed,
        "usage": {"prompt_tokens": n_prompt, "completion_tokens": n_new, "total_tokens": n_prompt + n_new},
        "timings": {"load_seconds": round(loaded, 4), **answer.timings()},
        "speculation": answer.speculation,
    }
