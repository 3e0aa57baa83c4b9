"""LongRoPE on a small model, context x8: `python bench/longrope.py --work FOLDER [--page FILE] [--images FOLDER]`.

A Phi-3 of 1.0M parameters and 128 tokens of context is trained on public-domain books and passkeys until it finds keys
within its context. Then to 1024 tokens by PI, NTK, YaRN, LongRoPE's search (phial.train.longrope), and search with
tuning, over several seeds of search and tuning: perplexity of the same unseen tokens by length, and passkeys found.
Theta is 100, so that, as in Phi-3 (34 of 48), two thirds of the pairs (11 of 16) turn once in the original context.
One base model serves all; every stage stands once done. Left out: several base models.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from phial.config import ModelConfig
from phial.data.document import read_documents
from phial.data.vocabulary import write_vocabulary
from phial.gguf.hf_tokenizer import read_hf_tokenizer
from phial.manifest import write_json
from phial.model.checkpoint import load, save
from phial.model.transformer import Transformer
from phial.tokenizer.tokenizer import Tokenizer
from phial.train.longrope.extend import LongropeConfig, extend
from phial.train.longrope.measure import found_share, mean_loss, measure, needle_batches, text_batches
from phial.train.longrope.model import as_phi3, longrope_config, set_config
from phial.train.longrope.needles import NEEDLE, QUESTION, Encode, plant, random_key
from phial.train.longrope.pictures import draw_factors, draw_lengths
from phial.train.longrope.search import SearchConfig
from phial.train.longrope.seeds import seed_factors, yarn_attn_factor
from phial.train.longrope.texts import Texts, pieces, split_windows
from phial.train.longrope.tuning import MixedWindows, TuneConfig
from phial.train.loop import LoopConfig, train
from phial.train.objective import IGNORED, Batch, NextToken
from phial.train.optim import OptimizerConfig, ScheduleConfig

CONTEXT, TARGET, VOCABULARY, DOCUMENTS, NEEDLES = 128, 1024, 1024, 1500, 64
INITIAL_STD = 0.08  # of matrices; with 0.02 nothing looks back for thousands of steps
SHORT = "not extended, tuned"
WAYS = ("searched", "searched and tuned", "best seed and tuned", "searched by needle")
PAIRS = (
    ("searched", "yarn", TARGET), ("searched", "ntk", TARGET), ("searched", "none", CONTEXT), ("ntk", "none", CONTEXT),
    ("yarn", "none", CONTEXT), ("searched and tuned", "best seed and tuned", CONTEXT),
    ("searched and tuned", "best seed and tuned", TARGET),
)  # fmt: skip
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # Student's t for the mean of so many seeds
Ids = NDArray[Any]
Rows = list[dict[str, Any]]
MODEL = ModelConfig(
    architecture="phi3", n_vocab=VOCABULARY, n_embd=128, n_layer=4, n_head=4, n_head_kv=4, head_dim=32, n_ff=384,
    n_ctx_train=CONTEXT, rms_norm_eps=1e-5, rope_theta=100.0, rope_dim=32, rope_interleaved=False,
    tie_embeddings=True, name="longrope-demo",
)  # fmt: skip
PHASES = (  # until which step, and rows by (tokens, text and passkeys)
    (250, {CONTEXT // 2: (8, 24)}),
    (696, {CONTEXT: (16, 16)}),
    (1296, {CONTEXT // 2: (0, 16), CONTEXT: (8, 16)}),
)


class BaseData:
    """Text and passkeys; the first steps are short and mostly passkeys, because looking back is learnt on them soonest.

    Of a passkey the loss is taken where the key is said again; the filler is the same text as the other rows have.
    """

    def __init__(self, documents: list[NDArray[np.uint16]], encode: Encode, seed: int) -> None:
        self.documents, self.encode, self.seed = documents, encode, seed

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Sequence[Batch]:
        random = np.random.default_rng([self.seed, step])
        phase = next(rows for until, rows in PHASES if step < until)
        return [self._rows(random, length, *counts) for length, counts in phase.items()]

    def _rows(self, random: np.random.Generator, length: int, texts: int, passkeys: int) -> Batch:
        kinds = [True] * passkeys + [False] * texts
        tokens, targets = zip(*(self._row(random, length, kind) for kind in kinds), strict=True)
        rows, asked = (torch.from_numpy(np.stack(part)) for part in (tokens, targets))
        return {"tokens": rows[:, :-1], "targets": asked[:, 1:]}

    def _row(self, random: np.random.Generator, length: int, passkey: bool) -> tuple[Ids, Ids]:
        document = self.documents[random.integers(len(self.documents))]
        start = random.integers(len(document) - length)
        text = document[start : start + length + 1].astype(np.int64)
        if not passkey:
            return text, text
        key = random_key(random)
        row, n_answer = plant(text, length, key, random.random(), self.encode)
        targets = np.full_like(row, IGNORED)
        targets[-n_answer:] = row[-n_answer:]
        digits = self.encode(f" {key}")[-len(key) :]
        found = np.flatnonzero((sliding_window_view(row, len(key)) == digits).all(1))
        targets[found[1] : found[1] + len(key)] = digits  # the second time of three
        return row, targets


def vocabulary(work: Path, texts: Path) -> Tokenizer:
    folder = work / "vocabulary"
    if not folder.exists():
        keys = np.random.default_rng(0)
        sentences = [NEEDLE.format(key=random_key(keys)) + QUESTION for _ in range(2000)]
        documents = islice(read_documents(texts / "000.jsonl.zst"), 600)
        write_vocabulary([*(document.text for document in documents), *sentences], VOCABULARY, folder)
    metadata, _ = read_hf_tokenizer(folder, {}, VOCABULARY, MODEL.name)
    return Tokenizer.from_gguf(metadata)


def corpus(work: Path, texts: Path, encode: Encode) -> tuple[list[Ids], list[Ids]]:
    """Documents of more than 2048 tokens: to train on, and to extend with and report on."""
    kept = work / "corpus.npz"
    if not kept.exists():
        files = (read_documents(path) for path in sorted(texts.glob("*.jsonl.zst")))
        ids = (np.array(encode(document.text), np.uint16) for document in chain.from_iterable(files))
        documents = list(islice((x for x in ids if len(x) > 2048), DOCUMENTS))
        np.savez(kept, ids=np.concatenate(documents), sizes=[len(d) for d in documents])
    with np.load(kept) as held:
        documents = np.split(held["ids"], np.cumsum(held["sizes"])[:-1])
    n_train = len(documents) * 4 // 5
    return documents[:n_train], documents[n_train:]


def base(work: Path, tokenizer: Tokenizer, train_on: list[Ids], held: list[Ids]) -> Path:
    """The model of the original context, trained unless it stands."""
    folder = work / "base"
    if folder.exists():
        return folder
    torch.manual_seed(0)
    model = Transformer(MODEL)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embed" not in name:
                weight.mul_(INITIAL_STD / 0.02)
    texts = text_batches(np.stack([d[: CONTEXT + 1].astype(np.int64) for d in held[:64]]))
    needles = needle_batches(np.stack([d[:CONTEXT] for d in held[:64]]), CONTEXT, 64, tokenizer.encode, 1)

    def evaluate(model: Any) -> dict[str, float]:
        return {"text_loss": mean_loss(model, texts), "passkey": found_share(model, needles)}

    schedule = ScheduleConfig(warmup=50, decay=PHASES[2][0] - PHASES[1][0])
    config = LoopConfig(steps=PHASES[-1][0], evaluate_every=50, optimizer=OptimizerConfig(lr=3e-3), schedule=schedule)
    train(model, BaseData(train_on, tokenizer.encode, 0), NextToken(), config, work / "base-run", evaluate=evaluate)
    save(model, folder, tokenizer_from=work / "vocabulary")
    return folder


def settings(way: str, seed: int) -> LongropeConfig:
    """One of WAYS with a seed of the search and of the tuning."""
    search = SearchConfig(iterations=15, seed=seed)
    plain = LongropeConfig(search=search, search_windows=3, report_windows=16, report_needles=NEEDLES)
    if way == "searched by needle":
        return plain.model_copy(update={"fitness": "needle", "search_needles": 6})
    if way == "searched":
        return plain
    tune = tuning(seed)
    if way == "best seed and tuned":  # the control: nothing searched, ones as the short list
        only = {"search": SearchConfig(population=3, parents=2, iterations=0), "short_ceiling": None}
        return plain.model_copy(update={"tune": tune, **only})
    return plain.model_copy(update={"tune": tune, "search": search.model_copy(update={"iterations": 8})})


def long_texts(held: list[Ids]) -> Texts:
    """The windows every way has."""
    config = settings(WAYS[0], 0)
    return split_windows(
        held, TARGET, search=config.search_windows, report=config.report_windows, tune=1, seed=config.seed
    )


def tuning(seed: int) -> TuneConfig:
    schedule = ScheduleConfig(kind="linear", warmup=10)
    loop = LoopConfig(steps=150, seed=seed, checkpoint_every=50, optimizer=OptimizerConfig(lr=1e-3), schedule=schedule)
    return TuneConfig(rows=2, short_share=0.5, needles=0.5, tokens_at_once=2048, loop=loop)


def tuned_short(model: Path, held: list[Ids], encode: Encode, work: Path, seed: int) -> None:
    """The yardstick for short contexts: as many tokens of tuning as the extended models had, all at CONTEXT."""
    folder = run_folder(work, SHORT, seed)
    if (folder / "after.json").exists():
        return
    texts = long_texts(held)
    network = as_phi3(load(model, dtype=torch.float32))
    plan = tuning(seed)
    plan = plan.model_copy(update={"rows": 24, "short_share": 0.0, "loop": plan.loop.model_copy(update={"steps": 300})})
    data = MixedWindows(texts.tune, CONTEXT, CONTEXT, plan, encode, seed)  # 3072 tokens a step, 300 steps
    train(network, data, NextToken(), plan.loop, folder)
    rows = measure(network, network.config, texts.report, [CONTEXT], NEEDLES, encode)
    write_json(folder / "after.json", [{"way": SHORT, **row} for row in rows])


def run_folder(work: Path, way: str, seed: int) -> Path:
    return work / "runs" / f"{way.replace(' ', '-').replace(',', '').replace('=', '')}-{seed}"


def gathered(work: Path) -> Rows:
    """A row a way and length: means over seeds, with the 95 % interval; the usual ways once."""
    runs = {
        way: sorted((work / "runs").glob(run_folder(work, way, 0).name[:-1] + "[0-9]/after.json"))
        for way in (*WAYS, SHORT)
    }
    first = next(file for file in runs["searched"])
    rows = [{**row, "seeds": 1} for row in json.loads((first.parent / "before.json").read_text())]
    for way, files in runs.items():
        seeds = [json.loads(file.read_text()) for file in files]
        rows += [_mean(way, list(same)) for same in zip(*seeds, strict=True)]
    for row in rows:
        if "found_low" not in row:
            spread = 1.96 * math.sqrt(row["found"] * (1 - row["found"]) / NEEDLES)
            row |= {"found_low": max(0, row["found"] - spread), "found_high": min(1, row["found"] + spread)}
    return rows


def _mean(way: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    loss, found = ([row[name] for row in rows] for name in ("loss", "found"))
    made = {"way": way, "length": rows[0]["length"], "seeds": len(rows), "loss": statistics.mean(loss)}
    made |= {"perplexity": math.exp(made["loss"]), "found": statistics.mean(found)}
    if len(rows) > 1:
        half, share = (T_95[len(rows)] * statistics.stdev(x) / math.sqrt(len(rows)) for x in (loss, found))
        made |= {"low": math.exp(made["loss"] - half), "high": math.exp(made["loss"] + half)}
        made |= {"found_low": max(0, made["found"] - share), "found_high": min(1, made["found"] + share)}
    return made


def table(rows: Rows) -> str:
    """Markdown: perplexity, then passkeys, by length."""
    lengths = sorted({row["length"] for row in rows})
    titles = ["way", "seeds", *(f"perplexity at {n}" for n in lengths), *(f"passkeys at {n}, %" for n in lengths)]
    lines = [f"| {' | '.join(titles)} |", "|---|" + "--:|" * (len(titles) - 1)]
    for way in dict.fromkeys(row["way"] for row in rows):
        mine = {row["length"]: row for row in rows if row["way"] == way}
        cells = [way, str(mine[lengths[0]]["seeds"])]
        for n in lengths:
            if n not in mine:
                cells.append("")
                continue
            half = (mine[n]["high"] - mine[n]["low"]) / 2 if "high" in mine[n] else None
            cells.append(f"{mine[n]['perplexity']:.1f}" + ("" if half is None else f" ± {half:.1f}"))
        for n in lengths:
            if n not in mine:
                cells.append("")
                continue
            half = 50 * (mine[n]["found_high"] - mine[n]["found_low"])
            cells.append(f"{100 * mine[n]['found']:.0f} ± {half:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def paired(work: Path, report: Ids) -> str:
    """Differences of mean losses, 95 % by Student's t over the report's texts; the runs of seed 0."""
    stretch = TARGET / CONTEXT
    models = {way: _model(run_folder(work, way, 0) / "model") for way in WAYS[:3]}
    untouched = as_phi3(load(work / "base", dtype=torch.float32))
    base = untouched.config
    for way, list_ in seed_factors(base, stretch).items():
        attn_factor = yarn_attn_factor(stretch) if way == "yarn" else 1.0
        models[way] = (untouched, longrope_config(base, TARGET, list_, list_, attn_factor))
    texts = len(report)
    lines = ["| loss, nats | difference | of perplexity |", "|---|--:|--:|"]
    for one, other, length in PAIRS:
        losses = []
        for network, config in (models[one], models[other]):
            set_config(network, config)
            cut = (text_batches(pieces(report[i : i + 1], length)) for i in range(texts))
            losses.append([mean_loss(network, batches) for batches in cut])
        differences = np.subtract(*losses)
        mean, half = float(differences.mean()), 2.131 * float(differences.std(ddof=1)) / math.sqrt(texts)
        lines.append(
            f"| {one} less {other}, at {length} | {mean:+.4f} ± {half:.4f} | {100 * (math.exp(mean) - 1):+.1f} % |"
        )
    return "\n".join(lines)


def _model(folder: Path) -> tuple[Transformer, ModelConfig]:
    network = load(folder, dtype=torch.float32)
    assert isinstance(network, Transformer)
    return network, network.config


def factors(work: Path) -> str:
    """The lists that were found."""
    lines = []
    for folder in sorted((work / "runs").iterdir()):
        for found in sorted(folder.glob("*/found.json")):
            values = json.loads(found.read_text())
            listed = " ".join(f"{x:g}" for x in values["factors"])
            lines.append(
                f"{folder.name} {found.parent.name}: loss {values['score']:.4f} of {values['scored']} lists "
                f"(yarn {values['seeds']['yarn']:.4f}): {listed}"
            )
    return "\n".join(lines)


def draw(work: Path, rows: Rows, images: Path) -> None:
    stretch = TARGET / CONTEXT
    lists = {way: list_ for way, list_ in seed_factors(MODEL, stretch).items() if way != "none"}
    for way, name in (("searched", "searched"), ("searched and tuned", "searched and tuned")):
        path = run_folder(work, way, 0) / "model" / "config.json"
        if path.exists():
            scaling = json.loads(path.read_text())["rope_scaling"]
            lists |= {name: scaling["long_factor"], f"{name}, short list": scaling["short_factor"]}
    draw_factors(lists, images / "longrope-factors.png", f"factors from {CONTEXT} to {TARGET} tokens (first seed)")
    title = f"1.0M parameters, {CONTEXT} tokens of context, extended to {TARGET}; bands: 95 %"
    draw_lengths(rows, CONTEXT, images / "longrope-lengths.png", title)


def show(stage: str, done: int, total: int, text: str) -> None:
    print(f"{stage} {done}/{total}: {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where weights and runs are kept")
    parser.add_argument("--texts", type=Path, default=Path.home() / ".cache/phial-bench/corpus/classic-books")
    parser.add_argument(
        "--ways", default=";".join((*WAYS, SHORT)), help="those to run, with ; between them; none: only the table"
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--images", type=Path, help="where to draw the pictures")
    parser.add_argument("--pairs", action="store_true", help="compare ways text by text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = vocabulary(options.work, options.texts)
    train_on, held = corpus(options.work, options.texts, tokenizer.encode)
    if options.ways:
        model = base(options.work, tokenizer, train_on, held)
        for seed in map(int, options.seeds.split(",")):
            for way in options.ways.split(";"):
                if way == SHORT:
                    tuned_short(model, held, tokenizer.encode, options.work, seed)
                    continue
                folder = run_folder(options.work, way, seed)
                extend(model, held, tokenizer.encode, TARGET, settings(way, seed), folder, show=show)
    rows = gathered(options.work)
    print(table(rows), factors(options.work), sep="\n\n")
    if options.pairs:
        print("\n" + paired(options.work, long_texts(held).report))
    if options.images:
        draw(options.work, rows, options.images)


if __name__ == "__main__":
    main()
