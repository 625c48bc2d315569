"""Packaged networks on any image: the function behind ``panolib.predict``."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from panolib.data.errors import DataError
from panolib.data.images import contiguous, resize_image, resize_labels, row_strips
from panolib.data.intensity import as_colour, to_eight_bits, to_rgb
from panolib.data.samples import Sample
from panolib.inference.panoptic import merge_panoptic
from panolib.inference.tiles import Maps, stitch, tile_windows
from panolib.inference.views import SETS, Views
from panolib.labels import LabelSet
from panolib.profiles import project_root
from panolib.study.packaged import NoWeights, PanopticNetworks, Recipe, read_package

TILE = 1024  # pixels
SHIPPED = {  # name of the weights -> their run
    "street": "city-panoptic-teacher-s0",
    "nuclei": "nuclei-panoptic-teacher-shared-s0",
}


@dataclass(frozen=True)
class PanopticResult:
    """All that is predicted for one image, at its size.

    Attributes
    ----------
    semantic : uint8 array [H, W]
        Position of the class in `label_names`, 255 void.
    instances : int32 array [H, W]
        Countable objects, 1 .. K; 0 = none.
    panoptic : int32 array [H, W]
        0 = void, 1 .. K the same objects, then a number for every other class that is there.
    segments : tuple of dict
        `id` (in `panoptic`), `category_id` (as in `semantic`), `category`, `isthing`, `area` (pixels) and
        `confidence` (mean over its pixels).
    confidence : float32 array [H, W]
        Probability that the network gives the class in `semantic`.
    label_names : tuple of str
    """

    semantic: np.ndarray
    instances: np.ndarray
    panoptic: np.ndarray
    segments: tuple[dict, ...]
    confidence: np.ndarray
    label_names: tuple[str, ...]


def predict(
    image: np.ndarray,
    weights: str | Path | PanopticNetworks = "nuclei",
    *,
    scale: float | None = None,
    diameter: float | None = None,
    tile: int = TILE,
    views: str | None = None,
) -> PanopticResult:
    """Classes and objects of one image.

    Parameters
    ----------
    image : uint8 or uint16 array [H, W] or [H, W, 3 or 4]
        Grey, RGB or RGBA.
    weights : {"nuclei", "street"}, path or PanopticNetworks
        Shipped networks, a file of ``python -m panolib weights``, or what `read_package` gave.
    scale : float, optional
        Factor by which the image is resized for the networks. Default: that which gives a street the width
        of those that the networks were trained on, and 1 for microscopes.
    diameter : float, optional
        Median diameter of the objects in the image, pixels. Instead of a scale: it becomes that of the
        objects that the networks learned from, if their file stores it.
    tile : int
        Pixels (after scaling) beyond which the image is predicted in tiles (`inference.tiles`).
    views : {"one", "left_right", "all", "scales"}, optional
        Of the image, over which predictions are averaged (`inference.views`): it alone, mirrored in one
        direction (2) or all (8), or mirrored at three sizes (6). Default: what the networks' file says.

    Raises
    ------
    DataError
        For an image of another type or shape, a scale that is not above 0 or leaves no pixel, and a diameter
        beside it or where the networks know none.
    NoWeights
        For a file that is not there or holds no networks.
    ValueError
        For a tile below 160 pixels, and unknown views.
    """
    if isinstance(image, str | Path):
        raise DataError(f"image is a text or a path ({image}), expected an array, as skimage.io.imread gives")
    networks = weights if isinstance(weights, PanopticNetworks) else load_networks(weights)
    networks = networks.seeing(views_called(views))
    image = as_colour(image, "image")
    scale = scale_for(networks.recipe, scale, diameter)
    if scale is None:
        scale = 1.0 if networks.recipe.width is None else networks.recipe.width / image.shape[1]
    if not 0 < scale < 100:
        raise DataError(f"scale is {scale}, expected a factor above 0 and below 100")
    maps = _whole_maps(networks, as_network_sees(image, networks.recipe), scale, tile)
    return _result(maps, networks.label_set, networks.recipe.rule)


def views_called(name: str | None) -> Views | None:
    """The set of views of that name; None for none. ValueError for an unknown one."""
    if name is not None and name not in SETS:
        raise ValueError(f"views are {name!r}, expected one of {', '.join(SETS)}")
    return None if name is None else SETS[name]


def _whole_maps(networks: PanopticNetworks, image: np.ndarray, scale: float, tile: int) -> Maps:
    """What the networks say about an image, uint8 [H, W, 3], at its size; only here is it held."""
    size = image.shape[:2]
    seen = image if scale == 1 else resize_image(image, tuple(max(1, round(n * scale)) for n in size))
    windows = tile_windows(seen.shape[:2], tile)
    bar = tqdm(windows, unit="tile", leave=False, delay=5, disable=len(windows) < 2)
    maps = stitch(seen.shape[:2], ((window, _maps(networks, seen[window])) for window in bar))
    del image, seen
    parts = [*maps[::-1]]
    del maps  # each is gone when the next one is resized
    return Maps(*(resize_labels(parts.pop(), size) for _ in Maps._fields))


def load_networks(weights: str | Path) -> PanopticNetworks:
    """Networks of a shipped name or a file, read once as long as the file stays."""
    path = weights_file(weights)
    return _read(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _read(path: Path, mtime_ns: int) -> PanopticNetworks:
    return read_package(path)


def weights_file(weights: str | Path) -> Path:
    """The file of shipped weights by name, or the path itself. NoWeights for a name without its file."""
    if weights not in SHIPPED:
        path = Path(weights)
        if path.is_dir():
            raise NoWeights(f"weights {path}: is a folder, expected a file, as weights/teacher.safetensors")
        if not path.is_file():
            raise NoWeights(
                f"weights {str(weights)!r}: no such file, expected {' or '.join(SHIPPED)}, or a safetensors "
                "file that `python -m panolib weights` wrote, or a recorded panoptic run of profile cpu; for "
                "one of another: python -m panolib weights --profile PROFILE --run RUN --out FILE"
            )
        return path
    path = project_root(Path(__file__).parent) / "results" / "cpu" / "weights" / f"{weights}.safetensors"
    if not path.is_file():
        raise NoWeights(
            f"{path}: is not there, expected the weights {weights!r}; write them with python -m panolib "
            f"weights --profile cpu --run {SHIPPED[weights]} --out {path}"
        )
    return path


def scale_for(recipe: Recipe, scale: float | None, diameter: float | None) -> float | None:
    """The scale that is given, or that which brings objects of a diameter (pixels) to those of training."""
    if diameter is None:
        return scale
    if scale is not None:
        raise DataError(f"diameter is {diameter:g} and scale {scale:g}, expected one of them")
    if recipe.diameter is None:
        raise DataError(
            f"diameter is {diameter:g}, but the weights ({recipe.run}) store none of the objects that they "
            "learned from; expected a scale instead"
        )
    if not diameter > 0:
        raise DataError(f"diameter is {diameter:g}, expected pixels above 0")
    return recipe.diameter / diameter


def as_network_sees(image: np.ndarray, recipe: Recipe) -> np.ndarray:
    """uint8 [H, W, 3] of uint8 or uint16: intensities as in the images that networks were trained on."""
    if recipe.intensity is None:
        return contiguous(to_eight_bits(image))
    return to_rgb(image, "image", recipe.intensity, recipe.limits)


def _maps(networks: PanopticNetworks, image: np.ndarray) -> Maps:
    """What the networks say about one tile, uint8 [H, W, 3]."""
    found = networks.predict(Sample(np.ascontiguousarray(image), None, None, None, "image"))
    confidence, semantic = found.outputs.probabilities.max(0)
    return Maps(
        semantic.numpy().astype(np.uint8), found.instances[0].numpy().astype(np.int32), confidence.numpy()
    )


def _result(maps: Maps, label_set: LabelSet, rule: str) -> PanopticResult:
    """The panoptic map of semantic labels and instances, things numbered first; takes over the maps."""
    panoptic, segments = merge_panoptic(maps.semantic, maps.instances, label_set, rule=rule)
    ordered = sorted(segments, key=lambda segment: not segment["isthing"])
    n_things, total = sum(segment["isthing"] for segment in segments), np.zeros(len(segments) + 1)
    numbers = np.zeros(len(segments) + 1, np.int32)
    numbers[[segment["id"] for segment in ordered]] = np.arange(1, len(segments) + 1)
    for rows in row_strips(panoptic.shape):
        ids = numbers[panoptic[rows]]
        panoptic[rows], maps.instances[rows] = ids, np.where(ids <= n_things, ids, 0)
        total += np.bincount(ids.ravel(), maps.confidence[rows].ravel(), minlength=len(total))
    segments = tuple(
        {
            "id": number,
            "category_id": segment["category_id"],
            "category": label_set.classes[segment["category_id"]],
            "isthing": segment["isthing"],
            "area": segment["area"],
            "confidence": float(total[number] / segment["area"]),
        }
        for number, segment in enumerate(ordered, start=1)
    )
    return PanopticResult(
        maps.semantic, maps.instances, panoptic, segments, maps.confidence, label_set.classes
    )
