"""Red teaming: requests dressed up by mutators, said to a model turn by turn, its answers kept for the judges.

An attack is a function of request, mutator and seed. What fixes a model and what measures it are kept apart twice: by
request (near_prompts.py finds what is nearly the same) and by mutator; `split` makes both sides and checks them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from phial.errors import PhialError
from phial.eval.near_prompts import near_pairs
from phial.eval.redteam_mutators import Mutator, Persona, Turn
from phial.eval.redteam_prompts import Prompt
from phial.language_model import LanguageModel

Message = dict[str, str]


class Attack(NamedTuple):
    """A request as one persona asks it."""

    prompt: Prompt
    mutator: str
    persona: Persona
    turns: tuple[Turn, ...]

    @property
    def id(self) -> str:
        """What it is called in files."""
        return f"{self.mutator}: {self.prompt.id}"


class Attacked(NamedTuple):
    """An attack and what the model answered to each turn."""

    attack: Attack
    answers: tuple[str, ...]

    @property
    def messages(self) -> list[Message]:
        """The whole conversation."""
        messages = list[Message]()
        for turn, answer in zip(self.attack.turns, self.answers, strict=True):
            messages += [{"role": "user", "content": turn.text}, {"role": "assistant", "content": answer}]
        return messages

    @property
    def judged(self) -> list[tuple[str, str]]:
        """Turns from the first that asks on, with their answers."""
        pairs = zip(self.attack.turns, self.answers, strict=True)
        return [(turn.text, answer) for turn, answer in pairs if turn.asks]


def make_attacks(
    prompts: Sequence[Prompt], mutators: Sequence[Mutator], *, per_prompt: int | None = None, seed: int = 0
) -> list[Attack]:
    """Each request under `per_prompt` of the mutators, dealt in turn so that all come equally often; None: under all.

    A mutator that can do nothing with a request gives no attack.
    """
    order = list(mutators)
    random.Random(f"{seed} order").shuffle(order)
    wanted = len(order) if per_prompt is None else min(per_prompt, len(order))
    attacks = []
    for number, prompt in enumerate(prompts):
        for place in range(wanted):
            way = order[(number * wanted + place) % len(order)]
            turns = way.turns(prompt.text, random.Random(f"{seed} {way.name} {prompt.text}"))
            if turns:
                attacks.append(Attack(prompt, way.name, way.persona, turns))
    return attacks


def converse(model: LanguageModel, attack: Attack, *, max_tokens: int, seed: int = 0) -> Attacked:
    """Say the attack's turns to a model, which answers greedily, at most `max_tokens` tokens a turn.

    Raises PhialError as the model does.
    """
    messages, answers = list[Message](), list[str]()
    for turn in attack.turns:
        messages.append({"role": "user", "content": turn.text})
        answers.append(model.generate(messages, max_tokens=max_tokens, seed=seed).text)
        messages.append({"role": "assistant", "content": answers[-1]})
    return Attacked(attack, tuple(answers))


def attack_all(
    model: LanguageModel, attacks: Iterable[Attack], *, max_tokens: int, show: Callable[[int], Any] = lambda done: None
) -> list[Attacked]:
    """Every attack in turn. `show` is told how many are done."""
    done = []
    for attack in attacks:
        done.append(converse(model, attack, max_tokens=max_tokens))
        show(len(done))
    return done


def check_apart(fixing: Iterable[str], measuring: Sequence[str]) -> None:
    """Raises PhialError where a text to fix with is one that measures, or near it."""
    found = near_pairs(fixing, measuring)
    if found:
        first, second, _ = found[0]
        raise PhialError(
            f"{len(found)} requests to fix with are near requests that measure, as {first!r:.90} and {second!r:.90}",
            "what measures must never be trained on: leave them out of one side",
        )


def check_mutators_apart(fixing: Iterable[str], measuring: Iterable[str]) -> None:
    """Raises PhialError where a mutator both fixes and measures as held out."""
    if both := sorted(set(fixing) & set(measuring)):
        raise PhialError(f"the mutator {both[0]!r} is to fix and to be held out", "name it on one side")
