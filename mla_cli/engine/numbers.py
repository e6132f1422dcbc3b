"""Lists of numbers as the command line writes them."""

import math
import re

from mla_cli.errors import MlaError


def parse_numbers(text: str, option: str) -> list[int]:
    """`0..9` or `0,1,2` as a list of different non-negative integers."""
    if match := re.fullmatch(r"(\d+)\.\.(\d+)", text.strip()):
        numbers = list(range(int(match[1]), int(match[2]) + 1))
    elif re.fullmatch(r"\d+(\s*,\s*\d+)*", text.strip()):
        numbers = [int(part) for part in text.split(",")]
    else:
        numbers = []
    if not numbers or len(set(numbers)) != len(numbers) or len(numbers) > 10_000:
        raise MlaError(f"`{option} {text}` is not a list of different numbers", f"write `{option} 0,1,2` or 0..9")
    return numbers


def parse_rates_list(text: str) -> list[float]:
    """`0,0.2,0.4` as different fractions below 1, in order."""
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or len(set(rates)) != len(rates) or not all(0 <= rate < 1 for rate in rates):
        raise MlaError(f"`--missing-rates {text}` is not a list of fractions", "write `--missing-rates 0,0.2,0.4`")
    return sorted(rates)


def parse_weights(text: str) -> dict[str, float]:
    """`audio=0.6,text=0.4` as modality -> non-negative weight."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        try:
            weights[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals or not weights[name.strip()] >= 0:
            raise MlaError(f"`--fusion-weights {text}` is not NAME=WEIGHT,...", "write for example audio=0.6,text=0.4")
    return weights


def counted(number: int, noun: str) -> str:
    """`1 epoch`, `2 epochs`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def duration(seconds: float) -> str:
    """A rough span of time.

    >>> duration(3.2), duration(600), duration(9000)
    ('4 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
