"""README.md says what the recorded tables and the profiles say: each of its numbers, formatted from them."""

from __future__ import annotations

import re

import pytest

from panolib.config import project_root

TABLES = project_root() / "results" / "cpu" / "tables"


@pytest.fixture(scope="module")
def readme():
    return re.sub(r"\s+", " ", (project_root() / "README.md").read_text())


