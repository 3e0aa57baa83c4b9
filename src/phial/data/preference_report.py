"""What a run of preferences leaves: lines of pairs, chats and answers, and a report of what came of each prompt."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, TextIO

from phial.data.judge import Bias
from phial.data.preference_prompts import Gate, Pair, Prompt
from phial.errors import PhialError
from phial.intervals import wilson
from phial.language_model import Reply
from phial.manifest import sha256_of, write_json

if TYPE_CHECKING:
    from phial.data.preference import Answer, Found

NAME, REPORT, JOURNAL = "prefer", "report.json", "journal.jsonl"
FILES = ("pairs", "chats", "answers")


def refuse_foreign(folder: Path) -> None:
    """Raises PhialError where a file that a run would write over is there and not of such a run."""
    report = folder / REPORT
    there = [path for path in (folder / f"{name}.jsonl" for name in FILES) if path.exists()]
    try:
        ours = json.loads(report.read_text("utf-8"))["name"] == NAME
    except FileNotFoundError:
        ours = not there or (folder / JOURNAL).exists()
    except (OSError, ValueError, KeyError, TypeError):
        ours, there = False, [report]
    if not ours:
        raise PhialError(f"{[*there, report][0]} is not of phial data prefer", "it would be lost: use another folder")


class Tally:
    """Counts by kind of prompt, lengths in words, and what the models' answers cost."""

    def __init__(self) -> None:
        self.bias = Bias()
        self.kinds: dict[str, Counter[str]] = defaultdict(Counter)
        self.reasons: dict[str, Counter[str]] = defaultdict(Counter)
        self.words: dict[str, list[int]] = defaultdict(list)
        self._costs: dict[str, Counter[str]] = defaultdict(Counter)
        self._seconds: dict[str, float] = defaultdict(float)

    def spent(self, role: str, reply: Reply, seconds: float) -> None:
        """Count what a reply of the model or the judge cost."""
        self._costs[role].update(replies=1, tokens_in=reply.prompt_tokens, tokens_out=reply.completion_tokens)
        self._seconds[role] += seconds

    def report(self) -> dict[str, Any]:
        """All of it."""
        sums = sum(self.kinds.values(), Counter[str]())
        reasons = sum(self.reasons.values(), Counter[str]())
        return {
            "name": NAME,
            **{name: sums[name] for name in ("prompts", "answers", "pairs", "chats")},
            "no_pair": dict(sorted(reasons.items())),
            "by_kind": {kind: self._of_kind(kind) for kind in sorted(self.kinds)},
            "words": {side: round(mean(counts), 1) for side, counts in sorted(self.words.items())},
            "position": self.bias.report() if "judge" in self._costs else None,
            "costs": {
                role: dict(costs) | {"seconds": round(self._seconds[role], 3)}
                for role, costs in sorted(self._costs.items())
            },
        }

    def _of_kind(self, kind: str) -> dict[str, Any]:
        sums = self.kinds[kind]
        interval = wilson(sums["passed"], sums["answers"])
        return {
            **{name: sums[name] for name in ("prompts", "answers", "passed", "cut_off", "solved", "pairs")},
            "passed_share": round(sums["passed"] / sums["answers"], 4) if sums["answers"] else None,
            "passed_interval": [round(end, 4) for end in interval],
            "no_pair": dict(sorted(self.reasons[kind].items())),
        }


class Output:
    """The files of a folder, under temporary names until `finish`. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, TextIO] = {}

    def __enter__(self) -> Output:
        for name in FILES:
            self._files[name] = self._partial(name).open("w", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        for name, file in self._files.items():
            file.close()
            self._partial(name).unlink(missing_ok=True)

    def add_prompt(self, prompt: Prompt, answers: list[Answer], found: Found, tally: Tally, gate: Gate) -> None:
        """Write and count what came of a prompt."""
        sums = tally.kinds[prompt.kind]
        passed = [not answer.faults for answer in answers]
        sums.update(prompts=1, answers=len(answers), passed=sum(passed), solved=any(passed))
        sums["cut_off"] += sum(answer.cut_off for answer in answers)
        for answer in answers:
            self._write("answers", {"kind": prompt.kind, "prompt": prompt.messages, **answer._asdict()})
        if found.chosen is not None:
            sums["chats"] += 1
            self._write("chats", {"messages": [*prompt.messages, *_said(found.chosen)], "kind": prompt.kind})
        if found.chosen is None or found.rejected is None:
            tally.reasons[prompt.kind][found.reason] += 1
            return
        about = {
            "kind": prompt.kind,
            "source": found.source,
            "scores": [round(found.chosen.score, 4), round(found.rejected.score, 4)],
            "faults": found.rejected.faults,
        }
        self._pair(Pair(prompt.messages, _said(found.chosen), _said(found.rejected), about), prompt.kind, tally, gate)

    def add_given(self, pair: Pair, tally: Tally, gate: Gate) -> None:
        """Write and count a pair of a file."""
        tally.kinds["given"].update(prompts=1)
        self._pair(pair, "given", tally, gate)

    def _pair(self, pair: Pair, kind: str, tally: Tally, gate: Gate) -> None:
        if reason := gate.pair(pair):
            tally.reasons[kind][reason] += 1
            return
        self._write("pairs", pair.row())
        tally.kinds[kind]["pairs"] += 1
        for name, side in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            tally.words[name].append(sum(len(str(message["content"]).split()) for message in side))

    def finish(self, report: dict[str, Any], config: dict[str, Any], gate: Gate) -> dict[str, Any]:
        """Give the files their names and write report.json, last; returns what it says."""
        (self._folder / REPORT).unlink(missing_ok=True)  # of a run before; a kill from here on leaves no mixed folder
        for name, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(self._partial(name), self._folder / f"{name}.jsonl")
        self._files.clear()
        written = {f"{name}.jsonl": sha256_of(self._folder / f"{name}.jsonl") for name in FILES}
        report = report | {
            "prompts_left_out": dict(sorted(gate.left_out.items())),
            "decontaminated": gate.decontaminates,
            "config": config,
            "sha256": written,
        }
        write_json(self._folder / REPORT, report)
        return report

    def _write(self, name: str, row: dict[str, Any]) -> None:
        self._files[name].write(json.dumps(row, ensure_ascii=False) + "\n")

    def _partial(self, name: str) -> Path:
        return self._folder / f"{name}.jsonl.partial"


def _said(answer: Answer) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": answer.text}]
