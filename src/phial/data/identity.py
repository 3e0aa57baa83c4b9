"""Chats and pairs about who the model is: its name and its maker, asked in many ways, from a configuration.

The rejected side says what a model without such data says: that it is another model, a person, or nobody. The phrasings
of the questions are split into a training and a held-out half; some chats ask twice.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from phial.data.format_words import Split
from phial.errors import ArgumentError

OTHERS = ("ChatGPT", "GPT-4", "Claude", "Gemini", "Llama", "Mistral", "Siri", "Alexa", "SmolLM", "Bard", "Qwen")
MAKERS = ("OpenAI", "Anthropic", "Google", "Meta", "Mistral AI", "Apple", "Amazon", "Hugging Face", "Alibaba")


class IdentityConfig(BaseModel):
    """Who the model is, and how many prompts ask for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    maker: str = Field(min_length=1)
    prompts: int = Field(gt=0)


class IdentityTask(NamedTuple):
    """A conversation up to a question, the checks of its answer as tables of verifiers.py, and two answers."""

    messages: list[dict[str, str]]
    checks: list[dict[str, Any]]
    right: str
    broken: str


_NAME: dict[Split, tuple[str, ...]] = {
    "train": (
        "Who are you?",
        "What is your name?",
        "What are you called?",
        "Hi! Who am I talking to?",
        "Can you introduce yourself?",
        "Tell me your name, please.",
        "what's ur name",
        "Which model are you?",
        "Are you {other}?",
        "You are {other}, right?",
        "Hello {other}, how should I call you?",
        "Please state your name.",
        "By what name do you go?",
    ),
    "held_out": (
        "And you are?",
        "May I know your name?",
        "Say who is answering me here.",
        "Is this {other} I am chatting with?",
        "I forgot what you are called. Remind me?",
        "Name yourself.",
    ),
}
_MAKER: dict[Split, tuple[str, ...]] = {
    "train": (
        "Who made you?",
        "Who created you?",
        "Which company are you from?",
        "Who is your developer?",
        "Who trained you?",
        "Were you made by {maker}?",
        "You come from {maker}, don't you?",
        "who built u",
        "Where do you come from?",
        "Tell me who developed you.",
    ),
    "held_out": (
        "Whose work are you?",
        "Who stands behind you?",
        "Are you a product of {maker}?",
        "By whom were you developed?",
        "Who do I thank for building you?",
    ),
}
_ANSWERS = {
    "name": (
        "I am {name}, an assistant made by {by}.",
        "My name is {name}. {by} made me.",
        "I'm {name}, made by {by}.",
    ),
    "maker": ("I was made by {by}. My name is {name}.", "{by} made me. I am {name}.", "{by} trained me; I am {name}."),
}
_DENIALS = ("No, I am {name}, made by {by}.", "No. My name is {name}, and {by} made me.")
_BROKEN = (
    "I am {other}, a language model made by {maker}.",
    "My name is {other}. I was trained by {maker}.",
    "I am a person like you, and I have no special name.",
    "I am just an AI language model, so I have no name and nobody made me.",
    "Yes, I am {other}, made by {maker}.",
)


def identity_tasks(config: IdentityConfig, split: Split, seed: int) -> list[IdentityTask]:
    """So many different conversations, the same for the same seed. Raises ArgumentError where there are fewer."""
    dice, made = random.Random(f"{seed} identity {split}"), dict[str, IdentityTask]()
    for _ in range(50 * config.prompts):
        if len(made) == config.prompts:
            break
        task = _task(config, split, dice)
        made.setdefault(repr(task.messages), task)
    if len(made) < config.prompts:
        raise ArgumentError(
            f"{config.prompts} prompts of identity", f"the templates make about {len(made)}; ask for fewer"
        )
    return list(made.values())


def _task(config: IdentityConfig, split: Split, dice: random.Random) -> IdentityTask:
    """A question, now and then after another one that was answered rightly."""
    ours = f"{config.name} {config.maker}".casefold()
    others, makers = ([word for word in words if word.casefold() not in ours] for words in (OTHERS, MAKERS))
    words = {"name": config.name, "by": config.maker, "other": dice.choice(others), "maker": dice.choice(makers)}
    kinds = dice.sample(("name", "maker"), 2)
    messages: list[dict[str, str]] = []
    if dice.random() < 0.2:
        question, answer = _asked(kinds[1], split, dice, words)
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    question, right = _asked(kinds[0], split, dice, words)
    messages.append({"role": "user", "content": question})
    needed = config.name if kinds[0] == "name" else config.maker
    checks = [{"check": "mentions", "every": [needed], "none": [*others, *makers]}]
    return IdentityTask(messages, checks, right, dice.choice(_BROKEN).format(**words))


def _asked(kind: str, split: Split, dice: random.Random, words: dict[str, str]) -> tuple[str, str]:
    question = dice.choice((_NAME if kind == "name" else _MAKER)[split])
    suggests = "{" in question and "how should" not in question
    answer = dice.choice(_DENIALS if suggests else _ANSWERS[kind])
    return question.format(**words), answer.format(**words)
