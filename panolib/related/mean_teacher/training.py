"""Training with torch-em's own trainers, losses, augmentations and schedule, recorded and resumable.

Their trainers validate after every epoch, lower the rate on a plateau and keep the best network; an epoch
here is a number of iterations. They are subclassed in two places only: a finished step goes to the curves of
the job, and what they would write to a file goes to its checkpoint.
"""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate
from tqdm import tqdm

from panolib.config import Count, Positive, Share, Size, spec
from panolib.data.loading import iteration_seed
from panolib.data.samples import Sample
from panolib.lab.job import Job
from panolib.lab.seeding import seeded
from panolib.related.mean_teacher.library import PeerNetwork, build_peer, grey, torch_em
from panolib.related.mean_teacher.watershed import WatershedGrid
from panolib.training.loop import begin, restore
from panolib.training.run_specs import RunSpec


@spec(kw_only=True)
class PeerSpec(RunSpec):
    """Supervised training on labelled crops of `source`; with a parent "start" it goes on from there."""

    source: str
    selection: str  # labelled, of the source: epoch and settings of the watershed are chosen on it
    n_selection: Count
    watershed: WatershedGrid
    network: PeerNetwork
    lr: Positive
    crop: Size
    batch_size: Count
    iterations: Count
    interval: Count  # iterations of an epoch


@spec(kw_only=True)
class MeanTeacherSpec(PeerSpec):
    """Joint training: labelled crops of the source, and the teacher's labels of crops of the target."""

    target: str
    n_target: Count  # target crops of a batch
    ema_decay: Share
    confidence: Share | None  # pixels below it, and above its complement, do not count; None: all do


@dataclass
class Batches:
    """A loader of torch-em: every pass over it gives the next `interval` batches.

    A batch is a function of seed, name and its number alone, so training goes on from a checkpoint bit for
    bit. `draw` asks a data set of torch-em for an item, of which it draws image and crop itself.
    """

    draw: Callable[[int], Sequence[Tensor]]
    batch_size: int
    interval: int
    seed: int
    name: str
    position: int = 0

    def __len__(self) -> int:
        return self.interval

    def __iter__(self) -> Iterator[list[Tensor]]:
        for _ in range(self.interval):
            with seeded(iteration_seed(self.seed, self.position, self.name)):
                batch = default_collate([self.draw(i) for i in range(self.batch_size)])
            self.position += 1
            yield batch


def labelled(spec: PeerSpec, dataset: Sequence[Sample], n_images: int, n_samples: int | None) -> Any:
    """torch-em's data set of crops: (image float [1, h, w] standardised, target float [2, h, w]).

    `n_samples`: crops of random images and flipped; None: one of every image.
    """
    te, samples = torch_em(), [dataset[i] for i in range(n_images)]
    return te.data.TensorDataset(
        [grey(sample) for sample in samples],
        [sample.instance for sample in samples],
        patch_shape=tuple(spec.crop),
        raw_transform=te.transform.get_raw_transform(),
        label_transform=te.transform.BoundaryTransform(add_binary_target=True),
        transform=None if n_samples is None else te.transform.get_augmentations(ndim=2),
        n_samples=n_samples,
    )


def unlabelled(
    spec: MeanTeacherSpec, dataset: Sequence[Sample]
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Draws two weak views of a crop of torch-em's data set, for teacher and student."""
    te, images = torch_em(), [grey(dataset[i]) for i in range(len(dataset))]
    crops = te.data.TensorDataset(
        images,
        [np.zeros(image.shape, np.uint8) for image in images],  # its crops come with labels
        patch_shape=tuple(spec.crop),
        raw_transform=te.transform.get_raw_transform(),
        transform=te.transform.get_augmentations(ndim=2),
        n_samples=len(images),
    )
    view = weak_augmentations()

    def views(index: int) -> tuple[Tensor, Tensor]:
        image, _ = crops[index]
        return view(image.clone()), view(image.clone())

    return views


def weak_augmentations() -> Callable[[Tensor], Tensor]:
    """Blur and noise as in torch-em's joint mean teacher (Archit & Pape 2023), on standardised images."""
    from torchvision import transforms

    raw = torch_em().transform.raw
    noise = raw.AdditiveGaussianNoise(scale=(0, 0.15), clip_kwargs=False)
    sometimes = [transforms.RandomApply([view], p=0.25) for view in (raw.GaussianBlur(), noise)]
    return raw.get_raw_transform(augmentation1=transforms.Compose([raw.standardize, *sometimes]))


def train_peer(
    spec: PeerSpec, job: Job, source: Sequence[Sample], selection: Sequence[Sample], start: dict | None
) -> nn.Module:
    """Supervised training; the network of the best epoch by the Dice loss on `selection`.

    `start`: weights to go on from.
    """
    te, dice = torch_em(), torch_em().loss.DiceLoss()
    batches, crops = _source_batches(spec, source, start), _validation(spec, selection)
    loaders = {"train_loader": batches, "val_loader": crops}
    return _fit(spec, job, te.trainer.DefaultTrainer, start, loaders, {"loss": dice, "metric": dice})["model"]


def train_mean_teacher(
    spec: MeanTeacherSpec,
    job: Job,
    source: Sequence[Sample],
    selection: Sequence[Sample],
    target: Sequence[Sample],
    start: dict | None,
) -> tuple[nn.Module, nn.Module]:
    """torch-em's joint mean teacher; (student, teacher) of the best epoch. `target` has no labels."""
    te = torch_em().self_training
    views = unlabelled(spec, target)
    loaders = {
        "supervised_train_loader": _source_batches(spec, source, start),
        "unsupervised_train_loader": Batches(views, spec.n_target, spec.interval, spec.seed, "target"),
        "supervised_val_loader": _validation(spec, selection),
    }
    loss, metric = te.DefaultSelfTrainingLoss(), te.DefaultSelfTrainingLossAndMetric()
    options = {
        "pseudo_labeler": te.DefaultPseudoLabeler(confidence_threshold=spec.confidence),
        "unsupervised_loss": loss,
        "supervised_loss": loss,
        "supervised_loss_and_metric": metric,
        "momentum": spec.ema_decay,
        "reinit_teacher": start is None,
    }
    found = _fit(spec, job, te.MeanTeacherTrainer, start, loaders, options)
    return found["model"], found["teacher"]


def _source_batches(spec: PeerSpec, source: Sequence[Sample], start: dict | None) -> Batches:
    """Training that goes on from a network sees other crops than that did."""
    crops, name = labelled(spec, source, len(source), len(source)), "source" if start is None else "further"
    return Batches(crops.__getitem__, spec.batch_size, spec.interval, spec.seed, name)


def _validation(spec: PeerSpec, selection: Sequence[Sample]) -> list[list[Tensor]]:
    """Crops of the images of `selection`, one at a time and the same ones after every epoch."""
    images = labelled(spec, selection, min(spec.n_selection, len(selection)), None)
    with seeded(iteration_seed(spec.seed, 0, "selection")):
        return [default_collate([images[i]]) for i in range(len(images))]


def _fit(spec, job: Job, trainer_class: type, start: dict | None, loaders: dict, options: dict) -> dict:
    """{"model", and "teacher" where there is one: networks of the best epoch}."""
    fabric, state = begin(spec, job)
    model = build_peer(spec.network)  # contiguous: channels-last is slower with its instance norms
    if start is not None:
        model.load_state_dict(start)
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.lr)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="min", factor=0.5, patience=5)
    best: dict[str, Any] = {"loss": float("inf")}

    def networks(trainer) -> dict[str, nn.Module]:
        return {name: getattr(trainer, name) for name in ("model", "teacher") if hasattr(trainer, name)}

    def parts(trainer) -> dict:
        return {**networks(trainer), "optimizer": optimizer, "schedule": schedule}

    def after_epoch(trainer, loss: float) -> None:
        job.log(trainer.iteration, selection_loss=loss)
        states = {name: part.state_dict() for name, part in parts(trainer).items()}
        if loss < best["loss"]:
            best.update(loss=loss, **copy.deepcopy({name: states[name] for name in networks(trainer)}))
        job.checkpoint(lambda: {**states, "best": dict(best), "epoch": trainer.epoch}, trainer.iteration)

    with tempfile.TemporaryDirectory() as folder:
        trainer = _recorded(trainer_class, job, spec.iterations, after_epoch)(
            name=job.run.name,
            model=model,
            optimizer=optimizer,
            lr_scheduler=schedule,
            device=fabric.device,
            mixed_precision=spec.compute.precision == "bf16-mixed",
            mixed_precision_dtype="bfloat16",
            logger=None,
            compile_model=False,
            save_root=folder,  # nothing is written there
            **loaders,
            **options,
        )
        restore(parts(trainer), state)
        if state is not None:
            best.update(state["best"])
            trainer._iteration, trainer._epoch = job.start, state["epoch"] + 1
            for loader in loaders.values():
                if isinstance(loader, Batches):
                    loader.position = job.start
        if job.start < spec.iterations:
            with contextlib.redirect_stdout(io.StringIO()):
                trainer.fit(spec.iterations - job.start, progress=tqdm(disable=True))
    found = networks(trainer)
    for name, network in found.items():
        network.load_state_dict(best[name])
    return found


def _recorded(
    trainer_class: type, job: Job, iterations: int, after_epoch: Callable[[Any, float], None]
) -> type:
    """A trainer of torch-em that logs its steps to a job and hands over its state after every epoch."""
    steps = job.progress(job.start, iterations)
    next(steps, None)

    class Recorded(trainer_class):
        def _build_init(self):
            return {}  # how to build it again from a file, which there is none of

        def save_checkpoint(self, name, current_metric, best_metric, **_):
            if name == "latest":
                after_epoch(self, float(current_metric))

        def _backprop(self, loss):
            super()._backprop(loss)
            self._log(loss)

        def _backprop_mixed(self, loss):
            super()._backprop_mixed(loss)
            self._log(loss)

        def _log(self, loss):
            job.log(self.iteration, loss=loss)
            next(steps, None)

    return Recorded
