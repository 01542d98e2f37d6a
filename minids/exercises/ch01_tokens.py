"""Exercises of chapter 1, what a model reads: the next merge, encoding by rank, a middle put back, rows of documents,
and a prompt cut inside a token.

Source: DeepSeek-V3 (arXiv 2412.19437) section 4.1; byte-level BPE as in Sennrich et al. (arXiv 1508.07909) and GPT-2;
token healing after S. Lundberg, "The art of prompt design: prompt boundaries and token healing" (2023).
The wrong answers are mistakes seen in tutorials and home-made tokenizers.
Notebook: 01_tokens.
"""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import torch

from minids.exercises import define, ensure, expect_close, expect_equal, slip, wrong
from minids.tokenizer import default_tokenizer

# 1.1 ------------------------------------------------------------------------------------------------------------------


def best_pair(words):
    """The pair that is merged next; words {tuple of ids: how often the word occurs}."""
    counts = Counter()
    for word, n in words.items():
        for pair in pairwise(word):
            counts[pair] += n
    return min(counts, key=lambda pair: (-counts[pair], pair))


def check_best_pair(fn):
    often = random.randrange(11, 19)
    weighted = {(1, 2, 9): 1, (1, 2, 8): 1, (1, 2, 7): 1, (5, 6): often}
    expect_equal(fn(weighted), (5, 6), what="the pair", causes=[
        ((1, 2), "Each different word counts once here. A word that occurs n times brings its pairs n times."),
        ((5, 6, often), "The pair alone, without its count."),
    ])  # fmt: skip
    run = {(4, 4, 4, 4): often, (7, 8, 1): often + 1, (7, 8, 2): often}
    expect_equal(fn(run), (4, 4), what="the pair", causes=[
        ((7, 8), "In the run 4 4 4 4 the pair (4, 4) stands at three places: each counts, also where they overlap."),
    ])  # fmt: skip
    borders = {(3,): 9 * often, (6, 2): often, (1, 5, 8): often - 1}
    expect_equal(fn(borders), (6, 2), what="the pair", cause="A word of one token has no pair, and no pair crosses "
                 "from one word to the next.")  # fmt: skip
    tie = {(9, 4): often, (2, 7): often, (2, 6): often, (9, 1): often - 1}
    expect_equal(fn(tie), (2, 6), what="the pair among equals", causes=[
        ((9, 4), "Of pairs that occur equally often the smallest wins, not the one that was met first."),
        (lambda got: got in ((2, 7), (9, 1)), "Of pairs that occur equally often the smallest wins."),
    ])  # fmt: skip


BEST_PAIR = define(
    "1.1", "The next merge", minutes=10, difficulty=2,
    statement="""
        `words` holds the different words of a text, each a tuple of ids, with how often it occurs:
        `{(1, 2, 9): 3, (5, 6): 14}`. Write `best_pair(words)`: the pair of neighbours that occurs most often in the
        text. Pairs never cross words; of equally frequent ones take the smallest, as the `tokenizers` library does.
    """,
    hints=(
        "How often does (5, 6) occur in the example's text? And (1, 2)?",
        "`pairwise(word)` gives a word's pairs, overlapping ones too. Each weighs as much as its word.",
        "Add n to `counts[pair]`; then `min` with the key `(-counts[pair], pair)`.",
    ),
    check=check_best_pair,
    solution=best_pair,
    why="Counting over different words and weighing them is what makes training fast: a text has far fewer different "
    "words than words. The rule for ties makes the result the same on every machine.",
    wrong_answers=(
        slip("counts[pair] += n", "counts[pair] += 1", draws="Each different word counts once",
             why="Forgets that the dictionary holds counts."),
        slip("in pairwise(word)", "in set(pairwise(word))", draws="also where they overlap",
             why="Counts a pair once a word."),
        slip("min(counts, key=lambda pair: (-counts[pair], pair))", "counts.most_common(1)[0][0]",
             draws="not the one that was met first", why="most_common keeps the order of arrival among equals."),
        slip("min(counts, key=lambda pair: (-counts[pair], pair))", "max(counts, key=lambda p: (counts[p], p))",
             draws="not the one that was met first", why="max takes the largest pair among equals."),
        wrong("""
            def best_pair(words):
                text = [i for word, n in words.items() for i in word * n]
                counts = Counter(pairwise(text))
                return min(counts, key=lambda pair: (-counts[pair], pair))
        """, draws="no pair crosses", why="Lays the words end to end."),
    ),
)  # fmt: skip


# 1.2 ------------------------------------------------------------------------------------------------------------------


def encode(word, merges):
    """The ids of a word of single bytes after all merges, [(left, right, joined)] as learned."""
    ids = list(word)
    for left, right, joined in merges:
        out = []
        for i in ids:
            if out and (out[-1], i) == (left, right):
                out[-1] = joined
            else:
                out.append(i)
        ids = out
    return ids


def encode__text_order(word, merges):
    known, ids = {(a, b): c for a, b, c in merges}, list(word)
    while places := [i for i, pair in enumerate(pairwise(ids)) if pair in known]:
        first = places[0]
        ids[first : first + 2] = [known[ids[first], ids[first + 1]]]
    return ids


def in_one_merge(word, merges):
    """The first merge that applies, and no other; nothing when that is right."""
    found = next((m for m in merges if m[:2] in pairwise(word)), None)
    short = encode(word, [found]) if found else None
    return short if short != encode(word, merges) else None


def encode__longest(word, merges):
    spelled: dict = {(i,): i for i in word}
    whole: dict = {i: (i,) for i in word}
    for left, right, joined in merges:
        if left in whole and right in whole:
            whole[joined] = whole[left] + whole[right]
            spelled[whole[joined]] = joined
    ids, start = [], 0
    while start < len(word):
        end = next(e for e in range(len(word), start, -1) if tuple(word[start:e]) in spelled)
        ids.append(spelled[tuple(word[start:end])])
        start = end
    return ids


def check_encode(fn):
    # in "abcd" the merges b c and then bc d leave a alone; from the left it would be ab, the longest token is abc
    a, b, c, d = random.sample(range(10, 200), 4)
    merges = [(b, c, 301), (a, b, 302), (302, 302, 303), (301, d, 304), (d, d, 305), (a, 301, 306)]
    words = [[d, d, b, c, d], [a, b, c, d], [a, b, c], [a, b, a, b], [d, d, d, a], [c]]
    answers = [[305, 304], [a, 304], [306], [303], [305, d, a], [c]]
    for word, want in zip(words, answers, strict=True):
        got = fn(list(word), list(merges))
        what = f"the ids of {word} with merges {merges}"
        expect_equal(got, want, what=what, causes=[
            (in_one_merge(word, merges), "One merge was made and then no other. Each is made at every place, and then "
             "the next one, on the result."),
            (encode__text_order(word, merges), "A pair that stands further left was merged before one that was learned "
             "earlier. The order is that of `merges`, not of the text."),
            (encode__longest(word, merges), "That takes the longest token that fits from the left, as WordPiece does. "
             "BPE repeats the merges as they were learned."),
            (encode(word, merges[::-1]), "The merges were applied from the last to the first. The later ones need what "
             "the earlier ones made."),
            (list(word), "Nothing was merged."),
        ])  # fmt: skip
    tok = default_tokenizer()
    single = tok.with_merges(0)
    for text in random.sample([" understanding", " questions", "从前有一个", "self", "))):\n", " yesterday"], 4):
        want = tok.encode(text)
        expect_equal(fn(single.encode(text), tok.merges), want, what=f"the ids of {text!r} in this course's tokenizer",
                     cause="On small examples it is right; compare the order of the merges once more.")  # fmt: skip


ENCODE = define(
    "1.2", "Encode a word", minutes=12, difficulty=2,
    statement="""
        `merges` is a list of `(left, right, joined)`, in the order in which they were learned; `word` is a list of
        single-byte ids. Write `encode(word, merges)`: the ids of the word after every merge that applies.
    """,
    hints=(
        "Training applied the first merge to the whole text before it looked for the second.",
        "One merge: go through the ids, and join a pair wherever it stands. Then the next merge, on the result.",
        "Two loops: over `merges`, and inside over `ids`, building `out`; if `(out[-1], i)` is the pair, "
        "`out[-1] = joined`.",
    ),
    check=check_encode,
    solution=encode,
    why="A merge can only use what earlier merges made, so one pass in the order of learning is enough. A fast encoder "
    "looks for the pair of the lowest rank in the word instead of trying all merges: the same result.",
    wrong_answers=(
        wrong(encode__text_order, draws="learned earlier", why="Merges in the order of the text."),
        slip("in merges:", "in reversed(merges):", draws="from the last to the first", why="Long tokens first."),
        slip("        ids = out\n", "        if len(out) < len(ids):\n            return out\n",
             draws="then no other", why="Stops after the first merge that applies."),
        wrong(encode__longest, draws="WordPiece", why="Takes the longest token that fits."),
        slip("    ids = list(word)\n", "    return list(word)\n", draws="Nothing was merged", why="A stub kept."),
    ),
)  # fmt: skip


# 1.3 ------------------------------------------------------------------------------------------------------------------


def restore(row, begin, hole, end, eos):
    """The first document of a row as it was before FIM: in reading order, no control tokens."""
    at_hole, at_end, stop = row.index(hole), row.index(end), row.index(eos)
    prefix, suffix, middle = row[1:at_hole], row[at_hole + 1 : at_end], row[at_end + 1 : stop]
    return prefix + middle + suffix


def check_restore(fn):
    begin, hole, end, eos, bos = random.sample(range(10), 5)
    for sizes in ((3, 4, 5), (2, 5, 0), (0, 3, 4), (4, 0, 3)):
        fresh = iter(random.sample(range(100, 999), 40))
        prefix, middle, suffix = ([next(fresh) for _ in range(n)] for n in sizes)
        after = [bos, *(next(fresh) for _ in range(6)), eos]
        row = [begin, *prefix, hole, *suffix, end, *middle, eos, *after]
        marks = {begin, hole, end, eos, bos}
        got = fn(list(row), begin, hole, end, eos)
        expect_equal(got, prefix + middle + suffix, what=f"the document in {row}", causes=[
            (prefix + suffix + middle, "Prefix, suffix, middle: that is the order in the row (PSM). A reader wants the "
             "middle in the middle."),
            (suffix + middle + prefix, "Prefix and suffix are swapped. That would be right for SPM, where the suffix "
             "comes first; DeepSeek's order is PSM: the prefix comes first."),
            (lambda got, a=after: set(a[1:-1]) & set(got), "The next document of the row is in it: the middle ends at "
             "the first eos."),
            (lambda got, m=marks: bool(m & set(got)), "A control token is left in it."),
            (lambda got, d=prefix + middle + suffix: len(got) == len(d) - 1, "One token is missing: a slice starts or "
             "ends one place off."),
        ])  # fmt: skip


RESTORE = define(
    "1.3", "Put the middle back", minutes=8, difficulty=1,
    statement="""
        `row` is a list of ids. It starts with a document that was rewritten by FIM, without bos:
        `begin` prefix `hole` suffix `end` middle `eos`; another document follows. Write
        `restore(row, begin, hole, end, eos)`: the ids of the first document in reading order, no control tokens.
    """,
    hints=(
        "`row.index(x)` finds where a control token stands. Which part lies between which two?",
        "The prefix lies before `hole`, the suffix between `hole` and `end`, the middle between `end` and the first "
        "`eos`.",
        "`row[1:h] + row[e + 1 : s] + row[h + 1 : e]`, with h, e, s the places of `hole`, `end`, `eos`.",
    ),
    check=check_restore,
    solution=restore,
    why="The eos stands after the middle, not after the suffix: it tells the model that the hole is full. So a model "
    "that fills in stops by itself.",
    wrong_answers=(
        slip("prefix + middle + suffix", "prefix + suffix + middle", draws="the order in the row",
             why="Removes the control tokens and keeps the order."),
        slip("prefix + middle + suffix", "suffix + middle + prefix", draws="right for SPM", why="Reads it as SPM."),
        slip("[at_end + 1 : stop]", "[at_end + 1 : stop + 1]", draws="control token", why="Keeps the eos."),
        slip("row.index(eos)", "len(row) - 1 - row[::-1].index(eos)", draws="next document",
             why="Takes the last eos of the row."),
        slip("[at_hole + 1 : at_end]", "[at_hole + 2 : at_end]", draws="One token is missing", why="Off by one."),
    ),
)  # fmt: skip


# 1.4 ------------------------------------------------------------------------------------------------------------------


def rows_of(docs, S, bos, eos):
    """Rows [n, S+1] of documents (lists of ids) laid end to end, each document from bos to eos."""
    stream = [i for doc in docs for i in [bos, *doc, eos]]
    starts = range(0, len(stream) - S, S)
    return torch.tensor([stream[k : k + S + 1] for k in starts])


def check_rows_of(fn):
    S, bos, eos = random.randrange(6, 9), 0, 1
    fresh = iter(range(10, 500))
    docs = [[next(fresh) for _ in range(n)] for n in (2, 2 * S + 3, 1, S + 2, 3)]
    stream = torch.tensor([i for doc in docs for i in [bos, *doc, eos]])
    want = stream.unfold(0, S + 1, S)
    apart = stream[: len(stream) // (S + 1) * (S + 1)].view(-1, S + 1)
    plain = torch.tensor([i for doc in docs for i in doc])
    bare = torch.tensor([i for doc in docs for i in [*doc, eos]])
    got = fn([list(doc) for doc in docs], S, bos, eos)
    expect_equal(got, want, what=f"the rows of {docs}, S = {S},", causes=[
        (apart, "The rows do not overlap. A row's last token is only a target; it must be the first input of the next "
         "row too, or what follows it is never a target."),
        (stream[: len(stream) // S * S].view(-1, S), "Rows of S tokens: S inputs need S + 1, the last target too."),
        (plain.unfold(0, S + 1, S), "Without bos and eos nothing tells where a document ends."),
        (bare.unfold(0, S + 1, S), "Each document begins with bos."),
        (lambda got: got.shape[0] == len(docs), "One row a document. Here documents are laid end to end, and a row "
         "goes on with the next one."),
        (lambda got: got.shape[0] == want.shape[0] - 1, "The last whole row is missing: the last possible start is "
         "len(stream) - S - 1."),
    ])  # fmt: skip
    exact = [[next(fresh) for _ in range(2 * S - 1)]]  # 2 S + 1 tokens with bos and eos: two rows, nothing left over
    got = fn(exact, S, bos, eos)
    ensure(
        len(got) == 2, f"2 rows from {2 * S + 1} tokens, S = {S}", f"{len(got)} rows", "The last whole row is missing."
    )


ROWS_OF = define(
    "1.4", "Rows for training", minutes=12, difficulty=2,
    statement="""
        `docs` is a list of documents, each a list of ids. Write `rows_of(docs, S, bos, eos)`: an integer tensor
        `[n, S+1]`. Each document goes from bos to eos, one follows the other, and rows are cut without regard to
        borders. Every token but the very first is a target exactly once (`row[1:]` are the targets of `row[:-1]`);
        what does not fill a last row is dropped.
    """,
    hints=(
        "Make one long list first. If S = 4, which tokens are the targets of row 0? Which one must row 1 start with?",
        "A row holds S inputs and one more target; the next row starts S further on, with that target as an input.",
        "`stream[k : k + S + 1]` for k = 0, S, 2S, ... below `len(stream) - S`.",
    ),
    check=check_rows_of,
    solution=rows_of,
    why="Rows overlap by one token, so no target is lost. The target of an eos is the next document's bos, and without "
    "a mask the next document sees the one before it: V3 trains like that.",
    wrong_answers=(
        slip("range(0, len(stream) - S, S)", "range(0, len(stream) - S, S + 1)", draws="do not overlap",
             why="Cuts the stream into pieces of S + 1."),
        wrong("""
            def rows_of(docs, S, bos, eos):
                stream = [i for doc in docs for i in [bos, *doc, eos]]
                return torch.tensor([stream[k : k + S] for k in range(0, len(stream) - S + 1, S)])
        """, draws="the last target too", why="Forgets that inputs and targets are shifted."),
        slip("[bos, *doc, eos]", "doc", draws="where a document ends", why="Only joins the texts."),
        slip("[bos, *doc, eos]", "[*doc, eos]", draws="begins with bos", why="eos alone as separator."),
        wrong("""
            def rows_of(docs, S, bos, eos):
                rows = [([bos, *doc, eos] + [eos] * S)[: S + 1] for doc in docs]
                return torch.tensor(rows)
        """, draws="One row a document", why="Pads and truncates each document, as for classification."),
        slip("len(stream) - S, S", "len(stream) - S - 1, S", draws="last whole row", why="Off by one at the end."),
    ),
)  # fmt: skip


# 1.5 ------------------------------------------------------------------------------------------------------------------


def healed(p, table, removed):
    """P(a line break follows `removed`); p [W] where it stood, table: the bytes of each token."""
    fits = torch.tensor([token.startswith(removed) for token in table])
    breaks = torch.tensor([token.startswith(removed + b"\n") for token in table])
    return p[breaks].sum() / p[fits].sum()


def check_healed(fn):
    table = [b"", b"\n", b":", b":\n", b"::", b" a", b":\n\n", b") ", b"):\n", b"):", b"\n\n", b":)", b") x"]
    for removed in (b":", b")"):
        p = torch.randn(len(table), dtype=torch.float64).softmax(-1)
        fits = sum(p[i] for i, token in enumerate(table) if token[:1] == removed)
        breaks = sum(p[i] for i, token in enumerate(table) if token[:2] == removed + b"\n")
        alone = sum(p[i] for i, token in enumerate(table) if token[:1] == b"\n")
        ends = sum(p[i] for i, token in enumerate(table) if token.endswith(b"\n") and token[:1] == removed)
        expect_close(fn(p.clone(), list(table), removed), breaks / fits, what=f"P(line break | {removed!r})", causes=[
            (breaks, "That is P(removed and a line break). We know that the text goes on with `removed`: divide by the "
             "probability of all tokens that begin with it."),
            (alone, "Those are the tokens that begin with a line break: the probability that `removed` does not follow "
             "at all."),
            (lambda got, e=ends, f=fits, b=breaks: e != b and abs(float(got) - float(e / f)) < 1e-9,
             "A token that only ends in a line break has something between: the break must follow `removed` at once."),
            (alone / fits, "What is divided must be a part of what it is divided by: a token that begins with a line "
             "break does not begin with `removed`."),
            (lambda got, t=table, q=p, r=removed, f=fits: abs(float(got * f) - float(q[t.index(r + b"\n")])) < 1e-9
             if r + b"\n" in t else False,
             "Only one token is counted: a token with two line breaks begins with one too."),
        ])  # fmt: skip


HEALED = define(
    "1.5", "Heal a prompt", minutes=10, difficulty=2,
    statement="""
        A prompt ends in a mark, such as `:`, whose token was removed: `removed` are its bytes. `p` `[W]` is what the
        model says for the place that became free, `table` the bytes of every token. Write
        `healed(p, table, removed)`: the probability that a line break follows, given that the text goes on with
        `removed`. (If the next token is `removed` alone, count it as: no line break.)
    """,
    hints=(
        "Which tokens of the table begin with `removed`? Only these are possible now.",
        "Of these, which begin with `removed` and a line break? Both `:\\n` and `:\\n\\n` do.",
        "`p[breaks].sum() / p[fits].sum()` with two masks made by `startswith`.",
    ),
    check=check_healed,
    solution=healed,
    why="The condition is on the text, not on tokens: every token that begins with the known bytes is possible, and "
    "their probabilities are divided by their sum. Tokens in the middle of a word are healed the same way.",
    wrong_answers=(
        slip(" / p[fits].sum()", "", draws="divide by the probability", why="Joint for conditional."),
        slip('startswith(removed + b"\\n")', 'startswith(b"\\n")', draws="must be a part of",
             why="Keeps looking for a token of its own."),
        wrong("""
            def healed(p, table, removed):
                return sum(q for q, token in zip(p, table) if token.startswith(b"\\n"))
        """, draws="does not follow at all", why="Removes the mark and asks for a line break in its place."),
        slip('token.startswith(removed + b"\\n")', 'token.startswith(removed) and token.endswith(b"\\n")',
             draws="has something between", why="Ends in a line break, after whatever."),
        slip('token.startswith(removed + b"\\n")', 'token == removed + b"\\n"', draws="two line breaks",
             why="One token only."),
    ),
)  # fmt: skip
