"""The cells of a user's table, CSV, TSV or Parquet, as text and within bounds, whatever the file claims.

A cell is text and stays text: `=1+1` is a label like any other, and nothing in a file is ever unpickled.
"""

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from mla_cli.errors import MlaError, shortened

MAX_COLUMNS = 1000
MAX_CELLS = 20_000_000  # of all rows together, as they are held in memory
MAX_CELL = 131_072  # characters of one cell; the limit of Python's `csv`
MAX_LINE = 2**24  # characters of one line of a text file
MAX_TEXT = 2**29  # bytes, or characters, of all cells together
BATCH = 4096  # rows of a Parquet file that are decoded at once
PANDAS_INDEX = re.compile(r"__index_level_\d+__")

Rows = list[tuple[int, list[str]]]
CheckHeader = Callable[[list[str]], None]
BadLine = Callable[[int, str], None]


def read_cells(path: Path, check_header: CheckHeader, bad_line: BadLine) -> tuple[list[str], Rows]:
    """(header, (line or row number, stripped cells) per row).

    check_header(header) raises MlaError before any row is read; bad_line(line, reason) is told of rows of another
    length than the header. Raises MlaError for a file that cannot be read, or that goes beyond the bounds above.
    """
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path, check_header)
    return _read_text(path, check_header, bad_line)


def _read_text(path: Path, check_header: CheckHeader, bad_line: BadLine) -> tuple[list[str], Rows]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = next(_lines(path, file), "")
            file.seek(0)
            # Spreadsheets write semicolons where the comma is the decimal mark.
            delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
            reader = csv.reader(_lines(path, file), delimiter=delimiter)
            header = [name.strip() for name in next(reader, [])]
            check_header(header)
            rows, size = Rows(), 0
            for cells in reader:
                size += sum(map(len, cells))
                _refuse_size(path, len(rows) * len(header), size)
                if len(cells) == len(header):
                    rows.append((reader.line_num, [cell.strip() for cell in cells]))
                elif cells:
                    bad_line(reader.line_num, f"{len(cells)} cells, the header has {len(header)}")
    except UnicodeDecodeError as error:
        raise MlaError(f"`{path}` is not UTF-8 (byte {error.start})", "save the table as UTF-8") from None
    except csv.Error as error:
        raise MlaError(f"cannot read `{path}`: {error}", "check the quotes around its cells") from None
    except OSError as error:
        raise MlaError(f"cannot read `{path}`: {error.strerror}", "mend its permissions, or copy it") from error
    return header, rows


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    """Lines of a text file, none of them endless."""
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE and not line.endswith("\n"):
            raise MlaError(
                f"`{path}` has a line of more than {MAX_LINE:,} characters",
                "write long values to files, and their paths",
            )
        yield line


def _refuse_size(path: Path, cells: int, size: int) -> None:
    if cells > MAX_CELLS or size > MAX_TEXT:
        what = f"{MAX_CELLS:,} cells" if cells > MAX_CELLS else f"{MAX_TEXT:,} bytes of cells"
        raise MlaError(f"`{path}` has more than {what}", "split it, or write texts and vectors to files of their own")


def _read_parquet(path: Path, check_header: CheckHeader) -> tuple[list[str], Rows]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        whole = pq.ParquetFile(path)
        # what pandas stored beside the table is its own business, and anybody's text
        header = [name for name in whole.schema_arrow.names if not PANDAS_INDEX.fullmatch(name)]
        check_header([str(name) for name in header])
        texts = [name for name in header if _refuse_type(path, whole.schema_arrow.field(name))]
        facts = whole.metadata
        claimed = sum(facts.row_group(i).total_byte_size for i in range(facts.num_row_groups))
        _refuse_size(path, facts.num_rows * len(header), claimed)
        rows, size = Rows(), 0
        # as dictionaries: a text that stands in a million rows is decoded once
        for batch in pq.ParquetFile(path, read_dictionary=texts).iter_batches(BATCH, columns=header):
            columns = []
            for name, column in zip(header, batch.columns, strict=True):
                longest = max(map(len, column.dictionary.to_pylist()), default=0) if name in texts else 0
                if longest > MAX_CELL:
                    raise MlaError(
                        f"`{path}`: column `{name}` has a cell of {longest:,} characters", "write it to a file"
                    )
                columns.append(
                    ["" if cell is None or cell != cell else str(cell).strip() for cell in column.to_pylist()]
                )
            size += sum(len(cell) for column in columns for cell in column)
            _refuse_size(path, 0, size)
            start = len(rows) + 1
            rows += [(start + i, list(cells)) for i, cells in enumerate(zip(*columns, strict=True))]
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = shortened(str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise MlaError(f"cannot read `{path}`: {reason}", "write it with pandas or pyarrow") from None
    return header, rows


def _refuse_type(path: Path, field: Any) -> bool:
    """Whether a column holds text. Raises MlaError for one that holds neither text nor numbers."""
    import pyarrow.types as kinds

    own = field.type.value_type if kinds.is_dictionary(field.type) else field.type
    text = kinds.is_string(own) or kinds.is_large_string(own)
    number = kinds.is_integer(own) or kinds.is_floating(own) or kinds.is_boolean(own) or kinds.is_null(own)
    if not text and not number:
        raise MlaError(
            f"column `{shortened(field.name)}` of `{path}` holds {shortened(str(field.type))}",
            "write text, numbers or paths to .npy files",
        )
    return text and not kinds.is_dictionary(field.type)
