"""The corpus: splits that never meet, weights kept, rows that lose nothing, and a position that is taken up exactly."""

import itertools
import sysconfig
import warnings
from pathlib import Path

import pytest
import torch

from minids import corpus, pycode
from minids.corpus import (
    DOMAINS,
    WEIGHTS,
    Mixture,
    Packed,
    documents,
    eval_rows,
    mixture,
    pack,
    split_of,
    tokens,
)  # fmt: skip
from minids.tokenizer import default_tokenizer

POEM = "\n\n".join(
    f"Paragraph {i} of the learner's own text has a few words, and é and 中.\nIt goes on." for i in range(400)
)


@pytest.fixture(scope="module")
def tok():
    return default_tokenizer()


@pytest.fixture(scope="module", autouse=True)
def few_functions():
    """A small part of the standard library, read once: the whole would take seconds."""
    some = pycode.functions(600_000)
    patch = pytest.MonkeyPatch()
    patch.setattr(corpus, "functions", lambda: some)
    corpus._texts.cache_clear()
    yield some
    patch.undo()
    corpus._texts.cache_clear()  # what other tests read is the whole


@pytest.fixture()
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.txt"
    path.write_text(POEM, encoding="utf-8")
    return path


# --- splits


def test_about_one_in_twenty_is_held_out_and_for_good():
    assert sum(split_of(str(i)) == "val" for i in range(4000)) == pytest.approx(200, abs=50)  # 3.6 standard deviations
    assert split_of("What is 47 + 38?") == "train"  # a change would leak held-out questions into old models


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_val_document_is_in_train(domain):
    train = set(itertools.islice(documents(domain, "train"), 120))
    val = set(itertools.islice(documents(domain, "val"), 25))
    assert len(train) == 120 and len(val) >= 20 and not train & val


def test_no_val_question_is_in_train():
    asked = {}
    for split in ("train", "val"):
        docs = documents("maths", split, n=60)
        asked[split] = {line for doc in docs for line in doc.split("\n") if line.startswith("Question")}
    assert asked["train"] and asked["val"] and not asked["train"] & asked["val"]


def test_code_is_one_pass_over_both_splits(few_functions):
    train, val = list(documents("code", "train")), list(documents("code", "val"))
    assert sorted(train + val) == sorted(few_functions)
    assert list(documents("code", "train", seed=1)) != train


@pytest.mark.parametrize("domain", DOMAINS)
def test_documents_depend_on_the_seed_alone(domain):
    first = list(documents(domain, n=5, seed=3))
    assert first == list(documents(domain, n=5, seed=3)) != list(documents(domain, n=5, seed=4))


# --- mixture


def test_the_default_weights_are_shares_of_bytes():
    served = dict.fromkeys(WEIGHTS, 0)
    for domain, text in itertools.islice(mixture("train"), 400):
        served[domain] += len(text.encode())
    total = sum(served.values())
    for domain, weight in WEIGHTS.items():
        assert served[domain] / total == pytest.approx(weight, abs=0.02)  # a document is at most 1 % of these


def test_weights_choose_the_domains():
    seen = {d for d, _ in itertools.islice(mixture("train", {"zh": 3, "maths": 1, "en": 0}), 50)}
    assert seen == {"zh", "maths"}


def test_a_file_joins_as_a_domain_and_its_end_is_held_out(own):
    half = [text for d, text in itertools.islice(mixture("train", corpus=own), 200) if d == "file"]
    assert half and all("learner's own" in text for text in half)
    train = "\n\n".join(documents("file", "train", corpus=own))
    val = "\n\n".join(documents("file", "val", corpus=own))
    assert "Paragraph 399" in val and "Paragraph 399" not in train and "Paragraph 0 " in train
    lines = [line for line in POEM.split("\n") if line]
    assert sorted(line for line in (train + "\n" + val).split("\n") if line) == sorted(lines)
    assert 0 < len(val) < 0.1 * len(POEM)


# --- rows


def test_packing_keeps_every_token_in_order(tok):
    docs = list(documents("en", n=9))
    batches = list(pack(docs, tok, seq_len=37, batch_size=2, fim_rate=0.0))
    stream = [i for doc in docs for i in [tok.bos, *tok.encode(doc), tok.eos]]
    targets = torch.cat([b[:, 1:].flatten() for b in batches]).tolist()
    assert all(b.shape == (2, 38) and b.dtype == torch.int64 for b in batches)
    assert targets == stream[1 : len(targets) + 1] and len(stream) - len(targets) <= 2 * 37 + 1
    assert torch.cat(batches)[1:, 0].tolist() == torch.cat(batches)[:-1, -1].tolist()


def test_about_a_tenth_of_the_documents_are_filled_in_the_middle(tok):
    docs = list(documents("maths", n=400))
    stream = torch.cat([b[:, 1:].flatten() for b in pack(docs, tok, 64, 1)])
    assert (stream == tok.fim_begin).sum().item() == pytest.approx(40, abs=22)  # 3.7 standard deviations
    assert (stream == tok.fim_begin).sum() == (stream == tok.fim_hole).sum() == (stream == tok.fim_end).sum()
    assert not (torch.cat(list(pack(docs[:50], tok, 64, 1, fim_rate=0.0))) == tok.fim_begin).any()


def test_a_share_of_the_joined_tokens_is_split_and_the_text_stays(tok):
    docs = list(documents("maths", n=60))

    def read(rate):
        stream = torch.cat([b[:, 1:].flatten() for b in pack(docs, tok, 64, 1, fim_rate=0.0, split_rate=rate)]).tolist()
        joined = sum(tok.token_bytes(i).endswith(b"\n") and tok.token_bytes(i).strip() != b"" for i in stream)
        return tok.decode(stream)[:5000], joined

    whole, half, none = read(0.0), read(0.5), read(1.0)
    assert whole[0] == half[0] == none[0] and none[1] == 0
    assert whole[1] > 100 and half[1] / whole[1] == pytest.approx(0.5, abs=4 * 0.5 / whole[1] ** 0.5)


def test_tokens_are_documents_from_bos_to_eos(tok):
    ids = tokens("zh", "val", tok, 700, seed=2).tolist()
    first = next(documents("zh", "val", seed=2))
    assert len(ids) == 700 and ids[0] == tok.bos
    assert tok.decode(ids[1 : ids.index(tok.eos)]) == first


def test_eval_rows_count_the_bytes_of_their_targets(tok):
    rows, n_bytes = eval_rows("zh", tok, seq_len=53, n_rows=7, seed=1)
    assert rows.shape == (7, 54)
    targets = rows[:, 1:].flatten().tolist()
    slow = sum(len(tok.token_bytes(i)) for i in targets if i > 9)
    assert n_bytes == slow
    text = "".join(d for d in itertools.islice(documents("zh", "val", seed=1), 5))
    shown = b"".join(tok.token_bytes(i) for i in targets)
    assert text.encode().startswith(shown) and len(shown) == n_bytes
    assert not set(targets) & {tok.fim_begin, tok.fim_hole}


# --- resuming


@pytest.mark.parametrize("with_file", [False, True])
def test_a_resumed_run_sees_exactly_the_next_batches(tok, own, with_file):
    def fresh() -> Packed:
        return Packed(tok, 61, "train", None, 5, 0.3, own if with_file else None)

    run = fresh()
    for size in (3, 4, 2):
        run.batch(size)
    state = run.state_dict()
    want = [run.batch(size) for size in (3, 5, 40, 1)]
    again = fresh()
    again.load_state_dict(state)
    for expected in want:
        assert torch.equal(again.batch(len(expected)), expected)
    run.load_state_dict(state)
    assert torch.equal(run.batch(3), want[0])


def test_a_position_survives_a_file_and_stays_small(tok, tmp_path):
    run = Packed(tok, 33, seed=8)
    for _ in range(30):
        run.batch(16)
    torch.save(run.state_dict(), tmp_path / "state.pt")
    want = run.batch(16)
    again = Packed(tok, 33, seed=8)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(again.batch(16), want)
    assert (tmp_path / "state.pt").stat().st_size < 500_000


def test_which_documents_are_filled_in_does_not_repeat(tok):
    ids = Packed(tok, 100_000, weights={"maths": 1}, fim_rate=0.5).batch(1)[0].tolist()
    starts = [i for i, token in enumerate(ids[:-1]) if token == tok.bos]
    filled = [ids[i + 1] == tok.fim_begin for i in starts]
    assert len(filled) > 128 and filled[:32] != filled[32:64] != filled[64:96]


def test_primers_come_first_and_change_nothing_after_them():
    plain, primed = Mixture("train", seed=3), Mixture("train", seed=3, primer=7)
    first = [next(primed) for _ in range(7)]
    assert {domain for domain, _ in first} == {"primer"} and len({text for _, text in first}) == 7
    assert [next(primed) for _ in range(20)] == [next(plain) for _ in range(20)]


def test_a_run_that_stops_among_its_primers_goes_on_there(tok):
    run, again = Packed(tok, 31, seed=2, primer=70), Packed(tok, 31, seed=2, primer=70)
    run.batch(5)
    again.load_state_dict(run.state_dict())
    assert torch.equal(run.batch(300), again.batch(300))
    with pytest.raises(ValueError, match="primer=0, was 70"):
        Packed(tok, 31, seed=2).load_state_dict(run.state_dict())


def test_rows_follow_each_other_across_batches_of_any_size(tok):
    one, two = Packed(tok, 29, seed=1), Packed(tok, 29, seed=1)
    assert torch.equal(torch.cat([one.batch(2), one.batch(3)]), two.batch(5))


def test_other_settings_are_refused_on_resume(tok):
    state = Packed(tok, 29, seed=1).state_dict()
    with pytest.raises(ValueError, match="seed=2, was 1"):
        Packed(tok, 29, seed=2).load_state_dict(state)
    with pytest.raises(ValueError, match="domains that it was taken from"):
        Mixture("train", {"en": 1}).load_state_dict(Mixture("train").state_dict())


# --- bad input


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "at least 10000 bytes"),
        (b"too short", "at least 10000 bytes"),
        (b"x" * 20_000 + b"\0", "NUL bytes"),
        (b"\xff\xfe\xfa" * 9_000, "UTF-8"),
    ],
)
def test_a_bad_corpus_file_is_refused_at_once(tok, tmp_path, content, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Packed(tok, 16, corpus=path)


def test_a_missing_file_or_unknown_name_is_refused(tok, tmp_path):
    with pytest.raises(ValueError, match="which is no file"):
        mixture("train", corpus=tmp_path / "none.txt")
    with pytest.raises(ValueError, match=r"a domain is one of .* got 'french'"):
        next(documents("french"))
    with pytest.raises(ValueError, match=r"a domain is one of .* got 'file'"):
        mixture("train", {"file": 1})
    with pytest.raises(ValueError, match=r"a split is one of .* got 'test'"):
        tokens("en", "test", tok, 9)
    with pytest.raises(ValueError, match="not negative"):
        mixture("train", {"en": -1})
    with pytest.raises(ValueError, match="fim_rate"):
        Packed(tok, 16, fim_rate=1.5)
    with pytest.raises(ValueError, match="number of documents"):
        Packed(tok, 16, primer=-1)
    with pytest.raises(ValueError, match="seq_len"):
        Packed(tok, 0)
    with pytest.raises(ValueError, match="needs rows"):
        eval_rows("en", tok, 16, 0)


def test_a_file_without_blank_lines_is_cut_at_its_lines_and_one_without_lines_anywhere(tmp_path):
    for name, text in (("lines", "\n".join("word " * 9 for _ in range(900))), ("one", "ab" * 20_000)):
        path = tmp_path / f"{name}.txt"
        path.write_text(text, encoding="utf-8")
        docs = [*documents("file", "train", corpus=path), *documents("file", "val", corpus=path)]
        assert len(docs) > 8 and max(map(len, docs)) <= 5200


# --- code


def test_functions_are_whole_and_parse(few_functions):
    assert len(few_functions) > 500 and len(set(few_functions)) == len(few_functions)
    for text in few_functions[:300]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in the library's own strings
            compile(text, "function", "exec", dont_inherit=True)
        assert len(text.encode()) <= 4096 and text.startswith(("def ", "async def ", "@"))


def test_methods_are_dedented_and_nested_functions_stay_inside():
    inner = "        def g():\n            return 'inner and long enough for the limit'\n        return g\n"
    source = "class A:\n    @property\n    def f(self):\n" + inner
    (found,) = pycode.functions_in(source)
    assert found.startswith("@property\ndef f(self):\n    def g():")
    assert list(pycode.functions_in("def f(:")) == []


def test_tests_and_tables_are_left_out():
    names = [
        p.relative_to(sysconfig.get_paths()["stdlib"]).as_posix()
        for p in pycode.sources(Path(sysconfig.get_paths()["stdlib"]))
    ]
    assert len(names) > 300 and "json/decoder.py" in names
    assert not [n for n in names if n.split("/")[0] in ("test", "encodings", "idlelib", "site-packages")]


def test_without_sources_code_is_generated_with_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(pycode, "_roots", lambda: [("nothing", tmp_path)])
    pycode.functions.cache_clear()
    with pytest.warns(UserWarning, match="nothing has no Python source"):
        made = pycode.functions(123)
    pycode.functions.cache_clear()
    assert len(set(made)) == len(made) >= 1000
    for text in made[:50]:
        compile(text, "function", "exec")
