"""A needle in a haystack: rows of tiny sentences, a fact to be found again in them, and the share of facts found.

Paper: DeepSeek-V3 section 4.3, figure 8: a needle at each depth of texts of up to 128K tokens.

    old foxes sleep .  code Mia 17 Mia  lamps glow .  code Ben 28 Ben  ...  cold boats turn .  code Mia  -> 17
                       needle                         one that looks alike                     question  answer

A *needle* says which code a name has. A *haystack* of S tokens holds the needle at a depth (0 first, 1 last), others
that look alike, filler between them, and ends with the question. The answer is one of 20 numbers: by chance 5 % are
right. A model must find the name's own needle, however far back.

A training *row* states facts several times at random places: a value can be known from the second time on. The name
that closes a fact can always be known; predicting it teaches what belongs together. Facts come in two forms with
separate values, "code Mia 17 Mia" and "gift Mia tea Mia", so that the form that is tested may be kept out of long rows:
then what a model finds at long distance, it has not been trained to find there.

Differs from the paper: the usual hay is real text; this language of 65 words, one token each, is our own.
Left out: needles whose answer takes more than one fact.
Notebook: 12_long_context.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from safetensors.torch import load, save
from torch import Tensor, nn

from minids.config import Config
from minids.model import Transformer


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words("Ada Ben Eva Gus Ida Jon Mia Noah Olga Sam Tom Vera")
NUMBERS = tuple(str(n) for n in range(10, 30))
THINGS = _words("tea bread honey chess kites roses plums silk clay glass")
FILLER = {
    "adjective": _words("old cold small green"),
    "noun": _words("foxes boats lamps hills birds doors"),
    "verb": _words("sleep turn glow wait fall move"),
    "adverb": _words("softly slowly again often"),
}
FORMS = {"code": NUMBERS, "gift": THINGS}  # the two forms of a fact, and what may stand last in them
WORDS = (".", *FORMS, *NAMES, *NUMBERS, *THINGS, *(word for words in FILLER.values() for word in words))
ASSET = Path(__file__).resolve().parent.parent / "assets" / "needle.safetensors"
IDS = {word: i for i, word in enumerate(WORDS)}


def encode(text: str) -> list[int]:
    """Token numbers of words that are separated by spaces. KeyError for a word that is not in `WORDS`."""
    return [IDS[word] for word in text.split()]


def decode(tokens: Sequence[int] | Tensor) -> str:
    """The words of token numbers."""
    return " ".join(WORDS[int(t)] for t in tokens)


@dataclass(frozen=True)
class Haystack:
    """A text that ends in a question, as words; `place` is the position of the answer's token in it."""

    words: tuple[str, ...]
    answer: str
    place: int

    @property
    def text(self) -> str:
        return " ".join(self.words)


def haystack(length: int, depth: float, rng: random.Random, others: int = 3) -> Haystack:
    """`length` words that end in a question; its needle stands at `depth`, `others` of the same form at random places.

    Raises: ValueError when the needles do not fit.
    """
    room = length - 2 - 4 * (1 + others)  # for filler: the question takes 2 words, a needle 4
    if not 0 <= depth <= 1 or others < 0 or others >= len(NAMES) or (room < 3 and room != 0):
        raise ValueError(
            f"a haystack holds 4 words a needle, 2 for the question and at least 3 of filler, and depth lies in 0 to "
            f"1; got length {length}, depth {depth}, {others} others. Take a longer haystack or fewer others."
        )
    names = rng.sample(NAMES, 1 + others)
    needles = [("code", name, rng.choice(NUMBERS)) for name in names]
    sentences = [*filler(room, rng), *(_fact(*needle) for needle in needles[1:])]
    rng.shuffle(sentences)
    at = round(depth * len(sentences))
    sentences.insert(at, _fact(*needles[0]))
    words = [word for sentence in sentences for word in sentence]
    place = sum(map(len, sentences[:at])) + 2
    return Haystack((*words, "code", names[0]), needles[0][2], place)


def _fact(form: str, name: str, value: str) -> tuple[str, ...]:
    return form, name, value, name


def filler(length: int, rng: random.Random) -> list[tuple[str, ...]]:
    """Sentences of 3 to 5 words, `length` words in all (0, or 3 and more)."""
    sizes = []
    while length:
        sizes.append(rng.choice([n for n in (3, 4, 5) if length - n == 0 or length - n >= 3]))
        length -= sizes[-1]
    kinds = {3: ("noun", "verb"), 4: ("adjective", "noun", "verb"), 5: ("adjective", "noun", "verb", "adverb")}
    return [(*(rng.choice(FILLER[kind]) for kind in kinds[n]), ".") for n in sizes]


def row(
    length: int, rng: random.Random, forms: Sequence[str] = tuple(FORMS), facts: int = 3, times: int = 2
) -> tuple[list[int], list[bool]]:
    """(tokens, which of them can be known) of `facts` facts, each stated `times` times at random places among filler.

    Each fact takes one of `forms`. A value can be known when its fact was stated before.
    """
    stated = []
    for name in rng.sample(NAMES, facts):
        form = rng.choice(forms)
        stated += [_fact(form, name, rng.choice(FORMS[form]))] * times
    sentences = [*filler(length - 4 * times * facts, rng), *stated]
    rng.shuffle(sentences)
    tokens: list[int] = []
    known: list[bool] = []
    seen: set[tuple[str, ...]] = set()
    for sentence in sentences:
        tokens += [IDS[word] for word in sentence]
        known += [i == 2 and sentence in seen for i in range(len(sentence))]
        seen |= {sentence} & set(stated)
    return tokens, known


def batch(
    size: int, length: int, rng: random.Random, forms: Sequence[str] = tuple(FORMS), facts: int = 3, times: int = 2
) -> tuple[Int[Tensor, "B S"], Bool[Tensor, "B S"]]:
    """`size` rows as tensors: (tokens, which of them can be known)."""
    rows = [row(length, rng, forms, facts, times) for _ in range(size)]
    return torch.tensor([tokens for tokens, _ in rows]), torch.tensor([known for _, known in rows])


def loss(model: Transformer, tokens: Int[Tensor, "B S"], known: Bool[Tensor, "B S"]) -> Float[Tensor, ""]:
    """Mean next-word loss of all words, and once more that of the values that can be known: few in a long row."""
    h, _ = model.hidden(tokens[:, :-1])
    return _loss(model, h, tokens, known)


def _loss(
    model: Transformer, h: Float[Tensor, "B T D"], tokens: Int[Tensor, "B S"], known: Bool[Tensor, "B S"]
) -> Float[Tensor, ""]:
    logits, targets, asked = model.head(h), tokens[:, 1:], known[:, 1:]
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten()) + F.cross_entropy(logits[asked], targets[asked])


@torch.no_grad()
def retrieval(model: Transformer, length: int, depth: float, n: int = 32, seed: int = 0, others: int = 3) -> float:
    """Share of `n` haystacks whose question the model answers: its likeliest word of all is the needle's number."""
    rng, right = random.Random(f"{seed} {length} {depth}"), 0
    for start in range(0, n, 16):  # a few at a time: long ones take memory
        stacks = [haystack(length, depth, rng, others) for _ in range(min(16, n - start))]
        h, _ = model.hidden(torch.tensor([[IDS[word] for word in stack.words] for stack in stacks]))
        answers = torch.tensor([IDS[stack.answer] for stack in stacks])
        right += int((model.head(h[:, -1]).argmax(-1) == answers).sum())
    return right / n


def heat_map(
    model: Transformer, lengths: Sequence[int], depths: Sequence[float], n: int = 32, seed: int = 0
) -> list[list[float]]:
    """Shares found, [depths][lengths]: the needle test's figure."""
    return [[retrieval(model, length, depth, n, seed) for length in lengths] for depth in depths]


def config(length: int = 64) -> Config:
    """The small models of 12_long_context: two blocks of MLA with dense FFN, trained on rows of `length` words."""
    return Config(
        vocab_size=len(WORDS), dim=64, n_layers=2, n_dense_layers=2, inter_dim=128, n_heads=4, q_lora_rank=0,
        kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16, init_std=0.05, embed_std=0.3,
        max_seq_len=40 * length, original_seq_len=length,
    )  # fmt: skip


def pretrain(seed: int, patience: int = 3000) -> Transformer:
    """A model that finds needles in rows of 64 words: half a minute of one core.

    Finding takes two blocks: the first carries each name to its value, the second looks for the name asked for. Neither
    is of use without the other, so that together they long learn nothing. Hence three phases: the first block alone
    learns to close facts; it stays as it is while the second learns to find; then both are trained.

    Raises: RuntimeError when it has not learned to find within `patience` steps.
    """
    model, rng = Transformer(config(), torch.Generator().manual_seed(seed)), random.Random(seed)
    first, second = model.layers
    length, ends = model.cfg.original_seq_len, [*model.norm.parameters(), *model.head.parameters()]
    values = torch.tensor([IDS[word] for form in FORMS.values() for word in form])

    def rows() -> tuple[Tensor, Tensor]:
        return batch(32, length, rng, facts=5, times=3)

    def close() -> Tensor:  # the word after a value is the name before it; here the head reads the first block
        tokens, _ = rows()
        after = torch.isin(tokens[:, :-1], values)
        h, _ = first(model.embed(tokens[:, :-1]), model.freqs_cis[: length - 1])
        return F.cross_entropy(model.head(model.norm(h[after])), tokens[:, 1:][after])

    def find() -> Tensor:
        return loss(model, *rows())

    _ = list(training([*model.embed.parameters(), *first.parameters(), *ends], close, 80, rate=3e-3))
    for step in training([*second.parameters(), *ends], find, patience, rate=3e-3):
        if step % 25 == 0 and retrieval(model, length, 0.5, n=64, seed=-1) > 0.9:
            break
    else:
        raise RuntimeError(f"seed {seed} has not learned to find needles in {patience} steps: try another seed.")
    _ = list(training([*model.parameters()], find, 150, rate=1.5e-3, cool=True))
    return model.eval()


def training(
    parameters: list[nn.Parameter], objective: Callable[[], Tensor], steps: int, rate: float, cool: bool = False
) -> Iterator[int]:
    """Train `parameters`, and no others, by AdamW on what `objective` gives; after each step its number.

    The rate rises over 20 steps; with `cool` it falls to nothing over the second half.
    """
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, step / 20) * (min(1.0, 2 - 2 * step / (steps + 1)) if cool else 1.0)
        gradients = torch.autograd.grad(objective(), parameters)
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        yield step


def shipped(seed: int) -> Transformer:
    """The model that `pretrain(seed)` gave, from assets/needle.safetensors; seeds 0, 1 and 2 are there, in BF16."""
    weights = load(ASSET.read_bytes()) if ASSET.is_file() else {}
    own = {name.partition(".")[2]: t.float() for name, t in weights.items() if name.startswith(f"{seed}.")}
    if not own:
        raise FileNotFoundError(
            f"{ASSET} holds no model of seed {seed}. Seeds 0, 1 and 2 come with the course; pretrain(seed) "
            "makes others."
        )
    model = Transformer(config())
    model.load_state_dict(own)
    return model.eval()


def main() -> None:
    """Train the three shipped models anew and write assets/needle.safetensors."""
    weights: dict[str, Tensor] = {}
    for seed in (0, 1, 2):
        model = pretrain(seed)
        print(f"seed {seed}: {retrieval(model, 64, 0.5, n=256, seed=1):.1%} found in 64 words", flush=True)
        weights |= {f"{seed}.{name}": t.bfloat16().contiguous() for name, t in model.state_dict().items()}
    ASSET.write_bytes(save(weights))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
