"""The one exception that `mla` turns into two lines on stderr and exit code 1."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

LONGEST = 200  # characters of a value that an error shows


def shortened(text: str, most: int = LONGEST) -> str:
    """Text that an error can show, cut where it is endless. most: characters.

    >>> shortened("mla train --seed 1", most=12)
    'mla train...'
    """
    return text if len(text) <= most else text[: most - 3] + "..."


def shown(value: object) -> str:
    """A value as Python writes it, cut where it is endless."""
    return shortened(repr(value))


class MlaError(Exception):
    """Something the user can mend.

    message: what is wrong, with the offending value in backticks.
    hint: what to do next, as a command or a value to write; may be empty.
    """

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self):
        # An error raised in a worker process must arrive whole.
        return type(self), (self.message, self.hint)

    def of(self, modality: str) -> "MlaError":
        """The same error, with the `MODALITY` in the recipe keys that it names filled in."""
        return MlaError(*(text.replace("MODALITY", modality) for text in (self.message, self.hint)))

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


def misfit(error: "ValidationError") -> str:
    """The first value that a model refuses: its place and the reason."""
    first = error.errors()[0]
    return f"`{'.'.join(map(str, first['loc']))}`: {first['msg']}"
