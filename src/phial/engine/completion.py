"""One text completion: the loop from prompt ids to finished text, and the shapes of its answers (phi3-spec §10.3).

Stop strings and whole characters are stop_strings.py's business, sampling LlamaCore's. Where llama-cpp-python ignores
`echo` and `suffix` while streaming, they are streamed here.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from phial.engine.constraint import Constraint
from phial.engine.llama_core import LlamaCore
from phial.engine.llama_state import longest_token_prefix
from phial.engine.llama_types import Completion, CompletionChunk, CompletionLogprobs, Criterion, FinishReason, Processor
from phial.engine.logprobs import TokenLogprob, as_lists, token_logprob
from phial.engine.sampling import Sampler, SamplingParams
from phial.engine.stop_strings import Piece, StopStrings
from phial.errors import PhialError


@dataclass(frozen=True)
class CompletionRequest:
    """What is asked for, checked.

    Attributes:
        prompt: the text that echo repeats and offsets count from.
        prompt_ids: what the model reads.
        suffix: text to put after the completion ("" where the model itself was shown the suffix).
        max_tokens: how many ids may be drawn, at least one.
        logprobs: how many likeliest tokens to name per token; None for no log-probabilities.
        stop_ids: ids that end the text and are not part of it.
        constraint: what the text is held to, fresh; None for nothing.
    """

    prompt: str
    prompt_ids: Sequence[int]
    suffix: str
    max_tokens: int
    params: SamplingParams
    stop: Sequence[str]
    stop_ids: Collection[int]
    echo: bool
    logprobs: int | None
    model: str
    processor: Processor | None
    criterion: Criterion | None
    constraint: Constraint | None = None


class CompletionRun:
    """A completion in progress; used once, either by `whole` or by `chunks`."""

    def __init__(self, llama: LlamaCore, request: CompletionRequest) -> None:
        self._llama = llama
        self._request = request
        self._id = f"cmpl-{uuid.uuid4()}"
        self._created = int(time.time())
        self._sampler = Sampler(request.params, llama.n_vocab(), request.constraint)  # here: it complains at the call
        self._ids: list[int] = []
        self._entries: list[TokenLogprob] = []
        self._prompt_entries: list[TokenLogprob] = []
        self._finish_reason: FinishReason = "length"

    def whole(self) -> Completion:
        """Run to the end and return the answer."""
        request = self._request
        text = "".join(piece.text for piece in self._pieces())
        if request.echo:
            text = request.prompt + text
        entries = self._prompt_entries + self._entries if request.echo else self._entries
        logprobs = None if request.logprobs is None else as_lists(entries)
        n_prompt, n_new = len(request.prompt_ids), len(self._ids)
        usage = {"prompt_tokens": n_prompt, "completion_tokens": n_new, "total_tokens": n_prompt + n_new}
        answer = self._chunk(text + request.suffix, logprobs, self._finish_reason)
        return {**answer, "usage": usage}  # type: ignore[typeddict-item]  # mypy does not see the keys of `usage`

    def chunks(self) -> Iterator[CompletionChunk]:
        """Run, and yield the answer piece by piece; the last chunk has no text, only the finish reason."""
        request, with_logprobs, echoed = self._request, self._request.logprobs is not None, not self._request.echo
        for piece in self._pieces():
            if not echoed:
                yield self._echo_chunk()
                echoed = True
            logprobs = as_lists(entry for _, _, entry in piece.entries) if with_logprobs else None
            yield self._chunk(piece.text, logprobs, None)
        if not echoed:
            yield self._echo_chunk()
        if request.suffix:
            yield self._chunk(request.suffix, None, None)
        yield self._chunk("", None, self._finish_reason)

    def _echo_chunk(self) -> CompletionChunk:
        with_logprobs = self._request.logprobs is not None
        return self._chunk(self._request.prompt, as_lists(self._prompt_entries) if with_logprobs else None, None)

    def _chunk(
        self, text: str, logprobs: CompletionLogprobs | None, finish_reason: FinishReason | None
    ) -> CompletionChunk:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._request.model,
            "choices": [{"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish_reason}],
        }

    def _pieces(self) -> Iterator[Piece]:
        """Generate; yield text as soon as it may be shown; set the finish reason."""
        request, llama = self._request, self._llama
        self._load_cached_state()
        started, first = time.perf_counter(), 0.0
        text = StopStrings(request.stop)
        prompt_ids = list(request.prompt_ids)
        self._finish_reason = "stop"  # unless the last token allowed ends it; a stopping criterion just ends the loop
        for token in llama._generate(prompt_ids, self._sampler, request.processor, request.criterion):
            first = first or time.perf_counter()
            if request.echo and request.logprobs is not None and not self._ids:
                self._prompt_entries = prompt_logprobs(llama, request)
            if token in request.stop_ids:
                break
            self._ids.append(token)
            data = llama.detokenize([token], prev_tokens=prompt_ids + self._ids[:-1])
            yield from text.push(token, data, self._describe(token, data, len(text.text)))
            if text.stopped or (request.constraint is not None and request.constraint.finished):
                break
            if len(self._ids) >= request.max_tokens:
                self._finish_reason = "length"
                break
        if not text.stopped:
            yield from text.finish()
        llama._report_timings(len(prompt_ids), len(self._ids), first - started, time.perf_counter() - first)
        if llama.cache is not None:
            llama.cache[prompt_ids + self._ids] = llama.save_state()

    def _describe(self, token: int, data: bytes, n_characters: int) -> TokenLogprob | None:
        """The token's log-probability, from the logits it was drawn from; None where nobody asked."""
        if self._request.logprobs is None:
            return None
        text = data.decode("utf-8", errors="ignore")
        offset = len(self._request.prompt) + n_characters
        logits = self._llama.last_logits
        entry = token_logprob(self._llama.vocabulary, logits, token, text, offset, self._request.logprobs)
        self._entries.append(entry)
        return entry

    def _load_cached_state(self) -> None:
        """Begin from the cache's nearest state where that shares more with the prompt than the session does."""
        llama, prompt = self._llama, self._request.prompt_ids
        if llama.cache is None:
            return
        try:
            state = llama.cache[prompt]
        except KeyError:
            llama._report("no cached state begins like this prompt")
            return
        shared = partial(longest_token_prefix, prompt)
        if shared(state.input_ids[: state.n_tokens].tolist()) <= shared(llama.ctx.tokens):
            return
        try:
            llama.load_state(state, keep_seed=True)
        except PhialError as error:
            llama._report(f"the cached state cannot be used: {error.message}")


def prompt_logprobs(llama: LlamaCore, request: CompletionRequest) -> list[TokenLogprob]:
    """Log-probabilities of the prompt's own tokens, for echo; a leading BOS is left out, the first token has none."""
    ids, count = list(request.prompt_ids), request.logprobs
    assert count is not None
    begin = 1 if ids[0] == llama.token_bos() and len(ids) > 1 else 0
    texts = [llama.vocabulary.text(token, special=True) for token in ids[begin:]]
    whole = llama.vocabulary.detokenize(ids[begin:], special=True).decode("utf-8", errors="ignore")
    extra = len(whole) - len(request.prompt)  # the space SentencePiece puts first
    entries: list[TokenLogprob] = []
    for i, text in enumerate(texts, begin):
        before = llama.vocabulary.detokenize(ids[begin:i], special=True).decode("utf-8", errors="ignore")
        offset = max(0, len(before) - extra)
        if i == begin:
            entries.append(TokenLogprob(text[max(0, extra) :], offset, None, None))
        else:
            entries.append(token_logprob(llama.vocabulary, llama.scores[i - 1], ids[i], text, offset, count))
    return entries
