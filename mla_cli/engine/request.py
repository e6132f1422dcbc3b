"""What `mla eval` is asked for: split, missing rates, fusion rules, metrics; checked as far as that needs no run."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from mla_cli.core import fusion
from mla_cli.data.missing import PATTERNS
from mla_cli.engine.numbers import parse_numbers, parse_weights
from mla_cli.engine.scores import CALIBRATION, DEFAULT, parse_metrics
from mla_cli.engine.temperature import HIGHEST, LOWEST
from mla_cli.errors import MlaError
from mla_cli.registry import did_you_mean


@dataclass
class Request:
    """What to evaluate.

    rates: fractions, or for `per_modality` texts such as `audio=0.5,text=0`. rules: fusion rules; empty: the run's.
    weights: of rule `fixed`, by modality; None means the recipe's. metrics: names of `scores.METRICS`. intervals: with
    95 % intervals, or without; None: where no absence is drawn. temperature: also with logits scaled by temperatures
    that are fitted on the run's own val.
    """

    split: str = "test"
    rates: Sequence[float | str] = (0.0,)
    patterns: Sequence[str] = ("kept_one",)
    mask_seeds: Sequence[int] = (0,)
    rules: Sequence[str] = ()
    alone: bool = True
    weights: dict[str, float] | None = None
    metrics: Sequence[str] = DEFAULT
    intervals: bool | None = None
    temperature: bool = False


def parse_request(
    split: str,
    rates: Sequence[str] | None,
    patterns: Sequence[str] | None,
    mask_seeds: str,
    rules: Sequence[str] | None,
    weights: str | None = None,
    metrics: str | None = None,
    intervals: bool | None = None,
    temperature: bool = False,
) -> Request:
    """The command line's texts as a Request. Raises MlaError naming what is wrong with one."""
    if split not in ("val", "test"):
        raise MlaError(f"no split named `{split}` to evaluate", "choose `--split val` or `--split test`")
    for word, choices in ((w, c) for words, c in ((patterns, PATTERNS), (rules, fusion.RULES)) for w in words or ()):
        if word not in choices and not (word == "native" and choices is fusion.RULES):
            kind = "fusion rule" if choices is fusion.RULES else "missing pattern"
            raise MlaError(f"no {kind} named `{word}`", did_you_mean(word, list(choices)))
    parsed: list[float | str] = []
    for text in rates or ("0",):
        try:
            parsed.append(text if "=" in text else float(text))
        except ValueError:
            hint = "write a fraction such as 0.3; for several rates repeat the option"
            raise MlaError(f"`--missing-rate {text}` is not a number", hint) from None
    given = list(patterns or ("kept_one",))
    if any(isinstance(rate, str) for rate in parsed) and given != ["per_modality"]:
        shown = ", ".join(rates or ())
        raise MlaError(f"rates per modality (`{shown}`) need their pattern", "add `--pattern per_modality`")
    if temperature and split == "val":
        raise MlaError(
            "`--temperature` is fitted on val, so `--split val` would praise it",
            "leave `--split val` out: test is what counts",
        )
    fixed = parse_weights(weights) if weights is not None else None
    return Request(
        split,
        parsed,
        given,
        parse_numbers(mask_seeds, "--mask-seeds"),
        list(rules or ()),
        weights=fixed,
        metrics=parse_metrics(metrics, CALIBRATION if temperature else DEFAULT),
        intervals=intervals,
        temperature=temperature,
    )


def notes_of(request: Request, rows: pd.DataFrame) -> list[str]:
    """What the reader of the tables must know about what was asked for."""
    notes = [f"warning: {fusion.NEIGHBOUR_WARNING}"] if "entropy_batch" in request.rules else []
    found = set(rows["metric"].str.partition(".")[0])
    undefined = [name for name in request.metrics if name not in found]
    if undefined:
        why = "entropy_choice needs samples of which exactly one modality of several is right, oracle_gap modalities"
        notes.append(f"left out, not defined here: {', '.join(undefined)} ({why})")
    edge = rows["temperature"].dropna()
    if ((edge <= 1.01 * LOWEST) | (edge >= HIGHEST / 1.01)).any():
        notes.append(
            f"warning: a temperature lies at the edge of [{LOWEST:g}, {HIGHEST:g}]: the best one may lie outside"
        )
    return notes
