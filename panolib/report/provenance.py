"""Where the numbers of a notebook come from, in five lines, and how its settings differ from the thesis's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import get_type_hints

import pandas as pd

from panolib.config import to_plain
from panolib.data.mixing import source_share_counts
from panolib.lab import packages
from panolib.profiles import load_yaml, project_root
from panolib.report.rows import tagged
from panolib.study.grid import over_baseline
from panolib.study.study import Study, is_available
from panolib.training.run_specs import (
    BaselineSpec,
    InstanceBaselineSpec,
    InstanceSelfTrainingSpec,
    SelfTrainingSpec,
)

SPECS = {
    "semantic_baseline": BaselineSpec, "self_training": SelfTrainingSpec,
    "instance_baseline": InstanceBaselineSpec, "instance_self_training": InstanceSelfTrainingSpec,
}  # fmt: skip
NUMBERS = {  # that a reader of the thesis knows; what differs in kind, not in size, is always said
    "optimiser.lr", "batch_size", "iterations", "target_weight", "ema_interval", "ema_decay",
}  # fmt: skip

CROPS = ("source crops", "target views")
COORDINATES = ("domain", "branch", "rung", "variant")
IMAGES = {  # of the thesis (chapters 5 and 8.1), by data set
    "mix/train": 10349, "synthia/train": 9400, "cityscapes/train": 2975, "cityscapes/train:unlabelled": 2975,
    "cityscapes/val": 500,
}  # fmt: skip


def provenance(study: Study, notebook: str, *, further: Iterable[str] = ()) -> str:
    """Five lines: profile, runs and their time, commits ("+": changed files), devices, versions.

    `further` are names of recorded runs that no notebook declares, as those on a user's folders.
    """
    names = [name for name in study.notebooks[notebook] if is_available(study, name)] + list(further)
    infos = [study.get(name).info for name in names]

    def seen(values: Iterable[str]) -> str:
        return ", ".join(dict.fromkeys(values)) or "none"

    commits = (f"{(info['commit'] or 'no git')[:12]}{'+' * bool(info['dirty'])}" for info in infos)
    versions = (f"{name} {version}" for info in infos for name, version in info["versions"].items())
    return "\n".join([
        f"profile: {study.profile_name} ({study.profile.description})",
        f"runs: {len(infos)}, trained in {sum(info['wall_s'] for info in infos) / 60:.1f} min in all",
        f"commits: {seen(commits)}",
        f"devices: {seen(info['device'] for info in infos)}",
        f"versions: {seen(versions)}; here {packages.state()}",
    ])


def differences_from_thesis(
    study: Study, sections: Iterable[str] = tuple(SPECS), *, sizes: bool = False, shorter: bool = False
) -> pd.DataFrame:
    """Where the street settings differ from those of the thesis's size, which profile "paper" holds.

    The settings are those of the ladder; with `shorter` those of the experiments beside it, whose trainings a
    profile may shorten.

    Returns
    -------
    DataFrame
        section, setting (dotted), here, thesis: the numbers of `NUMBERS`, and whatever one of the two
        switches on or off, says in a word or leaves out. With `sizes` also how many crops the training of a
        section sees ("source crops", "target views"), and the images in the data sets of recorded runs.
    """
    here = vars(study.profile.city)
    if shorter:
        shortened = (study.profile.experiments.shorter or {}).items()
        here = here | {name: {**here[name], "iterations": n} for name, n in shortened}
    there = load_yaml(project_root() / "notebooks" / "profiles" / "paper.yaml")["city"]
    lines, numbers = [], {*NUMBERS, *CROPS}
    for section in sections:
        ours, theirs = (_filled(section, profile) for profile in (here, there))
        if sizes:
            ours, theirs = ({**filled, **crops_seen(filled)} for filled in (ours, theirs))
        for name in sorted({*ours, *theirs}):
            a, b = _value(ours, name), _value(theirs, name)
            if a != b and not _left_out(name, ours, theirs) and (name in numbers or _in_kind(a, b)):
                lines.append((section.replace("_", " "), name, _said(a), _said(b)))
    if sizes:
        images = _images(study, (tag.run for tag in study.tags if study.runs[tag.run].domain == "city"))
        lines += [
            ("data", f"images of {name}", str(images[name]), str(number))
            for name, number in IMAGES.items() if images.get(name, number) != number
        ]  # fmt: skip
    return pd.DataFrame(lines, columns=["section", "setting", "here", "thesis"])


def crops_seen(spec: Mapping) -> dict[str, int]:
    """{"source crops", "target views"} that a whole training sees, by its settings; {} for no training.

    A control sees the target in the statistics of its layers only; its views count like those of others.
    """
    if not spec.get("iterations"):
        return {}
    iterations, batch_size = spec["iterations"], spec["batch_size"]
    if "n_views" in spec:
        views = spec["n_target"] * spec["n_views"]
        return dict(zip(CROPS, (iterations * batch_size, iterations * views)))
    source, target = batch_size, 0
    if "source_share" in spec:
        source, target = source_share_counts(batch_size, spec["source_share"])
        target = max(target, 1)
    return dict(zip(CROPS, (iterations * source, iterations * target)))


def budgets(study: Study, experiment: str, **wanted) -> pd.DataFrame:
    """How long every training of an experiment takes, on how many images, with which switches.

    `wanted` as for `rows.tagged`.

    Returns
    -------
    DataFrame
        A line for the seeds of one setting: domain, branch, rung, variant; iterations; source_crops and
        target_views (`crops_seen`); images, of every data set that was opened, as the record says (a text; ""
        in records from before it was kept); coordinates and min_stability of instance networks; n_seeds.
    """
    lines: dict[tuple, dict] = {}
    for run, at in tagged(study, experiment, **wanted):
        spec = to_plain(run.spec)
        if not (crops := crops_seen(spec)):
            continue
        setting = tuple(at[name] for name in COORDINATES)
        line = lines.setdefault(setting, {"images": "", "n_seeds": 0})
        images = _images(study, [run.name])
        line |= {
            "iterations": spec["iterations"],
            **{name.replace(" ", "_"): number for name, number in crops.items()},
            "images": ", ".join(f"{name} {number}" for name, number in images.items()) or line["images"],
            "coordinates": _said(spec["network"].get("coordinates", "")),
            "min_stability": _said(spec.get("min_stability", "")),
            "n_seeds": line["n_seeds"] + 1,
        }
    index = pd.MultiIndex.from_tuples(lines, names=COORDINATES)
    return pd.DataFrame(list(lines.values()), index=index).reset_index()


def _images(study: Study, names: Iterable[str]) -> dict[str, int]:
    """Number of images of the data sets that recorded runs opened."""
    records = (study.store.load(study.runs[name]) for name in dict.fromkeys(names))
    return {name: n for record in records if record for name, n in record.info.get("images", {}).items()}


def _filled(section: str, profile: Mapping) -> dict:
    """Dotted settings of a section with what it inherits and what it leaves to defaults."""
    cls = SPECS[section]
    baseline = profile["instance_baseline" if section.startswith("instance") else "semantic_baseline"]
    return _flat(_with_defaults(cls, over_baseline(cls, baseline, profile[section])))


def _with_defaults(cls: type, settings: Mapping) -> dict:
    types, fields = get_type_hints(cls), dataclasses.fields(cls)
    filled = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING} | dict(settings)
    for name, value in filled.items():
        if isinstance(value, Mapping) and dataclasses.is_dataclass(types.get(name)):
            filled[name] = _with_defaults(types[name], value)
    return filled


def _left_out(name: str, ours: Mapping, theirs: Mapping) -> bool:
    """Whether a setting lies in a section that one side leaves out as a whole."""
    parts = name.split(".")
    return any(".".join(parts[:i]) in {**ours, **theirs} for i in range(1, len(parts)))


def _in_kind(a, b) -> bool:
    """Whether two settings differ in kind: a switch, a word, or None on one side."""
    return isinstance(a, bool | str) or isinstance(b, bool | str) or None in (a, b)


def _flat(settings: Mapping, prefix: str = "") -> dict:
    flat: dict = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _value(settings: Mapping, name: str):
    """A dotted setting; for a section that the other side leaves out its name, or "set" without one."""
    inside = any(other.startswith(f"{name}.") for other in settings)
    return settings.get(name, settings.get(f"{name}.name", "set") if inside else "default")


def _said(value) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
