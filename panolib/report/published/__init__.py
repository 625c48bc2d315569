"""The published numbers: one file a table of the thesis and of related papers, and their reader."""

from __future__ import annotations

from importlib import resources

import pandas as pd


def published(name: str) -> pd.DataFrame:
    """A published table: method, setting, class_or_metric, value, unit, source.

    Raises
    ------
    FileNotFoundError
        With the known names, for an unknown one.
    """
    known = {path.name: path for path in resources.files(__name__).iterdir() if path.name.endswith(".csv")}
    if name not in known:
        raise FileNotFoundError(f"no published table {name!r}; expected one of {sorted(known)}")
    with known[name].open() as file:
        return pd.read_csv(file)
