"""Prompts about keeping a format, from templates, each with checks, a right answer and a broken one.

A prompt of the held-out half shares neither phrasing nor topic nor keys with one of the training half
(format_words.py), so no held-out prompt is a training prompt with another name in it. Whole kinds can be held out
too, by leaving them out of the configuration.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

from phial.data.format_words import CATEGORIES, KEYS, THINGS, Split, in_words
from phial.errors import ArgumentError

FormatKind = Literal[
    "json_object",
    "json_list",
    "numbered_list",
    "bullet_list",
    "comma_list",
    "one_word",
    "number_only",
    "number_words",
    "yes_no",
    "capitals",
    "begins_with",
    "key_value",
]
FORMAT_KINDS: tuple[FormatKind, ...] = get_args(FormatKind)
Checks = list[dict[str, Any]]
_TRIES = 50  # for each prompt, to find one that is not there yet


class Task(NamedTuple):
    """A prompt, its checks as tables of verifiers.py, and two answers: one that passes them all, one that does not."""

    prompt: str
    checks: Checks
    right: str
    broken: str


def format_tasks(kind: FormatKind, count: int, split: Split, seed: int) -> list[Task]:
    """So many different tasks of a kind, the same for the same seed. Raises ArgumentError where there are fewer."""
    dice, made = random.Random(f"{seed} {kind} {split}"), dict[str, Task]()
    for _ in range(count * _TRIES):
        if len(made) == count:
            break
        task = _MAKERS[kind](dice, split)
        made.setdefault(task.prompt, task)
    if len(made) < count:
        raise ArgumentError(
            f"{count} prompts of the kind {kind}", f"the templates make about {len(made)}; ask for fewer"
        )
    return list(made.values())


def _json_object(dice: random.Random, split: Split) -> Task:
    thing, keys = dice.choice(THINGS[split]), dice.sample(list(KEYS[split]), dice.choice((2, 3)))
    names = _listed([f'"{key}"' for key in keys])
    ask = _one_of(
        dice,
        split,
        f"Invent {thing}. Answer with a JSON object with the keys {names} and nothing else.",
        f"Make up {thing} and write it as JSON. The keys are {names}. Write only the JSON object.",
        f"Return a JSON object with exactly the keys {names} that describes {thing}. No other text.",
        held_out=(
            f"I need one JSON object about {thing} you make up, its fields being {names}. Output the object alone.",
            f"Describe {thing} of your imagination in JSON ({names} are the only keys), without any text around it.",
        ),
    )
    value = {key: dice.choice(KEYS[split][key]) for key in keys}
    right = json.dumps(value)
    less = json.dumps({key: value[key] for key in keys[1:]})
    broken = dice.choice((f"Sure! Here is the JSON object:\n\n{right}", less, right[:-1], f"{right}\nIs this all?"))
    return Task(ask, [{"check": "json", "keys": keys}], right, broken)


def _json_list(dice: random.Random, split: Split) -> Task:
    category, items = _items(dice, split)
    n = len(items)
    ask = _one_of(
        dice,
        split,
        f"Name exactly {n} {category} as a JSON array of strings and write nothing else.",
        f"Write a JSON list of {n} {category}. Only the list.",
        held_out=(
            f"Which {n} {category} come to mind? Reply with nothing but a JSON array of strings.",
            f"A JSON array holding {n} {category} as strings, please, and no other text.",
        ),
    )
    schema = {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": n, "maxItems": n}
    right = json.dumps(items)
    broken = dice.choice((json.dumps(items[1:]), f"Here is the list: {right}", ", ".join(items)))
    return Task(ask, [{"check": "json", "schema": {**schema, "uniqueItems": True}}], right, broken)


def _numbered_list(dice: random.Random, split: Split) -> Task:
    category, items = _items(dice, split)
    n = len(items)
    ask = _one_of(
        dice,
        split,
        f"List exactly {n} {category} as a numbered list. Write nothing else.",
        f"Give me {n} {category}, numbered from 1 to {n}, one per line, without any other text.",
        f"Write a numbered list of {n} {category} and nothing more.",
        held_out=(
            f"I want {n} {category} in a numbered list; the list must be the whole answer.",
            f"Number {n} {category} of your choice, each on its own line. No introduction, no ending.",
        ),
    )
    right, broken = _lines(dice, items, lambda place: f"{place}.")
    return Task(ask, [{"check": "list", "style": "numbered", "items": n}], right, broken)


def _bullet_list(dice: random.Random, split: Split) -> Task:
    category, items = _items(dice, split)
    n = len(items)
    ask = _one_of(
        dice,
        split,
        f'List exactly {n} {category}, each on a line that begins with "- ". Write nothing else.',
        f'Give {n} {category} as bullet points with "- ", without any other text.',
        held_out=(
            f'Put {n} {category} into a list with "- " before each of them; the list is the whole answer.',
            f'I need {n} {category}, one a line, every line with "- " in front. No sentence around them.',
        ),
    )
    right, broken = _lines(dice, items, lambda place: "-")
    return Task(ask, [{"check": "list", "style": "bullets", "items": n}], right, broken)


def _comma_list(dice: random.Random, split: Split) -> Task:
    category, items = _items(dice, split)
    n = len(items)
    ask = _one_of(
        dice,
        split,
        f"Name exactly {n} {category}, separated by commas, on one line. Write nothing else.",
        f"Write {n} {category} with commas between them and nothing more.",
        f"Give me {n} {category} as a comma-separated list without any other text.",
        held_out=(
            f"I need {n} {category} in a single line, a comma after each but the last. Only that line.",
            f"Which {n} {category} do you know? Reply with a comma-separated line alone.",
        ),
    )
    right = ", ".join(items)
    broken = dice.choice((f"Here are {n} {category}: {right}", ", ".join(items[1:]), "\n".join(items)))
    return Task(ask, [{"check": "list", "style": "commas", "items": n}], right, broken)


def _one_word(dice: random.Random, split: Split) -> Task:
    category, items = _items(dice, split)
    ask = _one_of(
        dice,
        split,
        f"Name one of the {category} that is not {items[1]}. Answer with one word.",
        f"Besides {items[1]}, which of the {category} do you know best? Use one word only.",
        f"Think of the {category} and say just one, in a single word. Not {items[1]}.",
        held_out=(
            f"Tell me any of the {category} in a one-word reply, but do not say {items[1]}.",
            f"One word, please: what belongs with {items[1]} to the {category}?",
        ),
    )
    broken = dice.choice((f"One of them is the {items[0]}.", f"I would say {items[0]}.", f"{items[0]} or {items[2]}"))
    return Task(ask, [{"check": "words", "least": 1, "most": 1}], items[0].capitalize(), broken)


def _number_only(dice: random.Random, split: Split) -> Task:
    """Sums and differences within 50; the training half has those whose first number is even."""
    a, b = 2 * dice.randint(1, 20) + (split == "held_out"), dice.randint(2, 30)
    (word, sign), value = (("plus", "+"), a + b) if dice.random() < 0.5 or a < b else (("minus", "-"), a - b)
    ask = _one_of(
        dice,
        split,
        f"What is {a} {sign} {b}? Answer with the number only.",
        f"Calculate {a} {word} {b} and write just the result as a number.",
        f"{a} {sign} {b} = ? Write only the number.",
        held_out=(
            f"Work out {a} {word} {b}. Your whole answer is one number.",
            f"How much is {a} {sign} {b}? Reply with digits and nothing else.",
        ),
    )
    broken = dice.choice((f"{a} {sign} {b} = {value}", f"{value + dice.choice((-2, -1, 1, 2, 10))}", f"It is {value}."))
    return Task(ask, [{"check": "number", "value": str(value), "alone": True}], str(value), broken)


def _number_words(dice: random.Random, split: Split) -> Task:
    """Numbers below 100 in words; the training half has the even ones."""
    number = 2 * dice.randint(0, 49) + (split == "held_out")
    ask = _one_of(
        dice,
        split,
        f"Write the number {number} in words and nothing else.",
        f"Spell out {number}. Only the words, no digits.",
        f"How is {number} written in words? Answer with the words alone.",
        held_out=(
            f"Put {number} into English words; do not use digits or any other text.",
            f"Say {number} the way it is spoken. Nothing but the words.",
        ),
    )
    word = in_words(number)
    broken = dice.choice((str(number), f"{number} is {word}.", in_words((number + 10) % 100)))
    return Task(ask, [{"check": "exact", "values": [word, word.replace("-", " ")]}], word, broken)


def _yes_no(dice: random.Random, split: Split) -> Task:
    category, items = _items(dice, split)
    other = dice.choice([name for name in CATEGORIES[split] if name != category])
    truth = dice.random() < 0.5
    asked = category if truth else other
    ask = _one_of(
        dice,
        split,
        f"Does {items[0]} belong to the {asked}? Answer yes or no, nothing else.",
        f"Yes or no, in one word: is {items[0]} among the {asked}?",
        held_out=(f"Would you count {items[0]} as one of the {asked}? Reply with just yes or just no.",),
    )
    right, wrong = ("Yes", "No") if truth else ("No", "Yes")
    broken = dice.choice((wrong, f"{right}, {items[0]} is one of the {category}."))
    return Task(ask, [{"check": "exact", "values": [right]}], right, broken)


def _capitals(dice: random.Random, split: Split) -> Task:
    category, items = _items(dice, split)
    ask = _one_of(
        dice,
        split,
        f"Write one short sentence about {items[0]} in capital letters only.",
        f"Say something about {items[0]}. Use only capital letters.",
        held_out=(f"Every letter of your answer must be a capital. Tell me something about {items[0]}.",),
    )
    said = f"I like {items[0]} best of all the {category}."
    checks: Checks = [{"check": "letters", "only": "upper"}, {"check": "words", "least": 2, "most": 40}]
    return Task(ask, checks, said.upper(), said)


def _begins_with(dice: random.Random, split: Split) -> Task:
    category, items = _items(dice, split)
    phrases = {"train": ("My answer:", "Well,", "Answer:"), "held_out": ("Result:", "In short,", "Here goes:")}
    phrase = dice.choice(phrases[split])
    ask = _one_of(
        dice,
        split,
        f'Name one of the {category} other than {items[1]}. Begin your answer with "{phrase}"',
        f'Start with "{phrase}" and then name one of the {category}, but not {items[1]}.',
        held_out=(f'"{phrase}" must be the first words of your answer. Which of the {category} besides {items[1]}?',),
    )
    checks: Checks = [{"check": "edges", "begins": phrase}, {"check": "words", "least": 2, "most": 40}]
    return Task(ask, checks, f"{phrase} {items[0]}.", f"{items[0].capitalize()} is one of the {category}.")


def _key_value(dice: random.Random, split: Split) -> Task:
    thing, keys = dice.choice(THINGS[split]), dice.sample(list(KEYS[split]), 2)
    ask = _one_of(
        dice,
        split,
        f'Invent {thing}. Write two lines and nothing else: "{keys[0]}: ..." and "{keys[1]}: ..."',
        held_out=(f'Make up {thing}. Your answer has two lines, first "{keys[0]}: ...", then "{keys[1]}: ..."',),
    )
    lines = [f"{key}: {dice.choice(KEYS[split][key])}" for key in keys]
    checks = [{"check": "lines", "begin": [f"{key}:" for key in keys]}]
    broken = dice.choice((f"Sure:\n{lines[0]}\n{lines[1]}", "\n".join(reversed(lines)), lines[0]))
    return Task(ask, checks, "\n".join(lines), broken)


def _one_of(dice: random.Random, split: Split, *train: str, held_out: tuple[str, ...]) -> str:
    """A phrasing of the half."""
    return dice.choice(train if split == "train" else held_out)


def _items(dice: random.Random, split: Split) -> tuple[str, list[str]]:
    """A category, and three to six of its members."""
    category = dice.choice(list(CATEGORIES[split]))
    return category, dice.sample(CATEGORIES[split][category].split(), dice.randint(3, 6))


def _lines(dice: random.Random, items: list[str], mark: Callable[[int], str]) -> tuple[str, str]:
    """The items a line each, and a broken list of them."""
    lines = [f"{mark(place)} {item}" for place, item in enumerate(items, 1)]
    whole = "\n".join(lines)
    return whole, dice.choice(("\n".join(lines[:-1]), f"Here is the list:\n\n{whole}", "\n".join(items)))


def _listed(parts: list[str]) -> str:
    return ", ".join(parts[:-1]) + " and " + parts[-1]


_MAKERS: dict[FormatKind, Callable[[random.Random, Split], Task]] = {
    "json_object": _json_object,
    "json_list": _json_list,
    "numbered_list": _numbered_list,
    "bullet_list": _bullet_list,
    "comma_list": _comma_list,
    "one_word": _one_word,
    "number_only": _number_only,
    "number_words": _number_words,
    "yes_no": _yes_no,
    "capitals": _capitals,
    "begins_with": _begins_with,
    "key_value": _key_value,
}
