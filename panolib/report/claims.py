"""What the study set out to reach, decided by the tables: each claim with its numbers and its verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import get_type_hints

import numpy as np
import pandas as pd

from panolib.config import load_yaml, project_root
from panolib.report.tables import ORACLE, SELF_TRAINED, SOURCE_ONLY, number, per_seed, select
from panolib.study.grid import INHERITED
from panolib.study.study import BATCH_NORM_RUNGS, RUNG_LABELS, Study
from panolib.training.instance import InstanceBaselineSpec, InstanceSelfTrainingSpec
from panolib.training.semantic import BaselineSpec, SelfTrainingSpec

BATCH_NORM = tuple(RUNG_LABELS[rung] for rung in BATCH_NORM_RUNGS)
CONTROL = RUNG_LABELS["control"]
COMPARED = {  # numbers that a reader of the thesis knows; differences in kind are found by `of_kind`
    "semantic_baseline": (
        "network.depth", "network.width", "network.weights", "optimiser.name", "optimiser.lr", "batch_size",
        "iterations",
    ),
    "self_training": (
        "optimiser.name", "optimiser.lr", "batch_size", "iterations", "target_weight", "ema_interval",
        "batch_norm",
    ),
    "instance_baseline": ("network.depth", "network.width", "network.weights", "batch_size", "iterations"),
    "instance_self_training": ("batch_size", "iterations", "ema_decay"),
}  # fmt: skip

SPECS = {
    "semantic_baseline": BaselineSpec, "self_training": SelfTrainingSpec,
    "instance_baseline": InstanceBaselineSpec, "instance_self_training": InstanceSelfTrainingSpec,
}  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """One statement, the numbers behind it, and whether they bear it out."""

    statement: str
    numbers: str
    holds: bool

    def __str__(self) -> str:
        return f"[{'holds' if self.holds else 'does NOT hold'}] {self.statement}: {self.numbers}"


def gain_over_source_only(rows: pd.DataFrame, metric: str, *, points: float) -> Claim:
    """Mean self-trained score against source-only, in points."""
    values = per_seed(rows, metric)
    gain = values.loc[SELF_TRAINED] - values.loc[SOURCE_ONLY]
    return Claim(
        f"self-trained {metric} is at least {points:g} points above source only",
        f"{_mean(values, SELF_TRAINED)} against {_mean(values, SOURCE_ONLY)}, {_signed(gain)}",
        bool(gain.mean() >= points),
    )


def ratio_to_source_only(rows: pd.DataFrame, metric: str, *, factor: float) -> Claim:
    """Mean self-trained score as a multiple of the mean source-only score."""
    values = per_seed(rows, metric)
    mean = values.mean(axis=1)
    ratio = mean[SELF_TRAINED] / mean[SOURCE_ONLY] if mean[SOURCE_ONLY] > 0 else np.inf
    return Claim(
        f"self-trained {metric} is at least {factor:g} times source only",
        f"{_mean(values, SELF_TRAINED)} against {_mean(values, SOURCE_ONLY)}, {ratio:.2f} times",
        bool(ratio >= factor),
    )


def gain_over_batch_norm(rows: pd.DataFrame, metric: str, *, points: float) -> Claim:
    """Mean self-trained score against the best rung that only changes batch statistics, and in every seed."""
    values = per_seed(rows, metric)
    best = values.loc[list(BATCH_NORM)].mean(axis=1).idxmax()
    gain = values.loc[SELF_TRAINED] - values.loc[best]
    return Claim(
        f"self-trained {metric} is at least {points:g} points above the best batch-norm rung ({best}), "
        "and above it in every seed",
        f"{_mean(values, SELF_TRAINED)} against {_mean(values, best)}, {_signed(gain)}; {_wins(gain)}",
        bool(gain.mean() >= points and (gain > 0).all()),
    )


def above_every_batch_norm(rows: pd.DataFrame, metric: str) -> Claim:
    """Self-trained score above every rung that only changes batch statistics, in every seed."""
    values = per_seed(rows, metric)
    gain = values.loc[SELF_TRAINED] - values.loc[list(BATCH_NORM)].max(axis=0)
    return Claim(
        f"self-trained {metric} is above every batch-norm rung in every seed",
        f"{_mean(values, SELF_TRAINED)}, {_signed(gain)} over the best of them in each seed; {_wins(gain)}",
        bool((gain > 0).all()),
    )


def embedding_over_components(
    rows: pd.DataFrame, *, method: str = SELF_TRAINED, masks: str = "predicted", score: str = "pooled"
) -> Claim:
    """Threat score of clustered embeddings against connected components of the same masks.

    Parameters
    ----------
    rows : DataFrame
        What `tables.threat_rows` returns.
    method : str
        Label of a rung.
    masks : str
        "predicted" or "true".
    score : str
        "pooled" or "class mean".
    """
    rows = select(rows, method=method)
    embedding, components = (
        per_seed(select(rows, setting=f"{way} in {masks} masks"), score)
        for way in ("embedding", "connected components")
    )
    gain = embedding.loc[method] - components.loc[method]
    return Claim(
        f"{method}: embeddings beat components in every seed ({score} threat score, {masks} masks)",
        f"{_mean(embedding, method)} against {_mean(components, method)}, {_signed(gain)}; {_wins(gain)}",
        bool((gain > 0).all()),
    )


def gain_over_control(rows: pd.DataFrame, metric: str) -> Claim:
    """Self-trained score against the same number of iterations on the source alone, and its worst seed."""
    values = per_seed(rows, metric)
    trained, control = values.loc[SELF_TRAINED], values.loc[CONTROL]
    gain = trained - control
    worst = gain.idxmin()
    return Claim(
        f"self-trained {metric} is above its control (source-only continuation) in every seed",
        f"{_mean(values, SELF_TRAINED)} against {_mean(values, CONTROL)}, {_signed(gain)}; {_wins(gain)}"
        f"; least in seed {worst}, {trained[worst]:.2f} against {control[worst]:.2f}",
        bool((gain > 0).all()),
    )


def control_line(rows: pd.DataFrame, metric: str) -> str:
    """What self-training gains over source-only, and what its control gains without it, in words."""
    mean = per_seed(rows, metric).mean(axis=1)
    gain, alone = (mean[method] - mean[SOURCE_ONLY] for method in (SELF_TRAINED, CONTROL))
    return (
        f"{metric} over source only, points: self-trained {gain:+.1f}; its control, without pseudo-labels, "
        f"{alone:+.1f}"
    )


def lost_classes(rows: pd.DataFrame, classes: Iterable[str]) -> str:
    """Classes whose mean score self-training lowers below source-only, in words."""
    mean = {name: per_seed(rows, name).mean(axis=1) for name in classes}
    loss = {name: value[SELF_TRAINED] - value[SOURCE_ONLY] for name, value in mean.items()}
    worse = sorted((name for name in loss if round(loss[name], 1) < 0), key=loss.get)
    if not worse:
        return "self-training lowers no class below source only"
    named = ", ".join(f"{name} ({loss[name]:+.1f})" for name in worse)
    return f"self-training lowers {len(worse)} of {len(loss)} classes below source only: {named}"


def unscored_classes(rows: pd.DataFrame, classes: Iterable[str], *, method: str = SELF_TRAINED) -> str:
    """Classes that a method scores 0 in every seed, in words."""
    classes = list(classes)
    zero = [name for name in classes if (per_seed(rows, name).loc[method].fillna(0) == 0).all()]
    names = f": {', '.join(zero)}" if zero else ""
    return f"{method} scores 0 on {len(zero)} of {len(classes)} classes{names}"


def gap_line(rows: pd.DataFrame) -> str:
    """What the groups of style parameters cost a source-only network, in words."""
    if rows.empty:
        return "this profile has no renderer to take apart, so no gap runs"
    wide = rows[rows["method"] == SOURCE_ONLY].set_index(["class_or_metric", "seed"])["value"].sort_index()
    groups = [group for group in dict.fromkeys(rows["class_or_metric"]) if group != "none"]
    loss = {group: (wide[group] - wide["none"]).mean() for group in groups}
    parts = ", ".join(f"{group} {value:+.1f}" for group, value in sorted(loss.items(), key=lambda x: x[1]))
    return f"source only, mIoU against its own style, points: {parts}"


def gap_closed_line(summary: pd.DataFrame, metric: str) -> str:
    """Share of the way from source-only to the oracle that each rung goes, in words."""
    part = select(summary, class_or_metric=f"{metric} gap closed")
    shares = ", ".join(
        f"{method} {number(mean, spread, 0)} %"
        for method, mean, spread in zip(part["method"], part["mean"], part["spread"])
        if method not in (SOURCE_ONLY, ORACLE)
    )
    return f"share of the gap in {metric} from source only to the oracle that is closed: {shares}"


def presence_line(descriptions: Mapping[str, Mapping[str, pd.DataFrame]]) -> str:
    """Which classes each data set lacks, in words."""
    parts = []
    for name, found in descriptions.items():
        presence = found["presence"]
        absent = presence.loc[presence["n_images"] == 0, "class"]
        parts.append(f"{name}: {', '.join(absent) if len(absent) else 'none'}")
    return f"classes without a pixel: {'; '.join(parts)}"


def data_line(study: Study, domain: str) -> str:
    """Whether the data are the thesis's or a stand-in, from the profile."""
    embedded = getattr(study.profile, domain).data["embedded"]
    size = "" if embedded is None else f" at {embedded['height']} x {embedded['width']} px"
    if domain == "nuclei":
        return f"data: rendered nuclei{size} as source, real microscope images as target; not in the thesis"
    if embedded is None:
        return "data: the thesis's own data sets"
    return f"data: rendered street scenes{size}, a stand-in for SYNTHIA, GTA5 and Cityscapes"


def differences_from_thesis(study: Study, sections: Iterable[str] = tuple(COMPARED)) -> list[str]:
    """Where the street settings differ from those of the thesis's size, which profile "paper" holds.

    Named are the numbers of `COMPARED`, and whatever one of the two switches on or off or says in a word.
    """
    profiles = vars(study.profile.city), paper_profile()["city"]
    lines = []
    for section in sections:
        branch = "instance" if section.startswith("instance") else "semantic"
        cls = SPECS[section]
        inherited = [name for name in INHERITED if name in cls.__dataclass_fields__]
        baselines = (profile[f"{branch}_baseline"] for profile in profiles)
        ours, theirs = (
            _with_defaults(
                cls, {name: baseline[name] for name in inherited if name in baseline} | profile[section]
            )
            for profile, baseline in zip(profiles, baselines)
        )
        found = differing(ours, theirs, (*COMPARED[section], *of_kind(ours, theirs)))
        if found:
            lines.append(f"{section.replace('_', ' ')}: {', '.join(found)}")
    return lines


def _with_defaults(cls: type, settings: Mapping) -> dict:
    """Settings of a dataclass, also of those in it, with the defaults of what they leave out."""
    types = get_type_hints(cls)
    defaults = {field.name: field.default for field in fields(cls) if field.default is not MISSING}
    filled = defaults | dict(settings)
    return {
        name: _with_defaults(types[name], value)
        if isinstance(value, Mapping) and is_dataclass(types.get(name))
        else value
        for name, value in filled.items()
    }


def paper_profile() -> dict:
    """Profile "paper", which has the settings of the sources."""
    return load_yaml(project_root() / "notebooks" / "profiles" / "paper.yaml")


def differing(ours: Mapping, theirs: Mapping, keys: Iterable[str]) -> list[str]:
    """Settings that differ, in words; a key is dotted ("network.depth"), or stands for a whole section."""
    here, there = _flat(ours), _flat(theirs)
    chosen = [
        name for key in keys for name in {**here, **there} if name == key or name.startswith(f"{key}.")
    ]
    return [
        f"{name} {_said(here, name)} instead of {_said(there, name)}"
        for name in dict.fromkeys(chosen)
        if here.get(name) != there.get(name)
    ]


def of_kind(ours: Mapping, theirs: Mapping) -> list[str]:
    """Settings that differ in kind, not in size: a switch, a word, or null on one side.

    A setting that one side leaves to its default counts where the other gives a switch or a word.
    """
    here, there = _flat(ours), _flat(theirs)
    kinds = bool | str
    return [
        name
        for name in {**here, **there}
        if here.get(name) != there.get(name)
        and (
            isinstance(here.get(name), kinds)
            or isinstance(there.get(name), kinds)
            or (name in here and name in there and None in (here[name], there[name]))
        )
    ]


def _flat(settings: Mapping, prefix: str = "") -> dict:
    """Nested settings with dotted names."""
    flat: dict = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def seeds_line(rows: pd.DataFrame) -> str:
    """Which seeds the rows hold, and what "±" then means."""
    seeds = sorted(set(rows["seed"]))
    if not seeds:
        return "n = 0: no run of these is in the profile"
    spread = "± is the sample standard deviation" if len(seeds) > 1 else "one seed, so there is no spread"
    return f"n = {len(seeds)} (seeds {', '.join(map(str, seeds))}); {spread}"


def _said(settings: Mapping, name: str) -> str:
    """A setting as a reader says it."""
    value = settings.get(name, "default")
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _mean(values: pd.DataFrame, method: str) -> str:
    """Mean and spread of one method."""
    return number(values.loc[method].mean(), values.loc[method].std(ddof=1))


def _signed(gain: pd.Series) -> str:
    """Mean difference in points, with its spread."""
    spread = gain.std(ddof=1)
    return f"{gain.mean():+.1f}" + (f" ± {spread:.1f}" if np.isfinite(spread) else "") + " points"


def _wins(gain: pd.Series) -> str:
    """In how many seeds the difference is positive."""
    return f"above in {int((gain > 0).sum())} of {len(gain)} seeds"
