"""What speculation gains: `python bench/speculation.py [-m MODEL] [--draft MODEL]`, a Markdown table on stdout.

Each question is answered without and with speculation in turns (A B A B ...), greedily and at temperature 0.8; the
answers must be the same ids. Counted is decoding: from the first token to the last, everything in the process
(sampling included). A ratio is that of the medians of both, summed over the questions of a kind. The second table is
what speculation has to work with: the cost of a pass of n tokens in passes of one, at two depths.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np
from grounded_prompts import Prompt, free, grounded

from phial.engine.draft_model import DraftModel, check_same_vocabulary
from phial.engine.engine import Engine
from phial.engine.sampling import SamplingParams
from phial.engine.session import Session
from phial.engine.speculation import Drafter, Speculate
from phial.hub import resolve
from phial.tokenizer.chat import ChatTemplate

CONTEXT = 4096
PASS_TOKENS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass
class Row:
    """All questions of one kind at one temperature."""

    kind: str
    temperature: float
    questions: int = 0
    tokens: int = 0
    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    plain_seconds: float = 0.0
    seconds: float = 0.0
    worst: float = field(default=float("inf"))

    def line(self) -> str:
        right = f"{self.accepted / self.drafted:.0%}" if self.drafted else "–"
        return (
            f"| {self.kind} | {self.temperature:g} | {self.questions} | {self.tokens} "
            f"| {self.tokens / self.passes:.2f} | {self.drafted / self.passes:.2f} | {right} "
            f"| {self.tokens / self.plain_seconds:.0f} | {self.tokens / self.seconds:.0f} "
            f"| **{self.plain_seconds / self.seconds:.2f}** | {self.worst:.2f} |"
        )


class Bench:
    """One model, one session, questions answered both ways."""

    def __init__(self, engine: Engine, drafter: Drafter | None, options: argparse.Namespace) -> None:
        self.engine, self.drafter, self.options = engine, drafter, options
        self.session: Session = engine.session(CONTEXT)
        self.template = ChatTemplate.from_gguf(engine.metadata, engine.tokenizer)
        self.clock = CLOCKS[options.clock]

    def answer(self, ids: list[int], params: SamplingParams, speculate: Speculate) -> tuple[list[int], float]:
        """The answer's ids, and the seconds from the first to the last."""
        stream = self.session.generate(
            ids,
            params,
            max_tokens=self.options.max_tokens,
            stop_ids=self.template.stop_ids(self.engine.tokenizer),
            speculate=speculate,
            drafter=None if speculate == "off" else self.drafter,
        )
        answer = [next(stream)]
        started = self.clock()
        answer += stream
        return answer, self.clock() - started

    def ask(self, prompt: Prompt, row: Row) -> None:
        """Answer one question both ways, in turns, and add it to the row."""
        ids = self.template.encode([{"role": "user", "content": prompt.text}], self.engine.tokenizer)
        params = SamplingParams(temperature=row.temperature, seed=1)
        plain, guessed = [], []
        for _ in range(self.options.repeat):
            expected, seconds = self.answer(ids, params, "off")
            plain.append(seconds)
            answer, seconds = self.answer(ids, params, "auto")
            guessed.append(seconds)
            if answer != expected:
                raise SystemExit(f"speculation changed the answer to: {prompt.text[:200]}")
        if len(expected) < 2:
            return
        assert self.session.speculation is not None
        counts = self.session.speculation.statistics
        row.questions += 1
        row.tokens += len(expected) - 1
        row.passes, row.drafted = row.passes + counts.passes, row.drafted + counts.drafted
        row.accepted += counts.accepted
        row.plain_seconds, row.seconds = row.plain_seconds + median(plain), row.seconds + median(guessed)
        row.worst = min(row.worst, median(plain) / median(guessed))

    def rows(self, prompts: list[Prompt]) -> Iterator[Row]:
        """One row for each kind and temperature."""
        for temperature in self.options.temperature:
            for kind in dict.fromkeys(prompt.kind for prompt in prompts):
                row = Row(kind, temperature)
                for prompt in prompts:
                    if prompt.kind == kind:
                        self.ask(prompt, row)
                yield row

    def pass_costs(self, depth: int, repeat: int) -> list[float]:
        """Median cost of a pass of each of PASS_TOKENS behind `depth` tokens, over that of the first."""
        ids = np.random.default_rng(3).integers(10, self.engine.config.n_vocab, depth + 32).tolist()
        self.session.truncate(0)
        self.session.eval(ids[:depth])
        seconds: dict[int, list[float]] = {n: [] for n in PASS_TOKENS}
        for turn in range(repeat + 1):
            for n in PASS_TOKENS:
                started = self.clock()
                self.session.eval(ids[depth : depth + n], all_logits=True)
                if turn:  # the first is the warm-up
                    seconds[n].append(self.clock() - started)
                self.session.truncate(depth)
        return [median(seconds[n]) / median(seconds[PASS_TOKENS[0]]) for n in PASS_TOKENS]


def print_answers(bench: Bench, data: Path) -> None:
    print("| questions | temperature | n | tokens | per pass | drafts a pass | right | tok/s off | tok/s auto ", end="")
    print("| ratio | worst |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    each = bench.options.each
    for row in bench.rows([*grounded(data, each), *free(data, each + each // 2)]):
        print(row.line(), flush=True)


def print_pass_costs(bench: Bench) -> None:
    print(f"\n| tokens a pass | {' | '.join(map(str, PASS_TOKENS))} |\n|---|{'--:|' * len(PASS_TOKENS)}")
    for depth in bench.options.depth:
        costs = bench.pass_costs(depth, bench.options.passes)
        print(f"| behind {depth} | {' | '.join(f'{cost:.2f}' for cost in costs)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="What speculation gains, and what passes of several tokens cost.")
    parser.add_argument("--model", "-m", default="smollm2-135m")
    parser.add_argument("--draft", help="a smaller model of the same vocabulary that guesses; else prompt lookup")
    parser.add_argument("--data", type=Path, default=os.environ.get("PHIAL_SHARED", "../shared/data"))
    parser.add_argument("--threads", "-t", type=int)
    parser.add_argument("--each", type=int, default=8, help="questions of a kind")
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--temperature", type=float, nargs="*", default=[0.0, 0.8])
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: for a busy machine, with --threads 1")
    parser.add_argument("--depth", type=int, nargs="*", default=[300, 1500])
    parser.add_argument("--passes", type=int, default=20, help="repetitions of the second table; 0 leaves it out")
    options = parser.parse_args()
    with ExitStack() as opened:
        engine = opened.enter_context(Engine.open(resolve(options.model), n_threads=options.threads))
        drafter = None
        if options.draft:
            small = opened.enter_context(Engine.open(resolve(options.draft), n_threads=options.threads))
            check_same_vocabulary(engine, small)
            drafter = DraftModel(small, CONTEXT)
        print(f"# Speculation, {engine.path.stem}, {date.today().isoformat()}\n")
        print(
            f"{platform.processor() or platform.machine()}, {engine.kernel_set}, threads: {options.threads or 'all'}, "
        )
        print(f"{options.clock} clock, medians of {options.repeat}, drafts by {options.draft or 'prompt lookup'}.\n")
        bench = Bench(engine, drafter, options)
        if options.temperature:
            print_answers(bench, options.data)
        if options.passes:
            print_pass_costs(bench)


if __name__ == "__main__":
    main()
