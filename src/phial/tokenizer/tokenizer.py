"""The tokenizer of a GGUF file: one face over SentencePiece BPE and byte-level BPE (phi3-spec §2.1-2.3).

Special tokens are found first, and control tokens only in text the caller trusts; the rest goes to the model piece by
piece. A SentencePiece vocabulary gets its prefix space at the start and after every special token (the "legacy"
Llama rule), and decoding takes exactly that space away again, so decode(encode(s)) == s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, get_args

from phial.errors import ArgumentError
from phial.tokenizer.byte_level import ByteLevelModel, bytes_of
from phial.tokenizer.sentencepiece_model import SentencePieceModel
from phial.tokenizer.special_tokens import Rstrip, SpecialTokens, rstrip_ids
from phial.tokenizer.stream import TokenStream
from phial.tokenizer.vocabulary import TokenType, Vocabulary, byte_of, read_vocabulary


class Tokenizer:
    """Text to ids and back.

    Attributes:
        n_vocab: number of token ids, unused ones included.
        bos_id, eos_id, eot_id, unk_id, pad_id: None where the file names none.
        eog_ids: ids after which a generation is over.
        control_ids: ids of control tokens: never produced by untrusted text, not shown by decode() unless asked.
        special_tokens: ids by text of control, unknown and user-defined tokens.
        add_bos: the model's rule for encode(add_bos=None).
        add_eos: whether training texts end in EOS. A prompt never gets one.
    """

    def __init__(self, vocabulary: Vocabulary, rstrip: Rstrip = "auto") -> None:
        if rstrip not in get_args(Rstrip):
            raise ArgumentError(f"rstrip={rstrip!r}", f"one of {', '.join(get_args(Rstrip))}")
        self._vocabulary = vocabulary
        self._is_spm = vocabulary.model == "llama"
        self._model = SentencePieceModel(vocabulary) if self._is_spm else ByteLevelModel(vocabulary)
        self._special = SpecialTokens(vocabulary, rstrip_ids(vocabulary, rstrip))
        self._bytes: dict[int, bytes] = {}
        self.n_vocab = len(vocabulary.tokens)
        self.bos_id, self.eos_id, self.eot_id = vocabulary.bos_id, vocabulary.eos_id, vocabulary.eot_id
        self.unk_id, self.pad_id = vocabulary.unk_id, vocabulary.pad_id
        self.eog_ids, self.control_ids = vocabulary.eog_ids, self._special.control_ids
        self.special_tokens = vocabulary.special_tokens()
        self.add_bos, self.add_eos = vocabulary.add_bos, vocabulary.add_eos

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], *, rstrip: Rstrip = "auto") -> Tokenizer:
        """Tokenizer of a GGUF file's metadata; `rstrip` chooses which special tokens swallow following whitespace.

        Raises:
            FormatError: the metadata describe no usable vocabulary.
            ArgumentError: an unknown `rstrip`.
        """
        return cls(read_vocabulary(metadata), rstrip)

    def encode(self, text: str, *, add_bos: bool | None = None, special: bool = False) -> list[int]:
        """Ids of a text. `special` says that control tokens written in it are meant; never do so with a user's text.

        Args:
            add_bos: None for the model's rule. A text that already begins with BOS gets no second one.

        Raises:
            ArgumentError: the text is no Unicode, cannot be spelt, or BOS is asked for where the model has none.
        """
        return self.encode_segments([(text, special)], add_bos=add_bos)

    def encode_segments(self, segments: Iterable[tuple[str, bool]], *, add_bos: bool | None = None) -> list[int]:
        """Ids of the joined segments (text, trusted): merges cross borders, control tokens lie in one trusted segment.

        Raises:
            ArgumentError: as encode().
        """
        return self._with_bos([i for ids, _, _ in self._encoded(segments) for i in ids], add_bos)

    def special_ids(self, segments: Iterable[tuple[str, bool]]) -> list[int]:
        """The special tokens that encode_segments() would find, in order."""
        return [piece for piece, _ in self._split(segments) if isinstance(piece, int)]

    def encode_places(
        self, segments: Sequence[tuple[str, bool]], *, add_bos: bool | None = None
    ) -> tuple[list[int], list[int]]:
        """encode_segments(), and for each id the character of the joined text where it begins.

        Bytes inside a character have that character's place, a BOS that is added -1.

        Raises:
            ArgumentError: as encode(), or a token stands for what it does not spell.
        """
        ids, places = list[int](), list[int]()
        for tokens, text, start in self._encoded(segments):
            ids += tokens
            places += self._places(tokens, text, start)
        ids = self._with_bos(ids, add_bos)
        return ids, [-1] * (len(ids) - len(places)) + places

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Text of the ids, control tokens shown only if `special`. Bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids, special=special).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int], *, special: bool = False) -> bytes:
        """As decode(), before UTF-8. ArgumentError for an id out of range."""
        out, after_special = [], True
        for token in ids:
            out.append(self.piece(token, after_special, special))
            after_special = self.is_after_special(token)
        return b"".join(out)

    def stream(self, *, special: bool = False, previous: int | None = None) -> TokenStream:
        """Decoder for ids that arrive one by one.

        Args:
            previous: the id before the first one pushed. After ordinary text the first word keeps its space ("Once
                upon" + " a"); at the start and after a special token it loses it. None means the start.
        """
        return TokenStream(self, special, previous)

    def token_bytes(self, token: int) -> bytes:
        """Bytes of one token, whatever is around it; a special token's are its name. ArgumentError as decode()."""
        if token not in self._bytes:
            if not 0 <= token < self.n_vocab:
                raise ArgumentError(f"token id {token} is outside 0..{self.n_vocab - 1}", "it is not of this model")
            self._bytes[token] = self._spell(token)
        return self._bytes[token]

    def is_after_special(self, token: int | None) -> bool:
        """Whether the text after this token begins anew: it is special, or there is none."""
        return token is None or token in self._special.ids

    def piece(self, token: int, after_special: bool, special: bool) -> bytes:
        """What a token adds to a text: control tokens only if `special`, the prefix space never."""
        data = self.token_bytes(token)
        if token in self._special.ids:
            return data if special or token not in self.control_ids else b""
        return data[1:] if after_special and self._vocabulary.add_space_prefix and data[:1] == b" " else data

    def _encoded(self, segments: Iterable[tuple[str, bool]]) -> Iterator[tuple[list[int], str | None, int]]:
        """Ids, the text they spell (None for a special token) and where it begins, piece by piece."""
        after_special = True
        for piece, start in self._split(segments):
            if isinstance(piece, int):
                yield [piece], None, start
            else:
                prefix = " " if after_special and self._vocabulary.add_space_prefix else ""
                yield self._model.encode(prefix + piece), piece, start
            after_special = isinstance(piece, int)

    def _places(self, tokens: list[int], text: str | None, start: int) -> list[int]:
        """Where the tokens of a piece begin; a prefix space takes no place."""
        if text is None:
            return [start]
        of_byte = [start + i for i, character in enumerate(text) for _ in range(len(character.encode()))]
        ends = list(accumulate(len(self.token_bytes(token)) for token in tokens))
        prefix = ends[-1] - len(of_byte)
        if prefix not in (0, 1):
            raise ArgumentError(f"the tokens of {text!r:.40} do not spell it", "its vocabulary cannot write every text")
        of_byte = [*of_byte[:1] * prefix, *of_byte]
        return [of_byte[end] for end in [0, *ends[:-1]]]

    def _split(self, segments: Iterable[tuple[str, bool]]) -> Iterator[tuple[str | int, int]]:
        parts, trusted, end = [], [], 0
        for part, is_trusted in segments:
            if is_trusted and part:
                trusted.append((end, end + len(part)))
            parts.append(part)
            end += len(part)
        text = "".join(parts)
        _check_unicode(text)
        return self._special.split(text, trusted)

    def _spell(self, token: int) -> bytes:
        text, kind = self._vocabulary.tokens[token], self._vocabulary.types[token]
        if kind in (TokenType.UNUSED, TokenType.UNDEFINED):
            return b""
        if kind is TokenType.BYTE:
            return bytes([byte_of(text)])
        if kind is TokenType.NORMAL and not self._is_spm:
            return bytes_of(text)
        if kind is TokenType.NORMAL:
            text = text.replace("▁", " ")
        return text.encode("utf-8", "surrogateescape")

    def _with_bos(self, ids: list[int], add_bos: bool | None) -> list[int]:
        if not (self.add_bos if add_bos is None else add_bos):
            return ids
        if self.bos_id is None:
            raise ArgumentError("add_bos=True, but this model has no BOS token", "leave add_bos out")
        return ids if ids[:1] == [self.bos_id] else [self.bos_id, *ids]


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"U+{ord(text[error.start]):04X} at character {error.start}"
        raise ArgumentError(f"the text holds half a surrogate pair ({found})", "it is no valid Unicode") from error
