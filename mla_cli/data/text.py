"""Text -> token numbers: UTF-8 bytes, hashed character n-grams, or BERT's WordPiece; and reading text files.

Bytes and n-grams need no vocabulary. The n-grams are those of fastText (Bojanowski et al. 2017, arXiv 1607.04606): of
`<word>` with its boundary marks, and the whole `<word>` itself; their hash is CRC-32, equal in every process, Python
version and machine (Python's `hash` is not).

WordPiece here equals BERT's own (Devlin et al. 2019: basic tokenisation, then greedy longest match first, `[UNK]` for a
word that cannot be built or has more than 100 characters), without special tokens; that is `BertNormalizer`,
`BertPreTokenizer` and `WordPiece` of the package `tokenizers`, but for a final Greek sigma and characters whose class
differs between Unicode versions. The vocabulary is a file of the user's.

`tokenizer` is a model's own (`transformers.AutoTokenizer`), with its special tokens: from a folder, or from the hub
where the user wrote a hub name.
"""

import codecs
import json
import re
import unicodedata
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from mla_cli.data.hub import maker_of, tokenizer
from mla_cli.data.media import BadMedia, Source, decoding, open_source
from mla_cli.errors import MlaError
from mla_cli.files import read_at_most
from mla_cli.specs import TextSpec

MAX_TEXT_BYTES = 2**24  # of one text file
# Encodings of Python's that no file has: of host names (quadratic in the length), of Python's source, of nothing.
NOT_FOR_FILES = (
    "idna",
    "punycode",
    "unicode_escape",
    "raw_unicode_escape",
    "unicode-escape",
    "raw-unicode-escape",
    "undefined",
)
MAX_VOCABULARY_BYTES = 2**27  # BERT's multilingual one has 1 MB, a tokenizer.json up to 20 MB
MAX_TOKENS = 10_000_000  # as many as `buckets` may be
LONGEST_WORD = 100  # characters; BERT's own limit for WordPiece
UNKNOWN = "[UNK]"
VOCABULARIES = ("vocab.txt", "tokenizer.json")  # in a tokenizer folder; the first one counts
_WORD = re.compile(r"\w+|[^\w\s]")  # a run of letters, digits and _, or one mark


# ---------------------------------------------------------------- reading


def read_text(kind: str, root: Path, ref: str, allow_outside: bool = False) -> str:
    """The text of a reference: itself for kind `text`; for `text_file` the file's, UTF-8 or as `#encoding=` says."""
    if kind == "text":
        text = ref
    else:
        source, parsed = open_source(root, ref, allow_outside)
        data = _read_bytes(source)
        encoding = parsed.encoding or "utf-8-sig"  # which drops the mark that Windows editors put first
        try:
            if codecs.lookup(encoding).name in NOT_FOR_FILES:
                raise LookupError
            text = data.decode(encoding)
        except UnicodeDecodeError as error:
            where = f"byte {error.start} (0x{data[error.start]:02x})"
            raise BadMedia("text_undecodable", f"`{ref}` is not {encoding.removesuffix('-sig')} at {where}") from error
        except (LookupError, ValueError) as error:  # ValueError: a name with a NUL, or half of a surrogate pair
            raise BadMedia("text_undecodable", f"`{encoding}` is not a text encoding") from error
    if not text.strip():
        raise BadMedia("empty", "the text is empty")
    return text


def _read_bytes(source: Source) -> bytes:
    if not isinstance(source, str | Path):
        data = source.getvalue()
    else:
        with decoding(f"`{Path(source).name}`"), open(source, "rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise BadMedia("text_undecodable", f"more than {MAX_TEXT_BYTES:,} bytes are not taken for a text")
    return data


# ---------------------------------------------------------------- tokens


def token_count(spec: TextSpec) -> int:
    """Number of distinct token numbers: they lie in [0, token_count). Raises `MlaError` for a missing vocabulary."""
    if spec.tokens == "bytes":
        return 256
    if spec.tokens == "tokenizer":
        return max(own_tokenizer(spec).get_vocab().values()) + 1
    return spec.buckets if spec.tokens == "ngrams" else max(read_vocabulary(spec).values()) + 1


def tokenize(spec: TextSpec, text: str) -> list[int]:
    """The first `spec.length` token numbers of a text; `lower` applies to all but a model's own tokenizer.

    That one cuts a text so that its special tokens still fit.
    """
    if spec.tokens == "tokenizer":
        return list(own_tokenizer(spec)(text, truncation=True, max_length=spec.length)["input_ids"])
    if spec.tokens == "bytes":
        return list((text.lower() if spec.lower else text).encode("utf-8", "replace")[: spec.length])
    if spec.tokens == "ngrams":
        return [zlib.crc32(gram.encode("utf-8", "replace")) % spec.buckets for gram in ngrams(spec, text)]
    vocabulary = read_vocabulary(spec)
    numbers: list[int] = []
    for word in basic_words(text, spec.lower):
        numbers += [vocabulary[piece] for piece in split_word(word, vocabulary)]
        if len(numbers) >= spec.length:
            break
    return numbers[: spec.length]


def own_tokenizer(spec: TextSpec) -> Any:
    """The tokenizer of a model. Raises MlaError where the spec names none, or `length` leaves no room for a token."""
    made = maker_of(spec)
    assert made is not None  # of `tokens: tokenizer`
    own = tokenizer(made[0])
    if (special := own.num_special_tokens_to_add()) >= spec.length:
        raise MlaError(
            f"`length: {spec.length}` leaves no token between the {special} special ones", "set a larger `length`"
        )
    return own


# ---------------------------------------------------------------- n-grams


def ngrams(spec: TextSpec, text: str) -> list[str]:
    """The first `spec.length` n-grams: all whole words first, so that a long text loses n-grams before words.

    >>> ngrams(TextSpec(ngram_min=3, ngram_max=3), "My cat")
    ['<my>', '<cat>', '<my', 'my>', '<ca', 'cat', 'at>']
    """
    if spec.ngram_min > spec.ngram_max:
        raise MlaError(
            f"`ngram_min` is {spec.ngram_min} and `ngram_max` is {spec.ngram_max}", "make `ngram_max` the larger one"
        )
    words = [f"<{word}>" for word in _WORD.findall(text.lower() if spec.lower else text)[: spec.length]]
    grams = words.copy() if spec.words else []
    for word in words:
        if len(grams) >= spec.length:
            break
        for size in range(spec.ngram_min, spec.ngram_max + 1):
            starts = range(len(word) - size + 1)
            grams += [word[s : s + size] for s in starts if size < len(word) or not spec.words]  # `<word>` is there
    return grams[: spec.length]


# ---------------------------------------------------------------- WordPiece


def read_vocabulary(spec: TextSpec) -> dict[str, int]:
    """token -> number: the line of the file `spec.vocabulary`; of a folder, its `vocab.txt` or `tokenizer.json`."""
    hint = "set `vocabulary` to a BERT `vocab.txt` or to a tokenizer folder with `vocab.txt` or `tokenizer.json`"
    if spec.vocabulary is None:
        raise MlaError("`tokens: wordpiece` needs a vocabulary", hint)
    path = Path(spec.vocabulary).expanduser()
    if path.is_dir():
        path = next((path / name for name in VOCABULARIES if (path / name).is_file()), path / VOCABULARIES[0])
    if not path.is_file():
        raise MlaError(f"no vocabulary at `{path}`", hint)
    return _read_vocabulary(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read_vocabulary(path: Path, stamp: int) -> dict[str, int]:
    try:
        content = read_at_most(path, MAX_VOCABULARY_BYTES, "vocabulary").decode("utf-8")
    except UnicodeDecodeError as error:
        raise MlaError(f"the vocabulary `{path}` is not UTF-8", "give a text file with one token per line") from error
    if path.suffix.lower() == ".json":
        vocabulary = _of_tokenizer(path, content)
    else:
        lines = content.removesuffix("\n").split("\n")
        vocabulary = {line.removesuffix("\r"): number for number, line in enumerate(lines)}
    if max(vocabulary.values(), default=0) >= MAX_TOKENS or min(vocabulary.values(), default=0) < 0:
        raise MlaError(
            f"the vocabulary `{path}` has token numbers outside of 0 to {MAX_TOKENS - 1:,}", "fetch it again"
        )
    if UNKNOWN not in vocabulary:
        raise MlaError(f"the vocabulary `{path}` has no `{UNKNOWN}`", "give BERT's `vocab.txt`, one token per line")
    return vocabulary


def _of_tokenizer(path: Path, content: str) -> dict[str, int]:
    """The vocabulary inside a `tokenizer.json` of the package `tokenizers`, if its model is WordPiece."""
    try:
        model = json.loads(content)["model"]
        vocabulary = {str(token): int(number) for token, number in model["vocab"].items()}
        form = (model.get("type", "WordPiece"), model.get("continuing_subword_prefix", "##"))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise MlaError(f"`{path}` is no tokenizer with a vocabulary", "give BERT's `vocab.txt`") from error
    if form != ("WordPiece", "##"):
        raise MlaError(f"`{path}` holds a `{form[0]}` tokenizer, only WordPiece is read", "give one of the BERT family")
    return vocabulary


def split_word(word: str, vocabulary: dict[str, int]) -> list[str]:
    """Greedy longest match first; pieces after the first begin with `##`."""
    if len(word) > LONGEST_WORD:
        return [UNKNOWN]
    pieces: list[str] = []
    start = 0
    while start < len(word):
        mark = "##" if start else ""
        end = next((e for e in range(len(word), start, -1) if mark + word[start:e] in vocabulary), None)
        if end is None:
            return [UNKNOWN]
        pieces.append(mark + word[start:end])
        start = end
    return pieces


def basic_words(text: str, lower: bool) -> Iterator[str]:
    """BERT's basic tokenisation: clean, set Chinese characters apart, split at spaces, fold, split at punctuation."""
    spaced = []
    for char in text:
        category = unicodedata.category(char)
        if char in " \t\n\r" or category == "Zs":
            spaced.append(" ")
        elif char != "\ufffd" and not category.startswith("C"):
            spaced.append(f" {char} " if _is_chinese(ord(char)) else char)
    for word in "".join(spaced).split():
        if lower:
            word = "".join(c for c in unicodedata.normalize("NFD", word.lower()) if unicodedata.category(c) != "Mn")
        yield from _split_punctuation(word)


def _split_punctuation(word: str) -> Iterator[str]:
    """Runs without punctuation, and each punctuation mark by itself."""
    start = 0
    for place, char in enumerate(word):
        if _is_punctuation(char):
            if start < place:
                yield word[start:place]
            yield char
            start = place + 1
    if start < len(word):
        yield word[start:]


def _is_punctuation(char: str) -> bool:
    # BERT counts every ASCII mark, such as `$` and `^`, which Unicode calls symbols.
    return unicodedata.category(char).startswith("P") or (char.isascii() and char.isprintable() and not char.isalnum())


# CJK ideographs as in BERT: the unified block, extensions A to E, and the compatibility forms; no kana, no hangul.
_CHINESE = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


def _is_chinese(code: int) -> bool:
    return any(low <= code <= high for low, high in _CHINESE)
