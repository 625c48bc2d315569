"""What the thesis says about guidance and instance networks, decided by our tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from panolib.lab.records import Record
from panolib.labels import CITYSCAPES
from panolib.report import findings, tables
from panolib.report.findings import Finding
from panolib.report.threat_tables import CLASS_MEAN, NO_MASKS, NO_MORPHOLOGY, PREDICTED, TRUE, noise_floor
from panolib.study.threat_runs import BASELINE

SPLIT_CLASSES = ("bus", "truck", "train")


def of_guidance(
    rows: pd.DataFrame, semantic: pd.DataFrame, seeds: pd.DataFrame, votes: pd.DataFrame, spread: float
) -> list[Finding]:
    """Findings of notebook 05.

    Parameters
    ----------
    rows : DataFrame
        Threat scores; methods are the masks that networks learned inside (`threat_runs.by_mask`).
    semantic : DataFrame
        IoU by what was painted (`threat_runs.painted`): nothing, true instances, predicted ones.
    seeds : DataFrame
        IoU of self-training over seeds.
    votes : DataFrame
        What `threat_tables.vote_table` returns.
    spread : float
        What another seed changes in the class mean of a threat score (`tables.seed_spread`).
    """
    nothing, *painted = dict.fromkeys(semantic["method"])
    ways = ("30 % of the true instances painted", "predicted instances painted")
    gains = {"mIoU_19": ("52.86", "52.91"), "mIoU_16": ("55.72", "55.81")}
    starts = {"mIoU_19": "52.6", "mIoU_16": "55.6"}
    painting_found = [
        painting(
            semantic, nothing, method, metric=metric, spread=tables.seed_spread(seeds)[metric],
            thesis=f"{way}: {metric} {starts[metric]} to {score}",
        )
        for metric, scores in gains.items()
        for method, way, score in zip(painted, ways, scores, strict=True)
    ]  # fmt: skip
    frozen = [name for name in CITYSCAPES.classes if name not in CITYSCAPES.things] + ["bus", "motorcycle"]
    return [
        true_masks(rows, BASELINE, spread),
        bottleneck(rows, BASELINE, PREDICTED, spread),
        masks_help_learning(rows, PREDICTED, NO_MASKS, spread),
        masks_help_clustering(rows, PREDICTED, spread),
        *painting_found,
        equal_classes(semantic, frozen),
        vote_repairs(votes),
    ]


def of_instances(
    weights: pd.DataFrame,
    frameworks: pd.DataFrame,
    candidates: Sequence[str],
    mix: pd.DataFrame,
    networks: pd.DataFrame,
) -> list[Finding]:
    """Findings of notebook 06.

    Parameters
    ----------
    weights : DataFrame
        Threat scores by consistency weight; their seeds say what another seed changes in everything below.
    frameworks : DataFrame
        Threat scores of baselines and workflows inside predicted masks.
    candidates : sequence of str
        The workflows among them.
    mix : DataFrame
        What `threat_tables.mix_scores` returns.
    networks : DataFrame
        Threat scores by semantic network; settings are kernels.
    """
    weights_inside = tables.select(weights, setting=PREDICTED)
    spread, noise = tables.seed_spread(weights_inside)[CLASS_MEAN], noise_floor(weights_inside)
    methods = list(dict.fromkeys(networks["method"]))
    kernel = next(kernel for kernel in dict.fromkeys(networks["setting"]) if kernel != NO_MORPHOLOGY)
    cleaned = networks[networks["setting"] == kernel]
    return [
        best_weight(weights),
        weight_matters(weights),
        single_framework(frameworks, BASELINE, candidates, spread),
        best_workflow(frameworks, candidates, "ICM", spread),
        mix_star(mix, spread),
        selection_bias(mix),
        not_fused(),
        morphology(networks, methods, kernel, noise),
        better_masks(cleaned, methods, spread),
    ]


def mean_of(rows: pd.DataFrame, method: str, setting: str, metric: str = CLASS_MEAN) -> float:
    """Mean over seeds of one value, NaN if it is not in the rows."""
    chosen = (rows["method"] == method) & (rows["setting"] == setting) & (rows["class_or_metric"] == metric)
    return float(rows.loc[chosen, "value"].mean())


def _seeds(rows: pd.DataFrame) -> str:
    return findings.seeds_note(rows["seed"].nunique())


# --- guidance (6.5, 6.6) ------------------------------------------------------------------------------------


def true_masks(rows: pd.DataFrame, method: str, spread: float) -> Finding:
    """The score of the baseline in true and in predicted masks."""
    return _higher(
        rows, (method, TRUE), (method, PREDICTED), spread,
        "instances of the baseline score 54.7 inside true masks and 7.09 inside predicted ones",
        "{:.1f} % inside true masks, {:.1f} % inside predicted ones",
    )  # fmt: skip


def bottleneck(rows: pd.DataFrame, baseline: str, trained: str, spread: float) -> Finding:
    """Better masks against better embeddings: which of the two steps is the larger one."""
    start, learned = mean_of(rows, baseline, PREDICTED), mean_of(rows, trained, PREDICTED)
    by_masks, by_learning = mean_of(rows, baseline, TRUE) - start, learned - start
    return findings.compared(
        "the semantic mask is the bottleneck",
        f"true masks give the baseline {by_masks:+.1f} points, self-training gives it {by_learning:+.1f} "
        f"inside predicted masks ({_seeds(rows)}; {findings.another_seed(spread)})",
        [by_masks - by_learning],
        [spread],
    )


def masks_help_learning(rows: pd.DataFrame, guided: str, unguided: str, spread: float) -> Finding:
    """Networks that learned inside predicted masks against those that clustered all pixels."""
    return _higher(
        rows, (guided, PREDICTED), (unguided, PREDICTED), spread,
        "masks ease learning instances (argued without numbers)",
        "inside predicted masks {:.1f} % after learning inside such masks, {:.1f} % after learning without",
    )  # fmt: skip


def masks_help_clustering(rows: pd.DataFrame, method: str, spread: float) -> Finding:
    """The same networks, clustered inside predicted masks and without masks."""
    return _higher(
        rows, (method, PREDICTED), (method, NO_MASKS), spread,
        "the class mask makes clustering easier (argued without numbers)",
        "{:.1f} % clustered inside predicted masks, {:.1f} % without any",
    )  # fmt: skip


def _higher(
    rows: pd.DataFrame, first: tuple[str, str], second: tuple[str, str], spread: float, thesis: str, ours: str
) -> Finding:
    """Whether the class mean of the first (method, mask) is above that of the second, beyond the noise."""
    values = [mean_of(rows, *which) for which in (first, second)]
    text = f"{CLASS_MEAN} {ours.format(*values)} ({_seeds(rows)}; {findings.another_seed(spread)})"
    return findings.compared(thesis, text, [values[0] - values[1]], [spread])


def clustering_cost(learning: Mapping[str, Sequence[Record]]) -> Finding:
    """Time of clustering against the rest of a training step, inside masks and without."""
    thesis = "masks lower the cost of clustering (argued without numbers)"
    shares = {}
    for name, records in learning.items():
        curves = pd.concat([record.curves for record in records])
        if not {"clustering_s", "step_s"} <= set(curves):
            return findings.not_testable(thesis, "the curves of these runs hold no times")
        shares[name] = (curves["clustering_s"] / (curves["step_s"] - curves["clustering_s"])).median()
    n_runs = len(learning[PREDICTED])
    return findings.decided(
        thesis,
        f"clustering takes {shares[PREDICTED]:.2f} times the rest of a step inside predicted masks, "
        f"{shares[NO_MASKS]:.2f} times without masks (median over steps; {findings.seeds_note(n_runs)})",
        shares[PREDICTED] < shares[NO_MASKS],
    )


def painting(
    rows: pd.DataFrame, reference: str, painted: str, thesis: str, metric: str, spread: float
) -> Finding:
    """Painted instances against none; the gain has to exceed the spread of self-training over seeds."""
    values = tables.per_seed(rows, metric).mean(axis=1)
    gain = values[painted] - values[reference]
    return findings.compared(
        thesis,
        f"{metric} {values[reference]:.2f} to {values[painted]:.2f} %, {gain:+.2f} points "
        f"({_seeds(rows)}; {findings.another_seed(spread)})",
        [gain],
        [spread],
    )


def equal_classes(rows: pd.DataFrame, classes: Sequence[str]) -> Finding:
    """Whether classes come out identical to one decimal whatever was painted."""
    values = {name: tables.per_seed(rows, name).round(1).fillna(-1) for name in classes}
    same = [name for name, value in values.items() if value.eq(value.iloc[0]).all(axis=None)]
    return findings.decided(
        f"IoU of {len(values)} classes (all stuff, bus, motorcycle) is identical to one decimal in all three "
        "rows, which retrained networks would hardly give",
        f"identical in {len(same)} of {len(values)} classes",
        len(same) == len(values),
    )


def vote_repairs(votes: pd.DataFrame, classes: Iterable[str] = SPLIT_CLASSES) -> Finding:
    """Whether the vote repairs more pixels of long vehicles than it spoils."""
    part = votes[votes["class"].isin(list(classes))]
    repaired, spoiled = int(part["repaired, px"].sum()), int(part["spoiled, px"].sum())
    everything = votes.set_index("class").loc["all things"]
    return findings.decided(
        "the vote repairs buses and trucks that the semantic map splits",
        f"{' and '.join(part['class'])}: {repaired} pixels repaired, {spoiled} spoiled; all things: "
        f"{everything['repaired, px']} repaired, {everything['spoiled, px']} spoiled (one network)",
        repaired > spoiled,
    )


# --- instance networks (6.7, 6.8, 6.9) ----------------------------------------------------------------------


def best_weight(rows: pd.DataFrame, best: str = "weight 0.1") -> Finding:
    """Whether one weight wins by more than the spread over seeds."""
    thesis = f"of the consistency weights, {best.split()[-1]} is the best (54.7 against 53.5, 51.0 and 43.8)"
    rows = tables.select(rows, setting=TRUE)
    values = tables.per_seed(rows, CLASS_MEAN)
    if best not in values.index or len(values) < 2:
        return findings.not_testable(thesis, f"this profile trains {', '.join(values.index)}")
    mean, spread = values.mean(axis=1), noise_floor(rows)
    lead = mean[best] - mean.drop(best).max()
    return findings.decided(
        thesis,
        f"{_listed(mean)}; {best} leads by {lead:+.1f} points "
        f"({findings.seeds_note(values.shape[1])}; {_noise(spread)})",
        lead > np.nan_to_num(spread),
    )


def weight_matters(rows: pd.DataFrame) -> Finding:
    """Whether the weights differ by more than seeds do; the released code ignores the weight."""
    rows = tables.select(rows, setting=TRUE)
    values = tables.per_seed(rows, CLASS_MEAN)
    mean, spread = values.mean(axis=1), noise_floor(rows)
    reach = mean.max() - mean.min()
    thesis = "the weight of the consistency term decides over 10.9 points"
    if not np.isfinite(spread):
        return findings.not_testable(thesis, f"{_listed(mean)}, but one seed a weight shows no noise floor")
    return findings.decided(
        thesis,
        f"{_listed(mean)}: {reach:.1f} points between best and worst, "
        f"{findings.seeds_note(values.shape[1])}; {_noise(spread)}, and a difference counts above twice that",
        reach > 2 * spread,
    )


def single_framework(rows: pd.DataFrame, baseline: str, candidates: Sequence[str], spread: float) -> Finding:
    """The best self-trained framework against the baseline, inside predicted masks."""
    mean = tables.per_seed(rows, CLASS_MEAN).mean(axis=1)
    best = mean[list(candidates)].idxmax()
    gain = mean[best] - mean[baseline]
    return findings.compared(
        "self-training lifts the baseline from 7.09 to 13.50 (best single framework)",
        f"{mean[baseline]:.1f} to {mean[best]:.1f} % ({best}), {gain:+.1f} points "
        f"({_seeds(rows)}; {findings.another_seed(spread)})",
        [gain],
        [spread],
    )


def best_workflow(rows: pd.DataFrame, candidates: Sequence[str], wanted: str, spread: float) -> Finding:
    """Whether the best framework is of one workflow, by more than another seed changes."""
    mean = tables.per_seed(rows, CLASS_MEAN).mean(axis=1)[list(candidates)]
    ours, others = (mean[[(wanted in name) == own for name in mean.index]] for own in (True, False))
    lead = ours.max() - others.max()
    return findings.compared(
        f"one network a class ({wanted}) is the best framework by a big margin",
        f"{ours.idxmax()} {ours.max():.1f} %, the best other one ({others.idxmax()}) {others.max():.1f} %: "
        f"{lead:+.1f} points ({_seeds(rows)}; {findings.another_seed(spread)})",
        [lead],
        [spread],
    )


def mix_star(choices: pd.DataFrame, spread: float) -> Finding:
    """MIX* against the best single framework, both chosen on other images than they are scored on."""
    mean = choices.groupby(["choice", "scored"])["value"].mean()
    mixed, single = mean["MIX*", "other half"], mean["best framework", "other half"]
    return findings.compared(
        "the best network of every class (MIX*, 14.00) is above the best framework (13.50)",
        f"chosen on one half of the images, scored on the other: {mixed:.1f} against {single:.1f} %, "
        f"{mixed - single:+.1f} points ({findings.another_seed(spread)})",
        [mixed - single],
        [spread],
    )


def selection_bias(choices: pd.DataFrame) -> Finding:
    """How much choosing on the scored images flatters MIX*."""
    mean = choices.query("choice == 'MIX*'").groupby("scored")["value"].mean()
    bias = mean["same half"] - mean["other half"]
    return findings.decided(
        "MIX* is chosen on the images that it is scored on, so 14.00 is optimistic",
        f"{mean['same half']:.1f} % on the images of the choice, {mean['other half']:.1f} % on the others: "
        f"{bias:+.1f} points",
        bias > 0,
    )


def morphology(rows: pd.DataFrame, methods: Sequence[str], kernel: str, noise: float) -> Finding:
    """Opening and closing with one kernel against none, mean over methods."""
    values = {
        k: np.nanmean([mean_of(rows, method, k) for method in methods]) for k in (NO_MORPHOLOGY, kernel)
    }
    before, after = values.values()
    gain = after - before
    return findings.decided(
        "morphology lifts the score (14.00 without to 18.18 with it, V2 masks)",
        f"kernel of {kernel}: {before:.1f} to {after:.1f} %, {gain:+.1f} points, mean of "
        f"{len(methods)} semantic networks ({_noise(noise)})",
        gain > np.nan_to_num(noise),
    )


def better_masks(rows: pd.DataFrame, methods: Sequence[str], spread: float) -> Finding:
    """Whether the score rises in the order of the semantic networks."""
    values = tables.per_seed(rows, CLASS_MEAN).mean(axis=1).reindex(list(methods))
    steps = values.diff().dropna()
    return findings.compared(
        "masks of V3 (21.90) and V3+ (25.80) suit instances better than those of V2 (19.19; seven classes)",
        f"{_listed(values)}, seven classes ({_seeds(rows)}; {findings.another_seed(spread)})",
        list(steps),
        [spread] * len(steps),
    )


def not_fused() -> Finding:
    """Several networks in one embedding."""
    thesis = "averaging or summing the embeddings of several networks did not help"
    return findings.not_testable(thesis, "no run fuses embeddings")


def _listed(values: pd.Series) -> str:
    return ", ".join(f"{name} {value:.1f} %" for name, value in values.items())


def _noise(noise: float) -> str:
    return (
        f"differences within a seed spread by ± {noise:.1f}"
        if np.isfinite(noise)
        else "no spread to compare with"
    )
