"""What the networks of a run predict on its validation images, as files that the official tools score."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from panolib.data.cache import FINGERPRINT, read_fingerprint, written_once
from panolib.inference.exports import (
    ExportError,
    file_stem,
    write_cityscapes_instances,
    write_cityscapes_semantic,
    write_coco_panoptic,
    write_coco_panoptic_json,
)
from panolib.inference.panoptic import predict_panoptic
from panolib.inference.predict import one_by_one, predict
from panolib.inference.views import embedded_in, seen_in
from panolib.lab.engine import without_weights
from panolib.lab.files import check_writable
from panolib.lab.job import Job
from panolib.lab.run import Run
from panolib.lab.store import Store
from panolib.labels import LABEL_SETS, LabelSet, merged_ids
from panolib.study.kinds import Sources
from panolib.study.parents import clustering_of, parent_network, trained_network
from panolib.training.specs import SemanticNetwork

SEMANTIC, INSTANCES, PANOPTIC = "semantic", "instances", "panoptic"  # folders: the tools search them by name


@dataclass(frozen=True)
class ImagePrediction:
    """Maps [H, W] predicted for one image, with the rows of their segments; None where a run gives none."""

    image_id: str
    semantic: np.ndarray | Tensor  # train ids of the data set
    instances: tuple[np.ndarray | Tensor, list[dict]] | None  # of `predict_instances`
    panoptic: tuple[np.ndarray, list[dict]] | None  # of `merge_panoptic`


def export_run(
    store: Store, sources: Sources, run: Run, folder: Path | str, *, overwrite: bool = False
) -> dict[str, int]:
    """Write the predictions of a run: complete, or not at all.

    A panoptic run gives "semantic" (label ids), "instances" (masks and text files) and "panoptic" (PNG) with
    "panoptic.json" beside it, as they were scored: the first merge rule, the clustering of its parents. A run
    of one semantic network gives "semantic" only, in the classes of the data set.

    Weights that are not in the store are trained first. The folder is empty or not there; with `overwrite` an
    earlier export may be there, which is replaced. Returns how many files each folder has, by its name.

    Raises
    ------
    ExportError
        For a run of another kind.
    FileExistsError
        If there is something in the folder that may not be replaced.
    """
    folder = Path(folder)
    label_set, networks = _exported_networks(sources, run)
    check_free(folder, overwrite)
    for network in networks:
        store.final_state(network)
    records = {network.name: store.get(network).info["recorded_at"] for network in networks}
    made_by = {"export": run.name, "key": run.key, "recorded_at": records, "written_at": time.time()}
    predictions = _predictions(store, sources, run)
    written_once(folder, made_by, lambda work: write_predictions(work, predictions, label_set))
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    return {name: sum(path.is_file() for path in (folder / name).rglob("*")) for name in names}


def write_predictions(folder: Path, predictions: Iterable[ImagePrediction], label_set: LabelSet) -> None:
    """Write images into the three folders, and "panoptic.json" if there are panoptic maps."""
    annotations = []
    for prediction in predictions:
        image_id = prediction.image_id
        write_cityscapes_semantic(
            folder / SEMANTIC / f"{file_stem(image_id)}_labelIds.png", prediction.semantic, label_set
        )
        if prediction.instances is not None:
            write_cityscapes_instances(folder / INSTANCES, image_id, *prediction.instances, label_set)
        if prediction.panoptic is not None:
            annotations.append(
                write_coco_panoptic(folder / PANOPTIC, image_id, *prediction.panoptic, label_set)
            )
    if annotations:
        write_coco_panoptic_json(folder / f"{PANOPTIC}.json", annotations, label_set)


def untrained(store: Store, sources: Sources, run: Run) -> list[Run]:
    """Runs that `export_run` trains first because their weights are not in the store, parents first."""
    return without_weights(store, _exported_networks(sources, run)[1])


def check_exportable(run: Run) -> None:
    """Raise ExportError for a run that predicts nothing that could be exported."""
    network, labelled = getattr(run.spec, "network", None), hasattr(run.spec, "validation")
    if run.kind != "panoptic" and not (isinstance(network, SemanticNetwork) and labelled):
        raise ExportError(
            f"run {run.name!r} is of kind {run.kind!r}; "
            "expected a panoptic run, or a run of one semantic network"
        )


def _exported_networks(sources: Sources, run: Run) -> tuple[LabelSet, list[Run]]:
    """Label set of the files of a run, and the runs whose weights predict them."""
    check_exportable(run)
    if run.kind == "panoptic":
        parents = dict(run.parents)
        return LABEL_SETS[run.spec.label_set], [parents["semantic"], parents["instance"]]
    return sources[run.domain].open(run.spec.validation).label_set, [run]


def _predictions(store: Store, sources: Sources, run: Run) -> Iterator[ImagePrediction]:
    """Predictions of a run for its validation images, one at a time."""
    spec, label_set, job = run.spec, LABEL_SETS[run.spec.label_set], Job(store, run)
    data = sources[run.domain].open(spec.validation)
    if run.kind != "panoptic":
        model = trained_network(spec, store.final_state(run), spec.compute)
        merged = merged_ids(label_set, data.label_set)
        for prediction in predict(model, None, data, label=f"{run.name}: export"):
            semantic = merged[prediction.semantic.cpu().numpy()]
            yield ImagePrediction(prediction.sample.id, semantic, None, None)
        return
    models = [parent_network(job, role, spec.scored) for role in ("semantic", "instance")]
    models = [seen_in(models[0], spec.views), embedded_in(models[1], spec.views)]
    clustering = clustering_of(job)
    options = {"rule": spec.merge_rules[0], "opening": spec.opening, "min_size": spec.min_size, **clustering}
    for sample in one_by_one(data, f"{run.name}: export"):
        found = predict_panoptic(*models, sample, label_set, **options)
        yield ImagePrediction(sample.id, found.outputs.semantic, found.instances, found.panoptic)


def check_free(folder: Path, overwrite: bool) -> None:
    """Raise an OSError for what `written_once` may not replace, and for a place where it may not write."""
    check_writable(folder.parent)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file, expected a folder or nothing")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(
            f"{folder}: holds files, expected an empty folder or none; --overwrite replaces an earlier export"
        )
    made_by = read_fingerprint(folder)
    if not isinstance(made_by, Mapping) or "export" not in made_by:
        raise FileExistsError(
            f"{folder}: holds files that no export wrote (its {FINGERPRINT} would say so); they stay, "
            "expected another folder"
        )
