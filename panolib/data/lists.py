"""Text files beside the images: lists of ids and tables, from whatever program wrote them."""

from __future__ import annotations

import codecs
import csv
import io
from pathlib import Path

from panolib.data.errors import DataError

_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_text(path: Path) -> str:
    """Text in UTF-8, or in the encoding that its byte order mark names; all line ends become newlines.

    Raises DataError naming file, line and byte of what is no UTF-8, and for a null: of another encoding.
    """
    content = Path(path).read_bytes()
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}: line {line}: byte 0x{content[error.start]:02x} is no text in {encoding}, "
            "expected a file in UTF-8"
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(f"{path}: line {line}: found a null byte, expected a text file in UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_ids(path: Path) -> list[str]:
    """The ids of a list, one a line; spaces around an id and empty lines do not count.

    Raises DataError as `read_text`, and for an id that is listed twice.
    """
    first_line: dict[str, int] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        listed = line.strip()
        if listed in first_line:
            raise DataError(
                f"{path}: line {number}: id {listed!r} is also in line {first_line[listed]}, expected it once"
            )
        if listed:
            first_line[listed] = number
    return list(first_line)


def read_column(path: Path, key: str, column: str) -> dict[str, str]:
    """Two columns of a table with a header, as a mapping; separated by commas, semicolons or tabs.

    `key` and `column` are names in the header: what is looked up and what is found there. Raises DataError as
    `read_text`; for a missing column, a row that does not have as many fields as the header, an empty field
    in one of the two columns, and a key that is there twice.
    """
    text = read_text(path)
    header = text.partition("\n")[0]
    rows = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=header.count), strict=True)
    try:
        names = [name.strip() for name in next(rows, [])]
        for wanted in (key, column):
            if names.count(wanted) != 1:
                raise DataError(f"{path}: line 1: columns {names}, expected one named {wanted!r}")
        found: dict[str, str] = {}
        for row in rows:
            fields = dict(zip(names, map(str.strip, row)))
            if not any(fields.values()):
                continue  # an empty line
            if len(row) != len(names):
                raise DataError(f"{path}: line {rows.line_num}: found {row}, expected {len(names)} fields")
            if not fields[key] or not fields[column]:
                raise DataError(f"{path}: line {rows.line_num}: found {row}, expected {key} and {column}")
            if fields[key] in found:
                raise DataError(
                    f"{path}: line {rows.line_num}: {key} {fields[key]!r} is there twice, expected it once"
                )
            found[fields[key]] = fields[column]
    except csv.Error as error:
        raise DataError(f"{path}: line {rows.line_num}: {error}, expected a table") from error
    return found
