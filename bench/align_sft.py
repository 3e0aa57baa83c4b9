"""Does `phial train sft` teach a small model to answer as it is asked? The proof in docs/guides/align.md.

    python bench/align_sft.py data DIR --flan flan_cot --others en_100_tree.jsonl.gz --seed 0
    phial train sft smollm2-135m DIR/chats-0.jsonl --validation DIR/held-out.jsonl -c DIR/sft-0.toml -o DIR/run-0
    phial convert DIR/run-0/model DIR/tuned-0.gguf --type q8_0
    python bench/align_sft.py measure smollm2-135m DIR DIR/untuned.json
    python bench/align_sft.py measure DIR/tuned-0.gguf DIR DIR/tuned-0.json
    python bench/align_sft_report.py DIR/untuned.json DIR/tuned-*.json --picture docs/images/align-sft.svg

Questions with few answers (FLAN's collection, Apache-2.0: creak, strategyqa, sensemaking, ecqa) are asked in three
forms that a program can check. A fourth form is never trained: did the model learn to do as it is asked, or three
habits? What the tuning costs elsewhere is the loss of conversations about other matters (Open Assistant, Apache-2.0).
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from phial.cli.loading import model_file
from phial.engine.language_model import EngineModel
from phial.engine.llama import Llama
from phial.manifest import write_json
from phial.train.chats import read_chats
from phial.train.sft import SftConfig, encode_chats, held_out
from phial.train.start import open_start

SOURCES = ("creak", "strategyqa", "sensemaking", "ecqa")
FORMS = {  # what is asked for below the question
    "last line": "Give a short reason. Then write a last line of the form\nAnswer: <one of the options>",
    "JSON": "Answer with nothing but a JSON object that has the keys "
    '"reason" and "answer". The answer is one of the options.',
    "option alone": "Write one of the options and nothing else.",
    "brackets": "Write one of the options in square brackets and nothing else.",
}
TRAINED = ("last line", "JSON", "option alone")
CHATS = 400  # that one seed is trained on
HELD = 15  # held-out questions of a source in one form
MEASURED = 5  # of these, those whose loss is measured, too
SHORT = 150  # words of the longest of the other conversations
LONGEST = 160  # tokens of an answer
CONFIG = """sequence = 512
batch = 2
micro_batch = 2

[loop]
precision = "bf16"
seed = {seed}

[loop.optimizer]
lr = 1e-4
"""


class Question(NamedTuple):
    """A question with its options, the right one, and why."""

    text: str
    options: list[str]
    answer: str
    reason: str
    source: str


def read_questions(path: Path, source: str) -> Iterator[Question]:
    """The questions of a file of input, answer and rationale, where the rationale is short."""
    for line in gzip.open(path, "rt", encoding="utf-8"):
        asked, answer, reason = (part.replace("\\n", "\n").strip() for part in line.rstrip("\n").split("\t"))
        text, _, listed = asked.partition("Options:")
        options = [option.strip() for option in re.findall(r"^- (.*)$", listed, re.MULTILINE)] or ["yes", "no"]
        if source == "sensemaking":  # its options are the sentences, its answers their names
            text, options = f"{text.strip()}\n" + "\n".join(options), ["Sentence A", "Sentence B"]
        if answer in options and "\n" not in reason and len(reason.split()) <= 40:
            yield Question(text.strip(), options, answer, reason, source)


def prompt(question: Question, form: str) -> str:
    return f"{question.text}\nOptions: {', '.join(question.options)}\n\n{FORMS[form]}"


def reply(question: Question, form: str) -> str:
    """The answer that is asked for."""
    if form == "last line":
        return f"{question.reason}\nAnswer: {question.answer}"
    if form == "JSON":
        return json.dumps({"reason": question.reason, "answer": question.answer}, ensure_ascii=False)
    return question.answer if form == "option alone" else f"[{question.answer}]"


def kept(text: str, options: Sequence[str], form: str) -> str | None:
    """The option that an answer in the form asked for names; None where it is not in that form."""
    text = text.strip()
    if form == "last line":
        lines = text.splitlines()
        last = lines[-1].strip() if len(lines) > 1 else ""
        found = last.removeprefix("Answer: ") if last.startswith("Answer: ") else None
    elif form == "JSON":
        try:
            value = json.loads(text)
        except ValueError:
            return None
        found = value["answer"] if isinstance(value, dict) and value.keys() == {"reason", "answer"} else None
    elif form == "brackets":
        found = text[1:-1] if text.startswith("[") and text.endswith("]") else None
    else:
        found = text.removesuffix(".")
    same = [option for option in options if isinstance(found, str) and found.strip().casefold() == option.casefold()]
    return same[0] if same else None


def meant(text: str, options: Sequence[str]) -> str | None:
    """The option that an answer in any form mentions last; what counts where the form is not asked about."""
    places = {option: _last(text, option) for option in options}
    best = max(places, key=lambda option: places[option])
    return best if places[best] >= 0 else None


def _last(text: str, option: str) -> int:
    found = list(re.finditer(rf"(?<!\w){re.escape(option)}(?!\w)", text, re.IGNORECASE))
    return found[-1].start() if found else -1


def prepare(folder: Path, flan: Path, others: Path, seed: int) -> None:
    """Write held-out chats and prompts, the same for every seed, and one seed's chats and configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    held: list[tuple[Question, str]] = []
    measured: list[tuple[Question, str]] = []
    pool: list[Question] = []
    for source in SOURCES:
        questions = list(read_questions(flan / f"{source}_train.tsv.gz", source))
        random.Random(source).shuffle(questions)
        for form in FORMS:
            taken = [(questions.pop(), form) for _ in range(HELD)]
            held += taken
            measured += taken[:MEASURED] if form in TRAINED else []
        pool += questions[:1500]
    random.Random(seed).shuffle(pool)
    learnt = [(question, TRAINED[i % len(TRAINED)]) for i, question in enumerate(pool[:CHATS])]
    _write(folder / f"chats-{seed}.jsonl", (_chat(*item) for item in learnt))
    _write(folder / "held-out.jsonl", (_chat(*item) for item in measured))
    _write(folder / "prompts.jsonl", ({"form": form, "prompt": prompt(q, form), **q._asdict()} for q, form in held))
    _write(folder / "others.jsonl", _conversations(others))
    (folder / f"sft-{seed}.toml").write_text(CONFIG.format(seed=seed), "utf-8")


def _chat(question: Question, form: str) -> dict[str, Any]:
    turns = (("user", prompt(question, form)), ("assistant", reply(question, form)))
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def _conversations(path: Path) -> Iterator[dict[str, Any]]:
    """First questions of Open Assistant's trees with the reply that was ranked best."""
    for line in gzip.open(path, "rt", encoding="utf-8"):
        root = json.loads(line)["prompt"]
        replies = [reply for reply in root["replies"] if reply["role"] == "assistant"]
        if replies:
            best = min(replies, key=lambda reply: reply.get("rank") or 0)
            turns = (("user", root["text"].strip()), ("assistant", best["text"].strip()))
            if sum(len(text.split()) for _, text in turns) <= SHORT:
                yield {"messages": [{"role": role, "content": text} for role, text in turns]}


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def measure(model: str, folder: Path, target: Path) -> None:
    """Answers to the held-out prompts, greedily, by the engine, and losses of held-out chats, of one model file."""
    llama = Llama(model, n_ctx=1024, verbose=False)
    engine, rows = EngineModel(llama), []
    for line in (folder / "prompts.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        said = engine.generate([{"role": "user", "content": row["prompt"]}], max_tokens=LONGEST)
        ended = said.finish_reason == "stop"
        named = kept(said.text, row["options"], row["form"]) if ended else None
        right = {"right": named == row["answer"], "meant": meant(said.text, row["options"]) == row["answer"]}
        asked = {key: row[key] for key in ("form", "source", "prompt", "answer")}
        asked["guess"] = 1 / len(row["options"])  # right by chance
        rows.append({**asked, "text": said.text, "ended": ended, "kept": named is not None, **right})
    engine.close()
    losses = {name: loss(llama.model_path, folder / f"{name}.jsonl") for name in ("held-out", "others")}
    write_json(target, {"losses": losses, "answers": rows})


def loss(model: str, chats: Path) -> float:
    """Mean loss of the answers of chats, in nats a token, computed in float32."""
    start, config = open_start(Path(model)), SftConfig(too_long="turns")
    encoded = encode_chats(read_chats([chats]), start, config)
    return held_out({"": encoded}, 1024, 2)(start.model.eval())["validation/loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="chats to learn, chats and prompts to measure on")
    data.add_argument("folder", type=Path)
    data.add_argument("--flan", type=Path, required=True, help="folder of the collection's *_train.tsv.gz")
    data.add_argument("--others", type=Path, required=True, help="Open Assistant's trees, .jsonl.gz")
    data.add_argument("--seed", type=int, default=0)
    measured = commands.add_parser("measure", help="answers and losses of a model, for report")
    measured.add_argument("model", help="GGUF file (path or catalogue name)")
    measured.add_argument("folder", type=Path, help="what data wrote")
    measured.add_argument("target", type=Path, help="JSON file")
    options = parser.parse_args()
    if options.command == "data":
        prepare(options.folder, options.flan, options.others, options.seed)
    elif options.command == "measure":
        measure(str(model_file(options.model)), options.folder, options.target)


if __name__ == "__main__":
    main()
