"""The ladder of one network for mask and embedding, and how its runs are executed.

It has the rungs of the two networks' ladder, their settings and their panoptic scores; the panoptic runs have
one parent in both roles.
"""

from __future__ import annotations

from collections.abc import Mapping

from panolib.config import Positive, from_mapping, spec
from panolib.lab.job import Job
from panolib.lab.run import Run
from panolib.labels import LABEL_SETS
from panolib.study.grid import Grid, over_baseline, panoptic_rungs, tag_rungs
from panolib.study.kinds import (
    Sources,
    adapted,
    chosen_clustering,
    finish,
    open_data,
    self_trained_metrics,
    semantic_metrics,
)
from panolib.study.parents import clustering_of
from panolib.study.settings import Domain
from panolib.study.study import BATCH_NORM_RUNGS
from panolib.training import shared
from panolib.training.run_specs import SharedBaselineSpec, SharedBatchNormSpec, SharedSelfTrainingSpec
from panolib.training.specs import SharedNetworks

VARIANT = "shared"  # of the panoptic runs

VERSIONS = {"shared_baseline": 1, "shared_batch_norm": 1, "shared_self_training": 1}


@spec
class Shared:
    """The section `shared` of a domain; what it does not say is as in the networks of the two branches.

    `network` changes settings of `SharedNetworks`, `baseline` of `SharedBaselineSpec`, `self_training` of
    `SharedSelfTrainingSpec`. `oracle` False leaves that rung out, where the domain has one; `seeds` are
    those of the ladder that shared networks are trained with too, all of them if it does not say.
    """

    embedding_weight: Positive = 1.0  # of the instance losses beside the semantic ones
    network: Mapping | None = None
    baseline: Mapping | None = None
    self_training: Mapping | None = None
    oracle: bool = True
    seeds: tuple[int, ...] | None = None


def shared_baseline(sources: Sources, run: Run, job: Job) -> dict:
    """Supervised training of both heads; metrics: IoU, and the clustering settings inside its own masks."""
    spec, label_set = run.spec, LABEL_SETS[run.spec.label_set]
    model = shared.train_shared_baseline(spec, job, open_data(sources, job, spec.source), label_set)
    model = finish(job, model)
    chosen = chosen_clustering(sources, job, model.semantic, model.instance)
    return semantic_metrics(sources, job, model.semantic) | chosen


def shared_batch_norm(sources: Sources, run: Run, job: Job) -> dict:
    """ABN or AdaBN of a shared network; metrics: IoU."""
    return semantic_metrics(sources, job, finish(job, adapted(sources, job)).semantic)


def shared_self_training(sources: Sources, run: Run, job: Job) -> dict:
    """Self-training of both heads; metrics: IoU of the student, and of the teacher under "teacher"."""
    spec = run.spec
    student, teacher = shared.shared_self_train(
        spec,
        job,
        job.parent("start")["model"],
        open_data(sources, job, spec.source),
        open_data(sources, job, spec.target),
        LABEL_SETS[spec.label_set],
        clustering_of(job),
    )
    return self_trained_metrics(sources, job, student, teacher, head="semantic")


def declare_shared(grid: Grid) -> None:
    """The rungs of shared networks and their panoptic scores, where the domain has a section for them."""
    settings = grid.settings
    if settings.shared is None:
        return
    where = f"{grid.domain}.shared"
    own = from_mapping(Shared, settings.shared, where=f"{grid.where}: {where}")
    if own.seeds is not None and grid.seed not in own.seeds:
        return
    source = settings.semantic_source  # things of images without instance labels are in no instance term
    networks = {"semantic": settings.semantic_baseline, "instance": settings.instance_baseline}
    networks = {branch: baseline["network"] for branch, baseline in networks.items()}
    networks = over_baseline(SharedNetworks, networks, own.network or {})
    common = {"network": networks, "where": where}
    runs = {}
    fields = over_baseline(SharedBaselineSpec, settings.instance_baseline, own.baseline or {})
    trained = _self_training_fields(settings, own.self_training or {})
    budget = {}
    if settings.equal_budgets:
        budget["iterations"] = fields["iterations"] + trained["iterations"]
    labelled_sets = {"source_only": (source, settings.instance_selection, {})}
    if grid.has_oracle and own.oracle:
        labelled_sets["oracle"] = grid.train, grid.train, budget
    for rung, (labelled, selection, values) in labelled_sets.items():
        runs[rung] = grid.add(
            "shared_baseline", "shared", rung, SharedBaselineSpec, "", {},
            (labelled, selection, grid.val),
            **fields | common | {"source": labelled, "selection": selection} | values,
            embedding_weight=own.embedding_weight,
        )  # fmt: skip
    for rung in BATCH_NORM_RUNGS[1:]:
        runs[rung] = grid.add(
            "shared_batch_norm", "shared", rung, SharedBatchNormSpec, "batch_norm",
            {"start": runs["source_only"]}, (source, grid.unlabelled, grid.val),
            source=source if rung == "abn" else None, target=grid.unlabelled, **common,
        )  # fmt: skip
    for rung in ("control", "self_trained"):
        control = {"target_weight": 0.0} if rung == "control" else {}
        runs[rung] = grid.add(
            "shared_self_training", "shared", rung, SharedSelfTrainingSpec, "",
            {"start": runs[settings.self_training_start], "clustering": runs["source_only"]},
            (source, grid.unlabelled, grid.val),
            **trained | common | {"source": source, "target": grid.unlabelled} | control,
            embedding_weight=own.embedding_weight,
        )  # fmt: skip
    tag_rungs(grid, f"{grid.domain} shared", runs, panoptic_rungs(grid, runs, runs, VARIANT))


def _self_training_fields(settings: Domain, own: Mapping) -> dict:
    """SAC's settings, those of the instance losses and pseudo-instances, and over both the section's own."""
    cls = SharedSelfTrainingSpec
    instance = over_baseline(cls, settings.instance_baseline, settings.instance_self_training)
    semantic = over_baseline(cls, settings.semantic_baseline, settings.self_training)
    inherited = ("weights", "margins", "min_area", "algorithm", "min_stability", "rotation")
    return over_baseline(cls, semantic | {name: instance[name] for name in inherited}, own)
