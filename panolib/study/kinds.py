"""How a run of each kind is executed: open data, train or adapt, evaluate, return metrics.

`study.py` declares the runs; the training loops live in `training/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from panolib.active.pairs import unpacked
from panolib.clustering.algorithms import SEEDS
from panolib.clustering.corrected_masks import corrected
from panolib.config import Count, Counts, Different, Natural, NonNegative, Seed, Share, later, spec
from panolib.data.mixing import source_share_counts
from panolib.data.render import city
from panolib.data.samples import Sample
from panolib.inference.panoptic import MERGE_RULES
from panolib.lab.files import CorruptCheckpoint
from panolib.lab.job import Job
from panolib.lab.run import Run
from panolib.labels import LABEL_SETS
from panolib.models.shared import SharedNetwork
from panolib.objectness.classifier import Objectness
from panolib.scoring import classical as evaluate_classical
from panolib.scoring import evaluate
from panolib.scoring import threat as evaluate_threat
from panolib.scoring.instance_monitor import InstanceMonitor
from panolib.scoring.semantic_monitor import SemanticMonitor
from panolib.training import instance, semantic
from panolib.training.batch_norm import adapt_batch_norm
from panolib.training.instance_targets import learned_ids
from panolib.training.loop import unwatched
from panolib.training.setup import build_instance, build_semantic, build_shared, launch
from panolib.training.specs import (
    Compute,
    InstanceNetwork,
    SemanticNetwork,
    SharedNetworks,
    StudentOrTeacher,
)

STYLE_GROUPS = ("photometry", "texture", "geometry", "statistics", "shapes")


@spec
class TransferSpec:
    """A trained network ("start") scored on the target of another domain; nothing is trained."""

    label_set: str
    validation: str
    network: SemanticNetwork
    compute: Compute
    seed: Seed


@spec
class SemanticScoresSpec:
    """Evaluation of a semantic network on its own; nothing is trained."""

    label_set: str
    validation: str
    scored: StudentOrTeacher
    compute: Compute
    seed: Seed


@spec
class PanopticSpec:
    """Evaluation of a semantic and an instance run together; nothing is trained."""

    label_set: str
    validation: str
    merge_rules: Annotated[tuple[Literal[MERGE_RULES], ...], Field(min_length=1), Different]
    min_size: Natural
    opening: Natural
    min_region: Natural
    n_samples: Natural
    compute: Compute
    seed: Seed
    scored: StudentOrTeacher = later("student")  # of both parents


@spec
class GapSpec:
    """Which group of style parameters costs what: source scenes with one group taken from the target."""

    label_set: str
    source_style: city.StyleName
    target_style: city.StyleName
    n_images: Count
    height: Count
    width: Count
    scene_seed: Natural
    compute: Compute
    seed: Seed


@spec
class ThreatSpec:
    """Evaluation of one instance network, or of several that share the thing classes; nothing is trained.

    Parents: "semantic", and for every network "instance.<name>" and "clustering.<name>". A network answers
    for the classes of its spec. Metrics are counts of every image and class: tables pool them over any
    part of the images.
    """

    label_set: str
    validation: str
    min_size: Natural
    truth_shares: tuple[Share, ...]  # of wrong pixels of the masks, corrected; 0: predicted, 1: true
    kernels: tuple[Natural, ...]  # of the morphology, pixels; 0: none
    guided: bool
    compute: Compute
    seed: Seed
    scored: StudentOrTeacher = later("student")  # of all parents


@spec
class ClassicalSpec:
    """Evaluation of instances without embeddings; settings are chosen on `selection`, nothing is trained.

    With masks of a network, of the parent "semantic", there is no image to smooth.
    """

    label_set: str
    validation: str
    selection: str
    n_selection: Count
    masks: Literal["otsu", "predicted"]
    algorithm: evaluate_classical.ClassicalAlgorithm
    smoothings: Annotated[tuple[NonNegative, ...], Field(min_length=1), Different]
    sigmas: Annotated[tuple[NonNegative, ...], Field(min_length=1), Different]
    min_distances: Annotated[Counts, Different]
    min_sizes: Annotated[tuple[Natural, ...], Field(min_length=1), Different]
    merge_rules: Annotated[tuple[Literal[MERGE_RULES], ...], Field(min_length=1), Different]
    n_samples: Natural
    compute: Compute
    seed: Seed
    scored: StudentOrTeacher = later("student")  # of the parent


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
    model = adapt_batch_norm(run.spec, parent_network(job, "start"), *adaptation_data(sources, job))
    return semantic_metrics(sources, job, finish(job, model))


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
    model = adapt_batch_norm(run.spec, parent_network(job, "start"), *adaptation_data(sources, job))
    finish(job, model)
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
        parent_network(job, "semantic", spec.scored),
        parent_network(job, "instance", spec.scored),
        open_data(sources, job, spec.validation),
        LABEL_SETS[spec.label_set],
        **clustering_of(job),
        min_size=spec.min_size,
        merge_rules=spec.merge_rules,
        opening=spec.opening,
        min_region=spec.min_region,
        n_samples=spec.n_samples,
        save_sample=job.save_sample,
        save_counts=job.save_counts,
        label=f"{run.name}: score",
    )
    job.finish({})
    return metrics


def gap(sources: Sources, run: Run, job: Job) -> dict:
    """IoU of one network on source scenes with one group of style parameters taken from the target."""
    spec = run.spec
    model = parent_network(job, "semantic")
    metrics = {}
    for name, style in gap_styles(spec.source_style, spec.target_style).items():
        scenes = [
            city.render(style, seed=spec.scene_seed, index=index, height=spec.height, width=spec.width)
            for index in range(spec.n_images)
        ]
        label = f"{run.name}: {name}"
        metrics[name] = evaluate.score_semantic(
            model,
            scenes,
            LABEL_SETS[spec.label_set],
            save_counts=evaluate.in_part(job.save_counts, f"{name}."),
            label=label,
        )
    job.finish({})
    return metrics


def threat(sources: Sources, run: Run, job: Job) -> dict:
    """Found, false and missed objects of every image, inside masks between predicted and true."""
    spec, label_set = run.spec, LABEL_SETS[run.spec.label_set]
    names = [role.partition(".")[2] for role, _ in run.parents if role.startswith("instance.")]
    networks = []
    for name in names:
        classes = learned_classes(dict(run.parents)[f"instance.{name}"])
        networks.append(
            evaluate_threat.Network(
                parent_network(job, f"instance.{name}", spec.scored),
                label_set.ids_of(label_set.things if classes is None else classes),
                **clustering_of(job, f"clustering.{name}"),
            )
        )
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
    metrics = semantic_metrics(sources, job, parent_network(job, "semantic", run.spec.scored))
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


def has_teacher(run: Run) -> bool:
    """Whether a run ends with two networks: it trained itself, and is not the control of one that does."""
    if run.kind == "instance_self_training":
        return source_share_counts(run.spec.batch_size, run.spec.source_share)[1] > 0
    if run.kind in ("self_training", "shared_self_training"):
        return run.spec.target_weight > 0
    return run.kind == "meta_labels"


def learned_classes(run: Run) -> tuple[str, ...] | None:
    """Thing classes of an instance run, None for all; batch-norm adaptation has those of its start."""
    while not hasattr(run.spec, "classes"):
        run = dict(run.parents)["start"]
    return run.spec.classes


def gap_styles(source: str, target: str) -> dict[str, city.Style]:
    """{"none": source style, one style with each group taken from the target, "all": target style}."""
    own, other = city.STYLES[source], city.STYLES[target]
    swapped = {group: replace(own, **{group: getattr(other, group)}) for group in STYLE_GROUPS}
    return {"none": own, **swapped, "all": other}


def open_data(sources: Sources, job: Job, name: str) -> Sequence[Sample]:
    """A data set of the domain of a job's run, by name; the record says how many images it holds."""
    dataset = sources[job.run.domain].open(name)
    job.images[name] = len(dataset)
    return dataset


def adaptation_data(sources: Sources, job: Job) -> tuple[Sequence[Sample] | None, Sequence[Sample]]:
    """(source or None, target) of a batch-norm run."""
    run = job.run
    source = None if run.spec.source is None else open_data(sources, job, run.spec.source)
    return source, open_data(sources, job, run.spec.target)


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


def parent_spec(job: Job, role: str):
    return dict(job.run.parents)[role].spec


def parent_network(job: Job, role: str, network: StudentOrTeacher = "student") -> nn.Module:
    """The network of a parent, with its final weights, on the device of the run.

    Of a shared network the one that the role names, "semantic" or "instance"; any other role has it whole.
    The teacher of a parent that has one (`has_teacher`) where it is wanted, else the only network.
    """
    parent = dict(job.run.parents)[role]
    state = wanted_weights(parent, job.parent(role), network)
    model = trained_network(parent.spec, {"model": state}, job.spec.compute)
    branch = role.partition(".")[0]
    return getattr(model, branch) if isinstance(model, SharedNetwork) and hasattr(model, branch) else model


def wanted_weights(run: Run, state: Mapping, network: StudentOrTeacher) -> Mapping[str, Tensor]:
    """Of the final state of a run the weights of the network that is wanted; its only one, if it has one."""
    if network == "student" or not has_teacher(run):
        return state["model"]
    if "teacher" not in state:
        raise CorruptCheckpoint(
            f"run '{run.name}': expected the weights of student and teacher, found {sorted(state)}, "
            "kept before teachers were; delete the checkpoint.pt beside its record: it is trained again"
        )
    return state["teacher"]


def trained_network(spec, state: Mapping, compute: Compute) -> nn.Module:
    """The network of the spec of a run with the weights of its final state, where `compute` says."""
    if isinstance(spec.network, InstanceNetwork):
        model = build_instance(spec.network, pretrained=False)
    else:
        build = build_shared if isinstance(spec.network, SharedNetworks) else build_semantic
        model = build(spec.network, LABEL_SETS[spec.label_set].n_classes, pretrained=False)
    model.load_state_dict(state["model"])
    return launch(compute).to_device(model)


def clustering_of(job: Job, role: str = "clustering") -> dict[str, float | str]:
    """Clustering settings that were chosen on the training domain; of a learned bandwidth the algorithm."""
    if getattr(parent_spec(job, role).network, "bandwidth", None) == "learned":
        return {"algorithm": SEEDS}
    chosen = job.parent_record(role).metrics
    return {"bandwidth": chosen["bandwidth"], "delta_dist": chosen["delta_dist"]}
