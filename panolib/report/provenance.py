"""Where the numbers of a notebook come from, in five lines, and how its settings differ from the thesis's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import get_type_hints

import pandas as pd

from panolib.lab import packages
from panolib.profiles import load_yaml, project_root
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
    study: Study, sections: Iterable[str] = tuple(SPECS), *, images: bool = False, shorter: bool = False
) -> pd.DataFrame:
    """Where the street settings differ from those of the thesis's size, which profile "paper" holds.

    The settings are those of the ladder; with `shorter` those of the experiments beside it, whose trainings a
    profile may shorten.

    Returns
    -------
    DataFrame
        section, setting (dotted), here, thesis: the numbers of `NUMBERS`, and whatever one of the two
        switches on or off, says in a word or leaves out. With `images` also how many there are in the data
        sets of recorded runs.
    """
    here = vars(study.profile.city)
    if shorter:
        shortened = (study.profile.experiments.shorter or {}).items()
        here = here | {name: {**here[name], "iterations": n} for name, n in shortened}
    there = load_yaml(project_root() / "notebooks" / "profiles" / "paper.yaml")["city"]
    lines = []
    for section in sections:
        ours, theirs = (_filled(section, profile) for profile in (here, there))
        for name in sorted({*ours, *theirs}):
            a, b = _value(ours, name), _value(theirs, name)
            if a != b and not _left_out(name, ours, theirs) and (name in NUMBERS or _in_kind(a, b)):
                lines.append((section.replace("_", " "), name, _said(a), _said(b)))
    if images:
        runs = dict.fromkeys(tag.run for tag in study.tags if study.runs[tag.run].domain == "city")
        records = filter(None, (study.store.load(study.runs[name]) for name in runs))
        counted = {name: n for record in records for name, n in record.info.get("images", {}).items()}
        lines += [
            ("data", f"images of {name}", str(counted[name]), str(number))
            for name, number in IMAGES.items() if counted.get(name, number) != number
        ]  # fmt: skip
    return pd.DataFrame(lines, columns=["section", "setting", "here", "thesis"])


def _filled(section: str, profile: Mapping) -> dict:
    """Dotted settings of a section with what it inherits and what it leaves to defaults."""
    cls = SPECS[section]
    baseline = profile["instance_baseline" if section.startswith("instance") else "semantic_baseline"]
    filled = _with_defaults(cls, over_baseline(cls, baseline, profile[section]))
    return pd.json_normalize(filled).to_dict("records")[0]


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


def _value(settings: Mapping, name: str):
    """A dotted setting; for a section that the other side leaves out its name, or "set" without one."""
    inside = any(other.startswith(f"{name}.") for other in settings)
    return settings.get(name, settings.get(f"{name}.name", "set") if inside else "default")


def _said(value) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
