"""The tokenizer: every text comes back, control tokens only when asked, FIM and chat as DeepSeek writes them."""

import json
import random

import pytest

from minids.stories import story
from minids.tokenizer import CHAT_TEMPLATE, MIN_VOCAB, SPECIAL, Tokenizer, default_tokenizer

TEXTS = [story(seed, lang).text for seed in range(60) for lang in ("en", "zh")]
STRANGE = [
    "",
    " ",
    "\n\n\t x",
    "naïve 日本語 한국어 🙂🧑‍🚀",
    "a\u0000b\r\nc",
    "e\u0301 ﬁ ½",
    "    def f():\n        return 1_000\n",
]


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return default_tokenizer()


@pytest.mark.parametrize("text", [*STRANGE, TEXTS[0], TEXTS[1]])
def test_every_text_comes_back_byte_for_byte(tok, text):
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert tok.n_bytes(ids) == len(text.encode())


def test_the_shipped_vocabulary_is_2048_with_the_control_tokens_first(tok):
    assert tok.vocab_size == 2048
    assert [tok.special_ids[token] for token in SPECIAL] == list(range(10))
    assert (tok.bos, tok.eos, tok.pad, tok.fim_begin, tok.think) == (0, 1, 2, 3, 8)


def test_training_is_deterministic_and_fills_the_vocabulary():
    one, two = Tokenizer.train(TEXTS, 400), Tokenizer.train(iter(TEXTS), 400)
    assert one.vocab_size == 400 and one.to_str() == two.to_str()


def test_merges_make_known_text_shorter(tok):
    for text in TEXTS[:2]:
        assert len(tok.encode(text)) < 0.4 * len(text.encode())


def test_digits_stand_alone(tok):
    assert [tok.decode([i]) for i in tok.encode("12345")] == list("12345")
    assert not [t for t in range(10, tok.vocab_size) if sum(b in b"0123456789" for b in tok.token_bytes(t)) > 1]


@pytest.mark.parametrize("token", SPECIAL)
def test_a_control_token_in_text_stays_text_unless_asked(tok, token):
    text = f"a {token} b"
    plain = tok.encode(text)
    assert not set(plain) & set(range(10)) and tok.decode(plain) == text
    asked = tok.encode(text, allow_special=True)
    assert tok.special_ids[token] in asked and len(asked) < len(plain)
    assert tok.decode(asked, special=True) == text
    assert tok.encode(text) == plain  # asking once leaves nothing behind


def test_batches_are_encoded_as_one_by_one(tok):
    assert tok.encode_batch(TEXTS[:9]) == [tok.encode(t) for t in TEXTS[:9]]
    assert tok.encode("Hi", bos=True, eos=True) == [tok.bos, *tok.encode("Hi"), tok.eos]


def test_decode_shows_thinking_and_hides_other_control_tokens(tok):
    ids = [tok.bos, tok.think, *tok.encode("so"), tok.end_think, *tok.encode("4"), tok.eos]
    assert tok.decode(ids) == "<think>so</think>4"
    assert tok.decode(ids, special=True).startswith("<｜begin▁of▁sentence｜><think>")


@pytest.mark.parametrize("text", [*STRANGE, TEXTS[1]])
def test_a_stream_never_shows_half_a_character(tok, text):
    pieces = list(tok.stream(tok.encode(text)))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece and piece for piece in pieces)


def test_a_stream_that_ends_inside_a_character_says_so(tok):
    half = tok.encode("🙂")[:-1]
    assert "".join(tok.stream(half)) == tok.decode(half) == "\ufffd"


def test_fim_moves_the_middle_to_the_end(tok):
    text = TEXTS[1]
    for seed in range(20):
        ids = tok.fim(text, random.Random(seed))
        hole, end = ids.index(tok.fim_hole), ids.index(tok.fim_end)
        assert ids[0] == tok.fim_begin and ids[-1] == tok.eos and ids.count(tok.eos) == 1
        prefix, suffix, middle = ids[1:hole], ids[hole + 1 : end], ids[end + 1 : -1]
        assert tok.decode(prefix) + tok.decode(middle) + tok.decode(suffix) == text
    assert tok.fim(text, random.Random(3)) == tok.fim(text, random.Random(3))


def test_split_combined_splits_all_or_none_and_keeps_the_text(tok):
    text = "f(x)\n\nreturn y:\n" + TEXTS[0]
    ids = tok.encode(text)
    joined = [i for i in ids if tok.token_bytes(i).strip() and tok.token_bytes(i).endswith(b"\n")]
    assert joined
    split = tok.split_combined(ids, 1.0, random.Random(0))
    assert tok.decode(split) == text and len(split) > len(ids)
    assert not [i for i in split if tok.token_bytes(i).strip() and tok.token_bytes(i).endswith(b"\n")]
    assert tok.split_combined(ids, 0.0, random.Random(0)) == ids


def test_split_combined_also_splits_a_token_that_begins_inside_a_character():
    halves = Tokenizer.train(["∂\n⌂\n◂\n☂\n✂\n"], MIN_VOCAB + 1)  # all end in the byte 82
    token = halves.merges[0][2]
    assert halves.token_bytes(token) == b"\x82\n"
    split = halves.split_combined([token], 1.0, random.Random(0))
    assert [halves.token_bytes(i) for i in split] == [b"\x82", b"\n"]


def test_words_join_to_the_text_and_no_token_crosses_them(tok):
    for text in [*STRANGE, *TEXTS]:
        words = tok.words(text)
        assert "".join(words) == text
        assert [i for word in words for i in tok.encode(word)] == tok.encode(text)
    assert tok.words("Mia had 12 kites:\n\n我爱你") == ["Mia", " had", " ", "1", "2", " kites", ":\n\n", "我爱你"]


def test_merges_are_what_the_later_tokens_are_made_of_in_order(tok):
    known = set(range(MIN_VOCAB))
    for left, right, joined in tok.merges:
        assert {left, right} <= known
        assert tok.token_bytes(joined) == tok.token_bytes(left) + tok.token_bytes(right)
        known.add(joined)
    assert known == set(range(tok.vocab_size))


def test_the_first_merges_are_the_tokenizer_that_a_shorter_training_makes(tok):
    texts = [TEXTS[0] * 3, TEXTS[1]]
    long, short = Tokenizer.train(texts, MIN_VOCAB + 20), Tokenizer.train(texts, MIN_VOCAB + 7)
    first, all_of_them, none = long.with_merges(7), tok.with_merges(len(tok.merges)), tok.with_merges(0)
    for text in [*STRANGE, *TEXTS]:
        assert first.encode(text) == short.encode(text)
        assert all_of_them.encode(text) == tok.encode(text)
        assert [tok.token_bytes(i) for i in none.encode(text)] == [bytes([b]) for b in text.encode()]
    with pytest.raises(ValueError, match=r"knows 20 merges; got n=21\."):
        long.with_merges(21)


CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "2 + 2? <｜Assistant｜>"},
    {"role": "assistant", "content": "<think>easy</think>4"},
    {"role": "user", "content": "Thanks"},
]


def test_chat_reads_as_deepseek_writes_it(tok):
    shown = tok.decode(tok.chat(CHAT), special=True)
    assert shown == (
        "<｜begin▁of▁sentence｜>Be kind.<｜User｜>2 + 2? <｜Assistant｜><｜Assistant｜><think>easy</think>4"
        "<｜end▁of▁sentence｜><｜User｜>Thanks<｜Assistant｜>"
    )
    assert tok.chat(CHAT).count(tok.assistant) == 2  # the one a user typed is text
    assert tok.chat(CHAT).count(tok.think) == 1


def test_the_jinja_template_renders_the_same_text(tok):
    jinja2 = pytest.importorskip("jinja2", reason="needs jinja2 (pip install minids[dev])")
    template = jinja2.Template(CHAT_TEMPLATE)
    text = template.render(messages=CHAT, bos_token=SPECIAL[0], eos_token=SPECIAL[1], add_generation_prompt=True)
    assert text == tok.decode(tok.chat(CHAT), special=True)


def test_the_chat_mask_covers_what_the_assistant_says(tok):
    ids, mask = tok.chat_with_mask(CHAT[:3])
    said = [i for i, on in zip(ids, mask, strict=True) if on]
    assert tok.decode(said, special=True) == "<think>easy</think>4<｜end▁of▁sentence｜>"
    assert ids[-1] == tok.eos and tok.chat(CHAT[:3], add_generation_prompt=True)[-1] == tok.assistant


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "robot", "content": "x"}], "a role"),
        ([{"role": "user"}], "a content"),
        ([CHAT[1], CHAT[0]], "system message comes first"),
    ],
)
def test_bad_messages_are_refused(tok, messages, message):
    with pytest.raises(ValueError, match=message):
        tok.chat(messages)


def test_saving_and_loading_keeps_everything(tok, tmp_path):
    path = tmp_path / "deep" / "tok.json"
    tok.save(path)
    again = Tokenizer.load(path)
    assert again.encode(TEXTS[1]) == tok.encode(TEXTS[1]) and again.vocab_size == tok.vocab_size
    assert again.to_str() == tok.to_str() and list(path.parent.iterdir()) == [path]
    assert json.loads(path.read_text(encoding="utf-8"))["model"]["type"] == "BPE"


def test_bad_tokenizers_are_refused(tmp_path):
    with pytest.raises(ValueError, match=f"got vocab_size={MIN_VOCAB - 1}"):
        Tokenizer.train(TEXTS, MIN_VOCAB - 1)
    with pytest.raises(ValueError, match="enough different pairs"):
        Tokenizer.train(["aaaa"], 5000)
    with pytest.raises(ValueError, match="there is none at"):
        Tokenizer.load(tmp_path / "no.json")
    (tmp_path / "bad.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="Make it anew"):
        Tokenizer.load(tmp_path / "bad.json")


def test_a_backend_without_control_tokens_is_refused():
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    with pytest.raises(ValueError, match="every control token"):
        Tokenizer(Backend(models.BPE()))
