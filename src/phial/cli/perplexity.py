"""`phial perplexity`: how well a model predicts a text, and with --kld how far it is from another model.

Evaluation knows no engine, so this file is where the two meet: EngineModel gives an engine the face that phial.eval
asks for. Running figures go to stderr, the result to stdout.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phial.cli import console, loading, options, stdin
from phial.cli.progress import progress
from phial.errors import ArgumentError, PhialError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from phial.engine.adapters import Wanted
    from phial.engine.engine import Engine
    from phial.eval.journal import Header, Journal
    from phial.eval.perplexity import Measure
    from phial.eval.statistics import Comparison, Tally
    from phial.eval.windows import Windows

_ROWS = 128  # positions whose logits are held at once


class EngineModel:
    """An engine, perhaps with adapters, as phial.eval.perplexity.LanguageModel."""

    def __init__(self, engine: Engine, adapters: Wanted = ()) -> None:
        self.engine = engine
        self.adapters = engine.mix(adapters)
        self.n_vocab = engine.config.n_vocab

    @property
    def settings(self) -> str:
        """What decides the logits, to the last bit."""
        identity = self.engine.identity
        settings = f"{identity.model} {identity.cache_type} {identity.backend} {self.engine.kernel_set}"
        return f"{settings} {self.adapters.key.hex()}" if self.adapters.parts else settings

    def logits(self, tokens: Sequence[int], first: int) -> Iterator[NDArray[np.float32]]:
        """Logits that predict tokens[first + 1:], a few rows at a time.

        A LongRoPE model whose window passes the original length is read in one piece, so that the whole window has
        the factor set of its length.
        """
        read, config = tokens[:-1], self.engine.config
        with self.engine.session(len(tokens), self.adapters.parts) as session:
            if config.uses_long(first) != config.uses_long(len(read)):
                yield session.eval(read, all_logits=True)[first:]
                return
            if first:
                session.eval(read[:first])
            for start in range(first, len(read), _ROWS):
                yield session.eval(read[start : start + _ROWS], all_logits=True)


def perplexity(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The text, UTF-8; - for standard input.")],
    model: options.Model = options.DEFAULT_MODEL,
    ctx: Annotated[int, typer.Option("--ctx", "-c", metavar="N", help="Tokens in a window.")] = 512,
    windows: Annotated[
        int | None, typer.Option(metavar="N", help="Stop after N windows.", show_default="the whole text")
    ] = None,
    stride: Annotated[
        int, typer.Option(metavar="N", help="Overlap windows: score the last N tokens of each; 0 does not.")
    ] = 0,
    kld: Annotated[
        str | None, typer.Option(metavar="BASE", help="Compare with a model, or with what --save-base wrote.")
    ] = None,
    save_base: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all log-probabilities for a later --kld.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep finished windows here, and go on from them.")
    ] = None,
    threads: options.Threads = None,
    cache_type: options.CacheType = "f16",
    lora: options.Lora = None,
    as_json: options.Json = False,
) -> None:
    """Measure a model's perplexity on a text, in the windows of llama.cpp."""
    if save_base and (kld or resume):
        other = "--kld" if kld else "--resume"
        raise ArgumentError(
            f"--save-base and {other} exclude each other", "an interrupted --save-base goes on by itself"
        )
    text = stdin.text_of(file)
    if save_base and save_base.exists():
        raise ArgumentError(f"{save_base} exists already", "remove it or name another file")
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(loading.engine(model, threads, cache_type, keep_prefixes=False))
        ours = EngineModel(engine, loading.adapters(engine, lora))
        ids, plan = _plan(engine, text, ctx, stride, windows)
        header = _header(ours, ids, plan, "base" if save_base else "kld" if kld else "perplexity")
        measure, header = _measure(stack, ours, text, header, kld, threads, cache_type)
        kept = _partial(save_base) if save_base else resume
        journal = None if kept is None else _journal(stack, kept, header)
        tally = _run(measure, ids, plan, journal)
    if save_base:
        os.replace(_partial(save_base), save_base)
        console.note(f"saved {save_base}: {plan.count} windows, {save_base.stat().st_size / 1e6:,.0f} MB")
    _print(tally, header, as_json)


def _plan(engine: Engine, text: str, ctx: int, stride: int, most: int | None) -> tuple[list[int], Windows]:
    """The text's ids and its windows."""
    from phial.eval.windows import plan_windows

    tokenizer = engine.tokenizer
    ids = tokenizer.encode(text)
    bos = tokenizer.bos_id if tokenizer.add_bos else None
    return ids, plan_windows(len(ids), ctx, stride=stride, most=most, bos=bos)


def _header(model: EngineModel, ids: list[int], plan: Windows, kind: str) -> Header:
    from phial.eval.journal import Header, tokens_digest

    return Header(
        kind=kind,
        model=model.engine.path.name,
        settings=model.settings,
        tokens=tokens_digest(ids),
        n_vocab=model.n_vocab,
        size=plan.size,
        step=plan.step,
        first=plan.first,
        count=plan.count,
        base="",
    )


def _measure(
    stack: contextlib.ExitStack,
    model: EngineModel,
    text: str,
    header: Header,
    kld: str | None,
    threads: int | None,
    cache_type: str,
) -> tuple[Measure, Header]:
    """What to do with each window, and the header with the base it is compared with."""
    from dataclasses import replace

    from phial.eval import journal, perplexity

    if kld is None:
        return (perplexity.saving if header.kind == "base" else perplexity.scoring)(model), header
    base: perplexity.Base
    if journal.is_journal(Path(kld)):
        saved = stack.enter_context(journal.Journal.load(Path(kld)))
        _check_saved(saved, header)
        base, settings = perplexity.SavedBase(saved), saved.header.settings
    else:
        other = EngineModel(stack.enter_context(loading.engine(kld, threads, cache_type, keep_prefixes=False)))
        _check_vocabulary(kld, other, text, header)
        base, settings = perplexity.ModelBase(other), other.settings
    return perplexity.comparing(model, base), replace(header, base=settings)


def _check_saved(saved: Journal, header: Header) -> None:
    """PhialError where the saved base is not of this text in these windows, or unfinished."""
    from dataclasses import replace

    theirs = saved.header
    if theirs.kind != "base":
        raise PhialError(f"{saved.path} holds no log-probabilities, only scores", "make a base with --save-base")
    if saved.n_records < theirs.count:
        hint = "give the --save-base command again, it goes on"
        raise PhialError(f"{saved.path} holds {saved.n_records} of {theirs.count} windows", hint)
    count = min(header.count, theirs.count)
    wanted = replace(header, kind="base", settings=theirs.settings, count=count)
    if different := wanted.differences(replace(theirs, count=count)):
        raise PhialError(
            f"{saved.path} is of {', '.join(different)}", "use the text, --ctx and --stride it was made with"
        )
    if theirs.count < header.count:
        hint = f"add --windows {theirs.count}"
        raise PhialError(f"{saved.path} holds {theirs.count} windows, the text has {header.count}", hint)


def _check_vocabulary(name: str, other: EngineModel, text: str, header: Header) -> None:
    """PhialError where two models do not read the text as the same tokens."""
    from phial.eval.journal import tokens_digest

    same = other.n_vocab == header.n_vocab and tokens_digest(other.engine.tokenizer.encode(text)) == header.tokens
    if not same:
        raise PhialError(
            f"{name} and {header.model} have different vocabularies: {other.n_vocab} and {header.n_vocab} tokens",
            "a divergence is defined between models of one vocabulary only",
        )


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _journal(stack: contextlib.ExitStack, path: Path, header: Header) -> Journal:
    from phial.eval.journal import Journal

    journal = stack.enter_context(Journal.resume(path, header))
    if journal.n_records:
        console.note(f"going on from {path}: {journal.n_records} of {header.count} windows are done")
    if header.kind == "base":
        console.note(f"writing {header.count * header.record_bytes / 1e6:,.0f} MB of log-probabilities")
    return journal


def _run(measure: Measure, ids: list[int], plan: Windows, journal: Journal | None) -> Tally:
    """All windows, with the running figures on stderr; says how to go on when Ctrl-C stops it."""
    from phial.eval.perplexity import evaluate
    from phial.eval.statistics import Tally

    tally = Tally()
    try:
        with progress("first window", plan.count, each=True) as show:
            for tally in evaluate(measure, ids, plan, journal):
                show(tally.n_windows, _running(tally, plan.count))
    except KeyboardInterrupt:
        done = f"stopped after {tally.n_windows} of {plan.count} windows"
        if journal is None:
            console.note(f"{done}; with --resume FILE a stopped run can go on")
        else:
            console.note(f"{done}, kept in {journal.path}; the same command goes on from there")
        raise
    return tally


def _running(tally: Tally, count: int) -> str:
    value, error = tally.perplexity
    return f"window {tally.n_windows}/{count}: perplexity {value:.4f} ± {error:.4f}"


def _print(tally: Tally, header: Header, as_json: bool) -> None:
    comparison = tally.comparison() if header.kind == "kld" else None
    if as_json:
        console.write_json(_json(tally, header, comparison))
        return
    rows = [["perplexity", *_cells(tally.perplexity, 1, 4)]]
    if comparison is not None:
        rows += _comparison_rows(comparison)
    console.write_table(["MEASURE", "VALUE", "±"], rows, right=["VALUE", "±"])
    console.note(f"{header.model}: {tally.n_tokens} tokens scored in {tally.n_windows} windows of {header.size}")


def _comparison_rows(found: Comparison) -> list[list[str]]:
    from phial.eval.statistics import PERCENTILES

    names = ["KL median", *(f"KL {p:g} %" for p in PERCENTILES[1:])]
    return [
        ["base perplexity", *_cells(found.base_perplexity, 1, 4)],
        ["ln(perplexity / base)", *_cells(found.log_ratio, 1, 6)],
        ["correlation of losses, %", f"{100 * found.correlation:.2f}", ""],
        ["KL mean", *_cells(found.kl, 1, 6)],
        *([name, f"{value:.6f}", ""] for name, value in zip(names, found.kl_percentiles, strict=True)),
        ["KL maximum", f"{found.kl_max:.6f}", ""],
        ["Δp mean, %", *_cells(found.p_mean, 100, 3)],
        ["Δp RMS, %", *_cells(found.p_rms, 100, 3)],
        ["same top token, %", *_cells(found.same_top, 100, 3)],
    ]


def _cells(estimate: tuple[float, float], scale: float, digits: int) -> list[str]:
    return [f"{scale * number:.{digits}f}" for number in estimate]


def _json(tally: Tally, header: Header, found: Comparison | None) -> dict[str, Any]:
    """The result as JSON has it; every estimate as {"value", "error"}, null where beyond a float."""
    from phial.eval.statistics import PERCENTILES

    result: dict[str, Any] = {
        "model": header.model,
        "n_ctx": header.size,
        "windows": tally.n_windows,
        "tokens": tally.n_tokens,
        "perplexity": _number(tally.perplexity),
    }
    if found is not None:
        values = {name: _number(value) for name, value in found._asdict().items() if name != "kl_percentiles"}
        result |= values
        result["kl_percentiles"] = {f"{p:g}": value for p, value in zip(PERCENTILES, found.kl_percentiles, strict=True)}
    return result


def _number(value: Any) -> Any:
    if isinstance(value, tuple):
        return {"value": _number(value[0]), "error": _number(value[1])}
    return value if math.isfinite(value) else None
