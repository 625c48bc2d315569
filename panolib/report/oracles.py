"""What a share of the gap to an oracle is worth: how long the oracle trained, which methods are above it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from panolib.lab.run import Run
from panolib.report.tables import ORACLE, Ladder, per_seed, select

BRANCHES = {1: ("",), 2: (", semantic", ", instance")}  # networks behind a score -> their names


def lines(ladders: Mapping[str, Ladder], rows: pd.DataFrame, metrics: Iterable[str]) -> list[str]:
    """What stands beside every table with shares of a gap.

    Parameters
    ----------
    ladders : mapping of a setting of the rows ("": all rows) to {(rung or label, seed): record}
        The records behind the rows.
    rows : DataFrame
        Tidy rows of one setting for every ladder.
    metrics : iterable of str
        Those whose shares are shown.

    Returns
    -------
    list of str
        How long oracles and others trained (a line for each pair of lengths), then a line on each metric.
    """
    budgets: dict[str, list[str]] = {}
    for name, ladder in ladders.items():
        budgets.setdefault(_budget(ladder), []).append(name)
    found = [f"{', '.join(names)}: {text}" if len(budgets) > 1 else text for text, names in budgets.items()]
    for metric in metrics:
        above = [text for name in ladders for text in _above(rows, metric, name)]
        found.append(f"{metric} above the oracle's (share over 100 %): {'; '.join(above) or 'none'}")
    return found


def iterations(run: Run) -> tuple[int, ...]:
    """Iterations behind the weights of a run: its own and those of the networks that it starts from.

    Of a panoptic run: those of its semantic and of its instance network.
    """
    parents = dict(run.parents)
    if run.kind == "panoptic":
        return tuple(n for role in ("semantic", "instance") for n in iterations(parents[role]))
    before = iterations(parents["start"]) if "start" in parents else (0,)
    return (before[0] + getattr(run.spec, "iterations", 0),)


def _budget(ladder: Ladder) -> str:
    """How long the oracle trained, beside the longest training of the others."""
    oracle, others = (
        [max(n) for n in zip(*(iterations(record.run) for (rung, _), record in ladder.items()
                               if (rung == ORACLE) == wanted), strict=True)]
        for wanted in (True, False)
    )  # fmt: skip
    text = "; ".join(
        f"iterations{branch}: oracle {own}, others up to {longest}"
        for own, longest, branch in zip(oracle, others, BRANCHES[len(oracle)], strict=True)
    )
    less = any(own < longest for own, longest in zip(oracle, others, strict=True))
    note = "; trained less, the oracle is no upper limit, and shares of its gap are upper estimates"
    return text + note * less


def _above(rows: pd.DataFrame, metric: str, name: str) -> list[str]:
    """Methods of one setting that are above the oracle in some seed, in words."""
    values = per_seed(select(rows, setting=name) if name else rows, metric)
    oracle, others = values.loc[ORACLE], values.drop(index=ORACLE)
    wins, seeds = others.gt(oracle).sum(axis=1), others.notna().sum(axis=1)
    return [
        f"{f'{name}, ' * bool(name)}{method} in {n} of {seeds[method]} seeds "
        f"(mean {others.loc[method].mean():.1f}, oracle {oracle.mean():.1f})"
        for method, n in wins[wins > 0].items()
    ]
