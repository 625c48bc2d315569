"""From pixel embeddings to instances: one ``cluster`` function, one thin function per algorithm.

Label 0 means "no instance" by value everywhere; instances are 1 .. K. ``mean_shift_plus`` is the default
and ours; mean shift, agglomerative and HDBSCAN are scikit-learn's; connected components, which look at no
embedding at all, are the control that every table of clusterings should show.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy import ndimage
from skimage import measure
from sklearn.cluster import HDBSCAN, AgglomerativeClustering, MeanShift
from torch import Tensor

CONVERGED = 1e-3  # a trajectory stops when it moves by less than this share of the bandwidth (scikit-learn)
EQUAL = 0.1  # trajectories in one grid cell of this share of the bandwidth go on as one


def cluster(
    embeddings: Tensor,
    mask: Tensor,
    *,
    algorithm: str = "mean_shift_plus",
    bandwidth: float = 0.5,
    delta_dist: float | None = 2.0,
    min_size: int = 0,
    **options,
) -> Tensor:
    """Cluster the embeddings inside a mask into instances.

    Parameters
    ----------
    embeddings : float Tensor [E, H, W]
        Pixel embeddings, in embedding units.
    mask : bool Tensor [H, W]
        Pixels to cluster, on the device of `embeddings`.
    algorithm : str
        A key of `ALGORITHMS`, or "connected_components", which looks at the mask only.
    bandwidth : float
        Radius of mean shift, selection epsilon of HDBSCAN; agglomerative does not use it. Embedding units.
    delta_dist : float or None
        Both mean shifts merge clusters whose means are nearer than this (None: no merging);
        agglomerative takes it as its linkage threshold; HDBSCAN does not use it. Embedding units.
    min_size : int
        Clusters with fewer pixels become 0.
    **options
        Further keyword arguments of the algorithm's own function.

    Returns
    -------
    int64 Tensor [H, W]
        0 outside the mask (and on noise), 1 .. K inside.

    Raises
    ------
    ValueError
        For an unknown algorithm, shapes that do not fit or embeddings that are not finite.
    TypeError
        For an option that the algorithm does not have.

    References
    ----------
    Thesis 8.2 and chapter 7, algorithm 2; Wolny et al. 2022, arXiv:2103.14572.
    """
    if embeddings.ndim != 3 or embeddings.shape[1:] != mask.shape:
        raise ValueError(
            f"embeddings are {list(embeddings.shape)}, mask is {list(mask.shape)}; "
            "expected [E, H, W] and [H, W]"
        )
    function, accepted = find_algorithm(algorithm, options)
    mask = mask.bool()
    if algorithm == "connected_components":
        return drop_small_clusters(connected_components(mask, **options), min_size)
    labels = torch.zeros(mask.shape, dtype=torch.int64, device=embeddings.device)
    points = embeddings.detach().movedim(0, -1)[mask]  # [N, E]
    if len(points) == 0:
        return labels
    if not torch.isfinite(points).all():
        raise ValueError("embeddings hold nan or infinity inside the mask; expected finite values")
    common = {"bandwidth": bandwidth, "delta_dist": delta_dist}
    options = {name: value for name, value in common.items() if name in accepted} | options
    labels[mask] = drop_small_clusters(function(points, **options), min_size)
    return labels


def find_algorithm(algorithm: str, options: Mapping) -> tuple[Callable[..., Tensor], list[str]]:
    """The function of an algorithm and the names of its options; errors of `cluster` for unknown ones."""
    functions = ALGORITHMS | {"connected_components": connected_components}
    if algorithm not in functions:
        raise ValueError(f"algorithm is {algorithm!r}; expected one of {list(functions)}")
    accepted = list(inspect.signature(functions[algorithm]).parameters)[1:]
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise TypeError(f"{algorithm} has no option {unknown}; it has {accepted}")
    return functions[algorithm], accepted


# ---- mean shift -------------------------------------------------------------------------------------------


@torch.no_grad()
def mean_shift_plus(
    points: Tensor,
    *,
    bandwidth: float = 0.5,
    delta_dist: float | None = 2.0,
    n_seeds: int | None = None,
    min_bin_freq: int = 1,
    max_iterations: int = 300,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Flat-kernel mean shift of all seeds at once, then a merge of close clusters.

    The result is scikit-learn's ``MeanShift(bin_seeding=True)`` up to points without neighbours, at a
    fraction of its time: distances come from matrix products on blocks, blocks hold only points that can
    be within the bandwidth (exact: both are sorted along the main axis of the points), and trajectories
    that have met go on as one. Extra memory is one block, whatever the number of points and seeds.

    Parameters
    ----------
    points : float Tensor [N, E]
        Embeddings of the pixels, in embedding units.
    bandwidth : float
        Radius h of the kernel, width of the seed grid.
    delta_dist : float or None
        Clusters with means nearer than this become one; None keeps all.
    n_seeds : int or None
        None: one seed per occupied grid cell, at the mean of its points. Else: so many random points.
    min_bin_freq : int
        Grid cells with fewer points give no seed (unless all cells are so).
    max_iterations : int
    generator : torch.Generator or None
        Draws the random points; the global one if None. On the device of `points`.

    Returns
    -------
    int64 Tensor [N]
        1 .. K, larger clusters first if merged.

    Raises
    ------
    ValueError
        If the bandwidth or the number of seeds is not positive.

    References
    ----------
    Thesis 8.2 eq. 2 ("mean-shift+"); Comaniciu & Meer 2002.
    """
    if not bandwidth > 0:
        raise ValueError(f"bandwidth is {bandwidth}; expected a positive number")
    if n_seeds is not None and n_seeds < 1:
        raise ValueError(f"n_seeds is {n_seeds}; expected None or at least 1")
    if len(points) == 0:
        return torch.zeros(0, dtype=torch.int64, device=points.device)
    with torch.autocast(points.device.type, enabled=False):  # bf16 products would move the modes
        points = _centred(points, bandwidth)
        if n_seeds is None:
            seeds = _grid_seeds(points, bandwidth, min_bin_freq)
        else:
            draw = torch.randperm(len(points), generator=generator, device=points.device)
            seeds = points[draw[:n_seeds]]
        centres, n_neighbours = _converge(points, seeds, bandwidth, max_iterations)
        centres = _drop_duplicates(centres, n_neighbours, bandwidth)
        labels = relabel_consecutive(_nearest(points, centres) + 1)
        return labels if delta_dist is None else merge_close_clusters(points, labels, delta_dist)


def mean_shift(points: Tensor, *, bandwidth: float = 0.5, delta_dist: float | None = 2.0) -> Tensor:
    """scikit-learn's mean shift with bin seeding, the thesis's first choice; then the same merge.

    Parameters and result as in `mean_shift_plus`.
    """
    if len(points) == 0:
        return torch.zeros(0, dtype=torch.int64, device=points.device)
    array = points.detach().cpu().double().numpy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Binning data failed")  # few points: it then seeds at every one
        try:
            found = MeanShift(bandwidth=bandwidth, bin_seeding=True).fit(array).labels_
        except ValueError as error:
            if "No point was within bandwidth" not in str(error):
                raise
            found = MeanShift(bandwidth=bandwidth).fit(array).labels_  # sparse points: do the same
    labels = relabel_consecutive(torch.as_tensor(found, dtype=torch.int64, device=points.device) + 1)
    return labels if delta_dist is None else merge_close_clusters(points, labels, delta_dist)


def _centred(points: Tensor, bandwidth: float) -> Tensor:
    """Points around their mean, in a precision in which |a|² - 2ab + |b|² resolves the bandwidth."""
    points = points.detach().double()
    points = points - points.mean(0)
    rounding = torch.finfo(torch.float32).eps * points.square().sum(1).max()
    tf32 = points.is_cuda and torch.get_float32_matmul_precision() != "highest"
    return points if tf32 or rounding > 1e-3 * bandwidth**2 else points.float()


def _cells(points: Tensor, width: float) -> Tensor:
    """int64 [N]: a hash of the grid cell of each point. A collision only merges two seeds."""
    factors = [pow(6364136223846793005, d + 1, 2**63) for d in range(points.shape[1])]
    return (torch.round(points / width).long() * torch.tensor(factors, device=points.device)).sum(1)


def _grid_seeds(points: Tensor, width: float, min_bin_freq: int) -> Tensor:
    """[S, E]: mean of the points of every occupied grid cell."""
    _, cell, count = torch.unique(_cells(points, width), return_inverse=True, return_counts=True)
    seeds = segment_sum(points, cell, len(count)) / count[:, None]
    enough = count >= min_bin_freq
    return seeds[enough] if enough.any() else seeds


def _converge(points: Tensor, seeds: Tensor, bandwidth: float, max_iterations: int) -> tuple[Tensor, Tensor]:
    """Centres [M, E] where the seeds come to rest, and the number of points around each [M]."""
    sums_in_ball = ball_sums(points, torch.cat([points, torch.ones_like(points[:, :1])], 1), bandwidth)
    centres, counts = [], []
    for iteration in range(max_iterations):
        sums = sums_in_ball(seeds)
        count = sums[:, -1]
        mean = sums[:, :-1] / count[:, None].clamp(min=1)
        lonely = count == 0  # the mean of a cell may be far from all its points: go on from the nearest point
        mean[lonely] = points[_nearest(seeds[lonely], points)]
        at_rest = torch.linalg.vector_norm(mean - seeds, dim=1) <= CONVERGED * bandwidth
        if iteration == max_iterations - 1:
            at_rest[:] = True
        centres.append(mean[at_rest])
        counts.append(count[at_rest])
        seeds = mean[~at_rest]
        if len(seeds) == 0:
            break
        cell, order = torch.sort(_cells(seeds, EQUAL * bandwidth), stable=True)
        first = torch.ones_like(cell, dtype=torch.bool)
        first[1:] = cell[1:] != cell[:-1]
        seeds = seeds[order[first]]
    return torch.cat(centres), torch.cat(counts)


def _drop_duplicates(centres: Tensor, n_neighbours: Tensor, bandwidth: float) -> Tensor:
    """Centres without those within the bandwidth of a stronger one; strongest first."""
    strongest_first = torch.sort(n_neighbours, descending=True, stable=True).indices
    left = centres[strongest_first].cpu().double().numpy()
    kept = []
    while len(left):  # a block at a time: one after the other inside it, then all the rest at once
        block, left = left[:256], left[256:]
        near = _square_distances(block, block) <= bandwidth**2
        alive = np.ones(len(block), bool)
        for i in range(len(block)):
            if alive[i]:
                alive[i + 1 :] &= ~near[i, i + 1 :]
        kept.append(block[alive])
        left = left[(_square_distances(left, kept[-1]) > bandwidth**2).all(1)]
    return torch.as_tensor(np.concatenate(kept)).to(centres)


def _square_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 [A, B] squared distances of the rows of two float64 arrays."""
    return np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T


# ---- the other algorithms ---------------------------------------------------------------------------------


def agglomerative(
    points: Tensor,
    *,
    delta_dist: float = 2.0,
    max_points: int = 2000,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Average linkage (scikit-learn) on a subsample; other points go to the nearest cluster mean.

    Parameters
    ----------
    points : float Tensor [N, E]
        In embedding units.
    delta_dist : float
        Linkage distance above which clusters stay apart. Embedding units.
    max_points : int
        Size of the subsample; memory and time grow with its square.
    generator : torch.Generator or None
        Draws the subsample; the global one if None.

    Returns
    -------
    int64 Tensor [N]
        1 .. K.

    Raises
    ------
    ValueError
        If `delta_dist` is None: this algorithm needs a threshold.

    References
    ----------
    Thesis 8.2 eq. 3; the threshold and the subsample are choices of ours.
    """
    if delta_dist is None:
        raise ValueError("delta_dist is None; agglomerative needs it as its linkage threshold")
    points = points.detach().double()
    if len(points) < 2:
        return torch.ones(len(points), dtype=torch.int64, device=points.device)
    device = points.device if generator is None else generator.device
    chosen = torch.randperm(len(points), generator=generator, device=device)[:max_points].to(points.device)
    model = AgglomerativeClustering(n_clusters=None, distance_threshold=delta_dist, linkage="average")
    found = torch.as_tensor(model.fit_predict(points[chosen].cpu().numpy()), device=points.device)
    labels = _nearest(points, segment_mean(points[chosen], found, int(found.max()) + 1))
    labels[chosen] = found
    return relabel_consecutive(labels + 1)


def hdbscan(
    points: Tensor, *, bandwidth: float = 0.5, min_cluster_size: int = 50, min_samples: int | None = None
) -> Tensor:
    """scikit-learn's HDBSCAN; a single cluster is allowed, as a class mask often holds one object.

    Parameters
    ----------
    points : float Tensor [N, E]
        In embedding units.
    bandwidth : float
        Clusters nearer than this are not split (``cluster_selection_epsilon``). Embedding units.
    min_cluster_size : int
        In pixels.
    min_samples : int or None
        Neighbours of a core point; None means `min_cluster_size`.

    Returns
    -------
    int64 Tensor [N]
        1 .. K, 0 for noise. All noise if there are fewer points than `min_cluster_size`.
    """
    if len(points) < max(2, min_cluster_size, min_samples or 0):
        return torch.zeros(len(points), dtype=torch.int64, device=points.device)
    model = HDBSCAN(
        min_cluster_size=min_cluster_size,
        min_samples=min_samples,
        cluster_selection_epsilon=bandwidth,
        allow_single_cluster=True,
        copy=True,
    )
    found = model.fit_predict(points.detach().cpu().double().numpy())
    labels = torch.as_tensor(found, dtype=torch.int64, device=points.device)
    return relabel_consecutive((labels + 1).clamp(min=0))


def connected_components(mask: Tensor, *, connectivity: int = 2) -> Tensor:
    """Connected regions of a mask: the control that uses no embedding.

    Parameters
    ----------
    mask : bool Tensor [H, W]
    connectivity : {1, 2}
        1: pixels that share an edge; 2: corners as well.

    Returns
    -------
    int64 Tensor [H, W]
        0 outside the mask, 1 .. K inside.
    """
    structure = ndimage.generate_binary_structure(2, connectivity)
    labels, _ = ndimage.label(mask.cpu().numpy(), structure)
    return torch.as_tensor(labels, dtype=torch.int64, device=mask.device)


ALGORITHMS: dict[str, Callable[..., Tensor]] = {
    "mean_shift_plus": mean_shift_plus,
    "mean_shift": mean_shift,
    "agglomerative": agglomerative,
    "hdbscan": hdbscan,
}


# ---- steps after clustering -------------------------------------------------------------------------------


@torch.no_grad()
def merge_close_clusters(points: Tensor, labels: Tensor, delta_dist: float) -> Tensor:
    """Join clusters whose means are close, larger clusters first.

    Every cluster, in order of size, joins the nearest anchor if that is nearer than `delta_dist`, or else
    becomes an anchor. Anchors do not move. Label 0 takes no part, however many points it has.

    Parameters
    ----------
    points : float Tensor [N, E]
        In embedding units.
    labels : int64 Tensor [N]
        0 for noise.
    delta_dist : float
        Embedding units.

    Returns
    -------
    int64 Tensor [N]
        1 .. K in the order of the anchors, 0 where `labels` is 0.

    References
    ----------
    Wolny et al. 2022, evaluation code, without its assumption that the background is largest.
    """
    labels = relabel_consecutive(labels)
    n_clusters = int(labels.max()) if len(labels) else 0
    if n_clusters == 0:
        return labels
    means = segment_mean(points.double(), labels, n_clusters + 1)[1:].cpu().numpy()
    sizes = torch.bincount(labels, minlength=n_clusters + 1)[1:].cpu().numpy()
    anchors = np.empty_like(means)
    n_anchors, new_label = 0, np.zeros(n_clusters + 1, np.int64)
    for k in np.argsort(-sizes, kind="stable"):
        distance = np.linalg.norm(anchors[:n_anchors] - means[k], axis=1)
        if n_anchors and distance.min() < delta_dist:
            new_label[k + 1] = distance.argmin() + 1
        else:
            anchors[n_anchors] = means[k]
            n_anchors += 1
            new_label[k + 1] = n_anchors
    return torch.as_tensor(new_label, device=labels.device)[labels]


def relabel_consecutive(labels: Tensor) -> Tensor:
    """Ids 1 .. K in the order of the old ones, any shape; 0 stays 0, by value. Memory grows with the ids."""
    if labels.numel() == 0:
        return labels
    present = torch.bincount(labels.flatten()) > 0
    present[0] = False
    return torch.where(present, present.long().cumsum(0), 0)[labels]


def drop_small_clusters(labels: Tensor, min_size: int) -> Tensor:
    """Set clusters of fewer than `min_size` pixels to 0; the others become 1 .. K. Any shape."""
    if labels.numel() == 0:
        return labels
    sizes = torch.bincount(labels.flatten())
    return relabel_consecutive(torch.where(sizes[labels] >= min_size, labels, 0))


def split_disconnected(labels: Tensor) -> Tensor:
    """Make every 8-connected region of a cluster a cluster of its own.

    Far apart, two objects may share one embedding: a convolution cannot count. Where the objects of a
    label set are connected (`LabelSet.connected_things`), this tells them apart.

    Parameters
    ----------
    labels : int64 Tensor [H, W]
        0 or 1 .. K.

    Returns
    -------
    int64 Tensor [H, W]
        0 where `labels` is 0, else 1 .. R.
    """
    regions = measure.label(labels.cpu().numpy(), background=0, connectivity=2)
    return torch.as_tensor(regions, dtype=torch.int64, device=labels.device)


@torch.no_grad()
def stability_filter(
    labels: Tensor,
    teacher_embeddings: Tensor,
    mask: Tensor,
    *,
    bandwidth: float,
    n_anchors: int = 100,
    min_median_iou: float = 0.6,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Discard clusters that the momentum network would cut out differently.

    Random pixels of a cluster serve as anchors; the pixels of `mask` whose teacher embedding is nearer than
    `bandwidth` to the teacher embedding of an anchor form its mask. The stability of a cluster is the median
    IoU of these masks with it.

    Parameters
    ----------
    labels : int64 Tensor [H, W]
        Clusters found in the student's embeddings; 0 outside.
    teacher_embeddings : float Tensor [E, H, W]
        In embedding units.
    mask : bool Tensor [H, W]
        Pixels that were clustered.
    bandwidth : float
        Embedding units.
    n_anchors : int
        Anchors per cluster, drawn with replacement.
    min_median_iou : float
        Clusters below this are discarded.
    generator : torch.Generator or None
        On the device of `labels`; the global one if None.

    Returns
    -------
    labels : int64 Tensor [H, W]
        The surviving clusters, 1 .. K.
    stability : float Tensor [K]
        Median IoU of each of them.

    References
    ----------
    Wolny et al. 2022, consistency clustering; thesis ch. 7 ("filtering step").
    """
    mask = mask.bool() | (labels != 0)
    inside = relabel_consecutive(labels[mask])  # [N]
    n_clusters = int(inside.max()) if len(inside) else 0
    if n_clusters == 0:
        return torch.zeros_like(labels), teacher_embeddings.new_zeros(0)
    with torch.autocast(labels.device.type, enabled=False):
        points = _centred(teacher_embeddings.movedim(0, -1)[mask], bandwidth)  # [N, E]
        by_label = torch.argsort(inside, stable=True)
        sizes = torch.bincount(inside, minlength=n_clusters + 1)
        starts = sizes.cumsum(0) - sizes
        draw = torch.rand(n_clusters, n_anchors, generator=generator, device=labels.device)
        offset = (draw * sizes[1:, None]).long().minimum(sizes[1:, None] - 1)
        anchors = points[by_label[starts[1:, None] + offset]]  # [K, A, E]
        members = torch.nn.functional.one_hot(inside, n_clusters + 1).to(points)  # [N, K + 1]
        overlap = ball_sums(points, members, bandwidth)(anchors.flatten(0, 1))
    overlap = overlap.view(n_clusters, n_anchors, n_clusters + 1)
    shared = overlap[:, :, 1:].diagonal(dim1=0, dim2=2).T  # [K, A]
    iou = shared / (overlap.sum(2) + sizes[1:, None] - shared)
    stability = iou.quantile(0.5, dim=1)
    stable = stability >= min_median_iou
    filtered = labels.new_zeros(labels.shape)
    new_label = torch.cat([stable.new_zeros(1), stable]).long().cumsum(0)
    keep = torch.cat([stable.new_zeros(1), stable])
    filtered[mask] = torch.where(keep, new_label, 0)[inside]
    return filtered, stability[stable].float()


# ---- arithmetic shared by the above -----------------------------------------------------------------------


def ball_sums(points: Tensor, values: Tensor, radius: float) -> Callable[[Tensor], Tensor]:
    """A function that maps centres [S, E] to the sums [S, W] of `values` [N, W] within `radius` of each.

    A point p is in the ball of c if c·p - |p|²/2 >= (|c|² - radius²)/2: one matrix product, one comparison
    and a second product per block. Points and centres are sorted along the main axis of the points, so that
    a block of centres meets only the slice of points that can be near. Points should be centred.
    """
    axis = torch.linalg.eigh(points.T @ points).eigenvectors[:, -1]
    position, order = (points @ axis).sort()
    points = points[order]
    lifted = torch.cat([points, -0.5 * points.square().sum(1, keepdim=True)], 1)  # [N, E + 1]
    values = values[order]
    n_centres, n_points = (4096, 16384) if points.is_cuda else (128, 1024)  # one block fits the CPU's cache
    reach = radius * (1 + 1e-3)

    def sums(centres: Tensor) -> Tensor:
        out = values.new_zeros(values.shape[1], len(centres))
        along, order = (centres @ axis).sort()
        centres = centres[order]
        threshold = 0.5 * (centres.square().sum(1) - radius**2)
        lifted_centres = torch.cat([centres, torch.ones_like(centres[:, :1])], 1)
        blocks = range(0, len(centres), n_centres)
        last = [min(start + n_centres, len(centres)) - 1 for start in blocks]
        low = torch.searchsorted(position, along[::n_centres] - reach).tolist()
        high = torch.searchsorted(position, along[last] + reach, right=True).tolist()
        for start, first, stop in zip(blocks, low, high):
            some = slice(start, start + n_centres)
            centre_columns = lifted_centres[some].T.contiguous()
            for begin in range(first, stop, n_points):
                near = lifted[begin : min(begin + n_points, stop)] @ centre_columns
                near.ge_(threshold[some])  # in place: 1.0 inside, 0.0 outside
                out[:, some] += values[begin : min(begin + n_points, stop)].T @ near
        unsorted = torch.empty_like(out)
        unsorted[:, order] = out
        return unsorted.T

    return sums


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    """int64 [N]: index of the nearest centre of every point, in blocks."""
    nearest = torch.empty(len(points), dtype=torch.int64, device=points.device)
    minus_half_square = -0.5 * centres.square().sum(1)
    block = max(1, 2**20 // len(centres))
    for start in range(0, len(points), block):
        some = slice(start, start + block)
        nearest[some] = torch.addmm(minus_half_square, points[some], centres.T).argmax(1)
    return nearest


def segment_sum(values: Tensor, ids: Tensor, n_segments: int) -> Tensor:
    """[n_segments, W]: sums of the rows of `values` [N, W] by id."""
    return values.new_zeros(n_segments, values.shape[1]).index_add_(0, ids, values)


def segment_mean(values: Tensor, ids: Tensor, n_segments: int) -> Tensor:
    """[n_segments, W]: means of the rows of `values` [N, W] by id; 0 for an id without rows."""
    count = torch.bincount(ids, minlength=n_segments).clamp(min=1)
    return segment_sum(values, ids, n_segments) / count[:, None]
