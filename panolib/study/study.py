"""Every run of the study as data: the whole experimental grid on one page.

A notebook calls `load(profile)`, asks for runs by name and gets their records: replayed where they
were recorded, trained where they were not. `grid.py` declares the ladder, `experiments.py` the thesis's
experiments beside it; `kinds.py` says how a run of each kind is executed.

The ladder of rungs, the same in both domains (city, nuclei):

=============  ====================================  ===========================================
rung           semantic branch                       instance branch
=============  ====================================  ===========================================
source_only    cross-entropy on the source           embedding losses on the source
abn            source_only + mixed batch statistics  the same
adabn          source_only + target statistics       the same
control        adabn + source-only continuation      adabn + source-only continuation
self_trained   adabn + SAC self-training             adabn + self-training on clustered instances
oracle         cross-entropy on the target           embedding losses on the target
=============  ====================================  ===========================================

A profile may let control and self-training start from abn (`self_training_start`).

An embedding baseline also chooses the clustering settings of its ladder, on images of its own domain and
inside the masks that the semantic baseline of the same rung predicts there.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panolib.config import ProfileError, from_mapping, project_root
from panolib.lab.records import DamagedRecord
from panolib.lab.runs import Record, Run, Store
from panolib.study.declared import one_run_for_each_key, with_versions
from panolib.study.settings import Domain, Experiments, MissingSection, Profile, find_profile, read_profile

__all__ = [
    "BATCH_NORM_RUNGS", "PERFORMANCE", "RUNGS", "RUNG_LABELS", "UNSUPERVISED_RUNGS", "Domain", "Experiments",
    "MissingSection", "Profile", "Study", "is_available", "load", "run_name",
]  # fmt: skip

RUNGS = ("source_only", "abn", "adabn", "control", "self_trained", "oracle")
UNSUPERVISED_RUNGS = RUNGS[:-1]
BATCH_NORM_RUNGS = ("source_only", "abn", "adabn")
GAP_RUNGS = ("source_only", "abn")
RUNG_LABELS = {
    "source_only": "source only",
    "abn": "ABN",
    "adabn": "AdaBN",
    "control": "control",
    "self_trained": "self-trained",
    "oracle": "oracle",
}


# notebook -> sections of the profile without which it has nothing to say
NEEDS = {
    "00_data": (),
    "01_dataset_mixing": ("experiments",),
    "02_clustering_comparison": ("experiments",),
    "03_category_models": ("experiments",),
    "04_forgetting": ("experiments",),
    "05_guided_masks": ("experiments",),
    "06_instance_results": ("experiments",),
    "07_panoptic_results": (),
    "08_nuclei": ("nuclei",),
    "09_realtime_adaptation": ("realtime",),
    "10_detr_panoptic": ("detr",),
    "14_performance": ("performance",),
}


class Notebooks(dict[str, tuple[str, ...]]):
    """{notebook: runs that it asks for}; MissingSection for one whose section the profile leaves out."""

    def __init__(self, runs: Mapping[str, tuple[str, ...]], profile: Profile, where: str):
        missing = {name: [part for part in NEEDS[name] if part in profile.left_out()] for name in NEEDS}
        self.left_out = {
            name: f"{where}: no section {parts[0]!r}, which {name} needs"
            for name, parts in missing.items()
            if parts
        }
        super().__init__((name, runs[name]) for name in NEEDS if name not in self.left_out)

    def __missing__(self, name: str) -> tuple[str, ...]:
        if name in self.left_out:
            raise MissingSection(self.left_out[name])
        raise KeyError(name)


@dataclass(frozen=True)
class Study:
    """One profile: its runs, its data, what is recorded, and where the results go.

    Attributes
    ----------
    profile_name : str
        Folder of the results.
    profile_argument : str
        What `load` and the option --profile take for this profile from every folder: its name, or a path.
    profile : Profile
    runs : mapping of str to Run
    notebooks : Notebooks
    sources : mapping of str to data sets
        By domain: "city", and "nuclei" and "camvid" where the profile has them.
    store : Store
    results, figures : Path
    """

    profile_name: str
    profile_argument: str
    profile: Profile
    runs: Mapping[str, Run]
    notebooks: Notebooks
    sources: Mapping[str, object]  # domain -> its data sets
    store: Store
    results: Path
    figures: Path

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.profile.seeds

    def get(self, name: str) -> Record:
        """The record of a run, trained first if it has to be. LookupError, with near names, for none."""
        if name not in self.runs:
            near = ", ".join(difflib.get_close_matches(name, self.runs)) or "none"
            raise LookupError(
                f"no run {name!r} in the study of profile {self.profile_name}; near names: {near}; sections "
                f"that the profile leaves out: {', '.join(self.profile.left_out()) or 'none'}"
            )
        return self.store.get(self.runs[name])

    def section(self, name: str) -> Any:
        """Settings of a section that may be left out. MissingSection where it is."""
        settings = getattr(self.profile, name)
        if settings is None:
            raise MissingSection(f"profile {self.profile_name}: expected section {name!r}, which is left out")
        return settings

    def ladder(self, domain: str, kind: str) -> dict[tuple[str, int], Record]:
        """{(rung, seed): record} of one kind ("semantic", "instance" or "panoptic") in one domain."""
        return {
            (rung, seed): self.get(run_name(domain, kind, rung, seed))
            for rung in RUNGS
            for seed in self.seeds
        }

    def prepare_data(
        self, *, n_workers: int = 1, progress: bool = True, domains: Iterable[str] | None = None
    ) -> None:
        """Render the embedded data sets that are not on disk yet; of some domains only, or of all."""
        for domain in self.sources if domains is None else domains:
            self.sources[domain].prepare(n_workers=n_workers, progress=progress)

    def headline(self, record: Record) -> str:
        """The one number of a run that a list of runs shows."""
        metrics = record.metrics
        for name in ("pq_19", "pq_2", "miou_19", "miou_2", "miou_11"):
            if metrics.get(name) is None:
                continue
            if not isinstance(metrics[name], int | float):
                file = self.store.folder(record.run) / "metrics.json"
                raise DamagedRecord(f"{file}: {name}: expected a number, found {metrics[name]!r}")
            return f"{name} {100 * metrics[name]:.1f} %"
        return ""


PERFORMANCE = "city-performance"


def run_name(domain: str, kind: str, rung: str, seed: int, variant: str = "") -> str:
    """Folder name of a run: "city-semantic-self_trained-s0", "city-semantic-self_trained-mix.v3-s0"."""
    return "-".join(part for part in (domain, kind, rung, variant, f"s{seed}") if part)


def load(
    profile: str | Path, *, root: Path | None = None, retrain_since: float | None = None, train: bool = True
) -> Study:
    """The study with one profile.

    Parameters
    ----------
    profile : str or Path
        Name of a file in `notebooks/profiles` without ".yaml", or the path of another profile, whose results
        then lie in the folder of its own name.
    root : Path, optional
        Folder that holds `cache`, `results` and `figures`; the project's by default.
    retrain_since : float, optional
        POSIX time; runs recorded before it count as missing.
    train : bool
        False, or the environment variable PANOLIB_TRAIN set to 0: a run that is not recorded is an error
        instead of being trained.

    Raises
    ------
    TypeError
        For a profile or a time of another type, and in a notebook whose `retrain` is neither True nor False.
    """
    from panolib.related.detr import kinds as detr_kinds
    from panolib.related.detr import runs as detr_runs
    from panolib.related.realtime import kinds as realtime_kinds
    from panolib.related.realtime import runs as realtime_runs
    from panolib.study import kinds
    from panolib.study.experiments import declare_experiments
    from panolib.study.grid import Grid, declare_ladder

    if not isinstance(profile, str | Path):
        raise TypeError(f"profile is {profile!r}, expected its name as a text, such as 'cpu', or a path")
    if not isinstance(retrain_since, float | int | None) or isinstance(retrain_since, bool):
        raise TypeError(f"retrain_since is {retrain_since!r}, expected a POSIX time or None")
    _check_retrain()
    path = find_profile(profile)
    name, shipped = path.stem, project_root() / "notebooks" / "profiles" / path.name
    root = project_root() if root is None else root
    if root == project_root() and path != shipped and shipped.is_file():
        raise ProfileError(f"{path}: its results would be those of {shipped}; expected another file name")
    settings, where = read_profile(path), path.name
    sources = open_sources(settings, root, where)
    detr = None if settings.detr is None else detr_runs.read_settings(settings.detr, where)
    check_data_sets(settings, () if detr is None else detr.elsewhere, sources, where)
    runs: dict[str, Run] = {}
    for domain in (domain for domain in ("city", "nuclei") if domain in sources):
        for seed in settings.seeds:
            grid = Grid(domain, getattr(settings, domain), settings.compute, sources[domain], seed, where)
            declare_ladder(grid)
            if domain == "city" and settings.experiments is not None:
                declare_experiments(grid, settings.experiments)
            if domain == "city" and detr is not None:
                detr_runs.declare_detr(grid, detr, sources.get("camvid"))
            runs |= grid.runs
    if settings.performance is not None:
        runs[PERFORMANCE] = performance_run(settings, runs, sources["city"], where)
    if settings.realtime is not None:
        runs |= realtime_runs.declare_realtime(settings, sources, runs, where)
    notebooks = notebook_runs(settings)
    if settings.realtime is not None:
        notebooks["09_realtime_adaptation"] = realtime_runs.notebook_runs(settings)
    if detr is not None:
        notebooks["10_detr_panoptic"] = detr_runs.notebook_runs(detr, camvid="camvid" in sources)
    notebooks = Notebooks(notebooks, settings, where)
    for notebook, asked in notebooks.items():
        undeclared = [run for run in asked if run not in runs]
        if undeclared:
            raise ProfileError(
                f"{where}: {notebook} asks for runs that nothing declares: {', '.join(undeclared)}"
            )
    modules = (kinds, realtime_kinds, detr_kinds)
    versions = {kind: version for module in modules for kind, version in module.VERSIONS.items()}
    functions = [module.make_kinds(sources) for module in modules]
    argument = name if path == shipped else str(path)
    store = Store(
        root / "results" / name,
        {kind: function for found in functions for kind, function in found.items()},
        retrain_since=retrain_since,
        train=train and os.environ.get("PANOLIB_TRAIN", "1") != "0",
        profile=argument,
    )
    return Study(
        profile_name=name,
        profile_argument=argument,
        profile=settings,
        runs=one_run_for_each_key(with_versions(runs, versions), store),
        notebooks=notebooks,
        sources=sources,
        store=store,
        results=root / "results" / name,
        figures=root / "figures" / name,
    )


def _check_retrain() -> None:
    """Raise TypeError in a notebook whose parameter `retrain` is no truth value.

    papermill's `-p retrain false` is a text; every text is true, and would train what is recorded again.
    """
    notebook = vars(sys.modules["__main__"])
    value = notebook.get("retrain", False)
    if "get_ipython" in notebook and not isinstance(value, bool):
        raise TypeError(
            f"notebook parameter retrain is {value!r}, expected True or False (papermill: -p retrain False)"
        )


def open_sources(settings: Profile, root: Path, where: str) -> dict[str, Any]:
    """Data sets by domain; the folders of real images may be set in the environment."""
    from panolib.data import sources

    city = from_mapping(sources.CityData, settings.city.data, where=f"{where}: city.data")
    found: dict[str, Any] = {"city": sources.CitySources(city, root)}
    if settings.camvid is not None:
        section = _with_root(settings.camvid, "PANOLIB_CAMVID_ROOT")
        camvid = from_mapping(sources.CamVidData, section, where=f"{where}: camvid")
        found["camvid"] = sources.CamVidSources(camvid, found["city"], root)
    if settings.nuclei is not None:
        section = _with_root(settings.nuclei.data, "PANOLIB_NUCLEI_ROOT")
        nuclei = from_mapping(sources.NucleiData, section, where=f"{where}: nuclei.data")
        found["nuclei"] = sources.NucleiSources(nuclei, root)
    return found


def _with_root(section: Mapping, variable: str) -> Mapping:
    """A section whose folder is that of the environment where it says one."""
    return {**section, "root": os.environ[variable]} if variable in os.environ else section


def check_data_sets(
    settings: Profile, elsewhere: Iterable[str], sources: Mapping[str, Any], where: str
) -> None:
    """Raise ProfileError for a data set that its domain does not have, or that has other classes.

    `elsewhere`: further data sets of the city on which DETR is scored.
    """
    named = [("city", "detr.elsewhere", name) for name in elsewhere]
    for domain in (domain for domain in ("city", "nuclei") if domain in sources):
        section, label_set = getattr(settings, domain), sources[domain].label_set
        if section.label_set != label_set:
            raise ProfileError(
                f"{where}: {domain}.label_set: expected {label_set!r}, found {section.label_set!r}"
            )
        keys = ("semantic_source", "instance_source", "instance_selection")
        named += [(domain, f"{domain}.{key}", getattr(section, key)) for key in keys]
        named += [(domain, f"{domain}.target", f"{section.target}/{split}") for split in ("train", "val")]
    if settings.experiments is not None:
        found = settings.experiments.sources.items()
        named += [("city", f"experiments.sources.{key}", name) for key, name in found]
    if settings.nuclei is not None and settings.nuclei.gap is not None:
        raise ProfileError(f"{where}: nuclei.gap: expected null: only streets have styles, found settings")
    for domain, key, name in named:
        try:
            sources[domain].check(name)
        except ValueError as error:
            raise ProfileError(f"{where}: {key}: {error}") from error


def is_available(study: Study, name: str) -> bool:
    """Whether a run is recorded, or the data of its domain is on this machine so that it can be trained."""
    if name not in study.runs:  # of a section that the profile leaves out
        return False
    run = study.runs[name]
    return study.store.load(run) is not None or study.sources[run.domain].available()


def notebook_runs(profile: Profile) -> dict[str, tuple[str, ...]]:
    """Runs that each notebook of the thesis's experiments asks for by name, where its sections are there."""
    from panolib.study import progress_runs, threat_runs

    seeds, experiments = profile.seeds, profile.experiments

    def names(domain: str, kind: str) -> tuple[str, ...]:
        return tuple(run_name(domain, kind, rung, seed) for seed in seeds for rung in RUNGS)

    def variants(kind: str, rungs: tuple[str, ...], found: Iterable[str]) -> tuple[str, ...]:
        return tuple(
            run_name("city", kind, rung, seed, variant)
            for variant in found for seed in experiments.seeds for rung in rungs
        )  # fmt: skip

    gap_rungs = () if profile.city.gap is None else GAP_RUNGS
    ladder = {kind: names("city", kind) for kind in ("semantic", "instance", "panoptic")}
    found = {
        "00_data": tuple(run_name("city", "gap", rung, seed) for seed in seeds for rung in gap_rungs),
        "07_panoptic_results": ladder["semantic"] + ladder["instance"] + ladder["panoptic"],
        "14_performance": (PERFORMANCE,),
    }
    if profile.nuclei is not None:
        kinds = ("semantic", "instance", "panoptic")
        found["08_nuclei"] = tuple(name for kind in kinds for name in names("nuclei", kind))
    if experiments is not None:
        sources = [f"{name}.v2" for name in experiments.sources]
        networks = [f"mix.{name}" for name in experiments.networks]
        found["01_dataset_mixing"] = (
            *ladder["semantic"],
            *variants("semantic", (*BATCH_NORM_RUNGS, "self_trained"), sources),
            *variants("semantic", (*BATCH_NORM_RUNGS, "self_trained", "oracle"), networks),
            *variants("semantic", ("source_only", "self_trained"), ["monitored"]),
        )
        found["02_clustering_comparison"] = progress_runs.clustering_comparison(experiments)
        found["03_category_models"] = progress_runs.category_models(experiments)
        found["04_forgetting"] = progress_runs.forgetting(experiments)
        found["05_guided_masks"] = threat_runs.guided_masks(experiments, seeds)
        found["06_instance_results"] = threat_runs.instance_results(experiments)
        found["07_panoptic_results"] += variants("panoptic", ("abn", "self_trained"), networks)
    return found


def performance_run(settings: Profile, runs: Mapping[str, Run], sources, where: str) -> Run:
    """Time, memory and agreement of the core operations, on synthetic input and on our own embeddings."""
    from panolib.bench.operations import PerformanceSpec

    network = runs[run_name("city", "instance", "source_only", settings.seeds[0])]
    parents = {"instance": network, "clustering": network}
    values = {"label_set": settings.city.label_set, "validation": settings.city.instance_selection}
    spec = from_mapping(PerformanceSpec, {**settings.performance, **values}, where=f"{where}: performance")
    return Run(
        name=PERFORMANCE,
        domain="city",
        kind="performance",
        spec=spec,
        parents=tuple(parents.items()),
        data=(sources.fingerprint(settings.city.instance_selection),),
    )
