"""What a call of each clustering costs, against the number of pixels and of objects (synthetic input)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from tqdm import tqdm

from panolib.bench.cases import bandwidth_of, embedding_field, instance_map
from panolib.bench.references import DELTA_DIST
from panolib.clustering.algorithms import cluster
from panolib.lab.measuring import repeated, set_torch_threads, with_peak_memory
from panolib.study.run_specs import ClusteringCostSpec


def cost_rows(spec: ClusteringCostSpec, *, label: str = "") -> list[dict]:
    """One row per algorithm and size: time and memory of a call.

    Returns
    -------
    list of dict
        "algorithm", "axis" ("pixels" or "instances"), "pixels" and "instances" that were clustered, "ms"
        (median) and "ms_iqr" over `repeats` calls on one thread, "mib" (rise of the memory of the process
        during one call; NaN where the system does not tell).
    """
    rows = []
    with set_torch_threads(1):
        for axis, height, n_instances in tqdm(list(cost_sizes(spec)), desc=label, leave=False):
            labels = instance_map(height, 2 * height, n_instances, spec.seed)
            field = embedding_field(labels, spec.embedding_dim, spec.seed, mixed_borders=True)
            mask = labels > 0
            for algorithm in spec.algorithms:
                rows.append(
                    {"algorithm": algorithm, "axis": axis, "pixels": int(mask.sum()),
                     "instances": len(labels[mask].unique())}
                    | _cost(field, mask, algorithm, spec)
                )  # fmt: skip
    return rows


def cost_sizes(spec: ClusteringCostSpec) -> Iterator[tuple[str, int, int]]:
    """(axis, height, number of objects) of every input."""
    for height in spec.heights:
        yield "pixels", height, spec.n_instances[0]
    for n_instances in spec.n_instances:
        yield "instances", spec.heights[-2], n_instances


def _cost(field: Tensor, mask: Tensor, algorithm: str, spec: ClusteringCostSpec) -> dict[str, float]:
    options = {"min_cluster_size": 8} if algorithm == "hdbscan" else {}
    options |= {"bandwidth": bandwidth_of(spec.embedding_dim), "delta_dist": DELTA_DIST}

    def call() -> Tensor:
        return cluster(field, mask, algorithm=algorithm, **options)

    call()  # libraries take their buffers once
    _, mib = with_peak_memory(call)
    times = repeated(call, spec.repeats)
    return {"ms": 1e3 * times.median, "ms_iqr": 1e3 * times.iqr, "mib": mib}
