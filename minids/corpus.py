"""What the models read: four domains of text, mixed by bytes, packed into rows of tokens, resumable at any batch.

Paper: DeepSeek-V3 technical report (arXiv 2412.19437) section 4.1: documents are packed without a mask between
them, a tenth are rewritten to fill in the middle, and a share of the tokens that join punctuation and line breaks is
split (`split_rate`, of `pack` alone).

    en, zh   stories (`minids.stories`)         maths   worked problems (`minids.maths`)
    code     the functions of this Python's own standard library, read where it is installed
    file     a text file of the learner's
    primer   short texts about who is there, which may come before all others (`minids.primer`)

Every document has an index, and is a function of (domain, split, seed, index). So a position in the endless stream is a
few counters and the tokens not yet used, and a run that was killed goes on with exactly the batch it would have seen.
The split is by a hash of what a document is about: the story's seed, the question, the function's text. The weights are
shares of bytes: 0.35 English and 0.35 code, the two that differ most, so that experts have something to specialise in;
0.15 Chinese, a second voice for the same facts; 0.15 maths, which 14_grpo builds on.

Differs from the paper: 14.8T tokens become as many as a laptop can train on, all generated or already installed.
Documents lie end to end and are cut where a row ends; the paper's packing follows Ding et al. (arXiv 2404.10830), who
choose rows so that fewer are cut. The share of split tokens is not published; the shipped model has seen none.
Left out: deduplication and quality filters; the generator repeats nothing worth filtering.
Notebook: 01_tokens. Command: `python -m minids.corpus` writes assets/tokenizer.json anew.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from minids.maths import maths
from minids.primer import primer as first_reader
from minids.pycode import functions
from minids.stories import story
from minids.tokenizer import Tokenizer

DOMAINS = ("en", "zh", "maths", "code")
PRIMER = "primer"  # has no share of its own: its documents come before the mixture
SPLITS = ("train", "val")
WEIGHTS: Mapping[str, float] = {"en": 0.35, "zh": 0.15, "maths": 0.15, "code": 0.35}
FIM_RATE = 0.1  # section 4.1
_FILE_SHARE = 0.5  # of the bytes, when the learner brings a file and no weights
_VAL_ONE_IN = 20
_DOC_BYTES = 1000  # paragraphs of a learner's file are joined up to about this
_MIN_FILE_BYTES = 10_000


def split_of(key: str) -> str:
    """The split that `key` (a question, a story's name, a function) belongs to, on every machine and for good."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return "val" if int.from_bytes(digest, "big") % _VAL_ONE_IN == 0 else "train"


def _need(ok: bool, rule: str, got: object, remedy: str) -> None:
    if not ok:
        raise ValueError(f"{rule}; got {got}. {remedy}")


# --- one document by its index


def _document(domain: str, split: str, seed: int, index: int, corpus: Path | None) -> str:
    if domain in ("en", "zh"):
        return story(_story_seed(split, seed, index), domain).text
    if domain == "maths":
        return maths(_number(domain, split, seed, index), keep=lambda question: split_of(question) == split)
    if domain == PRIMER:
        return first_reader(_number(domain, split, seed, index))
    texts = _texts(domain, split, corpus)
    lap, place = divmod(index, len(texts))
    return texts[_order(len(texts), f"{domain} {split} {seed} {lap}")[place]]


def _number(*key: object) -> int:
    digest = hashlib.blake2b(" ".join(map(str, key)).encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")


def _story_seed(split: str, seed: int, index: int) -> int:
    """The first drawn seed that falls into the split; both languages share it, so a val story is unseen in both."""
    attempt = 0
    while split_of(f"story {_number(seed, index, attempt)}") != split:
        attempt += 1
    return _number(seed, index, attempt)


@lru_cache(maxsize=8)
def _order(n: int, key: str) -> tuple[int, ...]:
    order = list(range(n))
    random.Random(key).shuffle(order)
    return tuple(order)


@lru_cache(maxsize=8)
def _texts(domain: str, split: str, corpus: Path | None) -> tuple[str, ...]:
    """All documents of a domain that is finite."""
    if domain == "code":
        return tuple(f for f in functions() if split_of(f) == split)
    assert corpus is not None
    documents = _file_documents(corpus)
    n_val = max(1, len(documents) // _VAL_ONE_IN)
    return tuple(documents[-n_val:] if split == "val" else documents[:-n_val])


def _file_documents(path: Path) -> list[str]:
    _need(path.is_file(), "a corpus is a text file", f"{path}, which is no file", "Check the path.")
    raw = path.read_bytes()
    _need(b"\0" not in raw, "a corpus is plain text", f"{path}, which holds NUL bytes", "Save it as UTF-8 text.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"a corpus is UTF-8 text; got {path} ({error}). Save it as UTF-8.") from error
    _need(
        len(text.strip().encode()) >= _MIN_FILE_BYTES,
        f"a corpus holds at least {_MIN_FILE_BYTES} bytes of text",
        f"{path} with {len(text.strip().encode())}",
        "Add text, or train on the built-in domains.",
    )
    return _paragraphs(text.replace("\r\n", "\n"))


def _paragraphs(text: str) -> list[str]:
    """Paragraphs joined into documents of about `_DOC_BYTES`; a text without blank lines is cut at its lines."""
    breaks = "\n\n" if text.count("\n\n") * 4 * _DOC_BYTES > len(text) else "\n"
    documents, held = [], ""
    for paragraph in text.split(breaks):
        for start in range(0, len(paragraph), 4 * _DOC_BYTES):
            piece = paragraph[start : start + 4 * _DOC_BYTES]
            held = f"{held}{breaks}{piece}" if held else piece
            if len(held.encode()) >= _DOC_BYTES:
                documents.append(held.strip("\n"))
                held = ""
    return [d for d in [*documents, held.strip("\n")] if d.strip()]


def _check_domain(domain: str, split: str, corpus: Path | None) -> None:
    known = (*DOMAINS, PRIMER, "file") if corpus is not None else (*DOMAINS, PRIMER)
    _need(domain in known, f"a domain is one of {known}", repr(domain), 'Choose one ("file" needs corpus=PATH).')
    _need(split in SPLITS, f"a split is one of {SPLITS}", repr(split), "Choose one of the two.")


def documents(
    domain: str, split: str = "train", n: int | None = None, seed: int = 0, corpus: Path | None = None
) -> Iterator[str]:
    """The documents of a domain: `n` of them, else endless where they are generated and one pass where they are not."""
    _check_domain(domain, split, corpus)
    if n is None and domain in ("code", "file"):
        n = len(_texts(domain, split, corpus))
    index = 0
    while n is None or index < n:
        yield _document(domain, split, seed, index, corpus)
        index += 1


# --- domains mixed


class Mixture:
    """An endless iterator over (domain, text) whose shares of bytes follow `weights`. Resumable: `state_dict`.

    `primer` documents come first that count for no share: short ones about who is there (`minids.primer`).
    """

    def __init__(
        self,
        split: str,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
        corpus: Path | str | None = None,
        primer: int = 0,
    ):
        _need(primer >= 0, "primer is a number of documents", primer, "0 leaves them out.")
        self.corpus = Path(corpus) if corpus is not None else None
        self.weights = _weights(weights, self.corpus)
        for domain in self.weights:
            _check_domain(domain, split, self.corpus)
        if "file" in self.weights:
            _texts("file", split, self.corpus)  # a bad file should fail here, not after an hour
        self.split, self.seed = split, seed
        self._served = dict.fromkeys(self.weights, 0)  # bytes
        self._index = dict.fromkeys(self.weights, 0)  # documents
        self.primer, self._primers = primer, primer  # of them, still to come

    def __iter__(self) -> Mixture:
        return self

    def __next__(self) -> tuple[str, str]:
        """The next document, of the domain that is furthest behind its share."""
        if self._primers:
            self._primers -= 1
            return PRIMER, _document(PRIMER, self.split, self.seed, self._primers, self.corpus)
        total = sum(self._served.values()) + 1
        domain = max(self.weights, key=lambda d: self.weights[d] * total - self._served[d])
        text = _document(domain, self.split, self.seed, self._index[domain], self.corpus)
        self._index[domain] += 1
        self._served[domain] += len(text.encode())
        return domain, text

    def state_dict(self) -> dict:
        return {"served": dict(self._served), "index": dict(self._index), "primers": self._primers}

    def load_state_dict(self, state: dict) -> None:
        _need(
            set(state["index"]) == set(self._index),
            "a position belongs to the domains that it was taken from",
            f"{sorted(state['index'])} for {sorted(self._index)}",
            "Resume with the same weights and corpus.",
        )
        self._served, self._index = dict(state["served"]), dict(state["index"])
        self._primers = state["primers"]


def _weights(weights: Mapping[str, float] | None, corpus: Path | None) -> dict[str, float]:
    if weights is None:
        weights = (
            WEIGHTS
            if corpus is None
            else {"file": _FILE_SHARE, **{d: w * (1 - _FILE_SHARE) for d, w in WEIGHTS.items()}}
        )
    ok = all(w >= 0 for w in weights.values()) and sum(weights.values()) > 0
    _need(ok, "weights are not negative and not all zero", dict(weights), "Give shares such as {'en': 1.0}.")
    total = sum(weights.values())
    return {d: w / total for d, w in sorted(weights.items()) if w > 0}


def mixture(
    split: str = "train", weights: Mapping[str, float] | None = None, seed: int = 0, corpus: Path | str | None = None
) -> Iterator[tuple[str, str]]:
    """Endless (domain, text) in the shares of `weights` (of bytes; default `WEIGHTS`). `corpus` adds domain "file"."""
    return Mixture(split, weights, seed, corpus)


# --- rows of tokens


def _encoded(
    texts: list[str], tokenizer: Tokenizer, fim_rate: float, rngs: Iterable[random.Random], split_rate: float = 0.0
) -> list[int]:
    """Documents as one run of ids, each from bos to eos, a share `fim_rate` of them rewritten by FIM."""
    plain = tokenizer.encode_batch(texts)
    ids: list[int] = []
    for text, encoded, rng in zip(texts, plain, rngs, strict=True):
        rewritten = rng.random() < fim_rate
        found = tokenizer.fim(text, rng) if rewritten else [*encoded, tokenizer.eos]
        ids += [tokenizer.bos, *(tokenizer.split_combined(found, split_rate, rng) if split_rate else found)]
    return ids


def _rows(stream: Int[Tensor, "N"], seq_len: int) -> Int[Tensor, "B S1"]:
    """Rows of seq_len + 1; each starts with the last token of the one before, so every token is a target once."""
    return stream.unfold(0, seq_len + 1, seq_len)


def pack(
    docs: Iterable[str],
    tokenizer: Tokenizer,
    seq_len: int,
    batch_size: int,
    fim_rate: float = FIM_RATE,
    seed: int = 0,
    split_rate: float = 0.0,
) -> Iterator[Int[Tensor, "B S1"]]:
    """Batches [batch_size, seq_len + 1] of documents laid end to end, without a mask between them. Drops the rest.

    A share `split_rate` of the tokens that join punctuation and line breaks is split (`Tokenizer.split_combined`).
    """
    held: list[int] = []
    rng = random.Random(f"fim {seed}")
    for text in docs:
        held += _encoded([text], tokenizer, fim_rate, [rng], split_rate)
        while len(held) > batch_size * seq_len:
            yield _rows(torch.tensor(held[: batch_size * seq_len + 1]), seq_len)
            held = held[batch_size * seq_len :]


def tokens(
    domain: str, split: str, tokenizer: Tokenizer, n_tokens: int, seed: int = 0, corpus: Path | None = None
) -> Int[Tensor, "N"]:
    """`n_tokens` of one domain in a row, documents from bos to eos, no FIM; finite domains start over."""
    _check_domain(domain, split, corpus)
    ids: list[int] = []
    index = 0
    while len(ids) < n_tokens:
        texts = [_document(domain, split, seed, index + i, corpus) for i in range(32)]
        ids += _encoded(texts, tokenizer, 0.0, [random.Random(0)] * len(texts))
        index += len(texts)
    return torch.tensor(ids[:n_tokens])


class Packed:
    """The training data: an endless row of batches that can be left and taken up again at any batch, exactly."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        seq_len: int,
        split: str = "train",
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
        fim_rate: float = FIM_RATE,
        corpus: Path | str | None = None,
        primer: int = 0,
    ):
        _need(seq_len > 0, "seq_len is a positive number of tokens", seq_len, "Give at least 1.")
        _need(0 <= fim_rate <= 1, "fim_rate is a share from 0 to 1", fim_rate, "V3 has 0.1.")
        self.tokenizer, self.seq_len, self.seed, self.fim_rate = tokenizer, seq_len, seed, fim_rate
        self._mixture = Mixture(split, weights, seed, corpus, primer)
        self._taken = 0  # documents
        self._held: list[int] = []  # tokens of the last documents, not yet in a batch

    def batch(self, batch_size: int) -> Int[Tensor, "B S1"]:
        """The next rows [batch_size, seq_len + 1], int64."""
        n = batch_size * self.seq_len
        while len(self._held) <= n:
            self._take(32)
        stream, self._held = torch.tensor(self._held[: n + 1]), self._held[n:]
        return _rows(stream, self.seq_len)

    def _take(self, n: int) -> None:
        texts = [text for _, text in (next(self._mixture) for _ in range(n))]
        rngs = [random.Random(f"fim {self.seed} {self._taken + i}") for i in range(n)]
        self._held += _encoded(texts, self.tokenizer, self.fim_rate, rngs)
        self._taken += n

    def _settings(self) -> dict:
        m = self._mixture
        return {
            "seq_len": self.seq_len,
            "split": m.split,
            "weights": m.weights,
            "seed": self.seed,
            "fim_rate": self.fim_rate,
            "primer": m.primer,
        }

    def state_dict(self) -> dict:
        """The position: counters, and the tokens not yet used. Small whatever was read before."""
        held = torch.tensor(self._held, dtype=torch.int64)
        return {**self._mixture.state_dict(), "taken": self._taken, "held": held, "settings": self._settings()}

    def load_state_dict(self, state: dict) -> None:
        """Take up a position. Raises ValueError when it was taken with other settings."""
        for name, value in self._settings().items():
            was = state["settings"][name]
            _need(
                was == value,
                "a position is resumed with its own settings",
                f"{name}={value}, was {was}",
                "Use the same.",
            )
        self._mixture.load_state_dict(state)
        self._taken, self._held = state["taken"], state["held"].tolist()


def eval_rows(
    domain: str, tokenizer: Tokenizer, seq_len: int, n_rows: int, seed: int = 0, corpus: Path | None = None
) -> tuple[Int[Tensor, "B S1"], int]:
    """Held-out rows [n_rows, seq_len + 1] and how many UTF-8 bytes their targets (all but column 0) stand for.

    bits per byte = sum of losses over all targets, in nats / ln 2 / bytes. Control tokens are targets of no bytes.
    """
    _need(n_rows > 0, "an evaluation needs rows", n_rows, "Give at least 1.")
    stream = tokens(domain, "val", tokenizer, n_rows * seq_len + 1, seed, corpus)
    return _rows(stream, seq_len), tokenizer.n_bytes(stream[1:].tolist())


def train_default_tokenizer(vocab_size: int = 2048, n_bytes: int = 4_000_000) -> Tokenizer:
    """The shipped tokenizer: BPE on the default mixture's training split. Its code is this Python's own library."""
    texts, read = [], 0
    for _, text in Mixture("train"):
        texts.append(text)
        read += len(text.encode())
        if read >= n_bytes:
            break
    return Tokenizer.train(texts, vocab_size)


if __name__ == "__main__":
    target = Path(__file__).resolve().parent.parent / "assets" / "tokenizer.json"
    train_default_tokenizer().save(target)
    print(f"wrote {target}")
