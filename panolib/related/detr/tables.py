"""Tables of DETR-panoptic: pure functions from recorded runs to rows, as `panolib.report.tables` has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from panolib.lab.runs import Record
from panolib.related.detr.kinds import DETR, OURS
from panolib.related.detr.runs import COLOUR, HALF, PLAIN, DetrSettings, read_settings, variants
from panolib.report import claims
from panolib.report.tables import COLUMNS, PANOPTIC_SCORES, PERCENT, published
from panolib.study.study import Study, is_available, run_name

RESULTS, GENERALISATION = "detr_panoptic_results.csv", "detr_panoptic_generalisation_miou.csv"
LABELS = {PLAIN: "no augmentation", COLOUR: "colour policy", HALF: "colour policy, half the epochs"}
PRODUCT = "SQ x RQ"  # of the class means
SLIDES = {  # our rows beside those of the slides, which are of other data, size and length
    LABELS[PLAIN]: ("DETR-panoptic v119", "Cityscapes subset"),
    LABELS[HALF]: ("DETR-panoptic v125 with Data Augmentation", "Cityscapes subset"),
}
# the slides' PQ is the product of their SQ and RQ, so it stands beside ours of that kind
SLIDES_METRICS = {PRODUCT: "PQ", "PQ_19": None, "SQ_19": "SQ", "RQ_19": "RQ", "mIoU_19": "mIoU"}
COMPARED = ("n_images", "size", "network", "optimiser", "clip", "mask_stride", "iterations", "batch_size")
TARGET, CAMVID = "target", "CamVid"


@dataclass(frozen=True)
class Runs:
    """The records of one variant and seed; `camvid` is None where it is not recorded and cannot be."""

    variant: str
    seed: int
    training: Record
    city: Record
    camvid: Record | None


def settings_of(study: Study) -> DetrSettings:
    return read_settings(study.section("detr"), study.profile_name)


def gather(study: Study) -> list[Runs]:
    """Records of every variant and seed, trained where they are missing."""
    settings = settings_of(study)
    found = []
    for seed in settings.seeds:
        for variant in variants(settings):
            name = run_name("camvid", "detr_scores", variant, seed)
            found.append(
                Runs(
                    variant,
                    seed,
                    study.get(run_name("city", "detr", variant, seed)),
                    study.get(run_name("city", "detr_scores", variant, seed)),
                    study.get(name) if is_available(study, name) else None,
                )
            )
    return found


def records(study: Study) -> list[Record]:
    """Every record of the notebook that is there."""
    return [study.get(name) for name in study.notebooks["10_detr_panoptic"] if is_available(study, name)]


def left_out(study: Study) -> str:
    """Which runs of the notebook have neither a record nor their images here, in words."""
    missing = [name for name in study.notebooks["10_detr_panoptic"] if not is_available(study, name)]
    return (
        f"left out, for their images are not here: {', '.join(missing)}" if missing else "no run is left out"
    )


def label_of(variant: str) -> str:
    """A variant as tables name it; "plain-n50" is "50 images"."""
    return LABELS.get(variant) or f"{variant.rpartition('-n')[2]} images"


def score_rows(found: Sequence[Runs]) -> pd.DataFrame:
    """Means of every variant, seed, data set and threshold, in percent; and segments an image.

    The setting is "<data set>; score > <threshold>". PQ comes two ways: the mean over classes of SQ x RQ
    (Kirillov et al. 2019), and as `PRODUCT` of the class means, which is what the slides print.
    """
    rows = []
    for runs in found:
        for record in (runs.city, runs.camvid):
            for name, by_threshold in ({} if record is None else record.metrics).items():
                for threshold, scores in by_threshold.items():
                    setting = f"{_data_label(name, runs)}; score > {threshold}"
                    rows += [
                        (
                            label_of(runs.variant),
                            setting,
                            metric,
                            value,
                            unit,
                            f"run {record.run.name}",
                            runs.seed,
                        )
                        for metric, value, unit in _means(scores)
                    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def class_rows(found: Sequence[Runs], ours: Mapping[int, Record], threshold: float) -> pd.DataFrame:
    """SQ, RQ and PQ (settings) of every class on the target, for every variant and our pipeline."""
    parts = [(label_of(runs.variant), runs.seed, runs.city) for runs in found]
    parts += [(OURS, seed, record) for seed, record in ours.items()]
    rows = []
    for method, seed, record in parts:
        scores = record.metrics if method == OURS else _on_target(record)[f"{threshold:g}"]
        rows += [
            (method, PANOPTIC_SCORES[score], name, 100 * value, PERCENT, f"run {record.run.name}", seed)
            for score in ("sq", "rq", "pq")
            for name, value in scores[score].items()
        ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def size_rows(rows: pd.DataFrame, n_all: int) -> pd.DataFrame:
    """Rows of the unaugmented variants alone, with a column `images`: how many they learned from."""
    images = rows["method"].str.extract(r"^(\d+) images$")[0].astype(float)
    images = images.where(rows["method"] != LABELS[PLAIN], n_all)
    return (
        rows.assign(images=images)
        .dropna(subset="images")
        .astype({"images": int})
        .sort_values(["images", "seed"], kind="stable")
    )


def training_table(found: Sequence[Runs]) -> pd.DataFrame:
    """What each training saw, how long it took, and where its loss ended (mean of the last tenth)."""
    rows = []
    for runs in found:
        spec, curves = runs.training.run.spec, runs.training.curves
        n = _n_images(runs)
        last = curves[curves["iteration"] >= 0.9 * spec.iterations].mean()
        rows.append({
            "method": label_of(runs.variant), "seed": runs.seed, "images": n, "iterations": spec.iterations,
            "epochs": spec.iterations * spec.batch_size / n,
            **{term: last[term] for term in ("loss", "ce", "bbox", "giou", "mask", "dice", "auxiliary")},
            "minutes": runs.training.info["wall_s"] / 60,
        })  # fmt: skip
    return pd.DataFrame(rows)


def slides_products() -> pd.DataFrame:
    """The slides' rows with the product of their SQ and RQ beside their PQ, in percent."""
    file = published(RESULTS)
    wide = file.pivot_table(index="method", columns="class_or_metric", values="value", sort=False)
    wide[PRODUCT] = wide["SQ"] * wide["RQ"] / 100
    return wide[["SQ", "RQ", PRODUCT, "PQ", "mIoU"]].reset_index().rename_axis(columns=None)


def differences(study: Study) -> list[str]:
    """Where the settings differ from those of the slides, which profile "paper" holds, a line each."""
    return claims.differing(study.profile.detr, claims.paper_profile()["detr"], COMPARED)


def cost_rows(found: Mapping[int, Record], trainings: Mapping[str, Sequence[Record]]) -> pd.DataFrame:
    """Both systems: what they give and what they cost, all of it measured in the same run.

    Parameters
    ----------
    found : mapping of seed to record of a run "detr_cost"
    trainings : mapping of system to the records of its trainings, for their length: images seen and minutes
    """
    rows = []
    for seed, record in found.items():
        n = record.metrics["batch_size"]
        for system, measured in record.metrics["systems"].items():
            specs = [training.run.spec for training in trainings[system]]
            minutes = sum(training.info["wall_s"] for training in trainings[system]) / 60
            values = {
                ("PQ_19", PERCENT): 100 * measured["scores"]["pq_19"],
                ("parameters", "count"): measured["parameters"],
                ("forward pass of one image", "GFLOP"): measured["forward_gflop"],
                ("training step, for one image", "GFLOP"): measured["step_gflop"],
                ("training step, for one image", "ms"): 1e3 * measured["train_s"]["median"] / n,
                (f"rise of memory in a step of {n} images", "MiB"): measured["train_mib"]["median"],
                ("inference of one image", "ms"): 1e3 * measured["infer_s"]["median"],
                ("rise of memory in inference", "MiB"): measured["infer_mib"]["median"],
                ("images seen in training", "count"): sum(s.iterations * s.batch_size for s in specs),
                ("training of the record", "min"): minutes,
            }
            rows += [
                (system, "one process, in turn", name, value, unit, f"run {record.run.name}", seed)
                for (name, unit), value in values.items()
            ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def cost_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Measures as rows, systems as columns, and DETR as a multiple of ours; means over seeds."""
    measures = rows["class_or_metric"] + ", " + rows["unit"]
    wide = rows.assign(measure=measures).pivot_table(index="measure", columns="method", values="value")
    wide = wide.loc[list(dict.fromkeys(measures)), [DETR, OURS]]
    return wide.assign(ratio=wide[DETR] / wide[OURS]).rename_axis(columns=None)


def _means(scores: Mapping) -> list[tuple[str, float, str]]:
    """(metric, value, unit) of the means of one data set."""
    found = []
    for subset in (name.removeprefix("pq_plus_") for name in scores if name.startswith("pq_plus_")):
        found += [
            (f"{label}_{subset}", 100 * scores[f"{name}_{subset}"], PERCENT)
            for name, label in PANOPTIC_SCORES.items()
        ]
    if "sq_19" in scores:
        found.append((PRODUCT, 100 * scores["sq_19"] * scores["rq_19"], PERCENT))
    found += [
        (f"mIoU_{name.removeprefix('miou_')}", 100 * value, PERCENT)
        for name, value in scores.items()
        if name.startswith("miou_")
    ]
    return [*found, ("void", 100 * scores["void"], PERCENT), ("segments", scores["segments"], "an image")]


def _data_label(name: str, runs: Runs) -> str:
    """A data set as a setting names it."""
    kind = name.split("/")[0]
    if name == runs.city.run.spec.validation[0]:
        return TARGET
    return {"camvid": CAMVID, "synthia": "SYNTHIA style", "gta5": "GTA5 style"}.get(kind, kind)


def _on_target(record: Record) -> Mapping:
    return record.metrics[record.run.spec.validation[0]]


def _n_images(runs: Runs) -> int:
    """Images that a run learns from."""
    return runs.training.metrics["n_images"]
