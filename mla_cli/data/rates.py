"""Missing rates and patterns as a user asks for them: read, and refused where they can be met by no data.

The patterns are described and drawn in `data/missing.py`.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import numpy as np

from mla_cli.errors import MlaError

PATTERNS = ("kept_one", "bernoulli", "per_modality", "subset")


def parse_rates(text: str, modalities: Sequence[str]) -> dict[str, float]:
    """Read rates by modality from the command line.

    >>> parse_rates("audio=0.5,text=0", ["audio", "text"])
    {'audio': 0.5, 'text': 0.0}
    """
    rates: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            example = ",".join(f"{modality}=0.5" for modality in modalities[:1])
            raise MlaError(f"`{part.strip()}` is not a rate of a modality", f"write for example `{example}`")
        check_modality(name, modalities)
        if name in rates:
            raise MlaError(f"modality `{name}` has two rates in `{text}`", "name each modality once")
        try:
            number = float(value.removesuffix("%"))
        except ValueError:
            raise MlaError(f"rate `{value}` of `{name}` is not a number", f"write for example `{name}=0.5`") from None
        if value.endswith("%"):
            raise MlaError(f"rate `{value}` of `{name}` is a percentage", f"write `{name}={number / 100:.12g}`")
        rates[name] = check_rate(number)
    return rates


def check_request(
    pattern: str, rate: float | Mapping[str, float], modalities: Sequence[str]
) -> float | dict[str, float]:
    """The rate as a float, or for `per_modality` as a dict of every modality's rate; all that is wrong without data."""
    if pattern not in PATTERNS:
        close = get_close_matches(pattern, PATTERNS, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"patterns: {', '.join(PATTERNS)}"
        raise MlaError(f"no missing pattern named `{pattern}`", hint)
    if pattern == "subset":
        raise MlaError(f"pattern `subset` takes no rate, got `{rate_text(rate)}`", "leave the missing rate out")
    if pattern != "per_modality":
        if isinstance(rate, Mapping):
            raise MlaError(
                f"pattern `{pattern}` takes one rate, got `{rate_text(rate)}`",
                "write one fraction, or use pattern `per_modality`",
            )
        rate = check_rate(rate)
        if pattern == "bernoulli" and rate == 1:
            raise MlaError(
                "missing rate `1` cannot be met: each sample keeps one modality, so `bernoulli` takes rates below 1",
                "write for example `0.99`; the rate it is expected to realise is reported beside it",
            )
        return rate
    if not isinstance(rate, Mapping):
        raise MlaError(
            f"pattern `per_modality` takes a rate for each modality, got `{rate_text(rate)}`",
            f"write for example `{modalities[0]}={rate_text(rate)}`, or use pattern `kept_one`",
        )
    for name in rate:
        check_modality(name, modalities)
    rates = {name: check_rate(rate.get(name, 0.0)) for name in modalities}
    highest = len(modalities) - 1
    if sum(rates.values()) > highest + 1e-9:  # 0.9 + 0.7 + 0.4 must not fail for its last binary digit
        raise MlaError(
            f"missing rates `{rate_text(rate)}` sum to `{sum(rates.values()):.12g}`; with {len(rates)} modalities the "
            f"sum may be at most `{highest}`, as each sample keeps one",
            "lower one of the rates",
        )
    return rates


def check_modality(name: str, modalities: Sequence[str]) -> None:
    """Raise MlaError for a name that is none of the modalities."""
    if name not in modalities:
        close = get_close_matches(name, modalities, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"modalities: {', '.join(modalities)}"
        raise MlaError(f"no modality named `{name}`", hint)


def check_rate(rate: float) -> float:
    """The rate as a float; raises MlaError for anything but a number from 0 to 1."""
    if not isinstance(rate, int | float | np.number) or isinstance(rate, bool):
        raise MlaError(f"missing rate must be a number, got `{rate!r}`", "write a fraction, for example `0.3`")
    if 0 <= rate <= 1:  # False for NaN
        return float(rate)
    if 1 < rate <= 100:
        hint = f"rates are fractions: for {rate_text(rate)} % write `{rate / 100:.12g}`"
    else:
        hint = "write a fraction, for example `0.3`"
    raise MlaError(f"missing rate `{rate_text(rate)}` is not between 0 and 1", hint)


def rate_text(rate: float | Mapping[str, float]) -> str:
    """A rate, or rates by modality, as they are typed."""
    if isinstance(rate, Mapping):
        return ",".join(f"{name}={rate_text(value)}" for name, value in rate.items())
    return f"{rate:.12g}" if isinstance(rate, int | float | np.number) else str(rate)
