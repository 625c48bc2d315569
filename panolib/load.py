"""A profile becomes a study: the only module that knows all the others."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from panolib.bench import kinds as bench_kinds
from panolib.bench.specs import PerformanceSpec
from panolib.config import ProfileError, from_mapping
from panolib.data.readers import open_domains
from panolib.data.readers.own import OwnSources
from panolib.lab.run import Run
from panolib.lab.store import Store
from panolib.labels import LABEL_SETS, merged_ids
from panolib.profiles import find_profile, project_root
from panolib.related.detr import kinds as detr_kinds
from panolib.related.detr import runs as detr_runs
from panolib.related.mean_teacher import kinds as peer_kinds
from panolib.related.mean_teacher import runs as peer_runs
from panolib.related.realtime import kinds as realtime_kinds
from panolib.related.realtime import runs as realtime_runs
from panolib.study import active as active_runs
from panolib.study import cleanup, kinds, shared
from panolib.study import objectness as objectness_runs
from panolib.study.declared import make_kinds, one_run_for_each_key, with_versions
from panolib.study.experiments import declare_experiments
from panolib.study.grid import Grid, declare_ladder, declare_target_ladder
from panolib.study.method import declare_method
from panolib.study.refinement import declare_refinement
from panolib.study.settings import Profile, read_profile
from panolib.study.shared import declare_shared
from panolib.study.study import PERFORMANCE, Notebooks, Study, Tag, run_name
from panolib.study.views import declare_views


def load(
    profile: str | Path, *, retrain: bool = False, root: Path | None = None, train: bool = True
) -> Study:
    """The study with one profile.

    Parameters
    ----------
    profile : str or Path
        Name of a file in `notebooks/profiles` without ".yaml", or the path of another profile, whose results
        then lie in the folder of its own name.
    retrain : bool
        What was recorded before now counts as missing. A notebook's parameter. Anything but True or False is
        a TypeError: papermill's `-p retrain false` is a text, and every text is true.
    root : Path, optional
        Folder that holds `cache`, `results` and `figures`; the project's by default.
    train : bool
        False, or the environment variable PANOLIB_TRAIN set to 0: a run that is not recorded is an error
        instead of being trained.
    """
    if not isinstance(profile, str | Path):
        raise TypeError(f"profile is {profile!r}, expected its name as a text, such as 'cpu', or a path")
    if not isinstance(retrain, bool):
        raise TypeError(
            f"notebook parameter retrain is {retrain!r}, expected True or False (papermill: -p retrain False)"
        )
    path = find_profile(profile)
    name, shipped = path.stem, project_root() / "notebooks" / "profiles" / path.name
    root = project_root() if root is None else root
    if root == project_root() and path != shipped and shipped.is_file():
        raise ProfileError(f"{path}: its results would be those of {shipped}; expected another file name")
    settings, where = read_profile(path), path.name
    sources = open_domains(settings.data_sections(where), root, OwnSources)
    for domain, section in settings.ladders.items():
        if section.label_set is None:
            own = {domain: replace(section, label_set=sources[domain].label_set)}
            settings = replace(settings, ladders={**settings.ladders, **own})
    detr = None if settings.detr is None else detr_runs.read_settings(settings.detr, where)
    peers = peer_runs.read_settings(settings, where)
    objectness = objectness_runs.read_settings(settings.objectness, where)
    active = active_runs.read_settings(settings.active, where)
    check_data_sets(settings, () if detr is None else detr.elsewhere, sources, where)
    runs: dict[str, Run] = {}
    tags: list[Tag] = []
    ladders = {**settings.ladders, **settings.target_ladders}
    chosen = [(name, section, seed) for name, section in ladders.items()
              for seed in section.seeds or settings.seeds]  # fmt: skip
    for domain, section, seed in chosen:
        grid = Grid(domain, section, settings.compute, sources[domain], seed, where)
        if domain in settings.target_ladders:
            source_only = run_name(settings.main, "semantic", "source_only", seed)
            if source_only not in runs:  # the main ladder does not take this seed
                main = settings.ladders[settings.main]
                of_main = Grid(settings.main, main, settings.compute, sources[settings.main], seed, where)
                of_main.semantic_baseline("source_only", main.semantic_source)
                runs |= of_main.runs
            declare_target_ladder(grid, runs[source_only], sources[domain].label_set)
        else:
            declare_ladder(grid)
            cleanup.declare_cleanup(grid)
            declare_shared(grid)
            if domain == settings.main and settings.experiments is not None:
                declare_experiments(grid, settings.experiments)
            declare_refinement(grid, settings.refinement)
            objectness_runs.declare_objectness(grid, objectness)
            active_runs.declare_active(grid, active)
            if domain == settings.main and detr is not None:
                detr_runs.declare_detr(grid, detr, {name: sources[name] for name in settings.targets})
            if domain == peer_runs.DOMAIN and peers is not None:
                peer_runs.declare_peers(grid, peers)
        declare_method(grid, settings.method, objectness)
        declare_views(grid, settings.views)
        runs |= grid.runs
        tags += grid.tags
    if settings.performance is not None:
        runs[PERFORMANCE] = performance_run(settings, runs, sources, where)
        tags.append(Tag("performance", PERFORMANCE, {}))
    if settings.realtime is not None:
        found, its_tags = realtime_runs.declare_realtime(settings, sources, runs, where)
        runs, tags = runs | found, tags + its_tags
    modules = (
        kinds, cleanup, shared, objectness_runs, active_runs, bench_kinds, realtime_kinds, detr_kinds,
        peer_kinds,
    )  # fmt: skip
    versions = {kind: version for module in modules for kind, version in module.VERSIONS.items()}
    argument = name if path == shipped else str(path)
    store = Store(
        root / "results" / name,
        make_kinds(modules, sources),
        retrain_since=time.time() if retrain else 0.0,
        train=train and os.environ.get("PANOLIB_TRAIN", "1") != "0",
        profile=argument,
    )
    return Study(
        profile_name=name,
        profile_argument=argument,
        profile=settings,
        runs=one_run_for_each_key(with_versions(runs, versions), store),
        tags=tuple(tags),
        notebooks=Notebooks(tags, settings, where),
        sources=sources,
        store=store,
        results=root / "results" / name,
        figures=root / "figures" / name,
    )


def check_data_sets(
    settings: Profile, elsewhere: Iterable[str], sources: Mapping[str, Any], where: str
) -> None:
    """Raise ProfileError for a data set that its domain does not have, or that has other classes.

    `elsewhere`: further data sets of the main domain on which DETR is scored.
    """
    main = sources[settings.main].label_set  # that the profile says the same is checked below
    for domain, its in sources.items():
        if its.label_set not in LABEL_SETS:
            raise ProfileError(
                f"{where}: {domain}: its label set {its.label_set!r} is none of panolib.labels.LABEL_SETS, "
                f"expected one of {', '.join(LABEL_SETS)}"
            )
        if domain in settings.targets:  # scored with networks of the main domain
            try:
                merged_ids(LABEL_SETS[main], LABEL_SETS[its.label_set])
            except ValueError as error:
                raise ProfileError(f"{where}: {domain}: {error}") from error
    named = [(settings.main, "detr.elsewhere", name) for name in elsewhere]
    for domain, section in settings.ladders.items():
        label_set = sources[domain].label_set
        if section.gap is not None and not sources[domain].has_styles:
            raise ProfileError(f"{where}: {domain}.gap: expected null: it has no styles, found settings")
        if section.label_set != label_set:
            raise ProfileError(
                f"{where}: {domain}.label_set: expected {label_set!r}, found {section.label_set!r}"
            )
        keys = ("semantic_source", "instance_source", "instance_selection")
        named += [(domain, f"{domain}.{key}", getattr(section, key)) for key in keys]
        named += [(domain, f"{domain}.target", f"{section.target}/{split}") for split in ("train", "val")]
        if section.validation is not None:
            named.append((domain, f"{domain}.validation", section.validation))
    if settings.experiments is not None:
        found = settings.experiments.sources.items()
        named += [(settings.main, f"experiments.sources.{key}", name) for key, name in found]
    for domain, key, name in named:
        try:
            sources[domain].check(name)
        except ValueError as error:
            raise ProfileError(f"{where}: {key}: {error}") from error


def performance_run(settings: Profile, runs: Mapping[str, Run], sources: Mapping, where: str) -> Run:
    """Time, memory and agreement of the core operations, on synthetic input and on our own embeddings.

    These are of the source-only network of one ladder: `domain` of the section, by default the main one.
    """
    values = dict(settings.performance)
    domain = values.pop("domain", settings.main)
    if domain not in settings.ladders:
        ladders = ", ".join(settings.ladders)
        raise ProfileError(f"{where}: performance.domain: found {domain!r}, expected one of {ladders}")
    ladder = settings.ladders[domain]
    seed = (ladder.seeds or settings.seeds)[0]
    network = runs[run_name(domain, "instance", "source_only", seed)]
    parents = {"instance": network, "clustering": network}
    values |= {"label_set": ladder.label_set, "validation": ladder.instance_selection}
    return Run(
        name=PERFORMANCE,
        domain=domain,
        branch="performance",
        kind="performance",
        spec=from_mapping(PerformanceSpec, values, where=f"{where}: performance"),
        parents=tuple(parents.items()),
        data=(sources[domain].fingerprint(ladder.instance_selection),),
    )
