"""Tables of notebook 09: methods, pseudo-labels, complexity, time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from panolib.lab.runs import Record
from panolib.labels import CAMVID, CITYSCAPES
from panolib.models.complexity import clean_operations, n_operations, n_parameters
from panolib.related.realtime.discriminator import Discriminator
from panolib.related.realtime.runs import METHODS, TARGETS, Realtime, own_networks
from panolib.report import oracles, tables
from panolib.report.threat_tables import semantic_rows
from panolib.study import threat_runs
from panolib.study.study import Study

METRICS = {TARGETS["city"]: "mIoU_19", TARGETS["camvid"]: "mIoU_11"}
CLASSES = {TARGETS["city"]: CITYSCAPES.classes, TARGETS["camvid"]: CAMVID.classes}
RULES = {
    "constant": "one threshold",
    "set": "medians of the set",
    "image": "medians of the image",
    "reference": "as the reference",
}
ML, RT = "ML, published", "RT, published"
PUBLISHED = {  # our method -> rows of the two papers
    ML: (
        "multilayer_ssl_tab2_variants_iou.csv",
        {"fcd": "FCD", "light": "FCD-Light", "ssl1": "FCD-SSL", "ssl2": "FCD-SSL-2", "ssl3": "FCD-SSL-3",
         "oracle": "Target Only"},
    ),
    RT: (
        "realtime_da_report_tab1_iou.csv",
        {"fcd": "FCD", "light": "DSC", "ssl1": "DSC + PL", "mpl_rt": "DSC + MPL", "oracle": "ResNet-101"},
    ),
}  # fmt: skip
COMPLEXITY = {  # published file -> (unit of its parameters, rows of FCD and light, convention)
    "multilayer_ssl_tab3_discriminator_complexity.csv": (1e6, ("FCD", "FCD-Light"), "paper"),
    "realtime_da_report_tab2_discriminator_complexity.csv": (1, ("FCD", "DSC"), "report"),
}
INPUT = (1, 19, 512, 1024)  # of the published complexity


def score_rows(found: Mapping[str, Mapping[str, list[Record]]]) -> pd.DataFrame:
    """Tidy rows in percent: mIoU and IoU of every class of {domain: {method: records}}."""
    parts = [semantic_rows(records, setting=TARGETS[domain]) for domain, records in found.items()]
    return pd.concat(parts, ignore_index=True)


def comparison(rows: pd.DataFrame, target: str) -> pd.DataFrame:
    """A row per method: mean mIoU and its spread, points above the control, gap closed, published mIoU.

    `target`: a setting of the rows. The papers adapt GTA5 to real Cityscapes with a ResNet-101.
    """
    metric = METRICS[target]
    values = tables.per_seed(tables.select(rows, setting=target), metric)
    mean = values.mean(axis=1)
    low, high = mean[METHODS["source_only"]], mean[METHODS["oracle"]]
    table = pd.DataFrame({
        "method": values.index, f"{metric}, %": mean, "spread": values.std(axis=1, ddof=1),
        "above control, points": mean - mean[METHODS["control"]],
        "gap closed, %": 100 * tables.gap_closed(mean, low, high), "n": values.count(axis=1),
    })  # fmt: skip
    if target == TARGETS["city"]:
        for column, (file, names) in PUBLISHED.items():
            table[column] = [_published(file, names, method, "mIoU") for method in table["method"]]
    return table.reset_index(drop=True)


def oracle_lines(
    found: Mapping[str, Mapping[str, list[Record]]], rows: pd.DataFrame, domain: str
) -> list[str]:
    """`oracles.lines` of one domain of {domain: {method: records}}; none if it is not there."""
    if domain not in found:
        return []
    methods = found[domain].items()
    ladder = {(method, place): record for method, records in methods for place, record in enumerate(records)}
    return oracles.lines({TARGETS[domain]: ladder}, rows, [METRICS[TARGETS[domain]]])


def class_table(rows: pd.DataFrame, target: str, methods: Iterable[str]) -> pd.DataFrame:
    """IoU of every class: a row per class, a column per method (labels), means over seeds."""
    part = tables.select(rows, setting=target, method=list(methods), class_or_metric=CLASSES[target])
    wide = part.pivot_table(index="class_or_metric", columns="method", values="value", dropna=False)
    return wide.loc[list(CLASSES[target]), list(methods)].rename_axis("class").reset_index()


def label_table(records: Mapping[str, Record]) -> pd.DataFrame:
    """Coverage and accuracy in percent of {domain: label quality}."""
    parts = []
    for domain, record in records.items():
        part = pd.DataFrame(record.metrics["rows"])
        for name in ("coverage", "accuracy", "class_coverage"):
            part[name] = 100 * part[name].astype(float)
        part["rule"] = part["rule"].map(RULES)
        parts.append(part.assign(target=TARGETS[domain]))
    return pd.concat(parts, ignore_index=True)


def complexity_table() -> pd.DataFrame:
    """Parameters and operations of both discriminators, counted from the modules, beside both papers.

    Returns
    -------
    DataFrame
        One row per paper and discriminator: method, source, parameters, published (both as printed), their
        operations in G, and the clean count of torch.
    """
    rows = []
    for file, (unit, names, convention) in COMPLEXITY.items():
        published = tables.published(file)
        for kind, name in zip(("fcd", "light"), names):
            model = Discriminator(INPUT[1], kind=kind)
            mine = published[published["method"] == name].set_index("class_or_metric")["value"]
            rows.append({
                "method": METHODS[kind].removeprefix("adversarial, "), "source": "ML" if unit > 1 else "RT",
                "parameters": n_parameters(model), "parameters, published": mine["Parameters"] * unit,
                "convention": convention, "G": n_operations(model, INPUT, convention=convention) / 1e9,
                "G, published": mine["FLOPS"], "G, clean": clean_operations(model, INPUT) / 1e9,
                "multiply-adds, G": n_operations(model, INPUT, convention="multiply-adds") / 1e9,
            })  # fmt: skip
    return pd.DataFrame(rows)


def latency_table(record: Record) -> pd.DataFrame:
    """Every network and way of the latency run."""
    table = pd.DataFrame(record.metrics["rows"])
    table["size, px"] = table["height"].astype(str) + " x " + table["width"].astype(str)
    return table.assign(
        **{"M parameters": table["parameters"] / 1e6, "G multiply-adds": table["multiply_adds"] / 1e9}
    )


def large_networks(latency: pd.DataFrame) -> pd.DataFrame:
    """Rows at the published size: all ways are timed there."""
    ways = latency.groupby("network")["way"].transform("nunique")
    return latency[ways > 1].reset_index(drop=True)


def fastest_way(latency: pd.DataFrame) -> pd.Series:
    """Images a second of every network in its fastest way."""
    return latency.groupby("network", sort=False)["images_per_s"].max()


def speed_and_quality(study: Study, settings: Realtime, latency: pd.DataFrame) -> pd.DataFrame:
    """mIoU on the city of the target-supervised networks of this profile, beside their speed."""
    own = latency[latency.groupby("network")["way"].transform("nunique") == 1].set_index("network")
    rows = []
    for label, name in own_networks(study.profile, settings).items():
        record, timed = study.get(name), own.loc[label]
        rows.append({
            "network": label, "mIoU_19, %": 100 * record.metrics["miou_19"],
            "images/s": timed["images_per_s"], "median, ms": timed["median_ms"],
            "p95, ms": timed["p95_ms"], "M parameters": timed["parameters"] / 1e6,
            "G multiply-adds": timed["multiply_adds"] / 1e9, "size, px": timed["size, px"],
            "run": name,
        })  # fmt: skip
    return pd.DataFrame(rows)


def last_losses(found: Mapping[str, list[Record]], *, share: float = 0.25) -> pd.DataFrame:
    """Means over the last iterations: loss of the discriminator (ln 2 when it guesses) and of fooling it."""
    rows = []
    for method, records in found.items():
        for record in records:
            curves = record.curves
            if "judging" in curves:
                last = curves.tail(max(1, round(share * len(curves))))
                rows.append({"method": method, "discriminator": last["judging"].mean(),
                             "fooling": last["fooling"].mean(), "chance": np.log(2)})  # fmt: skip
    return pd.DataFrame(rows)


def _published(file: str, names: Mapping[str, str], method: str, metric: str) -> float:
    """One published value of a method of ours (its label); NaN where there is none."""
    key = next((key for key, label in METHODS.items() if label == method), "")
    if key not in names:
        return float("nan")
    rows = tables.published(file)
    (value,) = rows.loc[(rows["method"] == names[key]) & (rows["class_or_metric"] == metric), "value"]
    return float(value)


def seed_rows(study: Study) -> pd.DataFrame:
    """IoU of the ladder's self-training over all seeds of the study: how far seeds lie apart."""
    return semantic_rows(threat_runs.get(study, threat_runs.self_trained(study.seeds)))
