"""What the thesis found, beside what the tables of this study say: decided by code, not by prose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE = "reproduced in direction", "not reproduced", "not testable here"


@dataclass(frozen=True)
class Finding:
    """One statement of the thesis, our numbers, and whether they point in the same direction.

    Attributes
    ----------
    thesis : str
        What the thesis reports, with its numbers.
    ours : str
        The numbers it is decided by, with spread and n; or why it cannot be decided here.
    verdict : str
        `REPRODUCED`, `NOT_REPRODUCED` or `NOT_TESTABLE`.
    """

    thesis: str
    ours: str
    verdict: str

    def __str__(self) -> str:
        return f"[{self.verdict}] {self.thesis}: {self.ours}"


def decided(thesis: str, ours: str, holds: bool, *, clear: bool = True) -> Finding:
    """A finding that our numbers bear out, or not; not testable where the difference is not `clear`."""
    if not clear:
        return not_testable(thesis, ours)
    return Finding(thesis, ours, REPRODUCED if holds else NOT_REPRODUCED)


def compared(thesis: str, ours: str, differences: Sequence[float], spreads: Sequence[float]) -> Finding:
    """A finding about differences that should be positive, each beside the spread of what differs.

    Reproduced if all exceed their spread, not reproduced if one is negative beyond it; else, or without a
    spread, not testable: another seed might say the opposite.
    """
    above = [difference > spread for difference, spread in zip(differences, spreads, strict=True)]
    below = [difference < -spread for difference, spread in zip(differences, spreads, strict=True)]
    return decided(thesis, ours, all(above), clear=bool(above) and (all(above) or any(below)))


def not_testable(thesis: str, why: str) -> Finding:
    """A finding about which this study cannot say anything."""
    return Finding(thesis, why, NOT_TESTABLE)


def table(findings: list[Finding]) -> pd.DataFrame:
    """One row per finding."""
    return pd.DataFrame([vars(finding) for finding in findings])


def another_seed(spread: float) -> str:
    """How much another seed changes a score (`tables.seed_spread`), in words."""
    known = np.isfinite(spread)
    return f"another seed changes it by ± {spread:.1f}" if known else "no spread to compare with"


def seeds_note(n: int) -> str:
    """ "n = 3 seeds", or that there is no spread."""
    return f"n = {n} seeds" if n > 1 else "one seed, no spread"
