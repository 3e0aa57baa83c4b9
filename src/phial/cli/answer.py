"""One answer of the model: from messages or raw text to pieces of text that may be shown, and its numbers.

Shared by `phial run` and `phial chat`. User text always goes through the chat template's own encoding, so that it
cannot become control tokens; only `--raw` reads control tokens in the text, as its help says.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from phial.cli import console
from phial.engine.sampling import SamplingParams
from phial.engine.stop_strings import Piece, StopStrings
from phial.engine.vocabulary import Vocabulary
from phial.errors import FormatError, PhialError

if TYPE_CHECKING:
    from phial.engine.adapters import Wanted
    from phial.engine.engine import Engine
    from phial.engine.speculation import Drafter, Speculate
    from phial.tokenizer.chat import ChatTemplate


@dataclass
class Answer:
    """What came of one prompt; complete when the stream of its pieces has ended.

    Attributes:
        finish_reason: "stop", "length" (max_tokens or the end of the context) or "interrupted".
        prefill_seconds: until the first token, the prompt read.
        decode_seconds: from the first token to the last.
        speculation: passes over the weights after the first token, tokens guessed and guesses that were right.
    """

    seed: int
    prompt_tokens: int
    completion_tokens: int = 0
    text: str = ""
    finish_reason: str = "interrupted"
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    speculation: dict[str, int] | None = None

    @property
    def decode_speed(self) -> float | None:
        """Tokens per second after the first; None where there was no second."""
        return (self.completion_tokens - 1) / self.decode_seconds if self.decode_seconds else None

    def timings(self) -> dict[str, float | None]:
        """Seconds and tokens per second of both phases, for JSON."""
        prefill_speed = self.prompt_tokens / self.prefill_seconds if self.prefill_seconds else None
        return {
            "prefill_seconds": round(self.prefill_seconds, 4),
            "prefill_tokens_per_second": prefill_speed and round(prefill_speed, 2),
            "decode_seconds": round(self.decode_seconds, 4),
            "decode_tokens_per_second": self.decode_speed and round(self.decode_speed, 2),
        }


class Speaker:
    """A model with one session, that answers prompts one after the other and counts what it said.

    Attributes:
        answers: every answer so far; the last one is complete when its stream has ended.
    """

    def __init__(
        self,
        engine: Engine,
        n_ctx: int,
        params: SamplingParams,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        template: str | None = None,
        adapters: Wanted = (),
        speculate: Speculate = "auto",
        drafter: Drafter | None = None,
    ) -> None:
        self.engine = engine
        self.session = engine.session(n_ctx, adapters)
        self.answers: list[Answer] = []
        self._params = params
        self._max_tokens = max_tokens
        self._stop = stop
        self._speculate, self._drafter = speculate, drafter
        self._vocabulary = Vocabulary(engine.tokenizer)
        self._template_name = template
        self._warned = False

    @cached_property
    def template(self) -> ChatTemplate:
        """The built-in chat template of the name given, else the model's own; PhialError where it has none."""
        from phial.tokenizer.chat import ChatTemplate

        if self._template_name is not None:
            return ChatTemplate.builtin(self._template_name)
        try:
            return ChatTemplate.from_gguf(self.engine.metadata, self.engine.tokenizer)
        except FormatError:
            raise
        except PhialError as error:
            raise PhialError(error.message, f"--template: {error.hint}; or --raw for plain text") from None

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """Pieces of the answer to a conversation, without the white space some models begin with."""
        tokenizer, template = self.engine.tokenizer, self.template
        ids = template.encode(self._with_a_place(messages), tokenizer)
        begun = False
        for piece in self._say(ids, template.stop_ids(tokenizer), template.stop_strings(tokenizer)):
            piece = piece if begun else piece.lstrip()
            begun = begun or bool(piece)
            if piece:
                yield piece

    def continue_text(self, text: str) -> Iterator[str]:
        """Pieces of what follows a text that is given to the model as it is, control tokens included."""
        return self._say(self.engine.tokenizer.encode(text, special=True), self.engine.tokenizer.eog_ids)

    def _with_a_place(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """The messages; without the system message, and that said once, where the template would drop it silently."""
        if messages[0]["role"] != "system" or not self.template.drops_system:
            return messages
        if not self._warned:
            self._warned = True
            console.note("warning: the chat template has no place for a system message; the model does not see it")
        return messages[1:]

    def _say(self, ids: list[int], stop_ids: Collection[int], stop: Sequence[str] = ()) -> Iterator[str]:
        seed = secrets.randbits(32) if self._params.seed is None else self._params.seed
        answer = Answer(seed, len(ids))
        self.answers.append(answer)
        room = self.session.n_ctx - len(ids)
        most = room if self._max_tokens is None else min(room, self._max_tokens)
        text = StopStrings([*self._stop, *stop])
        started = time.perf_counter()
        first = 0.0
        stream = self.session.generate(
            ids,
            replace(self._params, seed=seed),
            max_tokens=self._max_tokens,
            stop_ids=stop_ids,
            speculate=self._speculate,
            drafter=self._drafter,
        )
        for token in stream:
            now = time.perf_counter()
            if not answer.completion_tokens:
                first, answer.prefill_seconds = now, now - started
            answer.completion_tokens += 1
            answer.decode_seconds = now - first
            yield from _texts(text.push(token, self._vocabulary.detokenize([token])))
            if text.stopped:
                break
        if not text.stopped:
            yield from _texts(text.finish())
        if self.session.speculation is not None:
            answer.speculation = vars(self.session.speculation.statistics)
        full = answer.completion_tokens == most and not text.stopped
        answer.finish_reason = "length" if full else "stop"
        answer.text = text.text

    def say_if_cut(self) -> None:
        """An answer cut short must not look complete: says so, and what would let it go on."""
        answer, n_ctx = self.answers[-1], self.session.n_ctx
        if answer.finish_reason == "length":
            full = answer.prompt_tokens + answer.completion_tokens >= n_ctx
            why = f"the context of {n_ctx} tokens is full (--ctx)" if full else "--max-tokens"
            console.note(f"note: the answer was cut after {answer.completion_tokens} tokens: {why}")

    def summary(self) -> str:
        """One line about all answers: tokens and tokens per second."""
        tokens = sum(answer.completion_tokens for answer in self.answers)
        decoded = sum(max(0, answer.completion_tokens - 1) for answer in self.answers)
        seconds = sum(answer.decode_seconds for answer in self.answers)
        speed = f", {decoded / seconds:.1f} tokens/s" if seconds else ""
        count = "1 answer" if len(self.answers) == 1 else f"{len(self.answers)} answers"
        return f"{count}, {tokens} tokens{speed}"


def _texts(pieces: Iterable[Piece]) -> Iterator[str]:
    """The pieces that have text; control tokens have none."""
    return (piece.text for piece in pieces if piece.text)
