"""What the thesis finds about sources and networks (ch. 8.1, 10 and 12), decided by the tables of E1 and E10.

"Holds" is about the direction only: the data and the size are others. A difference between two variants that
is smaller than the spread over seeds decides nothing; every finding says how many seeds it stands on.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from panolib.data.samples import ImageSet
from panolib.report import findings
from panolib.report.claims import CONTROL
from panolib.report.findings import Finding
from panolib.report.mixing_tables import (
    BASELINE,
    CH8,
    CH8_ROWS,
    CH10,
    CH10_ROWS,
    CH12,
    MIX_CLASSES,
    state_of_the_art,
    variant_of,
)
from panolib.report.tables import SELF_TRAINED, number, published, select


def mixing_findings(rows: pd.DataFrame) -> list[Finding]:
    """What the thesis finds in 8.1 and ch. 10, from the rows of `semantic_variants`."""
    scores = _Scores(rows)
    found = []
    for variant in (name for name in scores.variants if name in CH8_ROWS):
        metric = CH8_ROWS[variant][2]
        before, after = (_published_8(variant, kind) for kind in ("baseline", "self-train"))
        gain = scores.difference((variant, SELF_TRAINED), (variant, BASELINE), metric)
        found.append(findings.decided(
            f"self-training raises {metric} of {variant} from {before:g} to {after:g}",
            f"{scores.text(variant, BASELINE, metric)} to {scores.text(variant, SELF_TRAINED, metric)}, "
            f"{scores.control(variant, metric)}; {scores.note(variant)}",
            bool((gain > 0).all()),
        ))  # fmt: skip
    pairs = (
        ("MIX V2", "SYN V2", BASELINE, "mIoU_16", "MIX raises the baseline's mIoU_16 over SYNTHIA", True),
        ("MIX V2", "SYN V2", SELF_TRAINED, "mIoU_16", "MIX raises self-trained mIoU_16 over SYNTHIA", True),
        ("GTA V2", "MIX V2", SELF_TRAINED, "mIoU_19", "GTA alone is not beaten by MIX, self-trained", True),
        ("MIX V3", "MIX V2", SELF_TRAINED, "mIoU_19", "V3 is below V2, self-trained", False),
        ("MIX V3+", "MIX V2", SELF_TRAINED, "mIoU_19", "V3+ is at least as good as V2, self-trained", True),
    )
    for first, second, method, metric, statement, above in pairs:
        if not {first, second} <= set(scores.variants):
            continue
        a, b = scores.mean(first, method, metric), scores.mean(second, method, metric)
        printed = _printed_pair(first, second, method, metric)
        near = _beside_spread(scores, (first, second), method, metric)
        found.append(findings.decided(
            f"{statement} ({printed})",
            f"{first} {scores.text(first, method, metric)}, {second} {scores.text(second, method, metric)}, "
            f"{a - b:+.1f} points{near}; "
            f"{first}: {scores.note(first)}; {second}: {scores.note(second)}",
            bool(a >= b if above else a < b), clear=not near,
        ))  # fmt: skip
    return found + _class_findings(scores)


def _beside_spread(scores: _Scores, variants: tuple[str, str], method: str, metric: str) -> str:
    """Says when two means differ by less than the largest spread over seeds; nothing without a spread."""
    a, b = (scores.mean(name, method, metric) for name in variants)
    spread = max((scores(name, method, metric).std(ddof=1) for name in variants), key=np.nan_to_num)
    return ", less than the spread over seeds" if abs(a - b) < np.nan_to_num(spread) else ""


def _class_findings(scores: _Scores) -> list[Finding]:
    """Which classes mixing adds, and which ones V3 and V3+ lose."""
    found = []
    if {"SYN V2", "MIX V2"} <= set(scores.variants):
        without, with_mix = (
            {name: scores.mean(variant, SELF_TRAINED, name) for name in MIX_CLASSES}
            for variant in ("SYN V2", "MIX V2")
        )
        for names, statement in (
            (("truck", "train"), "mixing adds truck and train"),
            (("terrain",), "mixing adds terrain, too"),
        ):
            text = ", ".join(f"{name} {without[name]:.1f} to {with_mix[name]:.1f}" for name in names)
            found.append(findings.decided(
                statement, f"self-trained IoU, SYN V2 to MIX V2: {text}; {scores.note('MIX V2')}",
                all(without[name] < 1 <= with_mix[name] for name in names),
            ))  # fmt: skip
    for variant in ("MIX V3", "MIX V3+"):
        if variant not in scores.variants:
            continue
        ours, reference = (scores.mean(name, SELF_TRAINED, "train") for name in (variant, "MIX V2"))
        baseline = scores.mean(variant, BASELINE, "train")
        theirs, beside = (_published_10(name, "train") for name in (variant, "MIX V2"))
        found.append(findings.decided(
            f"self-trained {variant} fails on train ({theirs:g} IoU), V2 does not ({beside:g})",
            f"{ours:.1f} (its baseline {baseline:.1f}) against {reference:.1f}; "
            f"below 1 % counts as failed; {scores.note(variant)}",
            bool(ours < 1 <= reference),
        ))  # fmt: skip
    return found


def panoptic_findings(rows: pd.DataFrame, conventions: pd.DataFrame, threat: pd.DataFrame) -> list[Finding]:
    """What the thesis finds in ch. 12, from panoptic rows of one merge rule.

    Parameters
    ----------
    rows : DataFrame
        Rows of `panoptic_variants`, variant as setting.
    conventions : DataFrame
        From `sq_conventions`.
    threat : DataFrame
        Rows of `tables.threat_rows` of the ladder.
    """
    scores = _Scores(rows)
    found = []
    for variant in scores.variants:
        thesis = _chapter_12(f"Thesis self-train DeepLab{variant.split()[-1]}")
        for metric in ("PQ_16", "PQ+_16"):
            gain = scores.difference((variant, SELF_TRAINED), (variant, BASELINE), metric)
            found.append(findings.decided(
                f"self-trained {variant} reaches {metric} {thesis[metric]:g}, "
                f"the baseline {_chapter_12('Thesis baseline')[metric]:g}",
                f"{scores.text(variant, SELF_TRAINED, metric)} against "
                f"{scores.text(variant, BASELINE, metric)} of the same network; {scores.note(variant)}",
                bool((gain > 0).all()),
            ))  # fmt: skip
    if len(scores.variants) > 1:
        for metric in ("PQ_16", "PQ_19"):
            best = {name: scores.mean(name, SELF_TRAINED, metric) for name in scores.variants}
            found.append(findings.decided(
                f"V3+ is the best network on {metric} "
                f"({_chapter_12('Thesis self-train DeepLabV3+')[metric]:g})",
                ", ".join(f"{name} {scores.text(name, SELF_TRAINED, metric)}" for name in best)
                + f"; V2: {scores.note('MIX V2')}; others: {scores.note(scores.variants[-1])}",
                max(best, key=best.get) == "MIX V3+",
            ))  # fmt: skip
    return [*found, _sq_finding(scores, conventions), _masks_finding(threat), findings.not_testable(
        "second place behind EDAPS (41.2 PQ), before all others",
        "the others are trained and scored on real images with other networks; published values stand beside",
    )]  # fmt: skip


def _sq_finding(scores: _Scores, conventions: pd.DataFrame) -> Finding:
    """Higher SQ and lower RQ than EDAPS: what the convention alone does to SQ."""
    edaps = state_of_the_art().loc["EDAPS"]
    thesis = _chapter_12("Thesis self-train DeepLabV3+")
    enough = classes_to_fall_below(thesis["SQ_16"], edaps["SQ, %"], 16)
    part = conventions[(conventions["method"] == SELF_TRAINED) & (conventions["classes"].astype(str) == "16")]
    mean = part.groupby("network", sort=False)[["SQ matched, %", "SQ, %", "n unmatched"]].mean()
    ours = ", ".join(
        f"{name} {row['SQ matched, %']:.1f} to {row['SQ, %']:.1f} ({row['n unmatched']:.1f} classes)"
        for name, row in mean.iterrows()
    )
    return findings.not_testable(
        f"SQ_16 of V3+ ({thesis['SQ_16']:g}) exceeds that of EDAPS ({edaps['SQ, %']:g})",
        f"its printed SQ leaves out classes without a match; counted as 0, {enough} of 16 classes take "
        f"{thesis['SQ_16']:g} below {edaps['SQ, %']:g}; what that does here, self-trained, mean over "
        f"seeds: {ours}",
    )


def _masks_finding(threat: pd.DataFrame) -> Finding:
    """RQ is low because of false-positive instances and bad masks."""
    rows = select(threat, method=SELF_TRAINED)
    value = {
        (mask, name): select(rows, setting=f"embedding in {mask} masks", class_or_metric=name)["value"]
        for mask in ("predicted", "true") for name in ("pooled", "FP", "TP")
    }  # fmt: skip
    texts = {
        mask: f"{number(value[mask, 'pooled'].mean(), value[mask, 'pooled'].std())} % and "
        f"{value[mask, 'FP'].mean():.0f} false of {value[mask, 'FP'].mean() + value[mask, 'TP'].mean():.0f}"
        for mask in ("predicted", "true")
    }
    return findings.decided(
        "RQ is low because of false-positive instances and bad masks",
        f"threat score and instances in predicted masks: {texts['predicted']}, in true masks: "
        f"{texts['true']}; {findings.seeds_note(rows['seed'].nunique())}",
        bool(
            (value["predicted", "pooled"].to_numpy() < value["true", "pooled"].to_numpy()).all()
            and value["predicted", "FP"].mean() > value["predicted", "TP"].mean()
        ),
    )


def classes_to_fall_below(mean: float, limit: float, n_classes: int) -> int:
    """How many of n classes, left out of a mean and then counted as 0, take it below a limit.

    `mean` is over the other classes, `limit` positive. 0 if the mean is below already.
    """
    return next(k for k in range(n_classes + 1) if mean * (n_classes - k) / n_classes < limit)


def new_classes_finding(
    descriptions: Mapping[str, Mapping[str, pd.DataFrame]], before: str, after: str
) -> Finding:
    """Which classes a mixed data set has that its base lacks."""
    images = {name: descriptions[name]["presence"].set_index("class")["n_images"] for name in (before, after)}
    added = [name for name, count in images[before].items() if count == 0 < images[after][name]]
    return findings.decided(
        "mixing adds truck and train, and with them terrain: three new classes",
        f"{before} to {after}: {', '.join(added) or 'none'}",
        set(added) == set(MIX_CLASSES),
    )


def instances_finding(gta: ImageSet, synthia: ImageSet) -> Finding:
    """GTA has no instance labels, so that it cannot teach instances alone."""
    words = {True: "has instances", False: "has none"}
    return findings.decided(
        "MIX is needed although GTA alone scores higher: GTA has no instance labels",
        f"{synthia.name} {words[synthia.has_instances]}, {gta.name} {words[gta.has_instances]} "
        "(as its official files, which the stand-in copies)",
        synthia.has_instances and not gta.has_instances,
    )


class _Scores:
    """Values of rows by variant, method and metric; seeds as index."""

    def __init__(self, rows: pd.DataFrame):
        rows = rows.assign(variant=variant_of(rows["setting"]))
        self.variants = list(dict.fromkeys(rows["variant"]))
        self._values = rows.set_index(["variant", "method", "class_or_metric"]).sort_index()

    def __call__(self, variant: str, method: str, metric: str) -> pd.Series:
        return self._values.loc[[(variant, method, metric)]].set_index("seed")["value"].sort_index()

    def mean(self, variant: str, method: str, metric: str) -> float:
        """Over seeds; a class that never appears counts as 0."""
        return float(np.nan_to_num(self(variant, method, metric).mean()))

    def difference(self, first: tuple[str, str], second: tuple[str, str], metric: str) -> pd.Series:
        """Per seed that both have."""
        return (self(*first, metric) - self(*second, metric)).dropna()

    def text(self, variant: str, method: str, metric: str) -> str:
        values = self(variant, method, metric)
        return number(values.mean(), values.std(ddof=1))

    def control(self, variant: str, metric: str) -> str:
        """What as many iterations on the source alone reach, in words."""
        known = (variant, CONTROL, metric) in self._values.index
        return f"its control {self.text(variant, CONTROL, metric)}" if known else "no control"

    def note(self, variant: str) -> str:
        values = self._values.loc[variant]
        return findings.seeds_note(values["seed"].nunique())


def _published_8(variant: str, kind: str) -> float:
    """One mean of ch. 8 table 1 ("baseline" or "self-train")."""
    method, setting, _ = CH8_ROWS[variant]
    file = published(CH8)
    part = file[(file["method"] == method) & file["setting"].str.startswith(f"{kind}; {setting};")]
    return float(part.loc[part["class_or_metric"] == "mIoU", "value"].item())


def _published_10(variant: str, metric: str, kind: str = "self-train") -> float:
    """One value of ch. 10 table 1."""
    method, setting = CH10_ROWS[variant]
    file = published(CH10)
    part = file[(file["method"] == method) & (file["setting"] == f"{kind}; {setting}")]
    return float(part.loc[part["class_or_metric"] == metric, "value"].item())


def _printed_pair(first: str, second: str, method: str, metric: str) -> str:
    """The thesis's two numbers: ch. 8 where it has this mean for both, else ch. 10."""
    kind = "baseline" if method == BASELINE else "self-train"
    values = [
        _published_8(name, kind) if CH8_ROWS[name][2] == metric else _published_10(name, metric, kind)
        for name in (first, second)
    ]
    return " and ".join(f"{value:g}" for value in values)


def _chapter_12(method: str) -> dict[str, float]:
    """Scores of one row of ch. 12 table 1."""
    file = published(CH12)
    part = file[file["method"] == method]
    return dict(zip(part["class_or_metric"], part["value"], strict=True))
