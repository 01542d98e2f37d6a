"""Byte-level BPE with DeepSeek's control tokens: text to token ids and back, fill-in-the-middle, and the chat template.

Paper: DeepSeek-V3 technical report (arXiv 2412.19437) section 4.1 (byte-level BPE of 128K tokens, fill-in-the-middle at
rate 0.1 in PSM order, tokens that join punctuation and line breaks); DeepSeek-R1 (arXiv 2501.12948) for `<think>`.

    bytes -> words (`_WORDS`, a regular expression)  -> merges learned from counts -> ids
    ids   -> bytes of each token, joined             -> text
    fim   fim_begin prefix fim_hole suffix fim_end middle eos

The ids start with the control tokens (0 is bos), then the 256 bytes, then the merges. Text is always plain: a control
token's name inside it is spelled out in bytes, unless `allow_special` asks for the token.

Differs from the paper: 2,048 tokens in place of 128K, for a model whose embedding must stay small; one digit is one
token (V3 groups up to three), because a small model adds two columns more easily than it learns a thousand numerals.
Left out: normalisation (text comes back byte for byte).
Notebook: 01_tokens.
"""

from __future__ import annotations

import codecs
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as _Backend

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
FIM_BEGIN, FIM_HOLE, FIM_END = "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"
USER, ASSISTANT, THINK, END_THINK = "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"
SPECIAL = (BOS, EOS, PAD, FIM_BEGIN, FIM_HOLE, FIM_END, USER, ASSISTANT, THINK, END_THINK)
MIN_VOCAB = len(SPECIAL) + 256

# One digit; a run of Chinese; a word with its space; punctuation with the line breaks after it; spaces.
_WORDS = r"\p{N}|[一-鿿]+|[^\S\r\n]?[^\s\p{N}\p{P}\p{S}一-鿿]+|[^\S\r\n]?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# The same template in Jinja, for tokenizer_config.json: other tools then render what `Tokenizer.chat` does.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ '" + USER + "' + m['content'] }}"
    "{% else %}{{ '" + ASSISTANT + "' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)
_DEFAULT = Path(__file__).resolve().parent.parent / "assets" / "tokenizer.json"


class Tokenizer:
    """Wraps a `tokenizers` backend. Make one by `train`, `load` or `default_tokenizer()`."""

    def __init__(self, backend: _Backend):
        self._backend = backend  # spells the names of control tokens out
        self._knowing = _Backend.from_str(backend.to_str())  # reads them as control tokens
        self._backend.encode_special_tokens = True
        ids = [_special_id(backend, token) for token in SPECIAL]
        self.special_ids: dict[str, int] = dict(zip(SPECIAL, ids, strict=True))
        self.bos, self.eos, self.pad = ids[0], ids[1], ids[2]
        self.fim_begin, self.fim_hole, self.fim_end = ids[3], ids[4], ids[5]
        self.user, self.assistant, self.think, self.end_think = ids[6], ids[7], ids[8], ids[9]
        self._bytes = _token_bytes(backend)

    # --- making, saving, loading

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn merges from `texts` until there are `vocab_size` tokens. The same texts give the same tokenizer.

        Raises ValueError for a vocabulary too small for the bytes, and for texts too poor to fill it.
        """
        if vocab_size < MIN_VOCAB:
            raise ValueError(
                f"byte-level BPE needs {MIN_VOCAB} tokens before its first merge (256 bytes, {len(SPECIAL)} control "
                f"tokens); got vocab_size={vocab_size}. Give at least {MIN_VOCAB}."
            )
        backend = _Backend(models.BPE())
        split = pre_tokenizers.Split(Regex(_WORDS), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            show_progress=False,
            special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            max_token_length=24,
        )
        backend.train_from_iterator(texts, trainer)
        if backend.get_vocab_size() < vocab_size:
            raise ValueError(
                f"the texts must hold enough different pairs to fill the vocabulary; they gave "
                f"{backend.get_vocab_size()} of vocab_size={vocab_size} tokens. Give more text or a smaller vocabulary."
            )
        return cls(backend)

    def save(self, path: str | Path) -> None:
        """Write tokenizers' JSON, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            with half.open("w", encoding="utf-8", newline="\n") as file:
                file.write(self._backend.to_str(pretty=True))
                file.flush()
                os.fsync(file.fileno())
            os.replace(half, path)
        except BaseException:
            half.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read what `save` wrote. Raises ValueError when the file is missing or is no tokenizer."""
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"a tokenizer is a JSON file; there is none at {path}. Make one: python -m minids.corpus")
        try:
            backend = _Backend.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the backend raises a bare Exception
            raise ValueError(
                f"a tokenizer file holds tokenizers' JSON; {path} does not ({error}). Make it anew."
            ) from error
        return cls(backend)

    def to_str(self) -> str:
        """The tokenizers JSON itself."""
        return self._backend.to_str(pretty=True)

    # --- what it is made of

    def words(self, text: str) -> list[str]:
        """The pieces of `text` that are merged apart from each other. Joined they are the text."""
        assert self._backend.pre_tokenizer is not None
        pieces = self._backend.pre_tokenizer.pre_tokenize_str(text)
        return [text[start:end] for _, (start, end) in pieces]

    @property
    def merges(self) -> list[tuple[int, int, int]]:
        """(left, right, joined) for each merge, as ids, in the order in which they were learned and are applied."""
        ids = self._backend.get_vocab()
        pairs = json.loads(self._backend.to_str())["model"]["merges"]
        return [(ids[left], ids[right], ids[left + right]) for left, right in pairs]

    def with_merges(self, n: int) -> Tokenizer:
        """This tokenizer as it was after its first `n` merges: the same ids, of which the later ones never occur."""
        total = len(self.merges)
        if not 0 <= n <= total:
            raise ValueError(f"this tokenizer knows {total} merges; got n={n}. Take from 0 to {total}.")
        state = json.loads(self._backend.to_str())
        state["model"]["merges"] = state["model"]["merges"][:n]
        return Tokenizer(_Backend.from_str(json.dumps(state)))

    # --- text to ids

    @property
    def vocab_size(self) -> int:
        return len(self._bytes)

    def encode(self, text: str, allow_special: bool = False, bos: bool = False, eos: bool = False) -> list[int]:
        """The ids of `text`. Only with `allow_special` do the names of control tokens become control tokens."""
        ids = self.encode_batch([text], allow_special)[0]
        return [self.bos] * bos + ids + [self.eos] * eos

    def encode_batch(self, texts: Sequence[str], allow_special: bool = False) -> list[list[int]]:
        backend = self._knowing if allow_special else self._backend
        return [e.ids for e in backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def fim(self, text: str, rng: random.Random) -> list[int]:
        """A document with its middle moved to the end: fim_begin prefix fim_hole suffix fim_end middle eos.

        The two cuts fall between characters, uniformly, so that a token may be cut too; the parts are encoded apart.
        """
        start, end = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        prefix, middle, suffix = self.encode_batch([text[:start], text[start:end], text[end:]])
        return [self.fim_begin, *prefix, self.fim_hole, *suffix, self.fim_end, *middle, self.eos]

    def split_combined(self, ids: Sequence[int], rate: float, rng: random.Random) -> list[int]:
        """Split a share `rate` of the tokens that join punctuation and line breaks into their two parts (section 4.1).

        A prompt that ends in a line break never ends in such a token, so a model that only saw the joined one is led
        astray; showing it both is the paper's cure for this token boundary bias.
        """
        found: list[int] = []
        for token in ids:
            text = self._bytes[token]
            mark = text.rstrip(b"\r\n")
            joined = mark != text and mark.strip() != b""
            if joined and rng.random() < rate:
                found += [*self._encode_bytes(mark), *self._encode_bytes(text[len(mark) :])]
            else:
                found.append(token)
        return found

    def _encode_bytes(self, text: bytes) -> list[int]:
        """As `encode`; what is no whole characters becomes a token a byte."""
        try:
            return self.encode(text.decode())
        except UnicodeDecodeError:
            return [self._bytes.index(bytes([b])) for b in text]

    # --- ids to text

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; a control token stands for none."""
        return self._bytes[token]

    def n_bytes(self, ids: Iterable[int]) -> int:
        """How many UTF-8 bytes of text the ids stand for: what bits per byte divides by."""
        return sum(len(self._bytes[i]) for i in ids)

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """The text of `ids`. Control tokens are left out, all but <think> and </think>; `special` shows them all.

        Bytes that are no UTF-8 (half a character) become U+FFFD.
        """
        return b"".join(self._shown(i, special) for i in ids).decode("utf-8", "replace")

    def stream(self, ids: Iterable[int], special: bool = False) -> Iterator[str]:
        """Decode ids one by one; each piece is whole characters, so half a character is never shown.

        The pieces joined are `decode(ids)`.
        """
        read = self.decoder(special)
        yield from filter(None, map(read, ids))
        if rest := read(None):
            yield rest

    def decoder(self, special: bool = False) -> Callable[[int | None], str]:
        """A function to call with one id after another: the whole characters that are there now. None ends the text."""
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        return lambda token: utf8.decode(b"" if token is None else self._shown(token, special), final=token is None)

    def _shown(self, token: int, special: bool) -> bytes:
        if token >= len(SPECIAL) or not (special or token in (self.think, self.end_think)):
            return self._bytes[token]
        return SPECIAL[token].encode()

    # --- chat

    def chat(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool | None = None) -> list[int]:
        """The ids of a conversation. Unless the assistant spoke last, it ends with the assistant's turn opened."""
        return self.chat_with_mask(messages, add_generation_prompt)[0]

    def chat_with_mask(
        self, messages: Sequence[dict[str, str]], add_generation_prompt: bool | None = None
    ) -> tuple[list[int], list[bool]]:
        """As `chat`, with a mask that is true on what the assistant says (its words and its eos): the targets of SFT.

        <think> and </think> in the assistant's words are control tokens; the user's words are always plain text.
        """
        ids, mask = [self.bos], [False]
        for position, message in enumerate(messages):
            role, content = _checked(message, position)
            said = self.encode(content, allow_special=False)
            if role == "assistant":
                said = [*self._think(content), self.eos]
                ids, mask = [*ids, self.assistant], [*mask, False]
            elif role == "user":
                said = [self.user, *said]
            ids, mask = ids + said, mask + [role == "assistant"] * len(said)
        last_spoke = bool(messages) and messages[-1]["role"] == "assistant"
        if add_generation_prompt or (add_generation_prompt is None and not last_spoke):
            ids, mask = [*ids, self.assistant], [*mask, False]
        return ids, mask

    def _think(self, content: str) -> list[int]:
        """Encode the assistant's words: only the two think tokens are read as control tokens."""
        ids: list[int] = []
        for i, part in enumerate(content.split(THINK)):
            ids += [self.think] * (i > 0)
            for j, piece in enumerate(part.split(END_THINK)):
                ids += [self.end_think] * (j > 0) + self.encode(piece)
        return ids


def _special_id(backend: _Backend, token: str) -> int:
    found = backend.token_to_id(token)
    if found is None:
        raise ValueError(f"a tokenizer must know every control token; {token} is missing. Train it with minids.")
    return found


def _checked(message: dict[str, str], position: int) -> tuple[str, str]:
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant") or not isinstance(content, str):
        raise ValueError(
            f'a message has a role ("system", "user" or "assistant") and a content (text); message {position} is '
            f"{message!r}. Mend it."
        )
    if role == "system" and position:
        raise ValueError(f"the system message comes first; got it as message {position}. Move it to the front.")
    return role, content


def _token_bytes(backend: _Backend) -> list[bytes]:
    """The bytes of every token, by id. ByteLevel writes a byte as a printable character; this turns it back."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    to_byte = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    table = [b""] * backend.get_vocab_size()
    for token, i in backend.get_vocab().items():
        table[i] = b"" if token in SPECIAL else bytes(to_byte[c] for c in token)
    return table


def default_tokenizer() -> Tokenizer:
    """The tokenizer that comes with the course, from assets/tokenizer.json (2,048 tokens)."""
    return Tokenizer.load(_DEFAULT)
