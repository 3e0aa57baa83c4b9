"""One sequence of tokens and its cached keys: evaluate, go back, reuse, generate, save.

The LongRoPE rule (Ding et al., 2024): the factor set belongs to the sequence and follows from its present length
alone. A call that takes the length past the original context runs all tokens again with the long set; one that ends
below it again, with the short set. So results never depend on n_ctx, on how a text was cut into calls, or on reused
prefixes. (rope_switch.py has the faster way that is not exact.) Text, stop strings and chat belong to callers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import eq
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from phial.engine import state
from phial.engine.adapters import NO_ADAPTERS, Mix, Wanted
from phial.engine.backend import Step, Want
from phial.engine.cache import PageTable
from phial.engine.rope_switch import rerotate
from phial.engine.sampling import Sampler, SamplingParams
from phial.engine.speculation import Drafter, Speculate, Speculation, speculation_for
from phial.errors import ArgumentError, ContextLimitError, PhialError

if TYPE_CHECKING:
    from phial.engine.engine import Engine

BATCH_TOKENS = 512  # tokens per forward step: bounds the work memory and the steps of `progress`

Progress = Callable[[int, int], None]  # called after each step with (tokens done, tokens to do)


@dataclass
class _Foresight:
    """Drafts that were evaluated behind the session's tokens: which, and the logits after each, (drafts, n_vocab)."""

    tokens: list[int]
    logits: NDArray[np.float32]


class Session:
    """One sequence; made by Engine.session, released by close() or when nobody refers to it any more.

    A call that fails or is interrupted leaves the tokens as they were; whole pages it had computed are found again by
    reuse_prefix. Different sessions may be used from different threads, one session only from one at a time.

    Attributes:
        engine: what it runs on.
        n_ctx: how many tokens it may hold.
        speculation: that of the last generate(), None where it had none.
    """

    def __init__(self, engine: Engine, n_ctx: int, adapters: Mix = NO_ADAPTERS) -> None:
        self.engine = engine
        self.n_ctx = n_ctx
        self._tokens: list[int] = []
        # Invariant between calls: the table holds the keys of a prefix of _tokens, all of its one factor set and mix;
        # while something is foreseen, of all of them and of what is.
        self._foreseen: _Foresight | None = None
        self.speculation: Speculation | None = None
        self._n_prompt = 0  # of the last reuse_prefix: what is worth keeping on disk
        self._pages: PageTable | None = PageTable(engine.pool, n_ctx)
        self._pages.adapters = adapters
        self._finalizer = weakref.finalize(self, engine.pool.abandoned.append, (self._pages, self._tokens))

    @property
    def tokens(self) -> list[int]:
        """The ids evaluated so far (a copy)."""
        return list(self._tokens)

    @property
    def n_past(self) -> int:
        """How many tokens were evaluated."""
        return len(self._tokens)

    @property
    def _table(self) -> PageTable:
        if self._pages is None:
            raise PhialError("the session is closed", "open another with engine.session(n_ctx)")
        return self._pages

    @property
    def n_foreseen(self) -> int:
        """How many drafts are evaluated behind the tokens."""
        return 0 if self._foreseen is None else len(self._foreseen.tokens)

    def foresees(self, token: int) -> bool:
        """Whether eval([token]) has its answer already."""
        return self._foreseen is not None and self._foreseen.tokens[0] == token

    def eval(
        self,
        tokens: Sequence[int],
        *,
        all_logits: bool = False,
        drafts: Sequence[int] = (),
        progress: Progress | None = None,
    ) -> NDArray[np.float32]:
        """Append tokens; return the logits of the last one, (n_vocab,), or of all of them, (n, n_vocab).

        drafts: a guess at the tokens of the next calls, evaluated in the same pass. The next call has its answer if it
        evaluates the first of them alone, and so on; any other call forgets them. They change no result. They are
        used as far as they stay within the context and the factor set, and behind one token only, not a prompt.

        Raises:
            ContextLimitError: the tokens do not fit into the context after those already there.
            ArgumentError: there are none, or an id is outside the vocabulary.
            KeyboardInterrupt: Ctrl-C; the session is as it was.
        """
        new = self._checked(tokens)
        if len(new) == 1 and self.foresees(new[0]):
            logits = self._take_foreseen()
            return logits if all_logits else logits[0]
        self._forget_drafts()
        past, total = self.n_past, self.n_past + len(new)
        if total > self.n_ctx:
            raise ContextLimitError(
                f"{len(new)} tokens after {past} make {total}, but the context holds {self.n_ctx}",
                f"shorten the text or open a larger context (n_ctx; the model was trained with "
                f"{self.engine.config.n_ctx_train})",
            )
        rows = len(new) if all_logits else 1
        table = self._table
        guess = self._usable(drafts, total) if len(drafts) else []
        try:
            self._tokens.extend(new)
            self._choose_factors(table, total - rows)
            if table.n_tokens < total - 1:
                guess = []
            self._tokens.extend(guess)
            want = Want.ALL if all_logits or guess else Want.LAST
            logits = self._run(table, self._tokens, want, rows + len(guess), progress)
        except BaseException:
            self._cut(past)
            raise
        if guess:
            del self._tokens[total:]
            self._foreseen = _Foresight(guess, logits[rows:])
        return logits[:rows] if all_logits else logits[rows - 1]

    def hidden(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return the hidden states after the final norm, (n, n_embd), of these tokens as a text of their own.

        The session's own tokens are neither seen nor changed. Raises as eval does.
        """
        new = self._checked(tokens)
        if len(new) > self.n_ctx:
            raise ContextLimitError(f"{len(new)} tokens, but the context holds {self.n_ctx}", "shorten the text")
        with self.engine.lock:
            table = PageTable(self._table.pool, len(new))
        try:
            table.long, table.adapters = self.engine.config.uses_long(len(new)), self.adapters
            return self._run(table, new, Want.HIDDEN, len(new), None)
        finally:
            with self.engine.lock:
                table.close()

    @property
    def adapters(self) -> Mix:
        """The adapters this sequence runs with."""
        return self._table.adapters

    def set_adapters(self, adapters: Wanted) -> None:
        """Run with these adapters and scales from now on, none with ().

        The rule is the one of factor sets: all keys of a sequence are computed in one way. So the tokens stay, their
        keys go, and the next call computes them again with the new adapters, as if they had been there from the start.

        Raises:
            ArgumentError: an adapter that the engine does not hold, or a scale that is no number.
        """
        wanted = self.engine.mix(adapters)
        self._forget_drafts()
        with self.engine.lock:
            if wanted != self._table.adapters:
                self._table.cut(0, self._tokens)
                self._table.adapters = wanted

    def truncate(self, n: int) -> None:
        """Keep the first n tokens."""
        if not 0 <= n <= self.n_past:
            raise ArgumentError(f"cannot truncate to {n} tokens", f"the session holds {self.n_past}")
        self._cut(n)

    def reuse_prefix(self, tokens: Sequence[int]) -> int:
        """Keep the longest computed prefix of tokens, at most len(tokens) - 1; return its length.

        Afterwards the session holds exactly that prefix, so eval(tokens[length:]) completes it. The prefix is the
        session's own or comes from pages that earlier sessions left behind, in memory or on disk.
        """
        wanted = self._checked(tokens)
        self._n_prompt = len(wanted)
        table = self._table
        same = sum(1 for _ in takewhile(bool, map(eq, self._tokens, wanted)))
        self._cut(min(same, len(wanted) - 1))
        self._tokens[:] = wanted
        self._choose_factors(table, len(wanted) - 1, search=True)
        del self._tokens[table.n_tokens :]
        return table.n_tokens

    def generate(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        max_tokens: int | None = None,
        stop_ids: Collection[int] = (),
        speculate: Speculate = "auto",
        drafter: Drafter | None = None,
    ) -> Iterator[int]:
        """Yield the ids that follow the prompt, without the stop id that ends them.

        What the session has computed of the prompt is reused. max_tokens None, or more than there is room for, goes
        on to the end of the context. Arguments are checked before the first id is asked for.

        speculate: "auto" evaluates guesses at the next tokens along with a token where that has proved faster, a
        number always so many, "off" none. drafter: who guesses; None: prompt lookup. The ids are the same.

        Raises:
            ContextLimitError: the prompt leaves no room for a single token.
        """
        prompt = self._checked(prompt_ids)
        if max_tokens is not None and max_tokens < 0:
            raise ArgumentError(f"max_tokens is {max_tokens}", "None goes on to the end of the context")
        room = self.n_ctx - len(prompt)
        if room < 1:
            raise ContextLimitError(
                f"the prompt has {len(prompt)} tokens and leaves no room in a context of {self.n_ctx}",
                "shorten the prompt or open a larger context (n_ctx)",
            )
        count = room if max_tokens is None else min(room, max_tokens)
        self.speculation = speculation_for(self, speculate, drafter)
        sampler = Sampler(params, self.engine.config.n_vocab)
        return self._generate(prompt, sampler, count, frozenset(stop_ids), self.speculation)

    def _generate(
        self,
        prompt: list[int],
        sampler: Sampler,
        count: int,
        stop_ids: frozenset[int],
        speculation: Speculation | None,
    ) -> Iterator[int]:
        new = prompt[self.reuse_prefix(prompt) :]
        for left in range(count, 0, -1):
            logits = speculation.eval(new, most=left - 1) if speculation else self.eval(new)
            token = sampler.sample(logits, self._tokens)
            if token in stop_ids:
                return
            yield token
            new = [token]

    def save(self) -> bytes:
        """Return the tokens and their keys as bytes that load() reads where model, cache and adapters agree."""
        self._forget_drafts()
        with self.engine.lock:
            self._table.cut(self._table.n_tokens, self._tokens)  # a page that only drafts had filled goes
            return state.dump(self.engine.identity, self._tokens, self._table)

    def load(self, data: bytes) -> None:
        """Become the session that save() wrote.

        Raises:
            FormatError: the data is damaged or no saved session.
            PhialError: it belongs to another model, cache type or backend.
            ContextLimitError: it holds more tokens than this context.
        """
        with self.engine.lock:
            saved = state.parse(data, self.engine.identity, self._table.adapters, self._table.pool.store)
            if len(saved.tokens) > self.n_ctx:
                raise ContextLimitError(
                    f"the saved session has {len(saved.tokens)} tokens, but the context holds {self.n_ctx}",
                    "open a larger context (n_ctx)",
                )
            self._checked(saved.tokens or [0])
            self._cut(0)
            if self.engine.disk_prefixes is not None:
                self.engine.disk_prefixes.writes = False  # another build may have computed these, and they spread
            self._tokens[:] = saved.tokens
            if saved.exact or self.engine.rope_switch == "rerotate":  # else the next call computes the keys
                self._table.restore(saved.pages, saved.n_cached, saved.long, saved.exact)

    def close(self) -> None:
        """Release the pages; full ones stay for reuse within the engine's budgets. Twice is once."""
        with self.engine.lock:
            if self._pages is not None:
                self._finalizer.detach()
                if self.engine.disk_prefixes is not None:
                    self._forget_drafts()
                    self.engine.disk_prefixes.keep(self._pages, self._tokens[: self._n_prompt])
                self._cut(0)
                self._pages.close()
                self._pages = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _checked(self, tokens: Sequence[int]) -> list[int]:
        """Return the tokens as a list of ints in the vocabulary; raise ArgumentError otherwise."""
        ids = [int(token) for token in tokens]
        if not ids:
            raise ArgumentError("no tokens to evaluate", "pass at least one id")
        n_vocab = self.engine.config.n_vocab
        if min(ids) < 0 or max(ids) >= n_vocab:
            bad = next(i for i in ids if not 0 <= i < n_vocab)
            raise ArgumentError(f"token id {bad} is outside the vocabulary", f"ids run from 0 to {n_vocab - 1}")
        return ids

    def _usable(self, drafts: Sequence[int], total: int) -> list[int]:
        """The drafts that fit behind `total` tokens into the context and the factor set of those tokens."""
        config, most = self.engine.config, self.n_ctx - total
        if config.uses_long(total + most) and not config.uses_long(total):
            most = min(most, config.rope_original_context - total)
        return self._checked(drafts)[:most]

    def _take_foreseen(self) -> NDArray[np.float32]:
        """Make the first draft a token of the session; its logits, (1, n_vocab)."""
        foreseen = self._foreseen
        assert foreseen is not None
        self._tokens.append(foreseen.tokens[0])
        if len(foreseen.tokens) == 1:
            self._foreseen = None
        else:
            self._foreseen = _Foresight(foreseen.tokens[1:], foreseen.logits[1:])
        return foreseen.logits[:1]

    def _forget_drafts(self) -> None:
        """Give up what was foreseen. Pages stay: the next tokens fill them."""
        if self._foreseen is not None:
            self._foreseen = None
            self._table.n_tokens = len(self._tokens)

    def _cut(self, n: int) -> None:
        """Keep n tokens, and remember the full pages that go."""
        self._forget_drafts()
        with self.engine.lock:
            self._table.cut(n, self._tokens)
            del self._tokens[n:]

    def _choose_factors(self, table: PageTable, limit: int, *, search: bool = False) -> None:
        """Bring the table to the factor set of the present length; search: fill it from kept pages, up to `limit`."""
        long = self.engine.config.uses_long(len(self._tokens))
        with self.engine.lock:
            if long != table.long and self.engine.rope_switch == "rerotate" and table.n_tokens:
                rerotate(table, self.engine.config, self._tokens)
            elif long != table.long:
                table.cut(0, self._tokens)
                table.long, search = long, True
            if search and table.exact:  # a sequence of turned keys depends on its own past alone
                found = table.pool.prefixes.find(self._tokens[:limit], long, table.adapters)
                if len(found) * table.pool.page_tokens > table.n_tokens:
                    table.adopt(found)
                if self.engine.disk_prefixes is not None:
                    self.engine.disk_prefixes.fill(table, self._tokens[:limit])

    def _run(
        self, table: PageTable, tokens: list[int], want: Want, rows: int, progress: Progress | None
    ) -> NDArray[np.float32]:
        """Compute what the table lacks of tokens, step by step; return the last `rows` rows of what is wanted."""
        n, first, done = len(tokens), len(tokens) - rows, table.n_tokens
        parts = []
        for start in range(done, n, BATCH_TOKENS):
            end = min(start + BATCH_TOKENS, n)
            needed = end > first
            with self.engine.lock:  # released between steps, so that other sessions get their turn
                table.prepare(end - start)
                step = Step(tokens[start:end], start, table.long, table.pages, table.adapters.parts)
                out = self.engine.forward([step], want if needed else Want.NOTHING)
                table.n_tokens = end  # only now: an interrupted step has left nothing behind
            if needed:
                parts.append(out if want == Want.LAST else out[max(0, first - start) :])
            if progress is not None:
                progress(end - done, n - done)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
