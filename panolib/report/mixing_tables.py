"""Tables of E1, E10 and E11: which source, which DeepLab, what is learned when; `mixing_findings` decides.

Rows are those of `tables`, with the variant ("SYN V2", "MIX V3+") as their setting. A variant with MIX and
the network of the ladder *is* the ladder and has its seeds; the others have those of the experiments.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from panolib.data.samples import ImageSet
from panolib.lab.records import Record
from panolib.report.tables import SELF_TRAINED, Ladder, published, select, with_published
from panolib.study.study import RUNG_LABELS, Study, run_name

BASELINE = RUNG_LABELS["abn"]  # what the thesis calls baseline refreshes batch-norm statistics
RUNGS = ("source_only", "abn", "adabn", "self_trained")  # of every variant
MIX_CLASSES = ("terrain", "truck", "train")  # that SYNTHIA lacks
LABEL_SCORES = {"label_coverage": "coverage of pseudo-labels", "accuracy": "accuracy of pseudo-labels"}
CH8, CH10, CH12 = (
    "thesis_ch8_tab1_mixing_miou.csv",
    "thesis_ch10_tab1_semantic_class_iou.csv",
    "thesis_ch12_tab1_panoptic.csv",
)
# variant -> (method, part of the setting) in the files, and what the mean is called in chapter 8
CH8_ROWS = {
    "SYN V2": ("Reproduced by the thesis", "DeepLabV2; source SYNTHIA", "mIoU_16"),
    "GTA V2": ("Reproduced by the thesis", "DeepLabV2; source GTA-V", "mIoU_19"),
    "MIX V2": ("Mixed synthetic data", "DeepLabV2; source MIX", "mIoU_19"),
    "MIX V3": ("Mixed synthetic data", "DeepLabV3; source MIX", "mIoU_19"),
    "MIX V3+": ("Mixed synthetic data", "DeepLabV3+; source MIX", "mIoU_19"),
}
CH10_ROWS = {
    "SYN V2": ("Reproduced by the thesis", "DeepLabV2; source SYNTHIA"),
    "MIX V2": ("DeepLabV2", "source MIX"),
    "MIX V3": ("DeepLabV3", "source MIX"),
    "MIX V3+": ("DeepLabV3+", "source MIX"),
}


# --- records --------------------------------------------------------------------------------------------


def semantic_variants(study: Study) -> dict[str, Ladder]:
    """{"SYN V2": records by (rung, seed), ...}: every source with the network of the ladder, then the others.

    The oracle of a source is that of the ladder (the same network); other networks have their own.
    """
    experiments, base = study.section("experiments"), study.ladder("city", "semantic")
    version = study.profile.city.semantic_baseline["network"]["version"].upper()
    seeds = experiments.seeds
    oracles = {("oracle", seed): base["oracle", seed] for seed in seeds}
    found = {
        f"{name.upper()} {version}": _ladder(study, "semantic", RUNGS, seeds, f"{name}.v2") | oracles
        for name in experiments.sources
    }
    found[f"MIX {version}"] = base
    for name, network in experiments.networks.items():
        rungs = (*RUNGS, "oracle")
        found[f"MIX {network['version'].upper()}"] = _ladder(study, "semantic", rungs, seeds, f"mix.{name}")
    return found


def panoptic_variants(study: Study) -> dict[str, Ladder]:
    """{"MIX V2": panoptic records by (rung, seed), ...}: ABN and self-trained with every network."""
    experiments, rungs = study.profile.experiments, ("abn", "self_trained")
    version = study.profile.city.semantic_baseline["network"]["version"].upper()
    found = {f"MIX {version}": _ladder(study, "panoptic", rungs, study.seeds, "")}
    for name, network in ({} if experiments is None else experiments.networks).items():
        label = f"MIX {network['version'].upper()}"
        found[label] = _ladder(study, "panoptic", rungs, experiments.seeds, f"mix.{name}")
    return found


def monitored(study: Study) -> dict[str, Record]:
    """The runs that were scored while they trained, first seed of the experiments: baseline, self-trained."""
    seed = study.section("experiments").seeds[0]
    names = {"source only": "source_only", SELF_TRAINED: "self_trained"}
    return {
        label: study.get(run_name("city", "semantic", rung, seed, "monitored"))
        for label, rung in names.items()
    }


def _ladder(study: Study, branch: str, rungs: Iterable[str], seeds: Iterable[int], variant: str) -> Ladder:
    return {
        (rung, seed): study.get(run_name("city", branch, rung, seed, variant))
        for rung, seed in itertools.product(rungs, seeds)
    }


# --- data -----------------------------------------------------------------------------------------------


def frames_showing(dataset: ImageSet, required: Sequence[str]) -> pd.DataFrame:
    """How many images of a data set show which of some classes.

    Parameters
    ----------
    dataset : ImageSet
        Opened with labels; only these are read.
    required : sequence of str
        Class names; one pixel is enough.

    Returns
    -------
    DataFrame
        "frames that show" ("truck and train", "truck only", "train only", "none of them"), images, share
        (percent). All combinations, also empty ones; the images sum to the data set.
    """
    wanted = dataset.label_set.ids_of(required)
    shown = np.zeros((len(dataset), len(wanted)), bool)
    for index in range(len(dataset)):
        shown[index] = np.isin(wanted, dataset.semantic(index))
    rows = []
    for present in itertools.product((True, False), repeat=len(wanted)):
        names = [name for name, there in zip(required, present) if there]
        only = " only" if len(names) < len(required) else ""
        count = int((shown == present).all(axis=1).sum())
        rows.append(
            {
                "frames that show": " and ".join(names) + only if names else "none of them",
                "images": count,
                "share, %": 100 * count / max(len(dataset), 1),
            }
        )
    return pd.DataFrame(rows)


def before_and_after(descriptions: Mapping[str, Mapping[str, pd.DataFrame]]) -> pd.DataFrame:
    """Images that show each class, and its share of the labelled pixels in percent, per data set.

    Parameters
    ----------
    descriptions : mapping of name to what `panolib.data.describe.describe` returns

    Returns
    -------
    DataFrame
        class, then "<name>, images" of every data set, then "<name>, % of pixels".
    """
    first = next(iter(descriptions.values()))["presence"]
    images = {f"{name}, images": found["presence"]["n_images"] for name, found in descriptions.items()}
    pixels = {
        f"{name}, % of pixels": 100 * found["counts"]["pixel_share"] for name, found in descriptions.items()
    }
    return pd.DataFrame({"class": first["class"]} | images | pixels)


# --- rows -----------------------------------------------------------------------------------------------


def beside_chapter_8(summary: pd.DataFrame) -> pd.DataFrame:
    """ABN and self-trained rows of every variant, beside ch. 8 table 1 (which has 16 classes for SYNTHIA)."""
    rows = {variant: (method, f"{setting};") for variant, (method, setting, _) in CH8_ROWS.items()}
    metrics = {variant: {metric: "mIoU"} for variant, (_, _, metric) in CH8_ROWS.items()}
    return _beside(summary, CH8, rows, metrics)


def beside_chapter_10(summary: pd.DataFrame) -> pd.DataFrame:
    """The same beside the class values of ch. 10 table 1, a single run (none for GTA)."""
    return _beside(summary, CH10, CH10_ROWS, {})


def _beside(
    summary: pd.DataFrame,
    file: str,
    rows: Mapping[str, tuple[str, str]],
    metrics: Mapping[str, Mapping[str, str]],
) -> pd.DataFrame:
    """Every variant beside its (method, beginning of the setting) of a published file, where it has one."""
    parts = []
    for variant, part in _variants(select(summary, method=[BASELINE, SELF_TRAINED])):
        if variant not in rows:
            parts.append(part.assign(published=np.nan, published_method=""))
            continue
        method, setting = rows[variant]
        kinds = {BASELINE: "baseline", SELF_TRAINED: "self-train"}
        matches = {ours: (method, f"{theirs}; {setting}") for ours, theirs in kinds.items()}
        parts.append(with_published(part, file, matches, metrics=metrics.get(variant)))
    return pd.concat(parts, ignore_index=True)


def beside_chapter_12(summary: pd.DataFrame, metrics: Mapping[str, str | None]) -> pd.DataFrame:
    """Panoptic rows beside ch. 12 table 1: self-trained by network; its one baseline stands beside V2."""
    parts = []
    for variant, part in _variants(select(summary, method=[BASELINE, SELF_TRAINED])):
        matches = {SELF_TRAINED: (f"Thesis self-train DeepLab{variant.split()[-1]}", "source MIX")}
        if variant == "MIX V2":
            matches[BASELINE] = ("Thesis baseline", "source MIX")
        parts.append(with_published(part, CH12, matches, metrics=metrics))
    return pd.concat(parts, ignore_index=True)


def by_variant(summary: pd.DataFrame) -> pd.DataFrame:
    """Rows as `tables.show` takes them: "SYN V2, ABN" as the method, the rest of its setting."""
    rest = summary["setting"].str.partition("; ")[2]
    return summary.assign(method=variant_of(summary["setting"]) + ", " + summary["method"], setting=rest)


def sq_conventions(variants: Mapping[str, Ladder], label_set, *, rule: str) -> pd.DataFrame:
    """SQ without and with the classes that have no match at all, per variant, rung, seed and class list.

    Returns
    -------
    DataFrame
        network, method, seed, classes (of the list), unmatched (classes without a true positive, named),
        "n unmatched", "SQ matched" and SQ (percent).
    """
    rows = []
    for variant, ladder in variants.items():
        for ((rung, seed), record), subset in itertools.product(ladder.items(), label_set.subsets):
            scores = record.metrics["merge"][rule]
            names = [label_set.classes[i] for i in label_set.subset_ids(subset)]
            unmatched = [n for n in names if scores["tp"][n] == 0 and scores["fp"][n] + scores["fn"][n] > 0]
            rows.append({
                "network": variant, "method": RUNG_LABELS[rung], "seed": seed, "classes": subset,
                "n unmatched": len(unmatched), "unmatched": ", ".join(unmatched),
                "SQ matched, %": 100 * scores[f"sq_matched_{subset}"], "SQ, %": 100 * scores[f"sq_{subset}"],
            })  # fmt: skip
    return pd.DataFrame(rows).sort_values("classes", kind="stable", ignore_index=True)


def state_of_the_art(metrics: Sequence[str] = ("SQ_16", "RQ_16", "PQ_16")) -> pd.DataFrame:
    """Published panoptic scores, SYNTHIA (the thesis: MIX) to Cityscapes val on all 16 classes, by PQ.

    Literature values from their own sources, with those that only the thesis quotes; the thesis's rows last
    of all methods of the same PQ.
    """
    own = published("sota_synthia_cityscapes_panoptic.csv")
    own = own[~own["setting"].str.contains(r"\d+ (?:thing|stuff) classes")]
    quoted = published(CH12)
    quoted = quoted[~quoted["method"].isin(own["method"])]
    rows = pd.concat([own, quoted], ignore_index=True)
    rows = rows[rows["class_or_metric"].isin(metrics)]
    table = rows.pivot_table(index="method", columns="class_or_metric", values="value", sort=False)
    table.columns = [f"{name.removesuffix('_16')}, %" for name in table.columns]
    return table[[f"{name.removesuffix('_16')}, %" for name in metrics]].sort_values(
        f"{metrics[-1].removesuffix('_16')}, %", kind="stable"
    )


def progress_rows(records: Mapping[str, Record]) -> pd.DataFrame:
    """Scores of the first and of the last scoring of monitored runs, in percent.

    Returns
    -------
    DataFrame
        method, score, first, last, iterations. A score that did not exist at an end is NaN there.
    """
    rows = []
    for method, record in records.items():
        columns = [name for name in record.curves if name.startswith("miou ") or name in LABEL_SCORES]
        scored = record.curves[record.curves[columns].notna().any(axis=1)]
        for name in columns:
            first, last = 100 * scored[name].iloc[0], 100 * scored[name].iloc[-1]
            rows.append({
                "method": method, "score": readable_score(name), "first, %": first, "last, %": last,
                "iterations": int(scored["iteration"].iloc[-1]),
            })  # fmt: skip
    return pd.DataFrame(rows)


def readable_score(column: str) -> str:
    """A column of a monitor in words: "mIoU, cityscapes/val"."""
    return LABEL_SCORES.get(column, re.sub(r"^miou ", "mIoU, ", column))


def _variants(summary: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """(variant, its rows) in their order."""
    first = variant_of(summary["setting"])
    return [(name, summary[first == name]) for name in dict.fromkeys(first)]


def variant_of(settings: pd.Series) -> pd.Series:
    """The variant: first part of a setting."""
    return settings.str.split("; ").str[0]
