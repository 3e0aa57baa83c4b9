"""What a finished model says: continuations to read, and held-out problems to count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from phial.engine.llama import Llama
from phial.manifest import write_json
from phial.recipe.recipe import SamplesConfig


def write_samples(model: Path, config: SamplesConfig, held_out: Path, target: Path) -> dict[str, Any]:
    """Continue the prompts and answer the held-out problems, likeliest token first; into `target`, counts returned."""
    problems = _problems(held_out)
    llm = Llama(model_path=str(model), n_ctx=0, verbose=False)
    said = [{"prompt": prompt, "text": _continued(llm, prompt, config.max_tokens)} for prompt in config.prompts]
    asked: list[dict[str, Any]] = []
    for problem in problems:
        answer = _continued(llm, problem["prompt"], 48, stop="\n").strip()
        asked.append({**problem, "said": answer, "right": answer == problem["answer"]})
    llm.close()
    write_json(target, {"samples": said, "problems": asked})
    right = sum(row["right"] for row in asked)
    return {"samples": said, **({"problems": len(asked), "right": right} if asked else {})}


def _continued(llm: Llama, prompt: str, max_tokens: int, stop: str | None = None) -> str:
    answer: Any = llm(prompt, max_tokens=max_tokens, temperature=0, stop=stop)
    return str(answer["choices"][0]["text"])


def _problems(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as lines:  # U+2028 ends none of them
        return [json.loads(line) for line in lines]
