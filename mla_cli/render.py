"""What people see: progress, notes, tables. The only file that knows Rich, percentages and ±.

Results go to stdout, everything else to stderr. Without a terminal: plain lines, no colour, no spinner.
"""

import json
import math
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table as RichTable
from rich.text import Text

from mla_cli.engine.events import Epoch, Event, Finished, Note, Running, Started, Steps, Value
from mla_cli.engine.events import Progress as Step
from mla_cli.engine.numbers import counted
from mla_cli.errors import MlaError
from mla_cli.markup import Wide, formula_free, latex, markdown, one_line, printable

if TYPE_CHECKING:
    import pandas as pd

PLAIN_WIDTH = 200  # columns, where there is no terminal to ask
PLAIN_EVERY = 10.0  # seconds between progress lines without a terminal
LONGEST = 4000  # characters of a message; what a table's cell can add to it has no end
WRITTEN = {"markdown": markdown, "latex": latex}


def console(stderr: bool = False) -> Console:
    """A console on today's stdout or stderr (tests replace them)."""
    file = sys.stderr if stderr else sys.stdout
    return Console(file=file, width=None if file.isatty() else PLAIN_WIDTH, highlight=False, soft_wrap=False)


def say(text: str, quiet: bool = False) -> None:
    """A plain line on stderr; nothing where `quiet` is set, so warnings and errors never set it."""
    if not quiet:
        print(message(text), file=sys.stderr)


def message(text: str) -> str:
    """A message for stderr. Its further lines are indented: no name with a line break can pass for a line of ours."""
    shown = printable(text).replace("\n", "\n  ")
    more = len(shown) - LONGEST
    return shown if more <= 0 else f"{shown[:LONGEST]} ... ({more} characters more)"


def fail(error: MlaError) -> None:
    """The two lines of an error."""
    say(f"error: {error.message}")
    if error.hint:
        say(f"hint: {error.hint}")


# ---------------------------------------------------------------- events


class RateColumn(ProgressColumn):
    """Units of work a second, of late."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if not speed else per_second(speed))


def per_second(speed: float) -> str:
    """
    >>> per_second(0.25), per_second(1234.5)
    ('0.2/s', '1,234/s')
    """
    return f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s"


def time_left(seconds: float) -> str:
    """
    >>> time_left(59), time_left(3725)
    ('0:00:59', '1:02:05')
    """
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def show(events: Steps[Value], quiet: bool = False) -> Value:
    """Consume a generator of events, showing them, and return its value."""
    live = sys.stderr.isatty() and not quiet
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
        transient=True,
        disable=not live,
    )
    with bar:
        shown = _Shown(bar, live, quiet)
        while True:
            try:
                event = next(events)
            except StopIteration as stop:
                return stop.value
            shown.show(event)


class _Shown:
    """Turns events into lines or bars."""

    def __init__(self, bar: Progress, live: bool, quiet: bool):
        self.bar, self.live, self.quiet = bar, live, quiet
        self.tasks: dict[str, Any] = {}
        self.epochs = 0
        self.begun: dict[str, tuple[float, int]] = {}  # when, and how much of it was done already
        self.last_time, self.last_text = time.monotonic(), ""

    def line(self, text: str) -> None:
        if self.live:
            self.bar.console.print(Text(message(text)), soft_wrap=True)
        else:
            say(text)

    def show(self, event: Event) -> None:
        if isinstance(event, Note):
            if event.warning:
                self.line(f"warning: {event.text}")
            elif not self.quiet:
                self.line(event.text)
        elif self.quiet:
            return
        elif isinstance(event, Started):
            self.epochs = event.epochs
            doing = f"resuming at epoch {event.first_epoch}" if event.resumed else "training"
            self.line(f"{event.run}: {doing}, {counted(event.epochs, 'epoch')} of {counted(event.rounds, 'round')}")
            self.step("epochs", event.first_epoch - 1, event.epochs)
        elif isinstance(event, Epoch):
            self.step("epochs", event.number, self.epochs)
            self.line(epoch_line(event, self.epochs))
        elif isinstance(event, Step):
            self.step(event.what, event.done, event.total)
            text = f"{event.what}: {event.done} of {event.total}"
            due = event.done == event.total or time.monotonic() - self.last_time > PLAIN_EVERY
            if not self.live and event.total and due and text != self.last_text:
                self.last_time, self.last_text = time.monotonic(), text
                self.line(text + self.pace(event))
        elif isinstance(event, Finished):
            self.line(f"{event.run}: finished")
        elif isinstance(event, Running):
            self.running(event)

    def pace(self, event: Step) -> str:
        """Rate and time left, for a line in the middle of the work."""
        begun, before = self.begun[event.what]
        seconds, done = time.monotonic() - begun, event.done - before
        if event.done == event.total or not done or not seconds:
            return ""
        return f" ({per_second(done / seconds)}, {time_left((event.total - event.done) * seconds / done)} left)"

    def step(self, what: str, done: int, total: int, note: str = "") -> None:
        if what not in self.tasks:
            self.begun[what] = time.monotonic(), done
            self.tasks[what] = self.bar.add_task(one_line(what), completed=done, total=total, note=note)
        self.bar.update(self.tasks[what], completed=done, total=total, note=note)

    def running(self, event: Running) -> None:
        """One line of the live table; it goes when its run has ended."""
        if not event.ended:
            note = "" if event.accuracy is None else f"{event.split} {percent(event.accuracy)} %"
            self.step(event.run, event.epoch, event.epochs, note)
        elif event.run in self.tasks:
            self.bar.remove_task(self.tasks.pop(event.run))


def epoch_line(event: Epoch, epochs: int) -> str:
    """One epoch in one line."""
    row = event.row
    parts = [f"epoch {event.number:>3}/{epochs}"]
    losses = [f"{k.partition('.')[2]} {v:.3f}" for k, v in row.items() if k.startswith("train_loss.")]
    parts.append("loss " + " ".join(losses))
    for split in ("val", "test"):
        found = [f"{k.partition('.')[2]} {100 * v:.1f}" for k, v in row.items() if k.startswith(f"{split}_accuracy.")]
        if found:
            parts.append(f"{split} accuracy % " + " ".join(found))
    return "  ".join(parts) + f"  {event.seconds:.1f} s" + ("  best" if event.is_best else "")


# ---------------------------------------------------------------- tables


def percent(value: float) -> str:
    """A fraction as a percentage with one decimal; empty for nothing."""
    return "" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def spread(value: float, sd: float, count: int) -> str:
    """`62.8 ± 1.9`, or the mean alone where there is one value only."""
    return percent(value) if count < 2 or math.isnan(sd) else f"{percent(value)} ± {100 * sd:.1f}"


def print_wide(table: Wide, style: str = "table") -> None:
    """Print a wide table for the terminal, as Markdown or as LaTeX."""
    if style in WRITTEN:
        print(WRITTEN[style](table))
        return
    out = console()
    out.print(Text(one_line(table.title), "bold"), soft_wrap=True)
    out.print(rich_table(table, folded=not table.words and narrowest(table) > out.width))
    for note in table.notes:
        out.print(Text(printable(note)), soft_wrap=True)


def narrowest(table: Wide) -> int:
    """Columns that the table takes on a terminal where only the words of its first column are wrapped."""
    first, *others = zip(table.columns, *table.rows, strict=True)
    widths = [max(cell_len(word) for cell in first for word in one_line(cell).split() or [""])]
    widths += [max(cell_len(one_line(cell)) for cell in column) for column in others]
    return sum(widths) + 3 * len(widths) + 1  # a rule and two spaces each, and the last rule


def rich_table(table: Wide, folded: bool) -> RichTable:
    """The table for a terminal: its first column wraps. folded: all do, as none may lose the end of a number.

    Cells are `Text`, in which nothing is markup: neither `[red]` nor `:heart:`.
    """
    rich = RichTable(padding=(0, 0 if folded else 1))
    for i, column in enumerate(table.columns):
        rich.add_column(
            Text(one_line(column)),
            justify="left" if i == 0 or table.words else "right",
            no_wrap=i > 0 and not folded and not table.words,
            overflow="fold" if folded or table.words else "ellipsis",
        )
    for r, row in enumerate(table.rows):
        styles = ["".join(table.marked(r, c, ("bold", ""), ("underline", ""))) for c in range(len(row))]
        rich.add_row(*(Text(one_line(cell), style) for cell, style in zip(row, styles, strict=True)))
    return rich


def print_tidy(table: "pd.DataFrame", style: str) -> None:
    """Print tidy rows as csv or json, values unrounded (pandas' own JSON cuts them at 15 digits).

    JSON keeps names as they are, by its own escapes; CSV has none, so there they are shown as in a table.
    """
    if style == "csv":
        shown = table.copy()
        for name in table:
            if any(isinstance(cell, str) for cell in table[name]):  # `map` would make fractions of whole numbers
                shown[name] = table[name].map(lambda cell: formula_free(cell) if isinstance(cell, str) else cell)
        print(shown.rename(columns=formula_free).to_csv(index=False), end="")
    else:
        rows = table.astype(object).where(table.notna(), None).to_dict("records")
        print(ascii_where_needed(json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False)))


def ascii_where_needed(text: str) -> str:
    """JSON in which characters that a terminal would obey stand as JSON's own escapes."""
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def print_lines(lines: Sequence[str]) -> None:
    """Plain lines on stdout."""
    for line in lines:
        print(one_line(line))


def check_format(style: str) -> None:
    """Raise MlaError for an output format that does not exist."""
    if style not in ("table", "markdown", "latex", "csv", "json"):
        raise MlaError(f"no output format named `{style}`", "choose table, markdown, latex, csv or json")
