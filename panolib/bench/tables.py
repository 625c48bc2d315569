"""Tables of the recorded performance comparison. What they mean is decided in `claims`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from panolib.lab.records import Record
from panolib.report.tables import three_digits, write_csv

WARN_BELOW = 0.8  # share of the recorded ratio


def operation_rows(record: Record) -> pd.DataFrame:
    """All pairs with machine and versions: the rows of performance.csv."""
    rows = pd.DataFrame([*record.metrics["operations"], record.metrics["step"]["row"]])
    versions = ", ".join(f"{name} {version}" for name, version in record.info["versions"].items())
    return rows.assign(machine=record.metrics["processor"], versions=versions)


def write_performance(record: Record, folder: Path) -> pd.DataFrame:
    """Write performance.csv; returns what it says."""
    return write_csv(operation_rows(record), folder / "performance.csv")


def shown(rows: pd.DataFrame) -> pd.DataFrame:
    """Pairs as a reader sees them: one line per operation and size, ratios of each number of threads."""
    keys = ["operation", "size"]
    one = rows[rows["threads"] == rows["threads"].min()].set_index(keys)
    table = pd.DataFrame(index=one.index)
    for threads, part in rows.groupby("threads"):
        part = part.set_index(keys).reindex(one.index)
        table[f"ratio, {threads} thread" + "s" * (threads > 1)] = part["ratio"].map(three_digits)
    table["to reach"] = one["target_ratio"].map("{:g}".format)
    times = (one[column].map(three_digits) for column in ("ours_ms", "ours_iqr_ms"))
    table["ours, ms"] = [f"{median} ± {spread}" for median, spread in zip(*times)]
    table["times its floor"] = (one["ours_ms"] / one["floor_ms"]).map(three_digits)
    table["reference, ms"] = one["reference_ms"].map(three_digits)
    table["memory, of the input"] = (one["ours_mib"] / one["input_mib"]).map("{:.1f}".format)
    table["memory of the reference"] = (one["reference_mib"] / one["input_mib"]).map("{:.1f}".format)
    return table.replace("nan", "")


def missed(rows: pd.DataFrame) -> pd.DataFrame:
    """Pairs below the ratio to reach: how far, whose time makes the difference, and what bounds ours.

    The ratio to reach is that of a sketch; its own time is that of its reference divided by the ratio. So a
    missing factor is the product of how much faster the reference is here, and how much slower ours.
    """
    found = rows[rows["ratio"] < rows["target_ratio"]]
    table = found[["operation", "size", "threads"]].copy()
    table["ratio"] = found["ratio"].map(three_digits)
    table["to reach"] = found["target_ratio"].map("{:g}".format)
    factors = {
        "the sketch's reference, times this one": found["sketch_ms"] / found["reference_ms"],
        "ours, times the sketch": found["ours_ms"] * found["target_ratio"] / found["sketch_ms"],
        "ours, times its floor": found["ours_ms"] / found["floor_ms"],
    }
    for name, values in factors.items():
        table[name] = values.map(three_digits)
    table["what bounds it"] = found["bound"]
    return table.set_index(["operation", "size", "threads"])


def wall_rows(records: Iterable[Record]) -> pd.DataFrame:
    """Recorded wall time by kind of run, in minutes: in all, and split where the record says.

    Training of an instance network includes its clustering, which its curves time by themselves. Records of
    earlier versions do not say when training ended; `split` counts those that do. A run that has several
    names counts once.
    """
    records = {record.run.name: record for record in records}.values()
    rows = [
        {
            "kind": record.run.kind.replace("_", " "),
            "wall": record.info["wall_s"] / 60,
            "split": record.info.get("training_s") is not None,
            "training": record.info.get("training_s", np.nan) / 60,
            "clustering": record.curves.get("clustering_s", pd.Series(dtype=float)).sum() / 60,
        }
        for record in records
    ]
    table = pd.DataFrame(rows)
    table["evaluation"] = table["wall"] - table["training"]
    grouped = table.groupby("kind")
    return pd.DataFrame({
        "runs": grouped.size(),
        "in all, min": grouped["wall"].sum(),
        "longest, min": grouped["wall"].max(),
        "clustering, min": grouped["clustering"].sum(),
        "of runs split": grouped["split"].sum(),
        "their training, min": grouped["training"].sum(),
        "their evaluation, min": grouped["evaluation"].sum(),
    }).round(1)  # fmt: skip


def slower_than(record: Record, before: Record | None) -> list[str]:
    """Pairs whose ratio fell clearly below that of an earlier record, in words. A warning, not a test."""
    if before is None:
        return []
    keys = ["operation", "size", "threads"]
    both = operation_rows(record).merge(operation_rows(before), on=keys, suffixes=("", "_before"))
    return [
        f"{row.operation}, {row.size}, {row.threads} thread(s): ratio {three_digits(row.ratio)}, "
        f"recorded {three_digits(row.ratio_before)}"
        for row in both.itertuples()
        if row.ratio < WARN_BELOW * row.ratio_before
    ]
