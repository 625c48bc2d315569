"""How the runs of notebook 09 are executed; the others are of the kinds of `study.kinds`."""

from __future__ import annotations

import torch

from panolib.config import Natural, Share, spec
from panolib.lab import provenance
from panolib.lab.job import Job
from panolib.lab.run import Run
from panolib.labels import LABEL_SETS
from panolib.related.realtime import adversarial, meta_pseudo_labels, speed
from panolib.related.realtime.layered_pseudo_labels import LAYERS, quality_rows, select_labels, votes
from panolib.scoring import evaluate
from panolib.study.kinds import Sources, finish, open_data, self_trained_metrics, semantic_metrics
from panolib.study.parents import parent_network
from panolib.training.run_specs import RunSpec
from panolib.training.setup import launch


@spec(kw_only=True)
class LabelQualitySpec(RunSpec):
    """Coverage and accuracy of every kind of pseudo-label of the parent "labels", with target labels."""

    target: str  # with labels: for this table only, no training run opens them
    threshold: Share


@spec(kw_only=True)
class GallerySpec(RunSpec):
    """Pictures of what the parents predict for the first validation images."""

    validation: str
    n_samples: Natural


# raised with what a kind computes, see panolib/study/kinds.py
VERSIONS = {"adversarial_adaptation": 1, "meta_labels": 1, "label_quality": 1, "gallery": 1, "latency": 1}


def adversarial_adaptation(sources: Sources, run: Run, job: Job) -> dict:
    """Adversarial adaptation, with pseudo-labels of the parent "labels" or without."""
    spec, target = run.spec, open_data(sources, job, run.spec.target)
    n_classes, labels = LABEL_SETS[spec.label_set].n_classes, None
    if spec.pseudo_labels is not None:
        n, rule = spec.pseudo_labels.n_layers, spec.pseudo_labels.rule
        found = votes(parent_network(job, "labels"), target, (n,), label=f"{run.name}: labels")
        labels = select_labels(*found[n], n_classes, rule=rule, threshold=spec.pseudo_labels.threshold)
    start, source = job.parent("start")["model"], open_data(sources, job, spec.source)
    model = adversarial.adversarial_train(spec, job, start, source, target, n_classes, pseudo_labels=labels)
    return semantic_metrics(sources, job, finish(job, model))


def meta_labels(sources: Sources, run: Run, job: Job) -> dict:
    """Meta Pseudo Labels; metrics of the student, and of the teacher under "teacher"."""
    spec, n_classes = run.spec, LABEL_SETS[run.spec.label_set].n_classes
    source, target = (open_data(sources, job, name) for name in (spec.source, spec.target))
    start = job.parent("start")["model"]
    student, teacher = meta_pseudo_labels.meta_train(spec, job, start, source, target, n_classes)
    return self_trained_metrics(sources, job, student, teacher)


def label_quality(sources: Sources, run: Run, job: Job) -> dict:
    """Rows of `layered_pseudo_labels.quality_rows`."""
    spec, target = run.spec, open_data(sources, job, run.spec.target)
    network = parent_network(job, "labels")
    found = votes(network, target, LAYERS, label=f"{run.name}: labels")
    truth, label_sets = [sample.semantic for sample in target], (LABEL_SETS[spec.label_set], target.label_set)
    rows = quality_rows(found, truth, *label_sets, threshold=spec.threshold)
    job.finish({})
    return {"rows": rows, "n_images": len(target)}


def gallery(sources: Sources, run: Run, job: Job) -> dict:
    """Saves "<image>-image", "<image>-truth" and "<image>-<role of the parent>"."""
    spec, label_set = run.spec, LABEL_SETS[run.spec.label_set]
    data = open_data(sources, job, spec.validation)
    samples = [data[i] for i in range(min(spec.n_samples, len(data)))]
    for index, sample in enumerate(samples):
        job.save_sample(f"{index:02d}-image", sample.image)
        job.save_sample(f"{index:02d}-truth", label_set.colourise(sample.semantic))
    for role, _ in run.parents:
        masks = evaluate.predicted_masks(parent_network(job, role), samples)
        for index, mask in enumerate(masks):
            job.save_sample(f"{index:02d}-{role}", label_set.colourise(mask))
    job.finish({})
    return {"n_images": len(samples)}


def latency(sources: Sources, run: Run, job: Job) -> dict:
    """Rows of `speed.speed_rows`."""
    spec, n_classes = run.spec, LABEL_SETS[run.spec.label_set].n_classes
    rows = speed.speed_rows(spec, n_classes, launch(spec.compute).device, label=f"{run.name}: speed")
    job.finish({})
    return {"rows": rows, "processor": provenance.processor(), "threads": torch.get_num_threads()}
