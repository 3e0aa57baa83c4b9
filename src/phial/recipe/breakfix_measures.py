"""What a round of the break-fix cycle is measured by, how that compares with the model before, and when to stop."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from phial.eval.proportions import change, share
from phial.eval.redteam import Attack, attack_all
from phial.eval.safety import (
    Judged,
    answer_all,
    attack_measures,
    judge_all,
    judges_compared,
    refusal_measures,
)
from phial.eval.safety_judges import Judge
from phial.language_model import LanguageModel
from phial.recipe.breakfix_config import BreakfixConfig, Plan, StopConfig

Show = Callable[[str, int, int], None]  # what is done, how much of it, of how much
Measured = dict[str, Any]


def measure(
    model: LanguageModel,
    plan: Plan,
    judges: Sequence[Judge],
    config: BreakfixConfig,
    show: Show,
) -> Measured:
    """Everything a round is measured by, as a file holds it; no answer's text is in it.

    Args:
        judges: the one that decides first.
    """
    found: Measured = {}
    for name, attacks in (("held-out", plan.held_out), ("plain", plan.plain)):
        judged = judge_attacks(model, attacks, judges, config.measure.max_tokens, show, name)
        if judged:
            found[name] = attack_measures(judged, judges[0].name, config.success)
            found[f"{name} attacks"] = [_row(row) for row in judged]
        if judged and len(judges) > 1:
            found[f"{name} judges"] = judges_compared(judged, judges[0].name, judges[1].name, config.success)
    if plan.labelled:
        shown = _counted(show, "safe and unsafe prompts", plan.labelled)
        answered = answer_all(model, plan.labelled, max_tokens=config.measure.max_tokens, show=shown)
        found["labelled"] = refusal_measures(answered)
    if plan.exact:
        found["exact"] = share([_right(model, *pair, config.measure.max_tokens) for pair in plan.exact]).json()
    return found


def judge_attacks(
    model: LanguageModel, attacks: Sequence[Attack], judges: Sequence[Judge], max_tokens: int, show: Show, what: str
) -> list[Judged]:
    """The model's answers to attacks and every judge's verdicts."""
    attacked = attack_all(model, attacks, max_tokens=max_tokens, show=_counted(show, f"{what} attacks", attacks))
    return judge_all(attacked, judges)


def compared(before: Measured, after: Measured, success: int) -> dict[str, Any]:
    """How attack success has changed on the same attacks, with an interval over requests."""
    found: dict[str, Any] = {}
    for name in ("held-out", "plain"):
        if name in before:
            rows = zip(before[f"{name} attacks"], after[f"{name} attacks"], strict=True)
            won = [(a["severity"] >= success, b["severity"] >= success, a["prompt"]) for a, b in rows]
            columns = [list(column) for column in zip(*won, strict=True)]
            found[name] = change(columns[0], columns[1], columns[2])._asdict()
    return found


def beyond_bounds(first: Measured, now: Measured, stop: StopConfig) -> str:
    """What has become worse than a round may make it, in words; "" where nothing has."""
    if "labelled" in first:
        was, is_now = (found["labelled"]["safe refused"]["value"] for found in (first, now))
        if is_now - was > stop.safe_refused:
            return f"safe prompts refused rose from {was:.1%} to {is_now:.1%}"
    if "loss" in first and now["loss"] > first["loss"] * (1 + stop.loss):
        return f"the loss of general chats rose from {first['loss']:.3f} to {now['loss']:.3f}"
    if "exact" in first and first["exact"]["value"] - now["exact"]["value"] > stop.exact:
        return f"right answers fell from {first['exact']['value']:.1%} to {now['exact']['value']:.1%}"
    return ""


def success_rate(found: Measured) -> float:
    """What the cycle lowers: the success of held-out attacks."""
    return float(found["held-out"]["success"]["value"])


def _row(row: Judged) -> dict[str, Any]:
    attack = row.attacked.attack
    severities = [verdict.severity for verdict in row.verdicts.values()]
    return {"id": attack.id, "prompt": attack.prompt.id, "severity": severities[0], "severities": severities}


def _counted(show: Show, what: str, items: Sequence[Any]) -> Callable[[int], None]:
    return lambda done: show(what, done, len(items))


def _right(model: LanguageModel, question: str, expected: str, max_tokens: int) -> bool:
    reply = model.generate([{"role": "user", "content": question}], max_tokens=max_tokens)
    return re.search(rf"(?<!\w){re.escape(expected)}(?!\w)", reply.text, re.IGNORECASE) is not None
