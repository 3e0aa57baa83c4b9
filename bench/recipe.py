"""The report's claims about data, tried on models of 0.8 M parameters: `python bench/recipe.py FOLDER --corpus CORPUS`.

(a) filtered against unfiltered text at several budgets; (b) two phases against one mixture of the very same windows;
(c) part of the text replaced by synthetic exercises. CORPUS is bench/make_corpus.py's. FOLDER keeps the pool, the
shards and a result file a run: what is there is not done again, so a killed run goes on. With --report nothing is
trained: tables to stdout, pictures to docs/images.

One thread; a seed of everything takes about half an hour of one core of a Zen 4.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import recipe_report
import torch
from recipe_corpus import KEEP, SEEDS, prepare
from recipe_runs import Judge, Series, epochs, run, shuffled

BUDGETS = (200, 400, 800, 1600)  # steps of 1,024 tokens
ONE = 800  # the budget of (b)
SECOND = 0.25  # share of phase 2, and of the decay of (b)


def filtered(folder: Path, arm: str, seed: int) -> Series:
    order = epochs(folder / "mix" / f"{arm}-0" / "one", BUDGETS[-1], seed)
    return Series(f"a-{arm}-{seed}", order, BUDGETS, seed, 0.2, {"experiment": "a", "arm": arm})


def synthetic(folder: Path, seed: int) -> Series:
    order = epochs(folder / "mix" / f"synthetic-20-{seed}" / "one", BUDGETS[-1], seed)
    return Series(f"c-20-{seed}", order, BUDGETS[-2:], seed, 0.2, {"experiment": "c", "arm": "synthetic-20"})


def phases(folder: Path, kind: str, arm: str, seed: int) -> Series:
    """The same windows as two phases or as one mixture; phase 2 is half exercises and half the best 10 %, or, gentle,
    a fifth exercises and the rest of the best 40 %."""
    mixture = folder / "mix" / f"{kind}-{seed}"
    second = round(SECOND * ONE)
    general, chosen = epochs(mixture / "general", ONE - second, seed), epochs(mixture / "chosen", second, seed)
    order = general + chosen if arm == "two phases" else shuffled(general + chosen, seed)
    arm = arm.replace(" ", " gentle ") if kind == "gentle" else arm
    name = f"b-{arm.replace(' ', '-')}-{seed}"
    return Series(name, order, (ONE,), seed, SECOND, {"experiment": "b", "arm": arm})


def every_series(folder: Path) -> list[Series]:
    """All runs, a whole seed before the next."""
    found: list[Series] = []
    arms = ("two phases", "one mixture")
    for seed in SEEDS:
        found += [filtered(folder, arm, seed) for arm in KEEP]
        found += [synthetic(folder, seed)]
        found += [phases(folder, "phases", arm, seed) for arm in arms]
    for seed in SEEDS:
        found += [phases(folder, "gentle", arm, seed) for arm in arms]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--corpus", type=Path, required=True, help="made by bench/make_corpus.py")
    parser.add_argument("--questions", type=Path, required=True, help="GSM8K's train.jsonl.gz, measured on only")
    parser.add_argument("--report", action="store_true", help="tables and pictures of what there is")
    options = parser.parse_args()
    results = options.folder / "results"
    if options.report:
        recipe_report.report(results, ONE, BUDGETS[-1])
        return
    torch.set_num_threads(1)
    prepare(options.corpus, options.questions, options.folder)
    results.mkdir(exist_ok=True)
    judge = Judge(options.folder, options.questions)
    for series in every_series(options.folder):
        run(series, judge, results)


if __name__ == "__main__":
    main()
