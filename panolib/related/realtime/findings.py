"""What the two real-time papers claim (methods section 9), decided by our tables."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from panolib.related.realtime.runs import METHODS, PER_IMAGE, TARGETS
from panolib.related.realtime.tables import METRICS, RULES, fastest_way
from panolib.report import claims, findings, tables
from panolib.report.findings import Finding
from panolib.study.study import Study

LABEL = METHODS | dict([PER_IMAGE])
REAL_TIME = 30.0  # images a second
PRINTED = 0.05  # points; a smaller difference does not show in the tables
FULL_HEIGHT = 512  # pixels; "real time" is claimed for images of this size
COMPARED = (
    "network.depth", "network.width", "network.weights", "baseline.iterations", "baseline.batch_size",
    "adaptation.iterations", "adaptation.batch_size", "adaptation.batch_norm", "adversary.width",
    "adversary.lr", "meta.student_pretrained",
)  # fmt: skip
ADAPTED = ("fcd", "light", "ssl1", "ssl2", "ssl3", "mpl_old", "mpl_new", "mpl_rt")


def of_adaptation(rows: pd.DataFrame, labels: pd.DataFrame, spread: float) -> list[Finding]:
    """Findings about the methods, on every target of the rows.

    Parameters
    ----------
    rows : what `tables.score_rows` returns
    labels : what `tables.label_table` returns
    spread : float
        What another seed changes in a mIoU (`tables.seed_spread`); NaN if nobody knows.
    """
    found = []
    for target in dict.fromkeys(rows["setting"]):
        score = _Scores(rows, target, spread)
        found += [
            score.higher(("fcd",), ("source_only",), "adversarial adaptation helps over source only "
                         "(claimed; neither paper prints a source-only row)"),
            score.higher(("fcd",), ("control",), "it helps beyond what more training and the target's batch "
                         "statistics give (not separated in the papers)"),
            score.higher(("light",), ("fcd",), "the light discriminator is no worse than FCD "
                         "(ML 30.4 against 30.8, RT 30.7 against 28.8)", tolerance=True),
            score.higher(("ssl1",), ("light",), "pseudo-labels help over adversarial training alone "
                         "(ML 31.5 against 30.4, RT 32.2 against 30.7)"),
            score.higher(("ssl2", "ssl3"), ("ssl1",), "pseudo-labels of several layers help "
                         "(claimed; ML's own table has 31.0 and 31.3 against 31.5 for one layer)"),
            sparser(labels, target),
            score.higher(("mpl_rt",), ("ssl1",), "Meta Pseudo Labels beat plain ones (RT 32.5 against 32.2)"),
            score.higher(("mpl_old",), ("mpl_new",), "the sign of the Taylor argument (old minus new) beats "
                         "that of public code (discussed without numbers)"),
            score.higher(("self_trained",), ADAPTED, "SAC beats the best of the methods here "
                         "(our expectation; no paper compares them)"),
        ]  # fmt: skip
        if PER_IMAGE[1] in set(score.means.index):
            claim = "thresholds over the whole set train better than thresholds per image (BDL against RT)"
            found.append(score.higher(("ssl1",), (PER_IMAGE[0],), claim))
        found.append(thresholds(labels, target))
        found.append(bug(labels, target))
    return found


def of_cost(complexity: pd.DataFrame, latency: pd.DataFrame, speeds: pd.DataFrame) -> list[Finding]:
    """Findings about operations and time; `latency` at the published size, `speeds` of our own networks."""
    return [equal_counts(complexity), real_time(latency), faster(latency), worth_it(speeds)]


class _Scores:
    """Mean mIoU of every method on one target."""

    def __init__(self, rows: pd.DataFrame, target: str, spread: float):
        part = tables.select(rows, setting=target)
        values = tables.per_seed(part, METRICS[target])
        self.means, self.target, self.spread = values.mean(axis=1), target, spread
        self.seeds = findings.seeds_note(part["seed"].nunique())

    def higher(
        self, first: tuple[str, ...], second: tuple[str, ...], claim: str, *, tolerance: bool = False
    ) -> Finding:
        """The best of the first methods against the best of the second ones.

        `tolerance`: the first may also be as good, within the spread.
        """
        best, other = (self._best(methods) for methods in (first, second))
        gain = self.means[best] - self.means[other]
        text = (
            f"{best} {self.means[best]:.1f} against {other} {self.means[other]:.1f} %, {gain:+.1f} points "
            f"({self.seeds}; {findings.another_seed(self.spread)}: DeepLabV2, self-trained on the city)"
        )
        claim, spread = f"{self.target}: {claim}", max(self.spread, PRINTED)  # NaN stays NaN
        if not tolerance:
            return findings.compared(claim, text, [gain], [spread])
        return findings.decided(claim, text, bool(gain >= -spread), clear=math.isfinite(spread))

    def _best(self, methods: tuple[str, ...]) -> str:
        return self.means[[LABEL[method] for method in methods]].idxmax()


def sparser(labels: pd.DataFrame, target: str) -> Finding:
    """Coverage at the same constant threshold, by number of layers."""
    part = _labels(labels, target, "constant").set_index("layers")
    text = "; ".join(
        f"{layers} layer{'s' * (layers > 1)}: {row.coverage:.1f} % covered, {row.accuracy:.1f} % right"
        for layers, row in part.iterrows()
    )
    least = part.loc[[2, 3], "coverage"].max()
    return findings.decided(
        f"{target}: labels of several layers are less sparse (shown in a picture)",
        f"threshold {part['threshold'].iloc[0]:g}: {text} (medians fix the coverage at about half)",
        bool(least > part.loc[1, "coverage"]),
    )


def thresholds(labels: pd.DataFrame, target: str) -> Finding:
    """Medians over the set against medians of every image: accuracy at about the same coverage."""
    rows = {rule: _labels(labels, target, rule).set_index("layers").loc[1] for rule in ("set", "image")}
    text = ", ".join(
        f"{RULES[rule]} {row.accuracy:.1f} % right of {row.coverage:.1f} % covered"
        for rule, row in rows.items()
    )
    return findings.decided(
        f"{target}: medians over the set give more accurate labels than medians of every image (argued)",
        text,
        bool(rows["set"].accuracy > rows["image"].accuracy),
    )


def bug(labels: pd.DataFrame, target: str) -> Finding:
    """The reference's threshold list against the right one, per image."""
    wrong, right = (
        _labels(labels, target, rule).set_index("layers").loc[1] for rule in ("reference", "image")
    )
    return findings.decided(
        f"{target}: the threshold list of the reference, longer than the classes, spoils its labels (9.6)",
        f"it covers {wrong.coverage:.1f} instead of {right.coverage:.1f} % and is right in "
        f"{wrong.accuracy:.1f} instead of {right.accuracy:.1f} % of it",
        bool(wrong.accuracy < right.accuracy),
    )


def equal_counts(complexity: pd.DataFrame) -> Finding:
    """Whether every published count is ours, to its printed digits."""
    equal = [
        round(row["parameters"] / 10**3) == round(row["parameters, published"] / 10**3)
        and _as_printed(row["G"], row["G, published"])
        for _, row in complexity.iterrows()
    ]
    parts = ", ".join(
        f"{row['method']} {row['parameters']:,} and {row['G']:.3f} G ({row['source']})"
        for _, row in complexity.iterrows()
    )
    clean = complexity.groupby("method")["G, clean"].first()
    factor = clean.max() / clean.min()
    return findings.decided(
        "parameters and FLOPs of both discriminators (two conventions of one profiler)",
        f"{parts}; {sum(equal)} of {len(equal)} equal; clean count: the light one needs {factor:.1f} times "
        "fewer operations",
        all(equal),
    )


def real_time(latency: pd.DataFrame) -> Finding:
    """Images a second of the BiSeNets at the published size."""
    speed = fastest_way(latency)
    own = speed[[name for name in speed.index if name.startswith("BiSeNet")]]
    text = ", ".join(f"{name} {value:.3g} images/s" for name, value in own.items())
    return findings.decided(
        f"BiSeNet runs in real time (claimed; here: {REAL_TIME:g} images/s)",
        f"{text} at {latency['size, px'].iloc[0]} on this machine, in the fastest way that it has",
        bool(own.max() >= REAL_TIME),
        clear=latency["height"].iloc[0] >= FULL_HEIGHT,
    )


def faster(latency: pd.DataFrame) -> Finding:
    """Every BiSeNet against every DeepLab."""
    speed = fastest_way(latency)
    bisenet = [name for name in speed.index if name.startswith("BiSeNet")]
    deeplab = [name for name in speed.index if name.startswith("DeepLab")]
    slow, fast = speed[bisenet].idxmin(), speed[deeplab].idxmax()
    return findings.decided(
        "BiSeNet is faster than DeepLab (why it was chosen)",
        f"{slow}, the slowest of them, has {speed[slow] / speed[fast]:.3g} times the images/s of {fast}; "
        f"the fastest one has {speed[bisenet].max() / speed[deeplab].min():.3g} times those of the slowest",
        bool(speed[slow] > speed[fast]),
    )


def worth_it(speeds: pd.DataFrame) -> Finding:
    """Whether no DeepLab of this profile is both faster and better than its BiSeNet."""
    table = speeds.set_index("network")
    own, others = table.loc["BiSeNet"], table.drop(index="BiSeNet")
    better = others[(others["mIoU_19, %"] > own["mIoU_19, %"]) & (others["images/s"] > own["images/s"])]
    text = ", ".join(
        f"{name} {row['mIoU_19, %']:.1f} % at {row['images/s']:.0f} images/s"
        for name, row in table.iterrows()
    )
    return findings.decided(
        "BiSeNet trades quality for speed well: no DeepLab of the same training is better and faster",
        f"{text} ({findings.seeds_note(1)})",
        better.empty,
    )


def _labels(labels: pd.DataFrame, target: str, rule: str) -> pd.DataFrame:
    """Rows of one target and rule; of the constants the one that also caps the medians."""
    part = labels[labels["target"] == target]
    cap = part.loc[part["rule"] == RULES["set"], "threshold"].iloc[0]
    return part[(part["rule"] == RULES[rule]) & np.isclose(part["threshold"], cap)]


def _as_printed(value: float, printed: float) -> bool:
    """Whether a value rounds to a printed number of at most three decimals."""
    return math.isclose(round(value, 3), printed, abs_tol=1e-9)


def differences_line(study: Study) -> str:
    """Where the settings differ from those of profile "paper", which has the papers' own, in words."""
    found = claims.differing(study.profile.realtime, claims.paper_profile()["realtime"], COMPARED)
    return f"differences from the papers: {', '.join(found) or 'none in these settings'}"


def spread_of(seeds: pd.DataFrame) -> float:
    """What another seed changes in the mIoU of self-training on the city, in points; NaN for one seed."""
    return float(tables.seed_spread(seeds)[METRICS[TARGETS["city"]]])
