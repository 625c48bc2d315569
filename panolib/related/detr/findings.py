"""What the slides say of DETR-panoptic, beside what our tables say: decided by code (methods section 10)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from panolib.related.detr.kinds import DETR, OURS
from panolib.related.detr.runs import COLOUR, HALF, PLAIN
from panolib.related.detr.tables import (
    CAMVID,
    GENERALISATION,
    LABELS,
    PRODUCT,
    TARGET,
    size_rows,
    slides_products,
)
from panolib.report import findings
from panolib.report.claims import Claim
from panolib.report.findings import Finding
from panolib.report.tables import number, per_seed, published, select

ROUNDING = 0.01  # of a product of two numbers printed with two digits, in points


def of_slides(rows: pd.DataFrame, thresholds: Sequence[float], n_all: int) -> list[Finding]:
    """Every statement of the slides, from the rows of `tables.score_rows`, at every threshold."""
    found = [product_of_means(select(rows, setting=f"{TARGET}; score > {thresholds[0]:g}"))]
    for threshold in thresholds:
        at = f"score > {threshold:g}"
        target = select(rows, setting=f"{TARGET}; {at}")
        decided = [*augmentation(target), *training_set_size(target, n_all), *generalisation(rows, at)]
        found += [Finding(f.thesis, f"{at}: {f.ours}", f.verdict) for f in decided]
    return found


def product_of_means(target: pd.DataFrame) -> Finding:
    """Whether the printed PQ is the product of the printed SQ and RQ, and what that makes of ours."""
    slides = slides_products()
    apart = (slides[PRODUCT] - slides["PQ"]).abs()
    means = [per_seed(target, metric).loc[LABELS[PLAIN]].mean() for metric in ("PQ_19", PRODUCT)]
    printed = ", ".join(f"{row.PQ:g} against {row[PRODUCT]:.2f}" for _, row in slides.iterrows())
    return findings.decided(
        "the slides' PQ is the product of mean SQ and mean RQ, not the class mean of PQ",
        f"printed PQ against the product: {printed}; ours: class mean {means[0]:.2f}, product {means[1]:.2f}",
        bool((apart <= ROUNDING).all()),
    )


def augmentation(target: pd.DataFrame) -> list[Finding]:
    """The colour policy for as many epochs, and the slides' comparison with half of them."""
    slides = published_pairs()
    found = []
    for metric, printed in ((PRODUCT, "PQ"), ("mIoU_19", "mIoU")):
        said = f"{slides[printed][0]:g} to {slides[printed][1]:g}"
        found += [
            _ordered(
                target, metric, LABELS[HALF], LABELS[PLAIN],
                f"{printed} is lower with the colour policy and half the epochs ({said})",
            ),
            _ordered(
                target, metric, LABELS[COLOUR], LABELS[PLAIN],
                f"{printed} is lower with the colour policy (the slides' {said} mixes it with half the "
                "epochs; here for as many epochs)",
            ),
        ]  # fmt: skip
    return found


def published_pairs() -> dict[str, tuple[float, float]]:
    """{metric: (without, with the policy)} of the slides."""
    slides = slides_products().set_index("method")
    (without,) = [name for name in slides.index if "Augmentation" not in name]
    (augmented,) = [name for name in slides.index if "Augmentation" in name]
    return {metric: (slides.loc[without, metric], slides.loc[augmented, metric]) for metric in ("PQ", "mIoU")}


def training_set_size(target: pd.DataFrame, n_all: int) -> list[Finding]:
    """Most images against fewest, for as many iterations."""
    sized = size_rows(target, n_all)
    methods = list(dict.fromkeys(sized["method"]))
    if len(methods) < 2:
        return [findings.not_testable("more training images help", "one training set only")]
    found = []
    for metric in (PRODUCT, "mIoU_19"):
        values = ", ".join(
            f"{images}: {_number(select(part, class_or_metric=metric)['value'])}"
            for images, part in sized.groupby("images")
        )
        finding = _ordered(
            target, metric, methods[0], methods[-1],
            f"more training images help, {metric} (the slides plot losses of 1,200 and 2,975 images only)",
        )  # fmt: skip
        ours = f"{finding.ours}; by number of images: {values}"
        found.append(Finding(finding.thesis, ours, finding.verdict))
    return found


def generalisation(rows: pd.DataFrame, at: str) -> list[Finding]:
    """mIoU on other data against that on the data of training, in the slides higher."""
    slides = published(GENERALISATION).set_index("setting")["value"]
    said = (
        f"mIoU is no lower on another data set ({slides['evaluated on the IKA dataset']:g}) than on that "
        f"of training ({slides['evaluated on Cityscapes']:g})"
    )
    home = per_seed(select(rows, setting=f"{TARGET}; {at}"), "mIoU_16").loc[LABELS[PLAIN]]
    found = []
    settings = [
        s for s in dict.fromkeys(rows["setting"]) if s.endswith(f"; {at}") and not s.startswith(TARGET)
    ]
    for setting in settings:
        name, metric = setting.split(";")[0], "mIoU_11" if setting.startswith(CAMVID) else "mIoU_16"
        away = per_seed(select(rows, setting=setting), metric).loc[LABELS[PLAIN]]
        ours = f"{name} {metric} {_number(away)}, target mIoU_16 {_number(home)}; "
        ours += findings.seeds_note(len(home))
        gain = away - home
        found.append(findings.compared(f"{said}; {name}", ours, [gain.mean()], [gain.std(ddof=1)]))
    if CAMVID not in {setting.split(";")[0] for setting in settings}:
        found.append(findings.not_testable(f"{said}; {CAMVID}", "its images are not here"))
    return found


def beside_ours(costs: pd.DataFrame) -> list[Claim]:
    """DETR against our pipeline with the same supervision, measured in one run."""

    def values(measure: str, unit: str) -> dict[str, pd.Series]:
        part = costs[costs["unit"] == unit]
        return {system: per_seed(part, measure).loc[system] for system in (DETR, OURS)}

    found = []
    for measure, unit, statement in (
        ("PQ_19", "%", "DETR has at least the PQ of our pipeline, both trained on the target's labels"),
        ("parameters", "count", "DETR has no more parameters"),
        ("training step, for one image", "GFLOP", "DETR takes no more operations to learn from an image"),
        ("training step, for one image", "ms", "DETR takes no longer to learn from an image"),
        ("inference of one image", "ms", "DETR takes no longer from an image to its panoptic map"),
    ):
        found_values = values(measure, unit)
        ours, detr = found_values[OURS].mean(), found_values[DETR].mean()
        holds = detr >= ours if measure == "PQ_19" else detr <= ours
        texts = (f"{v:,.0f}" if unit == "count" else f"{v:.3g} {unit}" for v in (detr, ours))
        note = findings.seeds_note(len(found_values[DETR]))
        numbers = "DETR {}, ours {}; {}".format(*texts, note)
        found.append(Claim(statement, numbers, bool(holds)))
    return found


def _ordered(target: pd.DataFrame, metric: str, low: str, high: str, statement: str) -> Finding:
    """Whether one method is below another by more than the spread of the difference over seeds."""
    values = per_seed(target, metric)
    texts = (_text(target, metric, method) for method in (low, high))
    ours = f"{' against '.join(texts)}; {findings.seeds_note(values.shape[1])}"
    gain = values.loc[high] - values.loc[low]
    return findings.compared(statement, ours, [gain.mean()], [gain.std(ddof=1)])


def _text(target: pd.DataFrame, metric: str, method: str) -> str:
    return f"{method} {_number(per_seed(target, metric).loc[method])}"


def _number(values: pd.Series) -> str:
    return number(values.mean(), values.std(ddof=1) if len(values) > 1 else np.nan, 2)
