"""Objectness (thesis 9.1): a classifier of clusters beside the ladder, as a filter and as a ranking.

It learns from labelled source images with the networks with which self-training of instances begins: the
masks of the self-trained DeepLab, the embeddings of the rung from which both branches go on. Then:

==========  ===================================================  =====================================
part        question                                             tag values
==========  ===================================================  =====================================
classifier  does it tell real clusters from false ones, on
            images of the source, and of the target?
training    which filter of pseudo-labels does self-training     filter (none, stability, objectness)
            want? scored without any filter
ranking     does it rank and drop detections of the
            self-trained networks?
==========  ===================================================  =====================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from panolib.config import Count, Natural, NonNegativePair, Share, from_mapping, later, spec
from panolib.lab.job import Job
from panolib.lab.run import Run
from panolib.labels import LABEL_SETS
from panolib.objectness.candidates import Candidates, candidates
from panolib.objectness.classifier import Objectness, fit
from panolib.scoring.objectness import score_filters, score_ranking
from panolib.study.grid import Grid
from panolib.study.kinds import Sources, open_data
from panolib.study.parents import clustering_of, parent_network
from panolib.study.run_specs import ScoresSpec
from panolib.study.settings import InDomains
from panolib.training.specs import StudentOrTeacher

EXPERIMENT = "objectness"
VERSIONS = {"objectness": 1, "objectness_ranking": 1}


@spec(kw_only=True)
class ObjectnessSpec(ScoresSpec):
    """Training of both classifiers on `n_images` of the source, and their scores on two labelled sets."""

    source: str
    n_images: Count  # of the source, the first ones; the scored sets are whole
    selection: str  # of the source: images that nothing was trained on
    min_size: Natural  # of masks and clusters, pixels of the embedding grid
    noise_blur: NonNegativePair | None  # of the view that the stability compares with
    spoilt: bool  # true instances spoilt on purpose are negatives as well
    components: Count
    trees: Count
    leaves: Annotated[int, Field(ge=2)]
    folds: Annotated[int, Field(ge=2)]
    hidden: Count
    head_iterations: Count
    scored: StudentOrTeacher = later("student")  # of both parents


@spec(kw_only=True)
class RankingSpec(ScoresSpec):
    """Detections of trained networks, ranked and dropped by objectness; nothing is trained."""

    min_size: Natural
    min_region: Natural
    noise_blur: NonNegativePair | None
    least: Share  # detections that are less probably an object are dropped
    scored: StudentOrTeacher = later("student")


@spec
class ObjectnessSettings(InDomains):
    """Section `objectness` of a profile."""

    classifier: Mapping  # what `ObjectnessSpec` says of the two classifiers, and `n_images`
    least: Share  # of the probability, in self-training and of detections
    min_stability: Share  # of the other filter
    iterations: Count  # of each self-training
    monitor_interval: Count  # iterations
    monitor_images: Count


def objectness(sources: Sources, run: Run, job: Job) -> dict:
    """Train the classifiers; metrics of every filter on images of the source and of the target."""
    spec = run.spec
    found = _candidates(sources, run, job, spec.source, spec.n_images, spoil=spec.spoilt)
    model = fit(
        found, components=spec.components, trees=spec.trees, leaves=spec.leaves, folds=spec.folds,
        hidden=spec.hidden, iterations=spec.head_iterations, seed=spec.seed,
    )  # fmt: skip
    clusters = ~found.spoilt
    metrics: dict[str, Any] = {
        "trained": {"n_clusters": int(clusters.sum()), "n_real": int(found.real[clusters].sum()),
                    "n_spoilt": int(found.spoilt.sum())},
        "data_sets": {},
    }  # fmt: skip
    for name in (spec.selection, spec.validation):
        scored = _candidates(sources, run, job, name)
        metrics["data_sets"][name] = score_filters(model, scored, save_counts=job.save_counts, name=name)
    job.finish({"model": model.state()})
    return metrics


def objectness_ranking(sources: Sources, run: Run, job: Job) -> dict:
    """Official AP by every ranking, and PQ and threat score with and without doubtful detections."""
    spec, label_set = run.spec, LABEL_SETS[run.spec.label_set]
    metrics = score_ranking(
        parent_network(job, "semantic", spec.scored),
        parent_network(job, "instance", spec.scored),
        Objectness.from_state(job.parent("objectness")["model"]),
        open_data(sources, job, spec.validation),
        label_set,
        **clustering_of(job),
        min_size=spec.min_size,
        min_region=spec.min_region,
        least={"boosting": spec.least, "head": spec.least},
        blur=spec.noise_blur,
        seed=spec.seed,
        save_counts=job.save_counts,
        label=f"{run.name}: score",
    )
    job.finish({})
    return metrics


def _candidates(
    sources: Sources, run: Run, job: Job, name: str, n: int | None = None, *, spoil: bool = False
) -> Candidates:
    """The clusters of the first `n` images of a data set, or of all."""
    spec, dataset = run.spec, open_data(sources, job, name)
    samples = (dataset[i] for i in range(len(dataset) if n is None else min(n, len(dataset))))
    return candidates(
        parent_network(job, "semantic", spec.scored),
        parent_network(job, "instance", spec.scored),
        samples,
        LABEL_SETS[spec.label_set],
        min_size=spec.min_size,
        blur=spec.noise_blur,
        seed=spec.seed,
        spoil=spoil,
        **clustering_of(job),
    )


def read_settings(settings: Mapping | None, where: str) -> ObjectnessSettings | None:
    """The section; None where it is left out."""
    where = f"{where}: objectness"
    return None if settings is None else from_mapping(ObjectnessSettings, settings, where=where)


def declare_objectness(grid: Grid, settings: ObjectnessSettings | None) -> None:
    """The classifier of a domain that the settings name, its use in self-training, and as a ranking."""
    if settings is None or not settings.takes(grid.domain, grid.seed):
        return
    domain, trained = grid.settings, grid.run("instance", "self_trained")
    networks = {
        "semantic": grid.run("semantic", "self_trained"), "clustering": grid.run("instance", "source_only"),
    }  # fmt: skip
    common = {"min_size": trained.spec.min_area, "noise_blur": trained.spec.noise_blur, "where": "objectness"}
    source, selection = domain.instance_source, domain.instance_selection
    classifier = grid.add(
        "objectness", "objectness", "", ObjectnessSpec, "", networks | {"instance": grid.start("instance")},
        (source, selection, grid.val), source=source, selection=selection,
        **settings.classifier, **common,
    )  # fmt: skip
    grid.tag(EXPERIMENT, classifier, part="classifier")

    data = (grid.val,)
    monitor = {"interval": settings.monitor_interval, "n_images": settings.monitor_images, "data": data}
    filters = {
        "none": {"min_stability": None},
        "stability": {"min_stability": settings.min_stability},
        "objectness": {
            "min_stability": None, "objectness": settings.least, "parents": {"objectness": classifier},
        },
    }  # fmt: skip
    for name, values in filters.items():
        variant = f"filter.{name}"
        run = grid.instance_self_training(
            "self_trained", variant, data=data, monitor=monitor, iterations=settings.iterations,
            where="objectness", **values,
        )  # fmt: skip
        scores = grid.panoptic("self_trained", networks["semantic"], run, variant)
        grid.tag(EXPERIMENT, run, scores, part="training", filter=name)
    ranking = declare_ranking(
        grid, settings, "self_trained", networks["semantic"], trained, classifier, where="objectness"
    )
    grid.tag(EXPERIMENT, ranking, part="ranking")


def declare_ranking(
    grid: Grid, settings: ObjectnessSettings, rung: str, semantic: Run, instance: Run, classifier: Run,
    variant: str = "", *, where: str, **values,
) -> Run:  # fmt: skip
    """Scores of two networks with and without the detections that the classifier doubts."""
    trained = grid.run("instance", "self_trained").spec
    parents = {
        "semantic": semantic, "clustering": grid.run("instance", "source_only"), "instance": instance,
        "objectness": classifier,
    }  # fmt: skip
    return grid.add(
        "objectness_ranking", "objectness", rung, RankingSpec, "", parents, (grid.val,), variant=variant,
        min_region=grid.settings.panoptic["min_region"], least=settings.least, min_size=trained.min_area,
        noise_blur=trained.noise_blur, where=where, **values,
    )  # fmt: skip
