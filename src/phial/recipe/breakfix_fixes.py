"""What a model learns from the attacks that succeeded: refusals, look-alikes answered, general chats; chats and pairs.

Rules kept here and tested: a refusal is the only answer that ever follows a harmful request in a chat; what the model
itself said to one stands in a pair alone, as the rejected side. Refusals are composed of phial's own parts (an opening,
a reason, an offer by category), drawn by seed. Harmless answers are the model's own from before tuning, cut to whole
sentences; where it refused or babbled there is none.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from phial.eval.redteam import Attack, Attacked, Message, converse, make_attacks
from phial.eval.redteam_mutators import Mutator, Turn
from phial.eval.redteam_prompts import Category, Prompt, built_in
from phial.eval.refusals import is_gibberish, is_refusal
from phial.language_model import LanguageModel

_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")


class Fixes(NamedTuple):
    """What a round adds: chats and pairs, as rows of files, and how many of each kind there are."""

    chats: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    counts: dict[str, int]


def refusal(category: str, rng: random.Random, *, again: bool = False) -> str:
    """A refusal of a request of that kind of harm (built-in, else in general words); `again` where it was refused
    before."""
    shared = built_in().answers
    known = {found.name: found for found in built_in().categories}.get(category)
    parts: Category | None = known
    because, instead = (parts.because, parts.instead) if parts else (shared["because"], shared["instead"])
    opening = rng.choice(shared["again" if again else "openings"])
    reason = rng.choice(because)
    return f"{opening}. {reason[0].upper()}{reason[1:]}. {rng.choice(instead)}."


def whole_sentences(text: str) -> str:
    """The text up to its last end of a sentence; "" where there is none."""
    ends = [found.end() for found in _END.finditer(text)]
    return text[: ends[-1]].strip() if ends else ""


def refused_chat(attacked: Attacked, rng: random.Random) -> list[Message] | None:
    """The conversation as it should have gone: the model's own answers until the request, refusals from there on.

    None where an answer before the request is no whole sentence, or no answer at all.
    """
    messages, asked = list[Message](), False
    for turn, answer in zip(attacked.attack.turns, attacked.answers, strict=True):
        if turn.asks:
            answer = refusal(attacked.attack.prompt.category, rng, again=asked)
        elif not (answer := _usable(answer)):
            return None
        asked = asked or turn.asks
        messages += [{"role": "user", "content": turn.text}, {"role": "assistant", "content": answer}]
    return messages


def rejected_pair(attacked: Attacked, chosen: str) -> dict[str, Any] | None:
    """The first answer that did not turn the request down, as the rejected side; what was said before is the prompt.

    None where every answer did: a model judge may have seen harm all the same.
    """
    messages = list[Message]()
    for turn, answer in zip(attacked.attack.turns, attacked.answers, strict=True):
        messages.append({"role": "user", "content": turn.text})
        if turn.asks and not is_refusal(answer):
            return pair(messages, chosen, answer)
        messages.append({"role": "assistant", "content": answer})
    return None


def pair(prompt: list[Message], chosen: str, rejected: str) -> dict[str, Any]:
    """A row of preference data."""
    sides = {"chosen": chosen, "rejected": rejected}
    return {"prompt": prompt, **{key: [{"role": "assistant", "content": text}] for key, text in sides.items()}}


def make_fixes(
    succeeded: Sequence[Attacked],
    before: LanguageModel,
    harmless: Sequence[Prompt],
    general: Sequence[Prompt],
    ways: Sequence[Mutator],
    *,
    look_alikes: float,
    share_general: float,
    max_tokens: int,
    seed: int,
) -> Fixes:
    """Refusals for the attacks that succeeded, and so many harmless and general requests answered by the model.

    Args:
        before: the model before any tuning, which answers what is harmless.
        look_alikes, share_general: for each attack fixed.
    """
    chats, pairs = list[dict[str, Any]](), list[dict[str, Any]]()
    for attacked in succeeded:
        rng = random.Random(f"{seed} {attacked.attack.id}")
        messages = refused_chat(attacked, rng)
        if messages is None:
            continue
        chats.append({"messages": messages, "kind": "refused", "id": attacked.attack.id})
        if (row := rejected_pair(attacked, refusal(attacked.attack.prompt.category, rng))) is not None:
            pairs.append(row | {"kind": "refused", "id": attacked.attack.id})
    refused = len(chats)
    order = random.Random(f"{seed} look-alikes")
    dressed = make_attacks(harmless, [way for way in ways if way.name != "plain"], per_prompt=1, seed=seed)
    similar = [*_plainly(harmless), *dressed]  # people ask as it stands, most of the time
    similar = order.sample(similar, len(similar))
    for messages, attack in _answered(similar, before, round(look_alikes * refused), max_tokens):
        chats.append({"messages": messages, "kind": "harmless", "id": attack.id})
        said = refusal(attack.prompt.category, random.Random(f"{seed} {attack.id}"))
        row = pair(messages[:-1], messages[-1]["content"], said)
        pairs.append(row | {"kind": "harmless", "id": attack.id})
    answered = len(chats) - refused
    asked = _plainly(order.sample(general, len(general)))
    for messages, attack in _answered(asked, before, round(share_general * refused), max_tokens):
        chats.append({"messages": messages, "kind": "general", "id": attack.id})
    counts = {"refused": refused, "harmless": answered, "general": len(chats) - refused - answered, "pairs": len(pairs)}
    return Fixes(chats, pairs, counts)


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Rows as JSON lines, written whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    os.replace(partial, path)


def read_written(path: Path) -> list[dict[str, Any]]:
    """What write_rows() wrote. Lines end at newlines alone: str.splitlines() would break texts at U+2028 as well."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _answered(
    attacks: Sequence[Attack], model: LanguageModel, wanted: int, max_tokens: int
) -> list[tuple[list[Message], Attack]]:
    """The first `wanted` harmless conversations in which every answer of the model can be learnt."""
    found = list[tuple[list[Message], Attack]]()
    for attack in attacks:
        if len(found) == wanted:
            break
        attacked = converse(model, attack, max_tokens=max_tokens)
        answers = [_usable(answer) for answer in attacked.answers]
        if all(answers):
            found.append((attacked._replace(answers=tuple(answers)).messages, attack))
    return found


def _plainly(prompts: Sequence[Prompt]) -> list[Attack]:
    return [Attack(prompt, "plain", "low, one turn", (Turn(prompt.text),)) for prompt in prompts]


def _usable(answer: str) -> str:
    """An answer cut to whole sentences; "" where it refuses or babbles."""
    text = whole_sentences(answer)
    return "" if is_refusal(text) or is_gibberish(text) else text
