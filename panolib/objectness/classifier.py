"""A classifier of clusters, trained by scikit-learn and by torch, and kept as plain arrays.

Two variants see the same clusters: "boosting", gradient-boosted trees on all features (the encoder's reduced
to their main directions), and "head", a small perceptron on the encoder's features alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor, nn
from torch.nn import functional as F

from panolib.objectness.candidates import Candidates

Variant = Literal["boosting", "head"]


@dataclass(frozen=True)
class Objectness:
    """Probability that a cluster is a real object, from its features.

    The trees are M calibrated classifiers of T trees with n nodes; their sums s become probabilities
    1 / (1 + exp(slope * s + offset)), of which the mean counts. Where there was nothing to learn, M is 0.
    """

    prior: np.ndarray  # float64 [1]: share of real ones in the training, the answer where nothing is learned
    centre: np.ndarray  # float32 [C], mean of the encoder's features
    directions: np.ndarray  # float32 [C, D], their main directions
    feature: np.ndarray  # int64 [M, T, n]: the one that decides at a node
    threshold: np.ndarray  # float64 [M, T, n]: what is not above it goes left
    left: np.ndarray  # int64 [M, T, n]: the node to go on with; leaves go to themselves
    right: np.ndarray
    value: np.ndarray  # float64 [M, T, n]: what a leaf adds
    depth: np.ndarray  # int64 [1]: steps from a root to any leaf
    baseline: np.ndarray  # float64 [M]: what the trees add to
    slope: np.ndarray  # float64 [M]
    offset: np.ndarray  # float64 [M]
    mean: np.ndarray  # float32 [C], with which the head normalises features
    scale: np.ndarray  # float32 [C]
    hidden_weight: np.ndarray  # float32, of the head
    hidden_bias: np.ndarray
    output_weight: np.ndarray
    output_bias: np.ndarray

    def probability(
        self, values: np.ndarray, pooled: np.ndarray, variant: Variant = "boosting"
    ) -> np.ndarray:
        """float64 [N] for features [N, F] and the encoder's [N, C]."""
        learned = self.slope if variant == "boosting" else self.mean
        if len(values) == 0 or len(learned) == 0:
            return np.full(len(values), float(self.prior[0]))
        if variant == "head":
            scaled = (pooled - self.mean) / self.scale
            hidden = np.maximum(scaled @ self.hidden_weight.T + self.hidden_bias, 0)
            return expit((hidden @ self.output_weight.T + self.output_bias)[:, 0].astype(np.float64))
        inputs = np.concatenate([values, reduced(pooled, self.centre, self.directions)], 1)
        sums = self.baseline[:, None] + self._leaves(inputs).sum(2)
        return expit(-(self.slope[:, None] * sums + self.offset[:, None])).mean(0)

    def _leaves(self, inputs: np.ndarray) -> np.ndarray:
        """float64 [M, N, T]: what every tree adds for every row of `inputs` [N, F]."""
        n_models, n_trees, _ = self.feature.shape
        model, tree = np.arange(n_models)[:, None, None], np.arange(n_trees)
        row = np.arange(len(inputs))[:, None]
        at = np.zeros((n_models, len(inputs), n_trees), np.int64)
        for _ in range(int(self.depth[0])):
            goes_left = inputs[row, self.feature[model, tree, at]] <= self.threshold[model, tree, at]
            at = np.where(goes_left, self.left[model, tree, at], self.right[model, tree, at])
        return self.value[model, tree, at]

    def state(self) -> dict[str, Tensor]:
        """All arrays by name, as a run keeps weights."""
        return {f.name: torch.from_numpy(np.ascontiguousarray(getattr(self, f.name))) for f in fields(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Objectness:
        return cls(**{f.name: state[f.name].cpu().numpy() for f in fields(cls)})


def fit(
    found: Candidates, *, components: int, trees: int, leaves: int, folds: int, hidden: int, iterations: int,
    seed: int,
) -> Objectness:  # fmt: skip
    """Train both variants on clusters and spoilt masks of labelled images.

    The trees see `components` main directions of the encoder's features; each of `folds` parts of the images
    calibrates trees that were grown on the others, without spoilt masks. Where no fold has both kinds, every
    cluster gets the share of real ones, 0.5 without a cluster. The head, `hidden` wide, learns from all
    candidates at once in `iterations` steps of AdamW.
    """
    clusters = ~found.spoilt
    prior = np.array([found.real[clusters].mean() if clusters.any() else 0.5])
    centre, directions = main_directions(found.pooled, components)
    inputs = np.concatenate([found.values, reduced(found.pooled, centre, directions)], 1)
    splits = _splits(found, folds)
    forest = _grown(inputs, found.real, splits, trees=trees, leaves=leaves, seed=seed)
    head = _head(found.pooled if splits else found.pooled[:, :0], found.real, hidden, iterations, seed)
    return Objectness(prior, centre, directions, **forest, **head)


def main_directions(pooled: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(mean float32 [C], directions float32 [C, D <= n]) of rows [N, C], scaled to unit variance."""
    if len(pooled) < 2:
        return np.zeros(pooled.shape[1], np.float32), np.zeros((pooled.shape[1], 0), np.float32)
    centre = pooled.mean(0, dtype=np.float64)
    variance, directions = np.linalg.eigh(np.cov(pooled.T.astype(np.float64)).reshape(2 * pooled.shape[1:]))
    largest = [i for i in np.argsort(-variance)[:n] if variance[i] > 1e-9 * variance.max()]
    scaled = directions[:, largest] / np.sqrt(variance[largest])
    signs = np.sign(scaled[np.abs(scaled).argmax(0), np.arange(scaled.shape[1])])
    return centre.astype(np.float32), (scaled * signs).astype(np.float32)


def reduced(pooled: np.ndarray, centre: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """float64 [N, D]: rows [N, C] along the main directions."""
    return (pooled - centre).astype(np.float64) @ directions.astype(np.float64)


def _splits(found: Candidates, folds: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows to grow trees on, clusters to calibrate on), by images; both with real and false ones."""
    part = found.image % folds
    pairs = [(np.flatnonzero(part != k), np.flatnonzero((part == k) & ~found.spoilt)) for k in range(folds)]
    return [pair for pair in pairs if all(len(np.unique(found.real[rows])) == 2 for rows in pair)]


def _grown(
    inputs: np.ndarray, real: np.ndarray, splits: list, *, trees: int, leaves: int, seed: int
) -> dict:
    """Trees of scikit-learn, calibrated on the other images, as arrays of `Objectness`."""
    models = []
    if splits:
        calibrated = calibrated_trees(inputs, real, splits, trees=trees, leaves=leaves, seed=seed)
        models = [(each.estimator, each.calibrators[0]) for each in calibrated.calibrated_classifiers_]
    nodes = [[tree.nodes for (tree,) in model._predictors] for model, _ in models]
    largest = max((len(tree) for model in nodes for tree in model), default=0)
    shape = (len(nodes), max(map(len, nodes), default=0), largest)
    arrays = {
        "feature": np.zeros(shape, np.int64), "threshold": np.zeros(shape), "value": np.zeros(shape),
        "left": np.zeros(shape, np.int64), "right": np.zeros(shape, np.int64),
    }  # fmt: skip
    for m, model in enumerate(nodes):
        for t, tree in enumerate(model):
            size, leaf, own = len(tree), tree["is_leaf"].astype(bool), np.arange(len(tree))
            arrays["feature"][m, t, :size] = np.where(leaf, 0, tree["feature_idx"])
            arrays["threshold"][m, t, :size] = np.where(leaf, 0, tree["num_threshold"])
            arrays["value"][m, t, :size] = np.where(leaf, tree["value"], 0)
            for side in ("left", "right"):
                arrays[side][m, t, :size] = np.where(leaf, own, tree[side])
    return {
        **arrays,
        "depth": np.array([max((t["depth"].max() for m in nodes for t in m), default=0)], np.int64),
        "baseline": np.array([float(np.ravel(model._baseline_prediction)[0]) for model, _ in models]),
        "slope": np.array([float(calibrator.a_) for _, calibrator in models]),
        "offset": np.array([float(calibrator.b_) for _, calibrator in models]),
    }


def calibrated_trees(
    inputs: np.ndarray, real: np.ndarray, splits: list, *, trees: int, leaves: int, seed: int
):
    """scikit-learn's `CalibratedClassifierCV` of gradient-boosted trees, a sigmoid for each split."""
    from sklearn.calibration import CalibratedClassifierCV  # a second to import: only for those who train
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        max_iter=trees, max_leaf_nodes=leaves, min_samples_leaf=5, early_stopping=False, random_state=seed
    )
    return CalibratedClassifierCV(model, method="sigmoid", cv=splits, ensemble=True).fit(inputs, real)


def _head(pooled: np.ndarray, real: np.ndarray, hidden: int, iterations: int, seed: int) -> dict:
    """A perceptron with one hidden layer on features brought to mean 0 and deviation 1."""
    names = ("hidden_weight", "hidden_bias", "output_weight", "output_bias")
    if pooled.shape[1] == 0:
        return dict.fromkeys(("mean", "scale", *names), np.zeros(0, np.float32))
    mean, scale = pooled.mean(0), pooled.std(0) + 1e-6
    inputs = torch.from_numpy((pooled - mean) / scale).float()
    truth = torch.from_numpy(real.astype(np.float32))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(pooled.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2)
        for _ in range(iterations):
            loss = F.binary_cross_entropy_with_logits(model(inputs)[:, 0], truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    weights = [parameter.detach().numpy() for parameter in model.parameters()]
    return {"mean": mean.astype(np.float32), "scale": scale.astype(np.float32), **dict(zip(names, weights))}
