"""How the runs of DETR are executed: training, scores, and the comparison with our pipeline."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from panolib.config import Count, Natural, spec
from panolib.inference.panoptic import MERGE_RULES
from panolib.lab import provenance
from panolib.lab.job import Job
from panolib.lab.measuring import set_torch_threads
from panolib.lab.run import Run
from panolib.labels import LABEL_SETS
from panolib.related.detr.network import build_detr
from panolib.related.detr.score import QueryRule, score_detr
from panolib.related.detr.training import train_detr
from panolib.scoring.evaluate import in_part
from panolib.study.kinds import Sources, finish, open_data
from panolib.study.parents import clustering_of, parent_network, parent_spec
from panolib.training.run_specs import RunSpec
from panolib.training.setup import launch

DETR, OURS = "DETR", "embeddings"  # the two systems that are compared


@spec(kw_only=True)
class DetrScoresSpec(RunSpec):
    """Scores of one trained network on labelled data sets; nothing is trained."""

    validation: tuple[str, ...]
    rule: QueryRule
    n_samples: Natural  # pictures of the first images of the first data set


@spec(kw_only=True)
class DetrCostSpec(RunSpec):
    """DETR and our pipeline in turn, on the same images: what they give and what they cost."""

    train: str
    validation: str
    rule: QueryRule
    min_size: Natural  # of our instances, pixels of the embedding grid
    merge_rule: Literal[MERGE_RULES]
    batch_size: Count
    repeats: Count


# raised with what a kind computes, see panolib/study/kinds.py
VERSIONS = {"detr": 1, "detr_scores": 1, "detr_cost": 1}


def detr(sources: Sources, run: Run, job: Job) -> dict:
    """Train a network, which is scored by runs of its own; metrics: the number of images it learns from."""
    source = open_data(sources, job, run.spec.source)
    finish(job, train_detr(run.spec, job, source))
    return {"n_images": len(source) if run.spec.n_images is None else run.spec.n_images}


def detr_scores(sources: Sources, run: Run, job: Job) -> dict:
    """{data set: scores by threshold}."""
    spec, label_set = run.spec, LABEL_SETS[run.spec.label_set]
    model = launch(spec.compute).to_device(_parent_detr(job))
    metrics = {}
    for name in spec.validation:
        dataset = open_data(sources, job, name)
        metrics[name] = score_detr(
            model, dataset, label_set, spec.rule, size=parent_spec(job, "detr").size,
            n_samples=spec.n_samples if name == spec.validation[0] else 0, save_sample=job.save_sample,
            save_counts=in_part(job.save_counts, f"{name}."), label=f"{run.name}: {name}",
        )  # fmt: skip
    job.finish({})
    return metrics


def detr_cost(sources: Sources, run: Run, job: Job) -> dict:
    """{"systems": what `cost.compare` measures, "batch_size", "processor"}; one thread on a CPU."""
    from panolib.related.detr import cost  # FLOP counting, which no other kind needs

    spec, label_set = run.spec, LABEL_SETS[run.spec.label_set]
    fabric = launch(spec.compute)
    train = open_data(sources, job, spec.train)
    torch.manual_seed(spec.seed)
    images, detr_spec = (train, label_set, spec.batch_size), parent_spec(job, "detr")
    roles = ("semantic", "instance")
    networks, specs = ([ask(job, role) for role in roles] for ask in (parent_network, parent_spec))
    options = {"rule": spec.merge_rule, "min_size": spec.min_size, **clustering_of(job)}
    systems = {
        DETR: cost.detr_system(fabric.to_device(_parent_detr(job)), detr_spec, spec.rule, *images),
        OURS: cost.our_system(*networks, specs, *images, **options),
    }
    with set_torch_threads(1):
        measured = cost.compare(
            systems, open_data(sources, job, spec.validation), label_set,
            batch_size=spec.batch_size, repeats=spec.repeats, label=run.name,
        )  # fmt: skip
    job.finish({})
    return {"systems": measured, "batch_size": spec.batch_size, "processor": provenance.processor()}


def _parent_detr(job: Job) -> nn.Module:
    """The network of the parent, with its final weights."""
    spec = parent_spec(job, "detr")
    model = build_detr(spec.network, LABEL_SETS[spec.label_set].n_classes, pretrained=False)
    model.load_state_dict(job.parent("detr")["model"])
    return model
