"""Procedural fluorescence microscopy of cell nuclei with exact instances.

Every image draws one "look" (an experiment: cell line, stain, magnification) and its parameters. A nucleus
is an ellipse whose radius is perturbed by a few Fourier terms; overlapping nuclei share the border where
their normalised radii are equal. The signal (dome, chromatin texture, bright spots, nucleoli) passes a point
spread function with a wide halo; background, fibres of cytoplasm, unfocused cells, photon and read noise
follow. Looks and ranges were chosen by eye on training images; no score was used.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial import cKDTree
from tqdm import tqdm

from panolib.data.cache import is_complete, written_once
from panolib.data.images import write_png
from panolib.data.processes import leave_unguarded_import, map_in_processes
from panolib.data.samples import Sample

RENDERER_VERSION = 1  # raise when pixels change; part of fingerprints
MIN_AREA_PX = 20  # smaller visible pieces at the border are not drawn

# Ranges from which an image draws its parameters, uniformly and in this order, by the look that it has.
# Lengths in pixels, intensities in grey levels, shares and amplitudes without unit.
_NAMES = "large", "medium", "granular", "dense", "sparse"
_TABLE: dict[str, tuple] = {
    "probability": (0.24, 0.2, 0.2, 0.2, 0.16),
    "radius": ((17, 26), (9.5, 15), (7, 11), (4.3, 6.5), (5.5, 8.5)),  # median over the nuclei of the image
    "size_spread": ((0.1, 0.25), (0.08, 0.2), (0.07, 0.2), (0.1, 0.25), (0.1, 0.25)),  # sigma of log radius
    "cover": ((0.08, 0.34), (0.08, 0.26), (0.08, 0.28), (0.06, 0.15), (0.015, 0.07)),  # share of the area
    "clumped": ((0.0, 0.4), (0.1, 0.5), (0.3, 0.85), (0.1, 0.5), (0.1, 0.5)),  # share in touching groups
    "elongation": ((1.15, 1.8), (1.1, 1.7), (1.0, 1.25), (1.1, 1.8), (1.05, 1.7)),  # long over short axis
    "lobes": ((0.02, 0.08), (0.01, 0.06), (0.01, 0.05), (0.01, 0.06), (0.01, 0.06)),  # of the outline
    "texture": ((0.08, 0.22), (0.08, 0.25), (0.2, 0.45), (0.1, 0.3), (0.1, 0.3)),  # contrast of chromatin
    "spots": ((0.0, 0.25), (0.0, 0.3), (0.8, 2.2), (0.0, 0.5), (0.0, 0.8)),  # strength of bright spots
    "nucleoli": ((0.0, 0.5), (0.0, 0.35), (0.0, 0.4), (0.0, 0.2), (0.0, 0.3)),  # depth of dark holes
    "condensed": ((0.0, 0.04), (0.0, 0.08), (0.0, 0.05), (0.03, 0.25), (0.0, 0.15)),  # share small and bright
    "blur": ((0.7, 1.6), (0.8, 1.9), (0.9, 1.6), (0.6, 1.0), (0.6, 1.1)),  # sigma of the point spread
    "background": ((3, 13), (2, 8), (3, 6), (5, 15), (3, 14)),
    "brightness": ((18, 100), (22, 60), (22, 45), (50, 110), (40, 120)),  # median nucleus, above background
    "brightness_spread": ((0.08, 0.35), (0.2, 0.45), (0.2, 0.5), (0.25, 0.55), (0.2, 0.45)),  # sigma of log
    "fibres": ((0.0, 0.02), (0.0, 0.03), (0.0, 0.03), (0.0, 0.03), (0.0, 0.05)),  # relative to brightness
}
LOOKS = {name: {key: row[i] for key, row in _TABLE.items()} for i, name in enumerate(_NAMES)}


@dataclass(frozen=True)
class _Nuclei:
    """K nuclei: centres [K, 2] (row, column), radii, shapes and brightness [K]."""

    centre: np.ndarray
    radius: np.ndarray
    elongation: np.ndarray
    angle: np.ndarray
    harmonics: np.ndarray  # complex [K, 4], Fourier terms 2 .. 5 of the outline
    brightness: np.ndarray

    def take(self, chosen: np.ndarray) -> _Nuclei:
        return _Nuclei(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


def render_nuclei(*, seed: int, index: int, height: int, width: int) -> Sample:
    """One image of nuclei with its exact labels; a pure function of the arguments.

    Sizes of nuclei do not depend on that of the image (pixels, at least 32): a larger one shows more of them.
    It is grey (three equal channels) and as dark as a microscope's (`stretch_intensity` helps). `instance`
    holds 1 .. K, each of MIN_AREA_PX pixels or more; `crowd` is empty. Raises ValueError for a smaller image.
    """
    if min(height, width) < 32:
        raise ValueError(f"cannot render {height} x {width} pixels; expected at least 32 x 32")
    rng = np.random.default_rng([seed, index])
    probability = np.array([look["probability"] for look in LOOKS.values()])
    look = list(LOOKS.values())[rng.choice(len(LOOKS), p=probability / probability.sum())]
    p = {name: rng.uniform(*bounds) for name, bounds in look.items() if name != "probability"}

    nuclei, instance, depth = _populate(rng, p, height, width)
    image = _expose(rng, p, nuclei, instance, depth)
    return Sample(
        image=np.repeat(image[..., None], 3, axis=2),
        semantic=(instance > 0).astype(np.uint8),
        instance=instance,
        crowd=np.zeros(instance.shape, bool),
        id=f"{index:05d}",
    )


def _populate(
    rng: np.random.Generator, p: dict[str, float], height: int, width: int
) -> tuple[_Nuclei, np.ndarray, np.ndarray]:
    """Nuclei of MIN_AREA_PX visible pixels or more, at least one, with their maps (see `_rasterise`)."""
    nuclei = _place(rng, p, height, width)
    while True:
        if not len(nuclei.radius):
            nuclei = _place(rng, p, height, width)
        instance, depth = _rasterise(nuclei, height, width)
        areas = np.bincount(instance.ravel(), minlength=len(nuclei.radius) + 1)[1:]
        if (areas >= MIN_AREA_PX).all():
            return nuclei, instance, depth
        nuclei = nuclei.take(areas >= MIN_AREA_PX)  # cut too small by the border or a neighbour


def _place(rng: np.random.Generator, p: dict[str, float], height: int, width: int) -> _Nuclei:
    """Draw the nuclei of one image: some in clumps, pushed apart until they touch or overlap a little."""
    margin = p["radius"]
    box = np.array([height + 2 * margin, width + 2 * margin])
    n = max(1, rng.poisson(p["cover"] * box.prod() / (np.pi * p["radius"] ** 2)))
    radius = p["radius"] * np.exp(p["size_spread"] * rng.standard_normal(n))
    brightness = p["brightness"] * np.exp(p["brightness_spread"] * rng.standard_normal(n))
    condensed = rng.random(n) < p["condensed"]
    radius = np.maximum(np.where(condensed, rng.uniform(0.5, 0.8, n) * radius, radius), 3.0)
    brightness = np.where(condensed, rng.uniform(1.6, 3.0, n) * brightness, brightness)

    candidates = rng.random((4 * n, 2)) * box - margin
    crowding = _field(rng, height, width, 0.2 * min(height, width))  # cells avoid some regions
    rows, columns = np.clip(candidates.astype(int), 0, (height - 1, width - 1)).T
    weight = np.exp(0.8 * crowding[rows, columns])
    centre = candidates[rng.choice(len(candidates), n, replace=False, p=weight / weight.sum())]
    clumped = np.flatnonzero(rng.random(n) < p["clumped"])
    group_size = rng.uniform(2, 7)
    group = rng.integers(max(1, round(len(clumped) / group_size)), size=len(clumped))
    spread = 1.1 * p["radius"] * np.sqrt(group_size)
    centre[clumped] = centre[clumped[group]] + spread * rng.standard_normal((len(clumped), 2))

    touch = rng.uniform(0.86, 1.02)
    for _ in range(15):
        pairs = cKDTree(centre).query_pairs(2 * radius.max() * touch, output_type="ndarray")
        difference = centre[pairs[:, 0]] - centre[pairs[:, 1]]
        distance = np.linalg.norm(difference, axis=1) + 1e-6
        missing = np.maximum(touch * radius[pairs].sum(axis=1) - distance, 0)
        push = difference * (0.5 * missing / distance)[:, None]
        np.add.at(centre, pairs[:, 0], push)
        np.add.at(centre, pairs[:, 1], -push)

    aligned = rng.random() < 0.3  # stretched cells often share a direction
    angle = np.pi * rng.random() + 0.3 * rng.standard_normal(n) if aligned else np.pi * rng.random(n)
    harmonics = rng.standard_normal((n, 4)) + 1j * rng.standard_normal((n, 4))
    harmonics *= p["lobes"] * np.array([1.0, 0.6, 0.25, 0.12]) * np.exp(0.5 * rng.standard_normal((n, 1)))
    harmonics *= np.minimum(1, 0.35 / np.abs(harmonics).sum(axis=1, keepdims=True))
    elongation = 1 + (p["elongation"] - 1) * rng.gamma(4.0, 0.25, n)
    return _Nuclei(centre, radius, np.clip(elongation, 1, 2.1), angle, harmonics, brightness)


def _rasterise(nuclei: _Nuclei, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(int32 instance map [H, W], float32 normalised radius [H, W] of the owner, 1 at its outline)."""
    long = nuclei.radius * np.sqrt(nuclei.elongation)
    reach = int(np.ceil(1.35 * long.max())) + 1
    corner = np.floor(nuclei.centre).astype(int)  # [K, 2]
    offset = np.arange(-reach, reach + 1)
    rows, columns = (corner[:, i, None] + offset for i in (0, 1))  # [K, P]
    y = (rows + 0.5 - nuclei.centre[:, :1]).astype(np.float32)[:, :, None]
    x = (columns + 0.5 - nuclei.centre[:, 1:]).astype(np.float32)[:, None, :]
    cos, sin = (f(nuclei.angle).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    u = (cos * x + sin * y) / long[:, None, None].astype(np.float32)  # [K, P, P]
    v = (cos * y - sin * x) * (long / nuclei.radius**2)[:, None, None].astype(np.float32)
    modulus = np.hypot(u, v)
    unit = (u + 1j * v) / np.maximum(modulus, 1e-6)
    outline, power = 1.0, unit
    for m in range(nuclei.harmonics.shape[1]):
        power = power * unit  # exp(i (m + 2) theta)
        outline = outline + (nuclei.harmonics[:, m, None, None].astype(np.complex64) * power).real
    depth = modulus / outline  # [K, P, P]

    inside_rows, inside_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    valid = (depth < 1) & inside_rows[:, :, None] & inside_columns[:, None, :]
    owner, row, column = np.nonzero(valid)
    pixel = rows[owner, row] * width + columns[owner, column]
    depth = depth[valid]
    order = np.argsort(-depth, kind="stable")  # the nucleus deepest at a pixel is written last and stays
    instance = np.zeros(height * width, np.int32)
    instance[pixel[order]] = owner[order] + 1
    depth_map = np.ones(height * width, np.float32)
    depth_map[pixel[order]] = depth[order]
    return instance.reshape(height, width), depth_map.reshape(height, width)


def _expose(
    rng: np.random.Generator, p: dict[str, float], nuclei: _Nuclei, instance: np.ndarray, depth: np.ndarray
) -> np.ndarray:
    """uint8 [H, W]: stained nuclei through the optics onto the camera."""
    height, width = instance.shape
    r = p["radius"]
    field = partial(_field, rng, height, width)
    chromatin = 0.6 * field(max(0.06 * r, 0.7)) + 0.7 * field(0.28 * r)
    spots = np.maximum(field(max(0.13 * r, 0.8)) - 1.0, 0)
    holes = 1 / (1 + np.exp(-6 * (field(max(0.15 * r, 0.8)) - 1.4)))
    level = np.append(nuclei.brightness, 0.0).astype(np.float32)[instance - 1]  # 0 -> last, the background
    signal = level * (0.72 + 0.28 * np.sqrt(np.maximum(1 - depth**2, 0)))
    signal *= np.exp(p["texture"] * chromatin) * (1 + p["spots"] * spots) * (1 - p["nucleoli"] * holes)

    if rng.random() < 0.3:  # cells out of focus, which annotators leave out
        n = 1 + rng.poisson(2.0)
        impulses = np.zeros(instance.shape, np.float32)
        peak = p["brightness"] * rng.uniform(0.04, 0.14, n)
        places = rng.integers(height, size=n), rng.integers(width, size=n)
        impulses[places] = peak * 2 * np.pi * (0.9 * r) ** 2
        signal += _blur(impulses, 0.9 * r)

    glow = _blur(signal, 1.2 * r + 3)
    image = _blur(signal, p["blur"]) + rng.uniform(0.03, 0.16) * glow
    image += p["background"] * np.exp(rng.uniform(0.02, 0.2) * field(0.3 * min(height, width)))
    image += p["fibres"] * p["brightness"] * _fibres(rng, height, width)

    photons = np.exp(rng.uniform(np.log(1.5), np.log(40)))  # per grey level
    image = rng.poisson(np.maximum(image, 0) * photons) / photons
    image += rng.uniform(0.1, 0.9) * rng.standard_normal(image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian filter; wide ones run on a smaller copy."""
    step = max(1, int(sigma / 3))
    if step == 1:
        return cv2.GaussianBlur(image, (0, 0), sigma)
    size = (max(2, image.shape[1] // step), max(2, image.shape[0] // step))
    small = cv2.GaussianBlur(cv2.resize(image, size, interpolation=cv2.INTER_AREA), (0, 0), sigma / step)
    return cv2.resize(small, image.shape[::-1], interpolation=cv2.INTER_CUBIC)


def _field(rng: np.random.Generator, height: int, width: int, sigma: float) -> np.ndarray:
    """float32 [H, W] smooth noise of mean 0 and deviation 1; `sigma` is its length scale in pixels."""
    step = max(1.0, sigma / 2)
    shape = (int(np.ceil(height / step)) + 6, int(np.ceil(width / step)) + 6)
    noise = cv2.GaussianBlur(rng.standard_normal(shape, dtype=np.float32), (0, 0), sigma / step)
    noise = (noise - noise.mean()) / (noise.std() + 1e-6)
    if step == 1.0:
        return noise[3 : 3 + height, 3 : 3 + width]
    size = (round(shape[1] * step), round(shape[0] * step))
    grown = cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC)
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    return grown[top : top + height, left : left + width]


def _fibres(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """float32 [H, W] >= 0: faint streaks along one direction, stronger in some regions."""
    side = int(np.hypot(height, width)) + 2
    noise = rng.standard_normal((side, side), dtype=np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), sigmaX=18, sigmaY=2.0)
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), rng.uniform(0, 180), 1.0)
    turned = cv2.warpAffine(noise / noise.std(), turn, (side, side), flags=cv2.INTER_LINEAR)
    top, left = (side - height) // 2, (side - width) // 2
    streaks = np.maximum(turned[top : top + height, left : left + width] - 0.7, 0)
    return streaks * np.exp(0.7 * _field(rng, height, width, 0.15 * min(height, width)))


# ---------------------------------------------------------------- on disk


def write_nuclei(
    root: Path,
    *,
    split: str,
    n_images: int,
    height: int,
    width: int,
    seed: int,
    n_workers: int = 1,
    progress: bool = True,
) -> Path:
    """Render one split in the shared nuclei layout, once; `Nuclei(root, split)` reads it.

    Writes images/{id}.png (8-bit RGB), labels/{id}.png (16 bit), splits/{split}.txt and index.csv, as of
    `cache.written_once`. `root` is the folder of this split alone; splits of one seed share no image. The
    files do not depend on `n_workers`, a number of processes; with more than one, a script must call this
    below ``if __name__ == "__main__"``. Errors as of `render_nuclei`, `written_once` and `map_in_processes`.
    """
    leave_unguarded_import()
    sizes = {"n_images": n_images, "height": height, "width": width}

    def write(folder: Path) -> None:
        for name in ("images", "labels", "splits"):
            (folder / name).mkdir()
        of_split = int.from_bytes(sha256(f"{seed}/{split}".encode()).digest()[:8], "big")
        draw = partial(_write_one, folder, split, height, width, of_split)
        rows = map_in_processes(draw, n_images, n_workers)
        rows = list(tqdm(rows, total=n_images, desc=f"render nuclei {split}", disable=not progress))
        (folder / "splits" / f"{split}.txt").write_text("".join(f"{row['id']}\n" for row in rows))
        with (folder / "index.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)

    return written_once(Path(root), _fingerprint(split=split, seed=seed, **sizes), write)


def is_written(root: Path, **arguments) -> bool:
    """Whether `write_nuclei` would find the images of these arguments in their folder."""
    return is_complete(Path(root), _fingerprint(**arguments))


def _fingerprint(**arguments) -> dict:
    """What the content of a folder depends on."""
    return {"renderer": "nuclei_scenes", "version": RENDERER_VERSION, **arguments}


def _write_one(folder: Path, split: str, height: int, width: int, seed: int, index: int) -> dict:
    """Render and write one image; its row of index.csv."""
    sample = render_nuclei(seed=seed, index=index, height=height, width=width)
    name = f"{split}_{sample.id}"
    grey = sample.image[..., 0]
    write_png(folder / "images" / f"{name}.png", sample.image)
    write_png(folder / "labels" / f"{name}.png", sample.instance.astype(np.uint16))
    return {
        "id": name, "height": height, "width": width, "n_nuclei": int(sample.instance.max()),
        "modality": "fluorescence_grey", "split": split, "median_grey": float(np.median(grey)),
        "mean_chroma": 0.0, "foreground_fraction": round(float(sample.semantic.mean()), 5),
    }  # fmt: skip
