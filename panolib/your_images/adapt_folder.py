"""The folder of an adaptation: that it may be written, and the profile in it that says all settings."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save

from panolib.config import to_plain
from panolib.data.readers import DOMAINS
from panolib.errors import UserError
from panolib.lab.files import check_writable, remove_folder, write
from panolib.profiles import find_profile, load_yaml
from panolib.study.packaged import PanopticNetworks
from panolib.study.settings import OWN_SEEDS
from panolib.your_images.given import AdaptError

DOMAIN, LIKE = "own", "nuclei"
PROFILE, START, WEIGHTS, PREDICTIONS, REPORT = "adapt.yaml", "start", "weights", "predictions", "report.html"
WRITTEN = (PROFILE, "results", START, WEIGHTS, PREDICTIONS, REPORT)
DESCRIPTION = "labelled images of one kind, adapted to images of another kind without labels"
CONTROLS = ("classical", "shared", "instance_variants")  # runs that nothing here asks for
BUDGET = {  # 30 minutes in all, measured: two free cores, 100 images of 256 x 256 on either side
    "semantic_baseline": 400, "self_training": 320, "instance_baseline": 600, "instance_self_training": 240,
}  # fmt: skip
CLEAN_UP = {  # to choose from on the source: how pixels become objects
    "bandwidths": [0.25, 0.4, 0.6, 1.0], "merge_distances": [0.5, 1.0], "min_sizes": [12, 6],
    "openings": [0, 3, 5],
}  # fmt: skip
GENTLE = {"lr": 0.0001, "head_lr_scale": 1.0}  # of networks that are trained already


def check_own(out: Path) -> None:
    """Raise unless `out` can be written and holds nothing of others that would be replaced.

    What has a name of `WRITTEN` is this command's where the profile there is.
    """
    check_writable(out)
    there = [out / name for name in WRITTEN if os.path.lexists(out / name)]
    if there and not _is_own(out / PROFILE):
        raise AdaptError(f"{there[0]}: was not written by this command, expected another --out")


@contextlib.contextmanager
def left_as_found(out: Path) -> Iterator[None]:
    """Where a check within the block fails, a folder that was not there, or was empty, is so again."""
    was_there = out.exists()
    was_empty = not was_there or not any(out.iterdir())
    try:
        yield
    except (UserError, OSError):
        if was_empty and out.exists():
            (out / PROFILE).unlink(missing_ok=True)
            for name in (START, "cache"):
                remove_folder(out / name)
            if not was_there:
                with contextlib.suppress(OSError):  # others wrote there; the first error is told
                    out.rmdir()
        raise


def _is_own(profile: Path) -> bool:
    """Whether this command wrote a profile, by its description."""
    try:
        found = yaml.safe_load(profile.read_bytes())
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(found, dict) and found.get("description") == DESCRIPTION


def profile_settings(
    source: str | Path, target: str | Path, profile: str | None, label_set: str | None,
    diameter: float | None,
) -> dict[str, Any]:  # fmt: skip
    """A profile: all of another one that is not `LIKE` is left out. AdaptError where that is not there."""
    below = "cpu" if profile is None else profile
    file = find_profile(below)
    if load_yaml(file).get(LIKE) is None:
        raise AdaptError(f"--profile {below}: found no section {LIKE}, expected one to take settings from")
    left_out = [name for name in DOMAINS if name != LIKE] + list(OWN_SEEDS) + ["performance"]
    folder = {"root": os.path.abspath(target)} | ({} if diameter is None else {"diameter": diameter})
    data: dict[str, Any] = {"source": {"root": os.path.abspath(source)}, "target": folder}
    if label_set is not None:
        data["label_set"] = os.path.abspath(label_set) if Path(label_set).is_file() else label_set
    own: dict[str, Any] = {
        "like": LIKE, **dict.fromkeys(CONTROLS), "score_teachers": True, "data": data, "cleanup": CLEAN_UP,
        # statistics of both domains suit neither where images differ much, and frozen they stay so
        "self_training_start": "adabn",
    }  # fmt: skip
    if profile is None:
        own |= {section: {"iterations": n} for section, n in BUDGET.items()}
    return {
        "extends": below if Path(below).stem == below else str(file),
        "description": DESCRIPTION,
        "main": DOMAIN,
        "seeds": [0],
        **dict.fromkeys(left_out),
        DOMAIN: own,
    }


def start_settings(networks: PanopticNetworks, out: Path) -> dict[str, Any]:
    """Settings of networks like these, which begin with their weights as `write_start` writes them.

    Images have the intensities that the networks know.
    """
    sections = {}
    for part, file in _start_files(networks, out).items():
        settings = {"start": str(file.resolve()), "network": to_plain(getattr(networks.recipe, part))}
        sections[f"{part}_baseline"] = settings | {"optimiser": GENTLE}
    for section in ("self_training", "instance_self_training"):
        sections[section] = {"optimiser": GENTLE}
    return {**sections, "data": {"intensity": to_plain(networks.recipe.intensity)}}


def write_start(networks: PanopticNetworks, out: Path) -> None:
    """Write the weights from which a training begins."""
    for part, file in _start_files(networks, out).items():
        state = getattr(networks, part).state_dict()
        write(file, save({name: value.contiguous() for name, value in state.items()}))


def _start_files(networks: PanopticNetworks, out: Path) -> dict[str, Path]:
    key = networks.recipe.key[:16]
    return {part: out / START / f"{part}-{key}.safetensors" for part in ("semantic", "instance")}


def write_profile(out: Path, settings: Mapping[str, Any]) -> Path:
    """The file of the settings. AdaptError where the folder holds what others have trained."""
    path = out / PROFILE
    text = yaml.safe_dump(dict(settings), sort_keys=False)
    if path.exists() and path.read_text() != text and (out / "results").exists():
        raise AdaptError(f"{path}: holds other settings, expected those of this command, or another --out")
    write(path, text.encode())
    return path.resolve()


def iterations_there(path: Path) -> dict[str, dict[str, int]]:
    """Iterations of the trainings, by section, that a profile says by itself."""
    own = yaml.safe_load(path.read_text())[DOMAIN] if path.exists() else {}
    said = {section: own.get(section, {}) for section in BUDGET}
    return {section: {"iterations": of["iterations"]} for section, of in said.items() if "iterations" in of}
