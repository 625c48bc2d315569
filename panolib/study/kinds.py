"""How a run of each kind is executed: open data, train or adapt, evaluate, return metrics.

`grid.py` declares the runs; the training loops live in `training/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from panolib.active.pairs import unpacked
from panolib.clustering.corrected_masks import corrected
from panolib.data.render import city
from panolib.data.samples import Sample
from panolib.inference.views import embedded_in, seen_in
from panolib.lab.job import Job
from panolib.lab.run import Run
from panolib.labels import LABEL_SETS
from panolib.objectness.classifier import Objectness
from panolib.scoring import classical as evaluate_classical
from panolib.scoring import evaluate
from panolib.scoring import threat as evaluate_threat
from panolib.scoring.instance_monitor import InstanceMonitor
from panolib.scoring.semantic_monitor import SemanticMonitor
from panolib.study.parents import (
    cleanup_of,
    clustering_of,
    has_teacher,
    learned_classes,
    parent_network,
    parent_spec,
)
from panolib.training import instance, semantic
from panolib.training.batch_norm import adapt_batch_norm
from panolib.training.instance_targets import learned_ids
from panolib.training.loop import unwatched

STYLE_GROUPS = ("photometry", "texture", "geometry", "statistics", "shapes")
Sources = Mapping[str, object]  # domain -> its data sets

# {function of this module: version}. A version is a part of every key: whoever changes what a kind computes
# raises it (tests/unit/test_versions.py).
VERSIONS = {
    "semantic_baseline": 1,
    "semantic_batch_norm": 1,
    "transfer": 1,
    "self_training": 1,
    "instance_baseline": 1,
    "instance_batch_norm": 1,
    "instance_self_training": 1,
    "panoptic": 1,
    "gap": 1,
    "threat": 1,
    "semantic_scores": 1,
    "classical": 1,
}


def semantic_baseline(sources: Sources, run: Run, job: Job) -> dict:
    """Supervised semantic network; metrics: IoU on the validation images."""
    source = open_data(sources, job, run.spec.source)
    n_classes = LABEL_SETS[run.spec.label_set].n_classes
    model = semantic.train_baseline(run.spec, job, source, n_classes, _watch(sources, run, job))
    return semantic_metrics(sources, job, finish(job, model))


def semantic_batch_norm(sources: Sources, run: Run, job: Job) -> dict:
    """ABN or AdaBN of a semantic network; metrics as above."""
    return semantic_metrics(sources, job, finish(job, adapted(sources, job)))


def transfer(sources: Sources, run: Run, job: Job) -> dict:
    """IoU of a network of another domain; hands its weights on."""
    return semantic_metrics(sources, job, finish(job, parent_network(job, "start")))


def self_training(sources: Sources, run: Run, job: Job) -> dict:
    """SAC self-training; metrics of the student, and of the teacher under "teacher"."""
    spec = run.spec
    student, teacher = semantic.self_train(
        spec,
        job,
        job.parent("start")["model"],
        open_data(sources, job, spec.source),
        open_data(sources, job, spec.target),
        LABEL_SETS[spec.label_set].n_classes,
        painted=_painted(sources, run, job),
        watch=_watch(sources, run, job),
    )
    return self_trained_metrics(sources, job, student, teacher)


def instance_baseline(sources: Sources, run: Run, job: Job) -> dict:
    """Supervised embedding network; metrics: the clustering settings that suit it on its own domain."""
    spec = run.spec
    label_set = LABEL_SETS[spec.label_set]
    model = instance.train_instance_baseline(spec, job, open_data(sources, job, spec.source), label_set)
    model = finish(job, model)
    if spec.network.learns_bandwidth:
        return {}
    return chosen_clustering(sources, job, parent_network(job, "semantic"), model)


def instance_batch_norm(sources: Sources, run: Run, job: Job) -> dict:
    """ABN or AdaBN of an embedding network; scored by the panoptic runs."""
    finish(job, adapted(sources, job))
    return {}


def instance_self_training(sources: Sources, run: Run, job: Job) -> dict:
    """Self-training inside the masks of the semantic parent; scored by panoptic and threat runs."""
    spec, label_set = run.spec, LABEL_SETS[run.spec.label_set]
    target = open_data(sources, job, spec.target)
    guide = parent_network(job, "semantic", spec.guide)
    masks = guiding_masks(job, guide, target)
    if spec.truth_share > 0:
        masks = [
            corrected(mask, target[i].semantic, spec.truth_share, seed=i) for i, mask in enumerate(masks)
        ]
    objectness, confidence = None, None
    if spec.asks_confidence:
        confidence = evaluate.predicted_confidence(guide, target, label=f"{run.name}: confidence")
    if spec.objectness is not None:
        objectness = Objectness.from_state(job.parent("objectness")["model"])
    chosen = None
    if spec.answered_share is not None:
        answers = {image: unpacked(png) for image, png in job.parent("answers")["labels"].items()}
        chosen = [answers.get(image) for image in target.ids]
    watch = unwatched
    if spec.monitor is not None:
        datasets = _monitored(sources, job)
        watch = InstanceMonitor(spec, datasets, guide, label_set, clustering_of(job), job.save_sample)
    student, teacher = instance.instance_self_train(
        spec,
        job,
        job.parent("start")["model"],
        open_data(sources, job, spec.source),
        target,
        masks,
        label_set,
        clustering_of(job),
        watch,
        objectness,
        confidence,
        chosen,
    )
    finish(job, student, teacher if has_teacher(run) else None)
    return {}


_last_masks: dict = {}  # of one guide: nearly all instance runs of a study have the same


def guiding_masks(job: Job, guide: nn.Module, target: Sequence[Sample]) -> list[np.ndarray]:
    """uint8 [H, W] predicted train ids of every target image; predicted once for runs that ask in turn."""
    asked = dict(job.run.parents)["semantic"].key, job.spec.guide, job.spec.compute, job.run.domain
    if _last_masks.get("asked") != asked or _last_masks["target"] is not target:
        masks = evaluate.predicted_masks(guide, target, label=f"{job.run.name}: masks")
        _last_masks.update(asked=asked, target=target, masks=masks)
    return list(_last_masks["masks"])


def panoptic(sources: Sources, run: Run, job: Job) -> dict:
    """Every score of a semantic and an instance network together."""
    spec = run.spec
    metrics = evaluate.score_panoptic(
        seen_in(parent_network(job, "semantic", spec.scored), spec.views),
        embedded_in(parent_network(job, "instance", spec.scored), spec.views),
        open_data(sources, job, spec.validation),
        LABEL_SETS[spec.label_set],
        **clustering_of(job),
        **cleanup_of(run, job.parent_record),
        min_region=spec.min_region,
        n_samples=spec.n_samples,
        save_sample=job.save_sample,
        save_counts=job.save_counts,
        label=f"{run.name}: score",
    )
    job.finish({})
    return metrics


def gap(sources: Sources, run: Run, job: Job) -> dict:
    """IoU of one network on source scenes with one group of style parameters taken from the target.

    Beside every group "none" and "all" of them.
    """
    spec = run.spec
    model = parent_network(job, "semantic")
    source, target = city.STYLES[spec.source_style], city.STYLES[spec.target_style]
    swapped = {group: replace(source, **{group: getattr(target, group)}) for group in STYLE_GROUPS}
    metrics = {}
    for name, style in {"none": source, **swapped, "all": target}.items():
        scenes = [
            city.render(style, seed=spec.scene_seed, index=index, height=spec.height, width=spec.width)
            for index in range(spec.n_images)
        ]
        metrics[name] = evaluate.score_semantic(
            model,
            scenes,
            LABEL_SETS[spec.label_set],
            save_counts=evaluate.in_part(job.save_counts, f"{name}."),
            label=f"{run.name}: {name}",
        )
    job.finish({})
    return metrics


def threat(sources: Sources, run: Run, job: Job) -> dict:
    """Found, false and missed objects of every image, inside masks between predicted and true."""
    spec, label_set = run.spec, LABEL_SETS[run.spec.label_set]
    networks = [
        evaluate_threat.Network(
            parent_network(job, role, spec.scored),
            label_set.ids_of(learned_classes(parent) or label_set.things),
            **clustering_of(job, role.replace("instance.", "clustering.")),
        )
        for role, parent in run.parents if role.startswith("instance.")
    ]  # fmt: skip
    metrics = evaluate_threat.score_threat(
        parent_network(job, "semantic", spec.scored),
        networks,
        open_data(sources, job, spec.validation),
        label_set,
        min_size=spec.min_size,
        truth_shares=spec.truth_shares,
        kernels=spec.kernels,
        guided=spec.guided,
        save_sample=job.save_sample,
        label=f"{run.name}: score",
    )
    job.finish({})
    return metrics


def semantic_scores(sources: Sources, run: Run, job: Job) -> dict:
    """Metrics of a semantic run, of a network that another run trained: the teacher of self-training."""
    network = seen_in(parent_network(job, "semantic", run.spec.scored), run.spec.views)
    metrics = semantic_metrics(sources, job, network)
    job.finish({})
    return metrics


def classical(sources: Sources, run: Run, job: Job) -> dict:
    """Every score of instances that a threshold or a network's mask gives without embeddings."""
    spec = run.spec
    mask_of, smoothings = evaluate_classical.otsu_mask, spec.smoothings
    if spec.masks == "predicted":
        model = parent_network(job, "semantic", spec.scored)
        mask_of = evaluate_classical.predicted_mask(model, LABEL_SETS[spec.label_set])
        smoothings = (0.0,)
    metrics = evaluate_classical.score_classical(
        mask_of,
        selected(sources, job),
        open_data(sources, job, spec.validation),
        LABEL_SETS[spec.label_set],
        algorithm=spec.algorithm,
        masks=spec.masks,
        settings=evaluate_classical.settings_grid(
            spec.algorithm, smoothings, spec.sigmas, spec.min_distances, spec.min_sizes
        ),
        merge_rules=spec.merge_rules,
        n_samples=spec.n_samples,
        save_sample=job.save_sample,
        save_counts=job.save_counts,
        label=f"{run.name}: score",
    )
    job.finish({})
    return metrics


def open_data(sources: Sources, job: Job, name: str) -> Sequence[Sample]:
    """A data set of the domain of a job's run, by name; the record says how many images it holds."""
    dataset = sources[job.run.domain].open(name)
    job.images[name] = len(dataset)
    return dataset


def adapted(sources: Sources, job: Job) -> nn.Module:
    """The network of the parent "start" with the batch-norm statistics that a run asks for."""
    spec = job.spec
    source = None if spec.source is None else open_data(sources, job, spec.source)
    target = open_data(sources, job, spec.target)
    return adapt_batch_norm(spec, parent_network(job, "start"), source, target)


def _monitored(sources: Sources, job: Job) -> dict[str, Sequence[Sample]]:
    """Labelled data sets on which a run is scored while it trains, by name."""
    monitor = job.spec.monitor
    return {} if monitor is None else {name: open_data(sources, job, name) for name in monitor.data}


def _watch(sources: Sources, run: Run, job: Job) -> SemanticMonitor:
    """Scores a semantic network while it trains; never, without a monitor in the spec."""
    label_set, spec = LABEL_SETS[run.spec.label_set], run.spec
    return SemanticMonitor(spec.monitor, job, _monitored(sources, job), label_set, spec.iterations)


def _painted(sources: Sources, run: Run, job: Job) -> list[dict[str, np.ndarray]] | None:
    """Label maps of every target image that are painted on its pseudo-labels; None for none."""
    spec = run.spec
    if spec.painted is None:
        return None
    target = open_data(sources, job, spec.target)
    if spec.painted == "true":
        return [{"semantic": sample.semantic, "instance": sample.instance} for sample in target]
    instances = evaluate.predicted_instances(
        parent_network(job, "semantic"),
        parent_network(job, "instance"),
        target,
        LABEL_SETS[spec.label_set],
        **clustering_of(job),
        min_size=parent_spec(job, "instance").min_area,
        label=f"{run.name}: instances",
    )
    return [{"instance": labels} for labels in instances]


def finish(job: Job, model: nn.Module, teacher: nn.Module | None = None) -> nn.Module:
    """Keep the final weights, beside them those of a teacher; hand back the plain network."""
    networks = {"model": model} if teacher is None else {"model": model, "teacher": teacher}
    plain = {name: getattr(network, "module", network) for name, network in networks.items()}
    job.finish({name: network.state_dict() for name, network in plain.items()})
    return plain["model"]


def self_trained_metrics(
    sources: Sources, job: Job, student: nn.Module, teacher: nn.Module, head: str | None = None
) -> dict:
    """Keep what a self-training ends with; scores of the student, those of a teacher under "teacher".

    `head`: the part of both networks that is scored, where they have several.
    """
    networks = {"": finish(job, student, teacher if has_teacher(job.run) else None)}
    if has_teacher(job.run):
        networks["teacher."] = getattr(teacher, "module", teacher)
    scored = {
        part: semantic_metrics(sources, job, network if head is None else getattr(network, head), part)
        for part, network in networks.items()
    }
    return scored[""] | ({"teacher": scored["teacher."]} if "teacher." in scored else {})


def selected(sources: Sources, job: Job) -> list[Sample]:
    """The images of the training domain on which a run chooses settings."""
    dataset = open_data(sources, job, job.spec.selection)
    return [dataset[i] for i in range(min(job.spec.n_selection, len(dataset)))]


def chosen_clustering(sources: Sources, job: Job, semantic_model: nn.Module, model: nn.Module) -> dict:
    """The clustering settings that suit the embeddings of `model` inside masks of `semantic_model`."""
    spec, label_set = job.spec, LABEL_SETS[job.spec.label_set]
    return evaluate.choose_clustering(
        semantic_model,
        model,
        selected(sources, job),
        label_set,
        bandwidths=spec.bandwidths,
        merge_distances=spec.merge_distances,
        min_size=spec.min_area,
        thing_ids=learned_ids(spec, label_set),
        tolerance=spec.selection_tolerance,
        label=f"{job.run.name}: clustering",
    )


def semantic_metrics(sources: Sources, job: Job, model: nn.Module, part: str = "") -> dict:
    """Scores of a network on the validation images of a run; keeps their counts as "<part>semantic_.."."""
    run = job.run
    validation = open_data(sources, job, run.spec.validation)
    return evaluate.score_semantic(
        model,
        validation,
        LABEL_SETS[run.spec.label_set],
        scored_as=validation.label_set,
        save_counts=evaluate.in_part(job.save_counts, part),
        label=f"{run.name}: score",
    )
