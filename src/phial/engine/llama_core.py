"""The low-level half of Llama: one session with its logits, sampling, generation, saved states, facts of the model.

Follows llama-cpp-python's rules (phi3-spec §10.2), with these differences: logits are kept whole and never garbage,
and a generator that was overtaken by another call says so instead of going on with foreign tokens.
"""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Collection, Generator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from phial.engine.constraint import Constraint, TokenTrie
from phial.engine.engine import Engine
from phial.engine.grammar import as_grammar
from phial.engine.llama_arguments import POOLING_NONE, cache_type, chosen_seed, lora_adapters, sampling_params
from phial.engine.llama_speculative import drafter_for
from phial.engine.llama_state import BaseLlamaCache, LlamaState, longest_token_prefix
from phial.engine.llama_types import Criterion, Processor, as_criterion, as_processor, processed
from phial.engine.sampling import Sampler
from phial.engine.session import Session
from phial.engine.speculation import Speculation, speculation_for
from phial.engine.vocabulary import Vocabulary
from phial.errors import ArgumentError, PhialError
from phial.gguf.container import read_gguf


class LlamaCore:
    """A model, its vocabulary and one sequence of tokens.

    Attributes:
        model_path: as given, or where the named model is stored.
        metadata: the file's scalar metadata as text.
        cache: states by prefix, see set_cache.
        scores: (rows, n_vocab) logits by position, kept when logits_all was asked for.
    """

    def _open(self, path: str, arguments: Mapping[str, Any]) -> None:
        """Load the model, or with vocab_only its vocabulary, and open the session."""
        self.model_path = path
        self.verbose = bool(arguments["verbose"])
        self._timings = not arguments["no_perf"]
        self.last_n_tokens_size: int = arguments["last_n_tokens_size"]
        self.cache: BaseLlamaCache | None = None
        self._seed: int = arguments["seed"]
        self._logits_all = bool(arguments["logits_all"])
        self._turn = 0
        self._engine: Engine | None = None
        self._session: Session | None = None
        if arguments["vocab_only"]:
            with read_gguf(path) as file:
                raw = dict(file.metadata)
            from phial.tokenizer.tokenizer import Tokenizer  # here: its dependencies are slow to import

            tokenizer = Tokenizer.from_gguf(raw)
            trained = 0
        else:
            kind = cache_type(arguments["type_k"], arguments["type_v"])
            self._engine = Engine.open(
                path,
                n_threads=arguments["n_threads"] or None,
                n_threads_batch=arguments["n_threads_batch"] or None,
                cache_type=kind,
            )
            raw, tokenizer = self._engine.metadata, self._engine.tokenizer
            trained = self._engine.config.n_ctx_train
        self._raw_metadata: Mapping[str, Any] = raw
        self.metadata = {key: _as_text(value) for key, value in raw.items() if _is_scalar(value)}
        self.vocabulary = Vocabulary(tokenizer, arguments["tokenizer"])
        self._n_ctx: int = arguments["n_ctx"] or trained
        self.n_batch: int = min(self._n_ctx, arguments["n_batch"])
        self._pooling: int = arguments["pooling_type"]
        self.scores = np.empty((0, tokenizer.n_vocab), np.float32)
        self._scores_long: bool | None = None  # the factor set of all rows of scores; None: of both
        self._logits: NDArray[np.float32] | None = None
        self._trie: TokenTrie | None = None
        if self._engine is not None:
            paths = lora_adapters(arguments["lora_path"], arguments["lora_scale"])
            adapters = [(self._engine.load_adapter(path), scale) for path, scale in paths]
            self._session = self._engine.session(self._n_ctx, adapters)
            self._speculate: Literal["auto", "off"] = "off" if arguments["draft_model"] is False else "auto"
            self._drafter = drafter_for(arguments["draft_model"], self._engine, self._n_ctx)
            self._speculation()  # whether this backend can is said here, not with the first completion
            kind = f"{self._engine.backend_name} ({self._engine.kernel_set})"
            self._report(f"{self.metadata.get('general.name', path)}: {kind}, context of {self._n_ctx} tokens")

    @property
    def model(self) -> Engine:
        """The engine that holds the weights."""
        if self._engine is None:
            raise PhialError("no weights are loaded", "the model was closed, or opened with vocab_only=True")
        return self._engine

    @property
    def ctx(self) -> Session:
        """The session that holds the evaluated tokens."""
        if self._session is None:
            raise PhialError("no weights are loaded", "the model was closed, or opened with vocab_only=True")
        return self._session

    @property
    def n_tokens(self) -> int:
        """How many tokens were evaluated."""
        return self.ctx.n_past

    @property
    def input_ids(self) -> NDArray[np.intc]:
        """(n_ctx,); the first n_tokens are the evaluated ids, the rest is 0."""
        ids = np.zeros(self._n_ctx, np.intc)
        ids[: self.n_tokens] = self.ctx.tokens
        return ids

    @property
    def eval_tokens(self) -> deque[int]:
        """The evaluated ids."""
        return deque(self.ctx.tokens, maxlen=self._n_ctx)

    @property
    def eval_logits(self) -> deque[list[float]]:
        """Logits of every evaluated token with logits_all, else of the last one."""
        if self._logits_all:
            return deque(self.scores[: self.n_tokens].tolist(), maxlen=self._n_ctx)
        return deque([self.last_logits.tolist()] if self.n_tokens else [], maxlen=1)

    @property
    def last_logits(self) -> NDArray[np.float32]:
        """(n_vocab,) logits after the last evaluated token; computed again after load_state."""
        if self._logits is None:
            tokens = self.ctx.tokens
            if not tokens:
                raise ArgumentError("nothing was evaluated yet", "call eval(tokens) first")
            self.ctx.truncate(len(tokens) - 1)
            self.eval(tokens[-1:])
        assert self._logits is not None
        return self._logits

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Ids of a UTF-8 text. add_bos: put BOS first where the model wants one. special: `<|end|>` is one token."""
        return self.vocabulary.tokenize(text, add_bos, special)

    def detokenize(self, tokens: list[int], prev_tokens: list[int] | None = None, special: bool = False) -> bytes:
        """Bytes of the ids; control tokens are silent unless `special`."""
        return self.vocabulary.detokenize(tokens, prev_tokens, special)

    def reset(self) -> None:
        """Forget all tokens."""
        self.ctx.truncate(0)
        self._logits = None

    def set_seed(self, seed: int) -> None:
        """Seed the following calls; -1 draws a fresh seed for each."""
        chosen_seed(seed)
        self._seed = seed

    def set_cache(self, cache: BaseLlamaCache | None) -> None:
        """Keep states of finished completions here and begin later ones from the nearest; None ends it."""
        self.cache = cache

    def eval(self, tokens: Sequence[int]) -> None:
        """Append tokens; their logits are then in last_logits, and in scores with logits_all.

        Raises:
            ContextLimitError: they do not fit.
        """
        if len(tokens):
            self._evaluate(tokens, None)

    def _speculation(self) -> Speculation | None:
        return speculation_for(self.ctx, self._speculate, self._drafter)

    def _evaluate(self, tokens: Sequence[int], speculation: Speculation | None) -> None:
        past = self.n_tokens
        logits = (speculation or self.ctx).eval(tokens, all_logits=self._logits_all)
        if self._logits_all:
            self._keep_scores(past, logits)
            logits = logits[-1]
        self._logits = logits

    def _keep_scores(self, past: int, rows: NDArray[np.float32]) -> None:
        end = past + len(rows)
        if end > len(self.scores):
            grown = np.empty((min(self._n_ctx, max(end, 2 * len(self.scores))), rows.shape[1]), np.float32)
            grown[:past] = self.scores[:past]
            self.scores = grown
        self.scores[past:end] = rows
        long = self.model.config.uses_long(end)
        self._scores_long = long if past == 0 or long == self._scores_long else None

    def _reuse(self, tokens: Sequence[int]) -> list[int]:
        """Keep what is computed of these tokens; return those still to evaluate, at least one."""
        self._logits = None
        if not len(tokens) or not self._logits_all:
            kept = self.ctx.reuse_prefix(tokens)
        else:  # the kept positions need their rows of scores too, so only our own tokens, with the same factors
            same = self._scores_long == self.model.config.uses_long(len(tokens))
            kept = longest_token_prefix(self.ctx.tokens, tokens[:-1]) if same else 0
            self.ctx.truncate(kept)
        if kept:
            self._report(f"{kept} of {len(tokens)} prompt tokens were already evaluated")
        return list(tokens[kept:])

    def sample(
        self,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_eta: float = 0.1,
        mirostat_tau: float = 5.0,
        penalize_nl: bool = True,
        logits_processor: Processor | Sequence[Processor] | None = None,
        grammar: object = None,
        idx: int | None = None,
    ) -> int:
        """Draw the token that follows position idx (the last one); penalties look at all evaluated tokens.

        A grammar is at its beginning in every call: use generate for a text.

        Raises:
            ArgumentError: nothing was evaluated, or logits of that position were not kept.
        """
        arguments = dict(locals())
        del arguments["self"], arguments["logits_processor"], arguments["idx"]
        sampler = self._sampler(arguments, self._next_seed())
        if idx is None or idx == self.n_tokens - 1:
            logits = self.last_logits
        elif self._logits_all and 0 <= idx < self.n_tokens:
            logits = self.scores[idx]
        else:
            raise ArgumentError(
                f"no logits of position {idx}", f"{self.n_tokens} tokens, logits_all={self._logits_all}"
            )
        tokens = self.ctx.tokens
        return sampler.sample(processed(as_processor(logits_processor), tokens, logits), tokens)

    def generate(
        self,
        tokens: Sequence[int],
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        reset: bool = True,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        penalize_nl: bool = True,
        logits_processor: Processor | Sequence[Processor] | None = None,
        stopping_criteria: Criterion | Sequence[Criterion] | None = None,
        grammar: object = None,
    ) -> Generator[int, Sequence[int] | None, None]:
        """Yield one id after the other, without end; tokens sent into the generator are evaluated after the last id.

        reset: begin anew with the shared prefix kept; otherwise append to what is there. Penalties look at what was
        generated. A stopping criterion sees the ids and the last logits, and ends before the drawn id is yielded.
        """
        arguments = dict(locals())
        for name in ("self", "tokens", "reset", "logits_processor", "stopping_criteria"):
            del arguments[name]
        return self._generate(
            list(tokens),
            self._sampler(arguments, self._seed),
            as_processor(logits_processor),
            as_criterion(stopping_criteria),
            reset,
        )

    def _generate(
        self,
        tokens: list[int],
        sampler: Sampler,
        processor: Processor | None,
        criterion: Criterion | None,
        reset: bool = True,
    ) -> Generator[int, Sequence[int] | None, None]:
        self._turn += 1
        turn, drawn, speculation = self._turn, list[int](), self._speculation()
        pending = self._reuse(tokens) if reset else tokens
        while True:
            if pending:
                self._evaluate(pending, speculation)
            logits = self.last_logits
            ids = self.ctx.tokens if processor or criterion else []
            token = sampler.sample(processed(processor, ids, logits), drawn)
            if criterion is not None and criterion(np.array(ids, np.intc), logits):
                return
            drawn.append(token)
            more = yield token
            if turn != self._turn:
                raise PhialError(
                    "this generation was overtaken by another call on the same Llama",
                    "finish one stream before the next call, or open a second Llama",
                )
            pending = [token, *(more or ())]

    def _sampler(self, arguments: dict[str, Any], seed: int | None) -> Sampler:
        """A sampler from generate's arguments."""
        constraint = self._constraint(arguments.pop("grammar"), self.vocabulary.tokenizer.eog_ids)
        params = sampling_params(
            temperature=arguments.pop("temp"),
            penalty_last_n=self.last_n_tokens_size,
            seed=chosen_seed(seed),
            **arguments,
        )
        return Sampler(params, self.n_vocab(), constraint)

    def _constraint(self, grammar: object, stop_ids: Collection[int]) -> Constraint | None:
        """A fresh constraint for one text. Raises ArgumentError where `grammar` is none or cannot be followed."""
        chosen = as_grammar(grammar)
        if chosen is None:
            return None
        self._trie = self._trie or TokenTrie(self.vocabulary)
        return self._trie.constraint(chosen, stop_ids)

    def _next_seed(self) -> int | None:
        """A seed for one call: the next of the chain set_seed or the constructor began; None for a fresh one."""
        if chosen_seed(self._seed) is None:
            return None
        self._seed = random.Random(self._seed).getrandbits(32)
        return self._seed

    def save_state(self) -> LlamaState:
        """Everything load_state needs to go on from here, also in another process with the same model."""
        data = self.ctx.save()
        kept = self.scores[: self.n_tokens if self._logits_all else 0].copy()
        return LlamaState(self.input_ids, kept, self.n_tokens, data, len(data), self._seed)

    def load_state(self, state: LlamaState, *, keep_seed: bool = False) -> None:
        """Go on from a saved state; keep_seed leaves this Llama's own seed.

        Raises:
            PhialError: it belongs to another model or cache type, is damaged, or does not fit into the context.
        """
        if self._logits_all and len(state.scores) != state.n_tokens:
            raise ArgumentError(
                f"the state has logits of {len(state.scores)} of its {state.n_tokens} tokens",
                "save it from a model opened with logits_all=True",
            )
        self._turn += 1
        self.ctx.load(state.llama_state)
        self._logits = None
        if not keep_seed:
            self._seed = state.seed
        if self._logits_all and state.n_tokens:
            self._keep_scores(0, state.scores)

    def n_ctx(self) -> int:
        """How many tokens the context holds."""
        return self._n_ctx

    def n_embd(self) -> int:
        """Length of a hidden state."""
        return self.model.config.n_embd

    def n_vocab(self) -> int:
        """How many tokens there are."""
        return self.vocabulary.tokenizer.n_vocab

    def token_bos(self) -> int:
        """The beginning-of-sequence id, -1 where there is none."""
        return _or_minus_one(self.vocabulary.tokenizer.bos_id)

    def token_eos(self) -> int:
        """The end-of-sequence id, -1 where there is none."""
        return _or_minus_one(self.vocabulary.tokenizer.eos_id)

    def token_nl(self) -> int:
        """The newline's id."""
        return self.vocabulary.tokenizer.encode("\n", add_bos=False)[-1]

    def pooling_type(self) -> int:
        """How embeddings are pooled: the constructor's choice, else the file's, else 0 (not at all)."""
        if self._pooling >= 0:
            return self._pooling
        architecture = self._raw_metadata.get("general.architecture")
        return int(self._raw_metadata.get(f"{architecture}.pooling_type", POOLING_NONE))

    def close(self) -> None:
        """Free the model. Twice is once."""
        if self._session is not None:
            self._session.close()
        if self._engine is not None:
            self._engine.close()
        self._session = self._engine = None

    def _report_timings(self, n_prompt: int, n_new: int, prompt_s: float, new_s: float) -> None:
        """Say how fast a completion was."""
        if self._timings:
            rate = f", {(n_new - 1) / new_s:.1f} tokens/s" if n_new > 1 and new_s > 0 else ""
            self._report(f"{n_prompt} prompt tokens in {prompt_s:.2f} s, {n_new} new ones in {new_s:.2f} s{rate}")

    def _report(self, line: str) -> None:
        """Say something that only a verbose Llama says."""
        if self.verbose:
            print(f"phial: {line}", file=sys.stderr)


def _is_scalar(value: object) -> bool:
    return isinstance(value, (bool, int, float, str, np.generic))


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, (bool, np.bool_)) else str(value)


def _or_minus_one(token: int | None) -> int:
    return -1 if token is None else token
