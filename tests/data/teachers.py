"""A teacher that follows rules: it writes what the schema asks for about the topic that it is asked about.

Run as a program it is a synthesis that kills itself after some requests (see test_synthesize.py).
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phial.language_model import Reply

WORDS = (
    "river stone garden window letter number winter pocket signal bridge copper shadow market engine paper silver"
    " candle harbour ladder mirror needle orchard planet ribbon saddle thread umbrella valley whistle yellow anchor"
    " basket cotton dinner eleven feather ginger hammer island jungle kettle lemon"
).split()


class RuleTeacher:
    """Answers from the request alone, so that it can be asked in any order; a subclass changes the answers."""

    name = "rules-1"

    def __init__(self, kill_after: int | None = None) -> None:
        self.asked = 0
        self._kill_after = kill_after

    def generate(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        schema: Mapping[str, Any] | None = None,
        stop: Sequence[str] = (),
    ) -> Reply:
        self.asked += 1
        if self.asked == self._kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        assert schema is not None
        text = messages[-1]["content"]
        answer = self.answer(list(schema["properties"]), _topic(text), text, seed)
        return Reply(answer if isinstance(answer, str) else json.dumps(answer), len(text.split()), 100)

    def answer(self, fields: list[str], topic: str, request: str, seed: int) -> Any:
        """A good answer."""
        said = prose(topic, seed)
        if fields == ["title", "sections"]:
            return {"title": topic, "sections": [{"heading": "About it", "text": said}]}
        if fields == ["problem", "steps", "answer"]:
            a, b = seed % 90 + 10, seed % 7 + 2
            steps = [f"Think of {topic}: {said}", f"Then {a} * {b} = {a * b}."]
            return {
                "problem": f"A question on {topic}: how much are {a} times {b}?",
                "steps": steps,
                "answer": str(a * b),
            }
        if fields == ["task", "solution", "tests"]:
            task = f"On {topic}: write f that adds {seed}. {said}"
            return {
                "task": task,
                "solution": f"def f(x):\n    return x + {seed}",
                "tests": [f"assert f(1) == {seed + 1}"] * 2,
            }
        if fields == ["pairs"]:
            return {"pairs": [{"question": f"What is {topic}?", "answer": said}]}
        if fields == ["turns"]:
            speakers = ["Teacher", "Student", "Teacher", "Student"]
            return {"turns": [{"speaker": s, "text": prose(topic, seed + n)} for n, s in enumerate(speakers)]}
        source = request.split("The text:\n")[1].split()
        return {"title": topic, "text": " ".join(reversed(source))}


def prose(topic: str, seed: int) -> str:
    """Sixty words about a topic that differ from seed to seed."""
    picked = [WORDS[zlib.crc32(f"{seed} {n}".encode()) % len(WORDS)] for n in range(56)]
    return f"This is about {topic}: " + " ".join(picked) + "."


def _topic(text: str) -> str:
    found = re.search(r"about (.+?) \([^()]*\)", text)
    return found[1] if found else "the text"


if __name__ == "__main__":
    from phial.data.synthesize import checked_config, synthesize

    folder, settings, kill_after = sys.argv[1:]
    synthesize(checked_config(json.loads(settings)), RuleTeacher(int(kill_after)), Path(folder))
