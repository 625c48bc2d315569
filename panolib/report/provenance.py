"""Where the numbers of a notebook come from, in five lines, and how its settings differ from the thesis's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import get_type_hints

import pandas as pd

from panolib.config import load_yaml, project_root
from panolib.lab import packages
from panolib.study.grid import over_baseline
from panolib.study.study import Study, is_available
from panolib.training.specs import (
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
    "network.depth", "network.width", "optimiser.lr", "batch_size", "iterations", "target_weight",
    "ema_interval", "ema_decay",
}  # fmt: skip


def provenance(study: Study, notebook: str) -> str:
    """Five lines: profile, runs and their time, commits ("+": changed files), devices, versions."""
    names = [name for name in study.notebooks[notebook] if is_available(study, name)]
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


def differences_from_thesis(study: Study, sections: Iterable[str] = tuple(SPECS)) -> pd.DataFrame:
    """Where the street settings differ from those of the thesis's size, which profile "paper" holds.

    Returns
    -------
    DataFrame
        section, setting (dotted), here, thesis: the numbers of `NUMBERS`, and whatever one of the two
        switches on or off, says in a word or leaves out.
    """
    here = vars(study.profile.city)
    there = load_yaml(project_root() / "notebooks" / "profiles" / "paper.yaml")["city"]
    lines = []
    for section in sections:
        ours, theirs = (_filled(section, profile) for profile in (here, there))
        for name in sorted({*ours, *theirs}):
            a, b = _value(ours, name), _value(theirs, name)
            if a != b and not _left_out(name, ours, theirs) and (name in NUMBERS or _in_kind(a, b)):
                lines.append((section.replace("_", " "), name, _said(a), _said(b)))
    return pd.DataFrame(lines, columns=["section", "setting", "here", "thesis"])


def _filled(section: str, profile: Mapping) -> dict:
    """Dotted settings of a section with what it inherits and what it leaves to defaults."""
    cls = SPECS[section]
    baseline = profile["instance_baseline" if section.startswith("instance") else "semantic_baseline"]
    return _flat(_with_defaults(cls, over_baseline(cls, baseline, profile[section])))


def _with_defaults(cls: type, settings: Mapping) -> dict:
    types = get_type_hints(cls)
    fields = [field for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING]
    defaults = {field.name: field.default for field in fields}
    return {
        name: _with_defaults(types[name], value)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(types.get(name))
        else value
        for name, value in (defaults | dict(settings)).items()
    }


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
