"""One line of a published split list, in each of the formats that `split_files.py` names.

A parser takes the line and returns (name, label as written or "", split or ""). Raises ValueError with what is wrong.
"""

import csv
import json

SIGN = "[split|sign]"
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
HEADERS = {"id", "stem", "name", "file", "filename", "video", "image"}


def list_format(first: str) -> str:
    """csv, txt or jsonl, by the first line of a list."""
    if first.lstrip().startswith("{"):
        return "jsonl"
    return "csv" if "," in first and SIGN not in first else "txt"


def _parse_csv(line: str) -> tuple[str, str, str]:
    try:
        fields = [part.strip() for part in next(csv.reader([line]), [])]
    except csv.Error as error:
        raise ValueError(str(error).partition(" - ")[0]) from None
    if len(fields) not in (2, 3) or not fields[0]:
        raise ValueError("expected `stem,label`")
    if len(fields) == 2:
        return fields[0], fields[1], ""
    if fields[2].lower() not in SPLIT_WORDS and fields[0].lower() not in HEADERS:
        raise ValueError("the third field must be train, val or test")
    return fields[0], fields[1], SPLIT_WORDS.get(fields[2].lower(), "")


def _parse_txt(line: str) -> tuple[str, str, str]:
    parts = line.split(SIGN) if SIGN in line else line.strip().split(maxsplit=1)
    if len(parts) not in (2, 3) or not parts[0].strip() or not parts[-1].strip():
        raise ValueError(f"expected `name label` or `name {SIGN} TEXT {SIGN} label`")
    return parts[0].strip(), parts[-1].strip(), ""


def _parse_jsonl(line: str) -> tuple[str, str, str]:
    try:
        record = dict(json.loads(line).items())
    except (json.JSONDecodeError, RecursionError, AttributeError):
        raise ValueError("not a JSON object") from None
    # The image's name is what is on disk; `id` may be a running number.
    name = record.get("img") or record.get("id")
    if not isinstance(name, str | int) or isinstance(name, bool) or not str(name).strip():
        raise ValueError('no "img" or "id"')
    own_split = record.get("split", "")
    if not isinstance(own_split, str) or own_split.lower() not in {*SPLIT_WORDS, ""}:
        raise ValueError('"split" must be train, val or test')
    label = record.get("label", "")
    return (
        str(name),
        label if isinstance(label, str) else str(label),
        SPLIT_WORDS.get(own_split.lower(), ""),
    )


PARSERS = {"csv": _parse_csv, "txt": _parse_txt, "jsonl": _parse_jsonl}
