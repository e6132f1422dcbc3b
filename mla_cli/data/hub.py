"""Models, tokenizers and feature extractors of timm and Hugging Face: the folder that holds one, and what it holds.

A folder on disk never causes a network call. A hub name is looked up in the local cache first and fetched only where it
is not there, and only because the user wrote it. Code and pickles in a folder are never run.
"""

import hashlib
import importlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from mla_cli.errors import MlaError
from mla_cli.files import sha256
from mla_cli.specs import ExtractorSpec, Section, TextSpec

INSTALL = "install the extra: `pip install 'mla-cli[hf]'`"
TIMEOUT = 10.0  # seconds to wait for the hub's first answer; there is no second try
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.codes", "*.bpe")  # everything but weights
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there counts
TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges*",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "*.codes",
    "*.bpe",
)
# Where a source was written; whoever looks at it does not know its modality.
TOKENIZER_KEY, EXTRACTOR_KEY = "features.MODALITY.vocabulary", "features.MODALITY.model"
EXTRACTOR_FILES = ("preprocessor_config.json", "processor_config.json")
CONFIGS = ("config.json", "tokenizer_config.json", *EXTRACTOR_FILES)


def library(name: str) -> Any:
    """Import `timm`, `transformers` or a part of `huggingface_hub`: seconds. Raises MlaError where it is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if error.name != package:  # something that the package itself lacks
            raise
        raise MlaError(f"the package `{package}` is not installed", INSTALL) from None


def folder_of(source: str, key: str, *choices: Sequence[str]) -> Path:
    """The folder of a model, tokenizer or extractor: `source` itself, or the local copy of a hub repository.

    choices: patterns of the files that are needed, in order of preference; of one of them a file must be there (for a
    hub name: is fetched where it is not). key: where the source was written, for errors. Raises MlaError.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if not any(holds(path, patterns) for patterns in choices):
            wanted = ", ".join(f"`{pattern}`" for pattern in dict.fromkeys(p for c in choices for p in c[:2]))
            raise MlaError(f"`{key}`: the folder `{source}` has no {wanted}", "give a folder that holds such a file")
        refuse_code(path)
        return path
    if path.exists():
        raise MlaError(f"`{key}`: `{source}` is a file, not a folder", f"give its folder, such as `{path.parent}`")
    if not HUB_NAME.fullmatch(source):
        raise MlaError(f"`{key}`: no folder `{source}`", "give the path of a folder, or a name on the Hugging Face hub")
    found = from_hub(source, key, choices)
    refuse_code(found)
    return found


def from_hub(name: str, key: str, choices: Sequence[Sequence[str]]) -> Path:
    """The local copy of a hub repository, fetched only where the cache lacks the files."""
    hub, client_error = library("huggingface_hub"), library("huggingface_hub.errors").HTTPError
    reason = "it has none of the files that are needed"
    for cached in (True, False):
        for patterns in choices:
            try:
                # of one whole snapshot: a single file's download would try again for half a minute without network
                place = hub.snapshot_download(
                    name, allow_patterns=list(patterns), local_files_only=cached, etag_timeout=TIMEOUT
                )
            except (OSError, ValueError, client_error) as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                break  # the cache has nothing of it, or the hub is out of reach: other files will not be there either
            if holds(Path(place), patterns):
                return Path(place)
    cache = library("huggingface_hub.constants").HF_HUB_CACHE
    raise MlaError(
        f"`{key}`: no folder `{name}`, and the Hugging Face hub did not give it: {reason}",
        f"where there is network, run `hf download {name} --local-dir FOLDER`, copy the folder here and write "
        f"`{key}: FOLDER`; a copy in the cache `{cache}` would be taken without network",
    )


def holds(folder: Path, patterns: Sequence[str]) -> bool:
    """Whether any file of a folder fits a pattern."""
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)


def refuse_code(folder: Path) -> None:
    """Raise MlaError for a folder whose files name Python code of its own."""
    for name in CONFIGS:
        if (folder / name).is_file() and "auto_map" in read_config(folder / name):
            raise MlaError(
                f"`{folder / name}` names Python code of its own (`auto_map`), and such code is never run",
                "take a model of the library's own classes; if this one is of such a class, copy the folder and remove "
                "`auto_map` from the copy",
            )


def read_config(path: Path) -> dict[str, Any]:
    """A JSON mapping of a model's folder. Raises MlaError for anything else."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise MlaError(f"cannot read `{path}`: {error}", "fetch the folder again") from error
    if not isinstance(content, dict):
        raise MlaError(f"`{path}` holds no mapping", "fetch the folder again")
    return content


def weights_in(source: str, key: str) -> Path:
    """The one file with a model's weights. Raises MlaError where there is none, or where they lie in several."""
    try:
        folder = folder_of(source, key, *((name,) for name in WEIGHTS))
    except MlaError:
        if (local := Path(source).expanduser()).is_dir():
            if holds(local, ("*.index.json",)):
                raise MlaError(
                    f"`{key}`: the weights in `{source}` lie in several files, and only one is read",
                    "load the model in Python and save it with `save_pretrained(FOLDER, max_shard_size='100GB')`",
                ) from None
            kinds = " or ".join(f"`{name}`" for name in WEIGHTS)
            raise MlaError(
                f"`{key}`: the folder `{source}` has no {kinds}",
                "add the weights, or start from random ones with `pretrained: false`",
            ) from None
        raise
    return next(folder / name for name in WEIGHTS if (folder / name).is_file())


def needed(patterns: Sequence[str]) -> tuple[Sequence[str], ...]:
    """What to look for in a folder, and to fetch of a hub repository: of an extractor one file, of a tokenizer all."""
    return tuple((name,) for name in patterns) if patterns == EXTRACTOR_FILES else (patterns,)


# ---------------------------------------------------------------- what made a feature


def maker_of(spec: Section) -> tuple[str, str, tuple[str, ...]] | None:
    """(source, its key, files that define it) of the tokenizer or extractor that makes a feature; None: we do."""
    if isinstance(spec, TextSpec) and spec.tokens == "tokenizer":
        if spec.vocabulary is None:
            raise MlaError("`tokens: tokenizer` needs a tokenizer", "set `vocabulary` to its folder or its hub name")
        return spec.vocabulary, TOKENIZER_KEY, TOKENIZER_FILES
    return (spec.model, EXTRACTOR_KEY, EXTRACTOR_FILES) if isinstance(spec, ExtractorSpec) else None


def maker_digest(spec: Section, source: str | None = None) -> str | None:
    """sha256 of the files that define a feature's tokenizer or extractor; None where there is none.

    source: another folder or hub name to look at, in place of the spec's own. Raises MlaError where it is not there.
    """
    made = maker_of(spec)
    if made is None:
        return None
    own, key, patterns = made
    folder = folder_of(source or own, key, *needed(patterns))
    files = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
    text = "".join(f"{file.name} {sha256(file)}\n" for file in files)
    return hashlib.sha256(text.encode()).hexdigest()


def check_maker(modality: str, spec: Section, stored: str | None, model: str | None) -> None:
    """Raise MlaError where a stored feature's tokenizer or extractor has changed, or is not the encoder's own.

    stored: `maker_digest` of when the store was made. model: the folder or hub name of the encoder, if it has one. A
    tokenizer that is no longer there cannot have changed the store; it is not looked for on the hub.
    """
    made = maker_of(spec)
    if made is None:
        return
    own, key, _ = made
    what = "tokenizer" if key == TOKENIZER_KEY else "extractor"
    if Path(own).expanduser().is_dir() and maker_digest(spec) != stored:
        raise MlaError(
            f"the {what} in `{own}` is not the one that made the stored features of `{modality}`",
            "put the old one back, or prepare the data again with `--force`",
        )
    if not model or model == own or not holds(Path(model).expanduser(), made[2]):
        return  # a hub name, or a folder with weights alone
    if maker_digest(spec, model) != stored:
        raise MlaError(
            f"the features of `{modality}` were made by the {what} of `{own}`, the encoder `{model}` has another",
            f"write `{key.replace('MODALITY', modality)}: {model}` and prepare the data again, or take the encoder "
            f"that belongs to `{own}`",
        )


# ---------------------------------------------------------------- loading


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its progress bars and reports: what was loaded is told by `core.weights`."""
    logging = library("transformers").utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def read_folder(what: str, auto: str, folder: Path) -> Any:
    """`transformers.AUTO.from_pretrained(folder)`, offline and without code of the folder's own. Raises MlaError."""
    load: Callable[..., Any] = getattr(library("transformers"), auto).from_pretrained
    with quiet():
        try:
            return load(str(folder), local_files_only=True, trust_remote_code=False)
        # the library lets any of these through for a damaged or incomplete file, and ImportError for a missing helper
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, ImportError) as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise MlaError(f"transformers cannot read the {what} in `{folder}`: {reason}", "fetch it again") from error
        except Exception as error:  # the package `tokenizers` raises plain Exception for a damaged tokenizer.json
            if type(error) is not Exception:
                raise
            raise MlaError(f"transformers cannot read the {what} in `{folder}`: {error}", "fetch it again") from error


def stamp(source: str) -> tuple[tuple[str, int, int], ...]:
    """Names, times and sizes of a folder's files, so that what is kept in memory is not older; () for a hub name."""
    try:
        with os.scandir(Path(source).expanduser()) as entries:
            found = [(entry.name, entry.stat()) for entry in entries]
    except OSError:
        return ()  # a snapshot of the hub does not change
    return tuple(sorted((name, stat.st_mtime_ns, stat.st_size) for name, stat in found))


def tokenizer(source: str) -> Any:
    """The tokenizer of a folder or hub name."""
    return _tokenizer(source, stamp(source))


@lru_cache(maxsize=4)
def _tokenizer(source: str, _: tuple[tuple[str, int, int], ...]) -> Any:
    return read_folder("tokenizer", "AutoTokenizer", folder_of(source, TOKENIZER_KEY, TOKENIZER_FILES))
