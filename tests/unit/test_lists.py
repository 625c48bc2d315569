"""Lists of ids and tables as the programs of other people write them."""

from __future__ import annotations

import pytest

from panolib.data.lists import read_column, read_ids


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_ids_keep_inner_spaces_in_every_encoding_that_says_which(tmp_path, encoding, newline):
    path = tmp_path / "train.txt"
    path.write_bytes(newline.join(["cell 1", "", "  Zürich_0 ", "1", "a,b;c"]).encode(encoding))
    assert read_ids(path) == ["cell 1", "Zürich_0", "1", "a,b;c"]


def test_an_id_that_is_listed_twice(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("a\nb c\n\nb c \n")
    with pytest.raises(ValueError, match=r"train.txt: line 4: id 'b c' is also in line 2, expected it once"):
        read_ids(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nZürich".encode("latin-1"), "line 2: byte 0xfc is no text in utf-8, expected a file in UTF-8"),
        ("a\nb".encode("utf-16-le"), "line 1: found a null byte, expected a text file in UTF-8"),
        (b"\xff\xfea", "no text in utf-16"),
    ],
)
def test_other_encodings_are_named(tmp_path, content, message):
    path = tmp_path / "train.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"train.txt: .*{message}"):
        read_ids(path)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_column_of_a_table(tmp_path, separator, encoding):
    path = tmp_path / "index.csv"
    rows = [["id", "n", "modality"], ["cell 1", "3", "fluo"], [], ['"a"', "", " grey "], ["", "", ""]]
    path.write_bytes("\r\n".join(separator.join(row) for row in rows).encode(encoding))
    assert read_column(path, "id", "modality") == {"cell 1": "fluo", "a": "grey"}


def test_quoted_separators_are_part_of_a_value(tmp_path):
    path = tmp_path / "index.csv"
    path.write_text('id,modality\n"a,1","x;y"\n')
    assert read_column(path, "id", "modality") == {"a,1": "x;y"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: columns \[\], expected one named 'id'"),
        ("id,kind\na,x\n", r"line 1: columns \['id', 'kind'\], expected one named 'modality'"),
        ("id,modality,id\na,x,b\n", "line 1: columns .*, expected one named 'id'"),
        ("id,modality\na,x\nb\n", r"line 3: found \['b'\], expected 2 fields"),
        ("id,modality\na,x,y\n", r"line 2: found \['a', 'x', 'y'\], expected 2 fields"),
        ("id,modality\na,\n", r"line 2: found \['a', ''\], expected id and modality"),
        ("id,modality\na,x\na,y\n", "line 3: id 'a' is there twice, expected it once"),
        ('id,modality\n"a,x\n', "line 2: .*expected a table"),
    ],
)
def test_errors_of_a_table_name_file_and_line(tmp_path, text, message):
    path = tmp_path / "index.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"index.csv: {message}"):
        read_column(path, "id", "modality")
