"""The interface of torch-em that the peer uses, small enough for a test: its trainers' calls in their order.

`install` puts it in the place of the package; nothing here is a measure of what the package does.
"""

from __future__ import annotations

import copy
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from skimage.measure import label
from skimage.segmentation import find_boundaries
from torch import nn

from panolib.related.mean_teacher.library import PARTS


class UNet2d(nn.Module):
    def __init__(self, in_channels, out_channels, depth, initial_features, final_activation):
        super().__init__()
        assert final_activation == "Sigmoid"
        self.depth = depth
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, initial_features, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(initial_features, out_channels, 1),
        )

    def forward(self, x):
        assert not any(side % 2**self.depth for side in x.shape[-2:])
        return self.layers(x).sigmoid()


class DiceLoss(nn.Module):
    def forward(self, prediction, target):
        dims = (0, 2, 3)
        norm = (prediction.square() + target.square()).sum(dims)
        return (1 - 2 * (prediction * target).sum(dims) / norm.clamp(min=1e-7)).sum()


class DefaultSelfTrainingLoss(nn.Module):
    def __call__(self, model, image, labels, label_filter=None):
        prediction = model(image)
        if label_filter is not None:
            prediction, labels = prediction * label_filter, labels * label_filter
        return DiceLoss()(prediction, labels)


class DefaultSelfTrainingLossAndMetric(nn.Module):
    def __call__(self, model, image, labels, label_filter=None):
        loss = DefaultSelfTrainingLoss()(model, image, labels, label_filter)
        return loss, loss


class DefaultPseudoLabeler:
    def __init__(self, confidence_threshold=None):
        self.threshold = confidence_threshold

    def __call__(self, teacher, image):
        labels = teacher(image)
        if self.threshold is None:
            return labels, None
        return labels, ((labels >= self.threshold) | (labels <= 1 - self.threshold)).float()


class DefaultTrainer:
    def __init__(
        self, name, train_loader, val_loader, model, loss, optimizer, metric, device, lr_scheduler, logger,
        mixed_precision, mixed_precision_dtype, compile_model, save_root,
    ):  # fmt: skip
        assert logger is None and compile_model is False
        self.train_loader, self.val_loader = train_loader, val_loader
        self.model, self.optimizer, self.lr_scheduler = model, optimizer, lr_scheduler
        self.loss, self.metric = loss, metric
        self._iteration = self._epoch = 0

    @property
    def iteration(self):
        return self._iteration

    @property
    def epoch(self):
        return self._epoch

    def fit(self, iterations, progress):
        self.init_data = self._build_init()
        stop, best = self._iteration + iterations, np.inf
        for _ in range(-(-iterations // len(self.train_loader))):
            self.model.train()
            for loss in self._losses():
                self.optimizer.zero_grad()
                self._backprop(loss())
                self._after_step()
                self._iteration += 1
                if self._iteration >= stop:
                    break
                progress.update(1)
            self.model.eval()
            with torch.no_grad():
                current = float(np.mean([self._metric(*batch).item() for batch in self.val_loader]))
            self.lr_scheduler.step(current)
            if current < best:
                best = current
                self.save_checkpoint("best", current, best, train_time=0.0)
            self.save_checkpoint("latest", current, best, train_time=0.0)
            self._epoch += 1

    def _build_init(self):
        raise AssertionError("torch-em would describe its loaders here, which only works for those of torch")

    save_checkpoint = _build_init

    def _losses(self):
        for image, target in self.train_loader:
            yield lambda: self.loss(self.model(image), target)  # noqa: B023

    def _metric(self, image, target):
        return self.metric(self.model(image), target)

    def _backprop(self, loss):
        loss.backward()
        self.optimizer.step()

    _backprop_mixed = _backprop

    def _after_step(self):
        pass


class MeanTeacherTrainer(DefaultTrainer):
    def __init__(
        self, model, supervised_train_loader, unsupervised_train_loader, supervised_val_loader,
        pseudo_labeler, unsupervised_loss, supervised_loss, supervised_loss_and_metric, momentum,
        reinit_teacher, **options,
    ):  # fmt: skip
        super().__init__(
            model=model, train_loader=supervised_train_loader, val_loader=supervised_val_loader, loss=None,
            metric=None, **options,
        )  # fmt: skip
        self.unlabelled, self.pseudo_labeler = unsupervised_train_loader, pseudo_labeler
        self.losses = SimpleNamespace(
            target=unsupervised_loss, source=supervised_loss, metric=supervised_loss_and_metric
        )
        self.momentum, self.reinit_teacher = momentum, reinit_teacher
        self.teacher = copy.deepcopy(model).requires_grad_(False)

    def _losses(self):
        for (image, target), (weak, other) in zip(self.train_loader, self.unlabelled):

            def loss():
                source = self.losses.source(self.model, image, target)  # noqa: B023
                with torch.no_grad():
                    labels, keep = self.pseudo_labeler(self.teacher, weak)  # noqa: B023
                return (source + self.losses.target(self.model, other, labels, keep)) / 2  # noqa: B023

            yield loss

    def _metric(self, image, target):
        return self.losses.metric(self.model, image, target)[1]

    def _after_step(self):
        with torch.no_grad():
            for mean, value in zip(self.teacher.parameters(), self.model.parameters()):
                mean.lerp_(value, 1 - self.momentum)


class TensorDataset:
    def __init__(
        self, images, labels, patch_shape, raw_transform, label_transform=None, transform=None, n_samples=None
    ):
        self.images, self.labels, self.shape = images, labels, patch_shape
        self.raw_transform, self.label_transform, self.transform = raw_transform, label_transform, transform
        self.random, self.length = n_samples is not None, n_samples or len(images)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if self.random:
            index = np.random.randint(0, len(self.images))  # noqa: NPY002
        image, labels = self.images[index], self.labels[index]
        room = [max(1, side - wanted) for side, wanted in zip(image.shape, self.shape)]
        top, left = (np.random.randint(0, n) for n in room)  # noqa: NPY002
        window = slice(top, top + self.shape[0]), slice(left, left + self.shape[1])
        image, labels = self.raw_transform(image[window]), labels[window]
        labels = labels[None] if self.label_transform is None else self.label_transform(labels)
        image, labels = torch.from_numpy(image[None]), torch.from_numpy(labels.astype(np.float32))
        return (image, labels) if self.transform is None else self.transform(image, labels)


class BoundaryTransform:
    def __init__(self, add_binary_target):
        assert add_binary_target

    def __call__(self, labels):
        return np.stack([labels > 0, find_boundaries(labels)])


def standardize(raw):
    raw = raw.to(torch.float32) if torch.is_tensor(raw) else raw.astype(np.float32)
    return (raw - raw.mean()) / (raw.std() + 1e-7)


def get_raw_transform(augmentation1=None):
    return standardize if augmentation1 is None else lambda raw: standardize(augmentation1(raw))


def get_augmentations(ndim):
    assert ndim == 2

    def flip(*tensors):
        return [tensor.flip(-1) for tensor in tensors] if torch.rand(()) < 0.5 else list(tensors)

    return flip


class AdditiveGaussianNoise:
    def __init__(self, scale, clip_kwargs):
        self.scale = scale

    def __call__(self, image):
        return image + float(np.random.uniform(*self.scale)) * torch.randn_like(image)  # noqa: NPY002


class GaussianBlur:
    def __call__(self, image):
        return nn.functional.avg_pool2d(image, 3, 1, 1)


@torch.no_grad()
def predict_with_padding(model, image, min_divisible):
    height, width = image.shape
    padding = [(0, -side % multiple) for side, multiple in zip(image.shape, min_divisible)]
    image = torch.from_numpy(np.pad(image, padding, mode="reflect"))[None, None]
    return model(image).numpy()[..., :height, :width]


def watershed_from_components(boundary, foreground, min_size, threshold1, threshold2):
    """Connected parts of the seeds that lie in the mask, without the growing."""
    found = label(foreground - boundary > threshold1, connectivity=1)
    found[foreground <= threshold2] = 0
    sizes = np.bincount(found.ravel())
    found[sizes[found] < min_size] = 0
    return found


def install(monkeypatch) -> None:
    """The stand-in under the names of the package."""
    raw = SimpleNamespace(
        standardize=standardize, get_raw_transform=get_raw_transform,
        AdditiveGaussianNoise=AdditiveGaussianNoise, GaussianBlur=GaussianBlur,
    )  # fmt: skip
    content = {
        "data": {"TensorDataset": TensorDataset},
        "loss": {"DiceLoss": DiceLoss},
        "model": {"UNet2d": UNet2d},
        "self_training": {
            cls.__name__: cls
            for cls in (DefaultSelfTrainingLoss, DefaultSelfTrainingLossAndMetric, DefaultPseudoLabeler,
                        MeanTeacherTrainer)
        },
        "trainer": {"DefaultTrainer": DefaultTrainer},
        "transform": {
            "raw": raw, "get_raw_transform": get_raw_transform, "get_augmentations": get_augmentations,
            "BoundaryTransform": BoundaryTransform,
        },
        "util.prediction": {"predict_with_padding": predict_with_padding},
        "util.segmentation": {"watershed_from_components": watershed_from_components},
    }  # fmt: skip
    assert content.keys() == set(PARTS)
    for name in ("", "util", *content):
        full = f"torch_em.{name}" if name else "torch_em"
        module = ModuleType(full)
        module.__path__ = []
        vars(module).update(content.get(name, {}))
        monkeypatch.setitem(sys.modules, full, module)
        parent, _, last = full.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
