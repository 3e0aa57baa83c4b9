"""A language model that remembers: what it was asked before is answered from a file, so that a stopped run goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from phial.data.request_journal import RequestJournal, digest
from phial.language_model import LanguageModel, Reply


class JournalledModel:
    """A LanguageModel in front of another one and a journal.

    Args:
        identity: what decides the model's answers besides the request: a digest of its weights, say. Replies of
            another identity are never found.
    """

    def __init__(self, model: LanguageModel, journal: RequestJournal, identity: str) -> None:
        self.model, self.journal, self.identity = model, journal, identity
        self.name = model.name

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
        """LanguageModel.generate; asked anew only where the journal has no reply."""
        asked = [[dict(message) for message in messages], max_tokens, temperature, seed, schema, list(stop)]
        key = digest(self.identity, *asked)
        if key not in self.journal.entries:
            reply = self.model.generate(
                messages, max_tokens=max_tokens, temperature=temperature, seed=seed, schema=schema, stop=stop
            )
            self.journal.append(key, reply._asdict())
        return Reply(**self.journal.entries[key])
