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

An embedding baseline also chooses the clustering settings of its ladder, on images of its own domain and
inside the masks that the semantic baseline of the same rung predicts there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from panolib.profiles import from_mapping, load_yaml, project_root
from panolib.runs import Record, Run, Store

RUNGS = ("source_only", "abn", "adabn", "control", "self_trained", "oracle")
UNSUPERVISED_RUNGS = RUNGS[:-1]
BATCH_NORM_RUNGS = ("source_only", "abn", "adabn")
RUNG_LABELS = {
    "source_only": "source only",
    "abn": "ABN",
    "adabn": "AdaBN",
    "control": "control",
    "self_trained": "self-trained",
    "oracle": "oracle",
}


@dataclass(frozen=True)
class Domain:
    """A pair of source and target data, and the settings of every kind of run on it.

    The settings are mappings checked against the spec class of each kind when a run is built;
    `data` is checked against the class of the domain's data sets.
    """

    data: Mapping
    label_set: str
    semantic_source: str
    instance_source: str
    instance_selection: str
    target: str
    semantic_baseline: Mapping
    batch_norm: Mapping
    self_training: Mapping
    instance_baseline: Mapping
    instance_batch_norm: Mapping
    instance_self_training: Mapping
    panoptic: Mapping
    gap: Mapping | None


@dataclass(frozen=True)
class Experiments:
    """Settings of the thesis's experiments beside the ladder; `experiments` says what each is for."""

    seeds: tuple[int, ...]
    sources: Mapping[str, str]  # name -> data set, beside MIX
    networks: Mapping[str, Mapping]  # name -> what differs from the network of the semantic baseline
    monitor_interval: int  # iterations
    monitor_images: int  # of every data set
    algorithms: tuple[str, ...]
    epsilon_0: float  # of the decaying rings
    epsilon_tau: float  # iterations
    shares: tuple[float, ...]  # of the source, in a batch of BASE and CCM
    individual_shares: tuple[float, ...]  # the same of ICM
    truth_shares: tuple[float, ...]  # of wrong mask regions that are corrected
    painted_share: float  # of the true instances that guide the semantic branch
    consistency_weights: tuple[float, ...]
    consistency_seeds: tuple[int, ...]
    kernels: tuple[int, ...]  # of the morphology, pixels; 0: none
    crop_scale: tuple[float, float]  # of the side test with smaller source crops
    clustering_cost: Mapping  # sizes of the synthetic inputs, `kinds.ClusteringCostSpec`


@dataclass(frozen=True)
class Profile:
    """One YAML file of `notebooks/profiles`."""

    description: str
    seeds: tuple[int, ...]
    compute: Mapping
    city: Domain
    nuclei: Domain
    camvid: Mapping  # real streets, `data.sources.CamVidData`
    experiments: Experiments
    detr: Mapping  # DETR-panoptic, `detr.runs.DetrSettings`
    performance: Mapping  # sizes of the inputs of `bench`
    realtime: Mapping  # notebook 09, `realtime.runs.Realtime`


@dataclass(frozen=True)
class Study:
    profile_name: str
    profile: Profile
    runs: Mapping[str, Run]
    notebooks: Mapping[str, tuple[str, ...]]
    sources: Mapping[str, object]  # domain -> its data sets
    store: Store
    results: Path
    figures: Path

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.profile.seeds

    def get(self, name: str) -> Record:
        """The record of a run, trained first if it has to be. KeyError with near names for an unknown one."""
        if name not in self.runs:
            raise KeyError(f"no run {name!r} in the study; it has {sorted(self.runs)}")
        return self.store.get(self.runs[name])

    def ladder(self, domain: str, kind: str) -> dict[tuple[str, int], Record]:
        """{(rung, seed): record} of one kind ("semantic", "instance" or "panoptic") in one domain."""
        return {
            (rung, seed): self.get(run_name(domain, kind, rung, seed))
            for rung in RUNGS
            for seed in self.seeds
        }

    def prepare_data(self, *, n_workers: int = 1, progress: bool = True) -> None:
        """Render the embedded data sets that are not on disk yet."""
        for sources in self.sources.values():
            sources.prepare(n_workers=n_workers, progress=progress)

    def headline(self, record: Record) -> str:
        """The one number of a run that a list of runs shows."""
        metrics = record.metrics
        for name in ("pq_19", "pq_2", "miou_19", "miou_2", "miou_11"):
            if metrics.get(name) is not None:
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
        Name of a file in `notebooks/profiles` without ".yaml", or the path of another profile.
    root : Path, optional
        Folder that holds `cache`, `results` and `figures`; the project's by default.
    retrain_since : float, optional
        POSIX time; runs recorded before it count as missing.
    train : bool
        False, or the environment variable PANOLIB_TRAIN set to 0: a run that is not recorded is an error
        instead of being trained.
    """
    from panolib import kinds
    from panolib.detr import kinds as detr_kinds
    from panolib.detr import runs as detr_runs
    from panolib.experiments import declare_experiments
    from panolib.grid import Grid, declare_ladder
    from panolib.realtime import kinds as realtime_kinds
    from panolib.realtime import runs as realtime_runs

    root = project_root() if root is None else root
    path = (
        profile
        if isinstance(profile, Path)
        else project_root() / "notebooks" / "profiles" / f"{profile}.yaml"
    )
    profile = path.stem
    settings = from_mapping(Profile, load_yaml(path), where=path.name)
    sources = open_sources(settings, root, path.name)
    detr = detr_runs.read_settings(settings.detr, path.name)
    runs: dict[str, Run] = {}
    for domain in ("city", "nuclei"):
        for seed in settings.seeds:
            grid = Grid(
                domain, getattr(settings, domain), settings.compute, sources[domain], seed, path.name
            )
            declare_ladder(grid)
            if domain == "city":
                declare_experiments(grid, settings.experiments)
                detr_runs.declare_detr(grid, detr, sources["camvid"])
            runs |= grid.runs
    runs[PERFORMANCE] = performance_run(settings, runs, sources["city"], path.name)
    runs |= realtime_runs.declare_realtime(settings, sources, runs, path.name)
    notebooks = notebook_runs(settings.seeds, settings.experiments) | {
        "09_realtime_adaptation": realtime_runs.notebook_runs(settings),
        "10_detr_panoptic": detr_runs.notebook_runs(detr, settings.seeds),
    }
    functions = [module.make_kinds(sources) for module in (kinds, realtime_kinds, detr_kinds)]
    store = Store(
        root / "results" / profile,
        {kind: function for found in functions for kind, function in found.items()},
        retrain_since=retrain_since,
        train=train and os.environ.get("PANOLIB_TRAIN", "1") != "0",
    )
    return Study(
        profile_name=profile,
        profile=settings,
        runs=runs,
        notebooks=dict(sorted(notebooks.items())),
        sources=sources,
        store=store,
        results=root / "results" / profile,
        figures=root / "figures" / profile,
    )


def open_sources(settings: Profile, root: Path, where: str) -> dict[str, object]:
    """Data sets by domain; the folders of real images may be set in the environment."""
    from panolib.data import sources

    nuclei, camvid = (
        {**section, "root": os.environ.get(variable, section["root"])}
        for section, variable in (
            (settings.nuclei.data, "PANOLIB_NUCLEI_ROOT"),
            (settings.camvid, "PANOLIB_CAMVID_ROOT"),
        )
    )
    city = from_mapping(sources.CityData, settings.city.data, where=f"{where}: city.data")
    city = sources.CitySources(city, root)
    nuclei = from_mapping(sources.NucleiData, nuclei, where=f"{where}: nuclei.data")
    camvid = from_mapping(sources.CamVidData, camvid, where=f"{where}: camvid")
    return {
        "city": city,
        "camvid": sources.CamVidSources(camvid, city, root),
        "nuclei": sources.NucleiSources(nuclei, root),
    }


def is_available(study: Study, name: str) -> bool:
    """Whether a run is recorded, or the data of its domain is on this machine so that it can be trained."""
    recorded = study.store.load(study.runs[name]) is not None
    return recorded or study.sources[name.split("-")[0]].available()


def experiment_seeds(seeds: tuple[int, ...], experiments: Experiments | None) -> tuple[int, ...]:
    """Seeds of a profile with which the experiments beside the ladder are run."""
    return () if experiments is None else tuple(seed for seed in experiments.seeds if seed in seeds)


def notebook_runs(
    seeds: tuple[int, ...], experiments: Experiments | None = None
) -> dict[str, tuple[str, ...]]:
    """Runs that each notebook of the thesis's experiments asks for by name; those of the ladder at least."""
    from panolib import progress_runs, threat_runs

    own_seeds = experiment_seeds(seeds, experiments)

    def names(domain: str, kind: str) -> tuple[str, ...]:
        return tuple(run_name(domain, kind, rung, seed) for seed in seeds for rung in RUNGS)

    def variants(kind: str, rungs: tuple[str, ...], found: Iterable[str]) -> tuple[str, ...]:
        return tuple(
            run_name("city", kind, rung, seed, variant)
            for variant in found for seed in own_seeds for rung in rungs
        )  # fmt: skip

    sources = [] if experiments is None else [f"{name}.v2" for name in experiments.sources]
    networks = [] if experiments is None else [f"mix.{name}" for name in experiments.networks]

    gaps = tuple(run_name("city", "gap", rung, seed) for seed in seeds for rung in ("source_only", "abn"))
    return {
        "00_data": gaps,
        "01_dataset_mixing": names("city", "semantic")
        + variants("semantic", (*BATCH_NORM_RUNGS, "self_trained"), sources)
        + variants("semantic", (*BATCH_NORM_RUNGS, "self_trained", "oracle"), networks)
        + variants("semantic", ("source_only", "self_trained"), ["monitored"]),
        "02_clustering_comparison": progress_runs.clustering_comparison(experiments) if experiments else (),
        "03_category_models": progress_runs.category_models(experiments) if experiments else (),
        "04_forgetting": progress_runs.forgetting(experiments) if experiments else (),
        "05_guided_masks": () if experiments is None else threat_runs.guided_masks(experiments, seeds),
        "06_instance_results": () if experiments is None else threat_runs.instance_results(experiments),
        "07_panoptic_results": names("city", "semantic")
        + names("city", "instance")
        + names("city", "panoptic")
        + variants("panoptic", ("abn", "self_trained"), networks),
        "08_nuclei": names("nuclei", "semantic") + names("nuclei", "instance") + names("nuclei", "panoptic"),
        "14_performance": (PERFORMANCE,),
    }


def performance_run(settings: Profile, runs: Mapping[str, Run], sources, where: str) -> Run:
    """Time, memory and agreement of the core operations, on synthetic input and on our own embeddings."""
    from panolib.bench import PerformanceSpec

    network = runs[run_name("city", "instance", "source_only", settings.seeds[0])]
    parents = {"instance": network, "clustering": network}
    values = {"label_set": settings.city.label_set, "validation": settings.city.instance_selection}
    spec = from_mapping(
        PerformanceSpec, {**settings.performance, **values}, where=f"{where}: performance"
    )
    return Run(
        name=PERFORMANCE,
        kind="performance",
        spec=spec,
        parents=tuple(parents.items()),
        data=(sources.fingerprint(settings.city.instance_selection),),
    )
