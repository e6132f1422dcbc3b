"""Tokens: against values worked out by hand, in other processes, and against BERT's published examples."""

import json
import subprocess
import sys
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mla_cli.data.text import basic_words, ngrams, read_vocabulary, split_word, token_count, tokenize
from mla_cli.errors import MlaError
from mla_cli.specs import TextSpec

VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "un",
    "##aff",
    "##able",
    "runn",
    "##ing",
    "hello",
    "!",
    "\u4e2d",
    "cafe",
    "a",
    "##a",
    "$",
]


@pytest.fixture
def wordpiece(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return TextSpec(tokens="wordpiece", vocabulary=str(tmp_path / "vocab.txt"), length=16)


def test_bytes_are_utf8_cut_to_the_length():
    spec = TextSpec(tokens="bytes", length=4)
    assert tokenize(spec, "A\u00e9!?") == [0x61, 0xC3, 0xA9, 0x21]
    assert tokenize(TextSpec(tokens="bytes", lower=False), "A") == [0x41]
    assert token_count(spec) == 256


def test_ngrams_are_whole_words_first_then_parts_in_reading_order():
    assert ngrams(TextSpec(ngram_min=3, ngram_max=4), "My cat") == [
        *("<my>", "<cat>"),
        *("<my", "my>"),
        *("<ca", "cat", "at>", "<cat", "cat>"),
    ]
    spec = TextSpec(ngram_min=3, ngram_max=4, words=False)
    assert ngrams(spec, "My") == ["<my", "my>", "<my>"]  # without whole words, `<my>` counts as a 4-gram
    assert ngrams(TextSpec(length=3), "one two three four") == ["<one>", "<two>", "<three>"]
    assert ngrams(TextSpec(ngram_min=4, ngram_max=4, lower=False), "A, b") == ["<A>", "<,>", "<b>"]


def test_ngram_numbers_are_crc32_and_equal_in_a_process_with_another_hash_seed():
    spec = TextSpec(buckets=1000)
    here = tokenize(spec, "caf\u00e9 \U0001f600")
    assert here[0] == zlib.crc32("<caf\u00e9>".encode()) % 1000
    code = (
        "from mla_cli.data.text import tokenize; from mla_cli.specs import TextSpec;"
        "print(tokenize(TextSpec(buckets=1000), 'caf\\u00e9 \\U0001f600'))"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    assert there.stdout.strip() == str(here)


def test_ngram_sizes_the_wrong_way_round_are_refused():
    with pytest.raises(MlaError, match="`ngram_min` is 5 and `ngram_max` is 2"):
        tokenize(TextSpec(ngram_min=5, ngram_max=2), "text")


@given(st.text(), st.sampled_from(["bytes", "ngrams"]), st.integers(1, 40))
def test_any_text_gives_tokens_in_range_and_a_longer_spec_only_adds(text, tokens, length):
    spec = TextSpec(tokens=tokens, length=length, buckets=50)
    numbers = tokenize(spec, text)
    assert len(numbers) <= length
    assert all(0 <= number < token_count(spec) for number in numbers)
    if tokens == "bytes":
        assert tokenize(spec.model_copy(update={"length": length + 7}), text)[:length] == numbers


def test_basic_words_fold_accents_and_split_at_punctuation_and_chinese():
    assert list(basic_words(" \tHeLLo!how  \n Are yoU?  ", True)) == ["hello", "!", "how", "are", "you", "?"]
    assert list(basic_words("H\u00e9llo", True)) == ["hello"]
    assert list(basic_words("H\u00e9llo", False)) == ["H\u00e9llo"]
    assert list(basic_words("ah\u535a\u63a8zz", True)) == ["ah", "\u535a", "\u63a8", "zz"]
    assert list(basic_words("a\u0000b\ufffdc\u00add $5^", True)) == ["abcd", "$", "5", "^"]


def test_wordpiece_takes_the_longest_piece_first(wordpiece):
    vocabulary = read_vocabulary(wordpiece)
    assert split_word("unaffable", vocabulary) == ["un", "##aff", "##able"]
    assert split_word("unwanted", vocabulary) == ["[UNK]"]
    assert split_word("a" * 100, vocabulary) == ["a"] + ["##a"] * 99
    assert split_word("a" * 101, vocabulary) == ["[UNK]"]
    assert tokenize(wordpiece, "Hello! unaffable caf\u00e9\u4e2d xyz $") == [7, 8, 2, 3, 4, 10, 9, 1, 13]
    assert token_count(wordpiece) == len(VOCABULARY)
    assert tokenize(wordpiece.model_copy(update={"length": 2}), "unaffable") == [2, 3]


def test_a_tokenizer_folder_is_as_good_as_its_file(wordpiece, tmp_path):
    folder = wordpiece.model_copy(update={"vocabulary": str(tmp_path)})
    assert tokenize(folder, "hello running") == tokenize(wordpiece, "hello running") == [7, 5, 6]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no vocabulary at"), (b"\xff\xfe", "is not UTF-8"), (b"hello\nworld\n", r"has no `\[UNK\]`")],
)
def test_a_vocabulary_that_cannot_be_used_is_named(tmp_path, content, message):
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MlaError, match=message):
        token_count(TextSpec(tokens="wordpiece", vocabulary=str(path)))


def test_wordpiece_without_a_vocabulary_is_refused():
    with pytest.raises(MlaError, match="needs a vocabulary"):
        tokenize(TextSpec(tokens="wordpiece"), "hello")


def tokenizer_folder(folder, **model):
    """A folder with nothing but the `tokenizer.json` that newer releases of `transformers` write."""
    folder.mkdir()
    numbers = {token: number for number, token in enumerate(VOCABULARY)}
    content = {"version": "1.0", "model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": numbers} | model}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return TextSpec(tokens="wordpiece", vocabulary=str(folder), length=16)


def test_a_folder_with_a_tokenizer_json_alone_is_read(tmp_path, wordpiece):
    spec = tokenizer_folder(tmp_path / "bert")
    assert read_vocabulary(spec) == read_vocabulary(wordpiece)
    assert tokenize(spec, "Unaffable running!") == tokenize(wordpiece, "Unaffable running!")
    assert token_count(spec) == len(VOCABULARY)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"type": "BPE", "vocab": {"a": 0}}, "holds a `BPE` tokenizer, only WordPiece is read"),
        ({"continuing_subword_prefix": "@@"}, "only WordPiece is read"),
        ({"vocab": ["a", "b"]}, "is no tokenizer with a vocabulary"),
        ({"vocab": {"a": 0}}, r"has no `\[UNK\]`"),
    ],
)
def test_other_tokenizers_are_refused(tmp_path, model, message):
    with pytest.raises(MlaError, match=message):
        read_vocabulary(tokenizer_folder(tmp_path / "other", **model))
