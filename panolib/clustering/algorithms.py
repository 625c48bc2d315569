"""From pixel embeddings to instances: one ``cluster`` function, one thin function per algorithm.

Label 0 means "no instance" by value everywhere; instances are 1 .. K. ``mean_shift_plus`` is the default;
it and both kinds of peeling are ours; mean shift, agglomerative and HDBSCAN are scikit-learn's; connected
components, which look at no embedding at all, are the control that every table of clusterings should show.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import scipy  # loads its parts when they are used
import torch
from torch import Tensor

from panolib.clustering.distances import (
    check_bandwidth,
    check_delta_dist,
    check_finite,
    nearest,
    segment_mean,
)
from panolib.clustering.labels import drop_small_clusters, merge_close_clusters, relabel_consecutive
from panolib.clustering.mean_shift import mean_shift_plus, mean_shift_plus_of_sets
from panolib.clustering.peeling import mean_shift_grid, mean_shift_peel
from panolib.clustering.seeds import seeds


def cluster(embeddings: Tensor, mask: Tensor, **options) -> Tensor:
    """Cluster the embeddings, float [E, H, W], inside a mask, bool [H, W]: `cluster_masks` of one pair."""
    return next(cluster_masks([(embeddings, mask)], **options))


def cluster_masks(
    fields: Sequence[tuple[Tensor, Tensor]],
    *,
    algorithm: str = "mean_shift_plus",
    bandwidth: float = 0.5,
    delta_dist: float | None = 2.0,
    min_size: int = 0,
    **options,
) -> Iterator[Tensor]:
    """Instances, int64 [H, W], inside each mask of pairs (embeddings, mask), one after the other, in order.

    0 lies outside the mask (and on noise), 1 .. K inside. Algorithms of `SET_ALGORITHMS` look at all masks at
    once, the others at each when its result is asked for, so that what is drawn at random in between is drawn
    in between.

    Parameters
    ----------
    fields : sequence of (float Tensor [E, H, W], bool Tensor [H, W])
        Embeddings, in embedding units, and the pixels to cluster, on one device.
    algorithm : str
        A key of `ALGORITHMS`; of `IMAGE_ALGORITHMS`, which see where the pixels lie;
        "connected_components", which looks at the mask only; or "seeds", for networks that learn a bandwidth.
    bandwidth : float
        Radius of mean shift, selection epsilon of HDBSCAN; agglomerative does not use it. Embedding units.
    delta_dist : float or None
        Both mean shifts merge clusters whose means are nearer than this (None: no merging);
        agglomerative takes it as its linkage threshold; HDBSCAN does not use it. Embedding units.
    min_size : int
        Clusters with fewer pixels become 0.
    **options
        Further keyword arguments of the algorithm's own function.

    Raises ValueError for an unknown algorithm, shapes that do not fit or embeddings that are not finite,
    TypeError for an option that the algorithm does not have. Thesis 8.2 and chapter 7, algorithm 2; Wolny et
    al. 2022, arXiv:2103.14572.
    """
    for embeddings, mask in fields:
        if embeddings.ndim != 3 or embeddings.shape[1:] != mask.shape:
            raise ValueError(
                f"embeddings are {list(embeddings.shape)}, mask is {list(mask.shape)}; "
                "expected [E, H, W] and [H, W]"
            )
        if len(embeddings) == 0 and algorithm != "connected_components":
            raise ValueError(f"embeddings are {list(embeddings.shape)}; expected at least one dimension")
    function, accepted = find_algorithm(algorithm, options)
    common = {"bandwidth": bandwidth, "delta_dist": delta_dist}
    options = {name: value for name, value in common.items() if name in accepted} | options
    fields = [(embeddings, mask.bool()) for embeddings, mask in fields]
    if algorithm == "connected_components" or algorithm in IMAGE_ALGORITHMS:
        for field in fields:
            arguments = field[1:] if algorithm == "connected_components" else field
            yield drop_small_clusters(function(*arguments, **options), min_size)
        return
    sets = [embeddings.detach().movedim(0, -1)[mask] for embeddings, mask in fields]  # [N, E] each
    for points in sets:
        check_finite(points)
    if algorithm in SET_ALGORITHMS:
        found = SET_ALGORITHMS[algorithm](sets, **options)
    else:
        found = (function(points, **options) for points in sets)
    for (_, mask), own in zip(fields, found):
        labels = torch.zeros(mask.shape, dtype=torch.int64, device=own.device)
        labels[mask] = drop_small_clusters(own, min_size)
        yield labels


def find_algorithm(algorithm: str, options: Mapping) -> tuple[Callable[..., Tensor], list[str]]:
    """The function of an algorithm and the names of its options; errors of `cluster` for unknown ones."""
    functions = ALGORITHMS | IMAGE_ALGORITHMS | {"connected_components": connected_components, SEEDS: seeds}
    if algorithm not in functions:
        raise ValueError(f"algorithm is {algorithm!r}; expected one of {list(functions)}")
    accepted = list(inspect.signature(functions[algorithm]).parameters)
    accepted = [name for name in accepted if name not in ("points", "embeddings", "mask")]
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise TypeError(f"{algorithm} has no option {unknown}; it has {accepted}")
    return functions[algorithm], accepted


def mean_shift(points: Tensor, *, bandwidth: float = 0.5, delta_dist: float | None = 2.0) -> Tensor:
    """scikit-learn's mean shift with bin seeding, the thesis's first choice; merged as mean-shift+."""
    check_bandwidth(bandwidth)
    if len(points) == 0:
        return torch.zeros(0, dtype=torch.int64, device=points.device)
    from sklearn.cluster import MeanShift  # a second to import: only for those who use it

    array = points.detach().cpu().double().numpy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Binning data failed")  # few points: it then seeds at every one
        try:
            found = MeanShift(bandwidth=bandwidth, bin_seeding=True).fit(array).labels_
        except ValueError as error:
            if "No point was within bandwidth" not in str(error):
                raise
            found = MeanShift(bandwidth=bandwidth).fit(array).labels_  # sparse points: do the same
    labels = torch.as_tensor(found, dtype=torch.int64, device=points.device) + 1
    return merge_close_clusters(points, labels, delta_dist)


def agglomerative(
    points: Tensor, *, delta_dist: float = 2.0, max_points: int = 2000,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Average linkage (scikit-learn) on a subsample of points [N, E]; others go to the nearest cluster mean.

    Clusters further apart than `delta_dist` (embedding units) stay apart. The subsample has `max_points`, as
    memory and time grow with its square, drawn by `generator` or the global one. Returns int64 [N], 1 .. K.
    Raises ValueError if `delta_dist` is None, negative or not finite, and for fewer than two `max_points`.
    Thesis 8.2 eq. 3; the threshold and the subsample are choices of ours.
    """
    if delta_dist is None:
        raise ValueError("delta_dist is None; agglomerative needs it as its linkage threshold")
    check_delta_dist(delta_dist)
    if max_points < 2:
        raise ValueError(f"max_points is {max_points}; expected at least 2")
    points = points.detach().double()
    if len(points) < 2:
        return torch.ones(len(points), dtype=torch.int64, device=points.device)
    from sklearn.cluster import AgglomerativeClustering

    device = points.device if generator is None else generator.device
    chosen = torch.randperm(len(points), generator=generator, device=device)[:max_points].to(points.device)
    model = AgglomerativeClustering(n_clusters=None, distance_threshold=delta_dist, linkage="average")
    found = torch.as_tensor(model.fit_predict(points[chosen].cpu().numpy()), device=points.device)
    labels = nearest(points, segment_mean(points[chosen], found, int(found.max()) + 1))
    labels[chosen] = found
    return relabel_consecutive(labels + 1)


def hdbscan(points: Tensor, *, bandwidth: float = 0.5, min_cluster_size: int = 50) -> Tensor:
    """scikit-learn's HDBSCAN; a single cluster is allowed, as a class mask often holds one object.

    Clusters of the points [N, E] nearer than `bandwidth` (embedding units) are joined: those inside one
    DBSCAN* component at this distance are that component, as ``cluster_selection_epsilon`` does by walking up
    the tree; 0 joins none that differ. `min_cluster_size` is in pixels. Returns int64 [N], 1 .. K, 0 for
    noise; all is noise if there are fewer points. Raises ValueError for a bandwidth that is negative or not
    finite, and a size below 2.

    Malzer and Baum 2020, arXiv:1911.02282. scikit-learn's own walk fails with numpy 2.4 (its issue 33219).
    """
    if not 0 <= bandwidth < math.inf:
        raise ValueError(f"bandwidth is {bandwidth}; expected a finite number >= 0")
    if min_cluster_size < 2:
        raise ValueError(f"min_cluster_size is {min_cluster_size}; expected at least 2")
    if len(points) < min_cluster_size:
        return torch.zeros(len(points), dtype=torch.int64, device=points.device)
    from sklearn.cluster import HDBSCAN

    model = HDBSCAN(min_cluster_size=min_cluster_size, allow_single_cluster=True, copy=True)
    found = model.fit_predict(points.detach().cpu().double().numpy())
    component = model.dbscan_clustering(bandwidth, min_cluster_size)
    labels = found + 1
    n_clusters = int(found.max()) + 1
    for k in range(n_clusters):
        inside = component[found == k]
        if inside[0] >= 0 and (inside == inside[0]).all():
            labels[component == inside[0]] = n_clusters + 1 + inside[0]
    labels = torch.as_tensor(labels, dtype=torch.int64, device=points.device)
    return relabel_consecutive(labels.clamp(min=0))


def connected_components(mask: Tensor) -> Tensor:
    """int64 [H, W]: the 8-connected regions of a mask [H, W], 1 .. K: the control that uses no embedding."""
    labels, _ = scipy.ndimage.label(mask.cpu().numpy(), np.ones((3, 3)))
    return torch.as_tensor(labels, dtype=torch.int64, device=mask.device)


ALGORITHMS: dict[str, Callable[..., Tensor]] = {
    "mean_shift_plus": mean_shift_plus,
    "mean_shift": mean_shift,
    "agglomerative": agglomerative,
    "hdbscan": hdbscan,
    "mean_shift_peel": mean_shift_peel,
}
IMAGE_ALGORITHMS: dict[str, Callable[..., Tensor]] = {"mean_shift_grid": mean_shift_grid}
SEEDS = "seeds"  # no profile names it: it reads channels that only networks with a learned bandwidth have
SET_ALGORITHMS = {"mean_shift_plus": mean_shift_plus_of_sets}  # of `ALGORITHMS`, for several sets of points
Algorithm = Literal[(*ALGORITHMS, *IMAGE_ALGORITHMS, "connected_components")]  # what a profile may name
