"""Tables of the threat score: pure functions from the counts of threat runs to what a reader sees.

The thesis calls the threat score TP / (TP + FP + FN) at IoU 0.5 "AP"; the official AP is another quantity.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from panolib.lab.records import Record
from panolib.report import tables

COUNTS = ["tp", "fp", "fn"]
SCORES = ["pooled", "class_mean", "image_mean"]
CLASS_MEAN, IMAGE_MEAN = "class mean", "mean of image means"
LABELS = {"class_mean": CLASS_MEAN, "pooled": "pooled", "image_mean": IMAGE_MEAN}
PREDICTED, TRUE, NO_MASKS = "predicted masks", "true masks", "no masks"
NO_MORPHOLOGY = "none"
PUBLISHED_METRICS = {CLASS_MEAN: "mAP", "pooled": None, IMAGE_MEAN: None}  # of chapter 11
WEIGHTS_FILE = "thesis_ch11_tab1_consistency_weight_ap.csv"


def counts(record: Record) -> pd.DataFrame:
    """Objects found, false and missed by a threat run.

    Returns
    -------
    DataFrame
        truth_share, kernel, image (position in the data set), class, tp, fp, fn: a row for every image and
        thing class of every variant, also where there is nothing.
    """
    parts = []
    for variant in record.metrics["variants"]:
        for thing in record.metrics["things"]:
            values = {name: np.array(variant[name][thing].split(), np.int64) for name in COUNTS}
            part = pd.DataFrame({"image": range(record.metrics["n_images"]), "class": thing, **values})
            part.insert(0, "truth_share", variant["truth_share"])
            part.insert(1, "kernel", variant["kernel"])
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


def threat_score(counts: pd.DataFrame, by: Sequence[str] = ("truth_share", "kernel")) -> pd.DataFrame:
    """Threat scores of every group of rows, as fractions; NaN where there is nothing to count.

    Parameters
    ----------
    counts : DataFrame
        What `counts` returns, also of several runs with further columns.
    by : sequence of str
        Columns that tell groups apart, in the order of the rows. With "class" among them, `class_mean` is
        `pooled`.

    Returns
    -------
    DataFrame
        The columns of `by`; tp, fp, fn summed; and three ways to average:
        pooled : all objects together.
        class_mean : mean over classes of the pooled score of each, the thesis's mAP.
        image_mean : mean over classes of the mean over those images that show the class, as in SPOCO.

    References
    ----------
    Thesis ch. 11 eq. 1; Wolny et al. 2022.
    """
    by = list(by)
    of_class = [*by, *({"class"} - set(by))]
    per_image = counts.assign(score=_ratio(counts), shown=counts["tp"] + counts["fn"] > 0)
    shown = per_image[per_image["shown"]].groupby(of_class, sort=False)["score"].mean()
    classes = counts.groupby(of_class, sort=False)[COUNTS].sum()
    classes = classes.assign(class_mean=_ratio(classes), image_mean=shown.reindex(classes.index))
    groups = classes.reset_index().groupby(by, sort=False)
    table = groups[COUNTS].sum()
    table = table.assign(pooled=_ratio(table), **groups[["class_mean", "image_mean"]].mean())
    return table.reset_index()


def gather(records: Mapping[str, Sequence[Record]]) -> pd.DataFrame:
    """`counts` of several runs, with columns method (their label), seed, mask and morphology (in words)."""
    parts = []
    for method, found in records.items():
        for record in found:
            part = counts(record).assign(method=method, seed=record.run.spec.seed)
            guided = record.run.spec.guided
            mask = part["truth_share"].map(mask_name) if guided else NO_MASKS
            parts.append(part.assign(mask=mask, morphology=part["kernel"].map(kernel_name)))
    return pd.concat(parts, ignore_index=True)


def mask_name(truth_share: float) -> str:
    """Masks by the share of their wrong pixels that was corrected."""
    names = {0.0: PREDICTED, 1.0: TRUE}
    return names.get(truth_share, f"masks {100 * truth_share:g} % corrected")


def kernel_name(kernel: int) -> str:
    """Kernel of the morphology in words."""
    return f"{kernel} px" if kernel else NO_MORPHOLOGY


def noise_floor(rows: pd.DataFrame, metric: str = CLASS_MEAN) -> float:
    """Spread over seeds of the difference between two methods of one seed, pooled over all pairs of methods.

    What two methods share in a seed (masks, start) cancels. In the unit of the rows; NaN for one seed or one
    method.
    """
    values = tables.per_seed(rows, metric)
    pairs = itertools.combinations(values.index, 2)
    variances = [(values.loc[a] - values.loc[b]).var(ddof=1) for a, b in pairs]
    return float(np.sqrt(np.mean(variances))) if variances else np.nan


def score_rows(counts: pd.DataFrame, *, setting: str = "mask") -> pd.DataFrame:
    """Tidy rows in percent: the threat score of every class, its three averages, and the counts.

    Parameters
    ----------
    counts : DataFrame
        What `gather` returns, cut down to what shall be told apart by method, seed and `setting`.
    setting : str
        Column whose values become the setting of the rows.
    """
    groups = ["method", setting, "seed"]
    means = threat_score(counts, groups)
    scores = means.rename(columns=LABELS).melt(groups, list(LABELS.values()), "class_or_metric")
    classes = threat_score(counts, [*groups, "class"]).rename(columns={"class": "class_or_metric"})
    classes = classes.assign(value=classes["pooled"])[[*groups, "class_or_metric", "value"]]
    numbers = means.rename(columns=tables.COUNTS)
    numbers = numbers.melt(groups, list(tables.COUNTS.values()), "class_or_metric")
    rows = pd.concat([
        pd.concat([scores, classes]).assign(unit=tables.PERCENT, value=lambda part: 100 * part["value"]),
        numbers.assign(unit="count"),
    ], ignore_index=True)  # fmt: skip
    rows = rows.rename(columns={setting: "setting"}).assign(source="counts of the threat runs")
    return rows[list(tables.COLUMNS)]


def semantic_rows(records: Mapping[str, Sequence[Record]], *, setting: str = "") -> pd.DataFrame:
    """Tidy rows in percent: mIoU over every class list and IoU of every class of semantic runs."""
    rows = []
    for method, found in records.items():
        for record in found:
            metrics = record.metrics
            names = sorted(name for name in metrics if name.startswith("miou_"))
            values = {name.replace("miou", "mIoU"): metrics[name] for name in names} | metrics["iou"]
            rows += [
                (method, setting, name, 100 * value, tables.PERCENT, f"run {record.run.name}",
                 record.run.spec.seed)
                for name, value in values.items()
            ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(tables.COLUMNS))


def mask_rows(record: Record) -> pd.DataFrame:
    """How good the masks of a threat run are: truth_share, mask, mIoU and wrong pixels, percent."""
    found = pd.DataFrame(record.metrics["masks"])
    return pd.DataFrame({
        "truth_share": found["truth_share"], "mask": found["truth_share"].map(mask_name),
        "mIoU": 100 * found["miou"], "wrong pixels": 100 * found["wrong_share"],
    })  # fmt: skip


def sensitivity_rows(record: Record, *, by_class: bool = False) -> pd.DataFrame:
    """Threat scores beside the quality of the masks, all in percent, without morphology.

    A row per truth share, with `by_class` one per class and truth share.
    """
    groups = ["truth_share", "class"] if by_class else ["truth_share"]
    scores = threat_score(counts(record).query("kernel == 0"), groups)
    scores[SCORES] *= 100
    table = mask_rows(record).merge(scores, on="truth_share")
    return table.sort_values("truth_share", kind="stable", ignore_index=True)


def objects(counts: pd.DataFrame) -> pd.DataFrame:
    """True objects that are targets, per class, in the images of one variant; the same for all of them."""
    first = counts.drop_duplicates(["image", "class"])
    totals = first.assign(objects=first["tp"] + first["fn"]).groupby("class", sort=False)["objects"].sum()
    return totals.reset_index().assign(images=first["image"].nunique())


def vote_table(record: Record) -> pd.DataFrame:
    """Pixels of each true class that the vote repairs and spoils, with their sum in the last row."""
    vote = record.metrics["vote"]
    table = pd.DataFrame({"class": list(vote["repaired"]), "repaired, px": list(vote["repaired"].values()),
                          "spoiled, px": list(vote["spoiled"].values())})  # fmt: skip
    total = {"class": "all things", **table.drop(columns="class").sum()}
    table = pd.concat([table, pd.DataFrame([total])], ignore_index=True)
    return table.assign(**{"net, px": table["repaired, px"] - table["spoiled, px"]})


def mix_picks(counts: pd.DataFrame) -> pd.DataFrame:
    """For every class the method with the best pooled score, on even, odd and all images.

    Parameters
    ----------
    counts : DataFrame
        Columns method, seed, image, class, tp, fp, fn; one variant of every method.

    Returns
    -------
    DataFrame
        chosen_on ("even", "odd" or "all"), seed, class, method. Of equal scores the first method wins, as it
        does for a class without anything to count on those images.
    """
    picks = []
    for chosen_on, part in _parts(counts).items():
        scores = threat_score(part, ["seed", "class", "method"])
        wide = scores.set_index(["seed", "class", "method"])["pooled"].fillna(-1).unstack("method")  # noqa: PD010
        wide = wide[list(dict.fromkeys(counts["method"]))]
        best = wide.idxmax(axis=1).rename("method").reset_index()
        best["class"] = pd.Categorical(best["class"], list(dict.fromkeys(counts["class"])))
        best = best.sort_values(["seed", "class"]).astype({"class": str})
        picks.append(best.assign(chosen_on=chosen_on))
    return pd.concat(picks, ignore_index=True)[["chosen_on", "seed", "class", "method"]]


def mix_scores(counts: pd.DataFrame) -> pd.DataFrame:
    """MIX*, and the best single method, on the images that they were chosen on and on the others.

    Parameters
    ----------
    counts : DataFrame
        As for `mix_picks`, whose choice makes MIX*. The single method is the one with the best class mean.

    Returns
    -------
    DataFrame
        choice ("MIX*" or "best framework"), chosen_on, scored ("same half", "other half"; "all images" for
        the choice on all of them, the thesis's and an optimistic one), seed, value: class mean in percent.
    """
    rows, parts, picks = [], _parts(counts), mix_picks(counts)
    other = {"even": "odd", "odd": "even"}
    methods = list(dict.fromkeys(counts["method"]))
    for (chosen_on, seed), pick in picks.groupby(["chosen_on", "seed"], sort=False):
        of_seed = {name: part[part["seed"] == seed] for name, part in parts.items()}
        means = threat_score(of_seed[chosen_on], ["method"]).set_index("method")["class_mean"]
        single = means.reindex(methods).fillna(-1).idxmax()
        combinations = {"MIX*": pick, "best framework": pick.assign(method=single)}
        places = {"all images": "all"} if chosen_on == "all" else {
            "same half": chosen_on, "other half": other[chosen_on]}  # fmt: skip
        for choice, combination in combinations.items():
            for scored, name in places.items():
                mixed = of_seed[name].merge(combination[["class", "method"]], on=["class", "method"])
                value = 100 * threat_score(mixed, ["seed"])["class_mean"].iloc[0]
                rows.append((choice, chosen_on, scored, seed, value))
    return pd.DataFrame(rows, columns=["choice", "chosen_on", "scored", "seed", "value"])


def mix_table(scores: pd.DataFrame) -> pd.DataFrame:
    """`mix_scores` as a reader sees them: a row per choice, mean over halves and seeds."""
    wide = scores.pivot_table(index="choice", columns="scored", values="value", sort=False)
    return wide[["same half", "other half", "all images"]].map(tables.number)


def mix_pick_table(picks: pd.DataFrame) -> pd.DataFrame:
    """`mix_picks` of the first seed: a row per class, a column per set of images of the choice."""
    first = picks[picks["seed"] == picks["seed"].min()]
    wide = first.set_index(["class", "chosen_on"])["method"].unstack("chosen_on")  # noqa: PD010
    return wide.reindex(index=list(dict.fromkeys(first["class"])), columns=["even", "odd", "all"])


def beside(summary: pd.DataFrame, published: Mapping[str, tuple[str, tuple[str, str]]]) -> pd.DataFrame:
    """Published values beside the settings of one method.

    `published`: setting of ours -> file, and the published method with the beginning of its setting.
    """
    parts = []
    for setting, (name, match) in published.items():
        part = tables.select(summary, setting=setting)
        (method,) = set(part["method"])
        parts.append(tables.with_published(part, name, {method: match}, metrics=PUBLISHED_METRICS))
    return pd.concat(parts, ignore_index=True)


def beside_weights(summary: pd.DataFrame) -> pd.DataFrame:
    """Thesis ch. 11 table 1 beside a summary whose methods are consistency weights ("weight 0.1")."""
    known = set(tables.published(WEIGHTS_FILE)["setting"].str.extract(r"weight ([\d.]+);", expand=False))
    matches = {
        method: ("Instance baseline (source-trained)", f"consistency weight {weight};")
        for method in dict.fromkeys(summary["method"])
        if (weight := str(float(method.split()[-1]))) in known
    }
    return tables.with_published(summary, WEIGHTS_FILE, matches, metrics=PUBLISHED_METRICS)


def averages_line(rows: pd.DataFrame) -> str:
    """How far the three averages lie apart, and whether they rank methods alike, in words."""
    means = pd.DataFrame({label: tables.per_seed(rows, label).mean(axis=1) for label in LABELS.values()})
    ranks = means.rank()
    parts = [
        f"{label} {means[label].min():.1f} to {means[label].max():.1f} %, rank correlation with the class "
        f"mean {ranks[label].corr(ranks[CLASS_MEAN]):.2f}"
        for label in LABELS.values()
        if label != CLASS_MEAN
    ]
    own = f"{CLASS_MEAN} {means[CLASS_MEAN].min():.1f} to {means[CLASS_MEAN].max():.1f} %"
    return f"averages of the {len(means)} methods: {own}; {'; '.join(parts)}"


def published_frameworks() -> pd.DataFrame:
    """Rows of thesis ch. 11 table 2: position, known (the label, if it was not lost), classes, mAP.

    The labels of rows 2 to 8 were lost.
    """
    file = tables.published("thesis_ch11_tab2_selftrain_ap.csv")
    methods = list(dict.fromkeys(file["method"]))
    wide = file.set_index(["method", "class_or_metric"])["value"].unstack("class_or_metric")  # noqa: PD010
    wide = wide.loc[methods, list(dict.fromkeys(file["class_or_metric"]))].reset_index(drop=True)
    known = ["" if "label lost" in method else method for method in methods]
    wide.insert(0, "position", range(1, len(methods) + 1))
    wide.insert(1, "known", known)
    return wide.rename_axis(columns=None)


def published_networks() -> pd.DataFrame:
    """Thesis ch. 11 table 3: network, "printed" mean over seven classes and the mean of its class values.

    The printed one of V2 is the sum over eight classes divided by seven.
    """
    file = tables.published("thesis_ch11_tab3_postprocessing_ap.csv")
    network = file["setting"].str.extract(r"self-trained (\S+) at", expand=False)
    wide = file.assign(network=network).set_index(["network", "class_or_metric"])["value"]
    wide = wide.unstack("class_or_metric")  # noqa: PD010
    classes = [name for name in wide if not name.startswith("mAP") and name != "train"]
    table = pd.DataFrame({"printed": wide["mAP_7"], "of its classes": wide[classes].mean(axis=1)})
    return table.reset_index()


def _parts(counts: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Counts of the even images, of the odd ones, and of all."""
    odd = counts["image"] % 2 == 1
    return {"even": counts[~odd], "odd": counts[odd], "all": counts}


def _ratio(counts: pd.DataFrame) -> pd.Series:
    """TP / (TP + FP + FN) of every row, NaN without any."""
    total = counts["tp"] + counts["fp"] + counts["fn"]
    return counts["tp"] / total.where(total > 0)
