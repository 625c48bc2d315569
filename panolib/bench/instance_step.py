"""The self-training step of embeddings: what share of it its clustering and its loss take."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from panolib.bench.specs import InstanceStepSpec
from panolib.bench.step import Clock, sac_augmentation
from panolib.data.mixing import source_share_counts
from panolib.data.photometry import normalise
from panolib.data.render import city
from panolib.lab.measuring import measurement, set_torch_threads
from panolib.labels import LABEL_SETS
from panolib.losses.embedding import EmbeddingLossWeights, embedding_loss
from panolib.training.crops import UnlabelledBatches, clean_view
from panolib.training.instance import instance_self_train, train_instance_baseline
from panolib.training.instance_targets import clustered, rotated_view, to_embedding_grid
from panolib.training.run_specs import InstanceBaselineSpec, InstanceSelfTrainingSpec
from panolib.training.specs import Compute, Margins, Optimiser

N_IMAGES = 8  # of each style
MARGINS = Margins(delta_var=0.5, delta_dist=2.0, kernel_threshold=0.5, epsilon_0=0.0, epsilon_tau=5000.0)


def instance_step_rows(spec: InstanceStepSpec, *, repeats: int, seed: int) -> list[dict]:
    """Time of one step, of the clustering of its target crops, and of their loss with its gradient.

    The network is trained on the source first, so that there are objects to find. Masks are the true ones.
    All on one thread.

    Returns
    -------
    list of dict
        "stage" ("step", "clustering", "loss"), "ms" and "cpu_ms" (median wall and processor time), "share" of
        the step by processor time, "instances" of a crop (mean).
    """
    label_set = LABEL_SETS[spec.label_set]
    size = {"height": spec.height, "width": spec.width}
    source, target = (
        [city.render(style, seed=seed, index=i, **{side: 2 * n for side, n in size.items()})
         for i in range(N_IMAGES)]
        for style in (spec.source_style, spec.target_style)
    )  # fmt: skip
    augmentation = sac_augmentation(**size)
    common = {
        "label_set": spec.label_set, "source": "", "network": spec.network, "augmentation": augmentation,
        "optimiser": Optimiser("adamw", 1e-3, 0.0005, 0.9, 1.0, "constant", 0), "margins": MARGINS,
        "min_area": 8, "compute": Compute("cpu", "32-true", 0, True), "seed": seed,
        "batch_size": spec.batch_size,
    }  # fmt: skip
    baseline = InstanceBaselineSpec(
        **common, weights=EmbeddingLossWeights(consistency=0.0), iterations=spec.start, selection="",
        n_selection=1, bandwidths=(spec.bandwidth,), merge_distances=(MARGINS.delta_dist,),
    )  # fmt: skip
    training = InstanceSelfTrainingSpec(
        **common, weights=EmbeddingLossWeights(), iterations=spec.iterations, target="",
        source_share=spec.source_share, algorithm="mean_shift_plus", min_stability=spec.min_stability,
        noise_blur=(0.1, 1.0), rotation=180.0, momentum_mode="ema", ema_decay=0.99, copy_interval=1,
        batch_norm="target",
    )  # fmt: skip
    clustering = {"bandwidth": spec.bandwidth, "delta_dist": MARGINS.delta_dist}
    masks = [sample.semantic for sample in target]
    with set_torch_threads(1):
        start = train_instance_baseline(baseline, Clock(), source, label_set).module.state_dict()
        clock = Clock()
        _, teacher = instance_self_train(training, clock, start, source, target, masks, label_set, clustering)

        _, n_target = source_share_counts(training.batch_size, training.source_share)
        stream = UnlabelledBatches(
            target, n_target, clean_view(augmentation), maps=[{"semantic": mask} for mask in masks]
        )
        batch = stream(0)
        with torch.no_grad():
            embeddings = teacher(normalise(batch["image"])).float()
            semantic = to_embedding_grid(batch["semantic"], embeddings)
            rotated, valid = rotated_view(teacher, batch["image"], training.rotation)
        leaf = embeddings.clone().requires_grad_()

        def pseudo_labels() -> Tensor:
            return clustered(training, label_set, clustering, 0, semantic, embeddings, leaf)

        labels = pseudo_labels()

        def loss() -> Tensor:
            options = {"weights": training.weights, "teacher_embeddings": rotated, "valid": valid}
            return torch.autograd.grad(sum(embedding_loss(leaf, labels, **options).values()), leaf)[0]

        found = {"step": (clock.durations[1:], clock.cpu_durations[1:])}
        found |= {"clustering": _times(pseudo_labels, repeats), "loss": _times(loss, repeats)}
    medians = {name: [1e3 * measurement(times).median for times in both] for name, both in found.items()}
    instances = float(labels.flatten(1).amax(1).float().mean())
    return [
        {"stage": name, "ms": ms, "cpu_ms": cpu_ms, "share": cpu_ms / medians["step"][1],
         "instances": instances}
        for name, (ms, cpu_ms) in medians.items()
    ]  # fmt: skip


def _times(function: Callable[[], Tensor], repeats: int) -> tuple[list[float], list[float]]:
    """Wall and processor seconds of every call but the first."""
    clock = Clock()
    for _ in clock.progress(0, repeats + 1):
        function()
    return clock.durations[1:], clock.cpu_durations[1:]
