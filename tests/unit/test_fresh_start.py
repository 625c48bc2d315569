"""The two commands of the README in a fresh clone (a copy of what they need), each in its own process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage import data, draw

from panolib.data.render.nuclei_scenes import render_nuclei
from panolib.profiles import project_root

STUDY = project_root(Path(__file__).parent)
CLONED = ("panolib", "notebooks/profiles", "pyproject.toml", "results/cpu/weights/nuclei.safetensors")
SIZE = 64
SHORT = {"iterations": 2}
BASELINE = {**SHORT, "augmentation": {"height": SIZE, "width": SIZE}}
PROFILE = {  # what takes least; without it half an hour
    "extends": "smoke",
    "nuclei": {
        "semantic_baseline": BASELINE, "instance_baseline": BASELINE,
        "self_training": SHORT, "instance_self_training": SHORT,
        "batch_norm": {"n_batches": 1}, "instance_batch_norm": {"n_batches": 1},
    },
}  # fmt: skip


def mitosis(rng: np.random.Generator) -> np.ndarray:
    """uint16 [SIZE, SIZE] like `skimage.data.human_mitosis`: nuclei on a dark noisy ground, some dividing."""
    light = np.zeros((SIZE, SIZE))
    for k, (y, x) in enumerate(rng.uniform(6, SIZE - 6, (7, 2))):
        angle, apart = rng.uniform(0, np.pi), 4.0 * (k % 3 == 0)
        brightness = rng.uniform(200, 450) * (1.6 if apart else 1)
        for side in (-apart, apart) if apart else (0.0,):
            centre = y + side * np.sin(angle), x + side * np.cos(angle)
            radii = (3, 4) if apart else (5, 5)
            light[draw.ellipse(*centre, *radii, shape=light.shape, rotation=angle)] = brightness
    return (20 * rng.poisson(gaussian_filter(light, 0.8) + 30)).astype(np.uint16)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Folders "clone", "temporary", and "here" with images: my_images/, labelled/, unlabelled/."""
    root = tmp_path_factory.mktemp("fresh")
    for name in CLONED:
        copied = root / "clone" / name
        copied.parent.mkdir(parents=True, exist_ok=True)
        if (STUDY / name).is_dir():
            shutil.copytree(STUDY / name, copied, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(STUDY / name, copied)
    (root / "temporary").mkdir()
    here = root / "here"
    for folder in ("my_images", "labelled/images", "labelled/masks", "unlabelled"):
        (here / folder).mkdir(parents=True)
    for name, picture in {
        "coins.png": data.coins(), "cell.tif": data.cell()[200:500, 100:400],
        "galaxies.jpg": data.hubble_deep_field()[:200, :200],
    }.items():  # fmt: skip
        Image.fromarray(picture).save(here / "my_images" / name)
    for i in range(6):
        scene = render_nuclei(seed=3, index=i, height=SIZE, width=SIZE)
        tifffile.imwrite(here / "labelled" / "images" / f"{i}.tif", scene.image[..., 0])
        tifffile.imwrite(here / "labelled" / "masks" / f"{i}.tif", scene.instance.astype(np.uint16))
    rng = np.random.default_rng(0)
    for i in range(3):
        tifffile.imwrite(here / "unlabelled" / f"{i}.tif", mitosis(rng))
    (here / "tiny.yaml").write_text(yaml.safe_dump(PROFILE))
    return root


def files(folder: Path) -> dict[Path, int]:
    """Every file below a folder, with the time of its last change, but for what Python compiles."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path: path.stat().st_mtime_ns for path in found}


def run(place: Path, line: str, out: str) -> str:
    """What a command of the README prints, once it is clear that it wrote below `out` alone."""
    before = files(place)
    environment = {"PYTHONPATH": str(place / "clone"), "TMPDIR": str(place / "temporary")}
    done = subprocess.run(
        [sys.executable, *line.split()[1:]], cwd=place / "here", text=True, capture_output=True,
        env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    after = files(place)
    written = {path for path, time in after.items() if before.get(path) != time}
    assert before.keys() <= after.keys() and written
    assert all(path.is_relative_to(place / "here" / out) for path in written)
    return done.stdout


def check_predictions(folder: Path, names: set[str]) -> None:
    """Label images, a line in the table and an entry in the JSON for each image, and objects in most."""
    table = pd.read_csv(folder / "summary.csv", dtype={"image": str}).set_index("image")
    coco = json.loads((folder / "panoptic.json").read_text())
    assert set(table.index) == names and len(coco["annotations"]) == len(names)
    assert (folder / "contact_sheet.png").is_file()
    assert {path.name for path in (folder / "panoptic").iterdir()} >= {f"{n}_panoptic.png" for n in names}
    for name in names:
        instances = tifffile.imread(folder / "instances" / f"{name}.tif")
        assert instances.dtype == np.uint16 and len(np.unique(instances)) - 1 == table.loc[name, "objects"]
        semantic = np.asarray(Image.open(folder / "semantic" / f"{name}.png"))
        assert semantic.shape == instances.shape == tuple(table.loc[name, ["height", "width"]])
    assert (table["objects"] > 0).mean() > 0.5


def test_one_command_predicts_three_pictures(place):
    line = "python -m panolib predict my_images/ --weights nuclei --out found/"
    assert "3 images in found" in run(place, line, "found")
    check_predictions(place / "here" / "found", {"coins", "cell", "galaxies"})


@pytest.mark.slow
def test_one_command_adapts_drawn_nuclei_to_others(place):
    line = "python -m panolib adapt --source labelled/ --target unlabelled/ --out adapted/"
    shorter = " --start nuclei --profile tiny.yaml --workers 1"
    said = run(place, line + shorter, "adapted")
    assert "plan: 11 of 11 runs to do, 8 iterations" in said and "median diameter, pixels" in said
    out = place / "here" / "adapted"
    for name in ("source_only", "adabn", "self_trained", "teacher"):
        assert (out / "weights" / f"{name}.safetensors").is_file()
        assert "nan" not in (out / "weights" / f"{name}.md").read_text().split()
    text = (out / "report.html").read_text()
    assert all(heading in text for heading in ("Warnings", "Predictions", "Curves", "The two folders"))
    check_predictions(out / "predictions", {"0", "1", "2"})


def test_a_folder_that_holds_the_clone_does_not_hide_the_package(tmp_path):
    """A folder called panolib without __init__.py is a package to Python, where no path has a better one."""
    (tmp_path / "panolib").symlink_to(STUDY)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(
        [sys.executable, "-c", "import panolib; print(panolib.__file__)"], cwd=tmp_path, env=environment,
        text=True, capture_output=True, check=True,
    )  # fmt: skip
    assert found.stdout.strip().endswith(os.path.join("panolib", "__init__.py"))


@pytest.mark.parametrize("command", ["predict my_images/", "adapt --source labelled/"])
def test_the_readme_shows_these_commands(command):
    assert f"\npython -m panolib {command}" in (STUDY / "README.md").read_text()
