"""Profile paper on folders in the official layouts at full size: the chain of commands, in another process.

What differs from the profile: one or two images a data set, two iterations, small crops, the CPU, and a
narrow network where ResNet-101 would take an hour; that one takes its steps in a test of its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torchvision.models import ResNet101_Weights, resnet101

from panolib.data.render import city
from panolib.profiles import project_root

pytestmark = pytest.mark.slow

STUDY = project_root(Path(__file__).parent)
FULL, SMALL = (1024, 2048), (128, 256)
LEFT_OUT = dict.fromkeys(("nuclei", "camvid", "experiments", "detr", "performance", "realtime"))
COMMANDS = """
import sys
from panolib.__main__ import main
from panolib.lab.provenance import process_memory
for line in sys.argv[1:]:
    print("command:", line, flush=True)
    if main(line.split()):
        raise SystemExit("failed: " + line)
    print(f"peak memory {process_memory('VmHWM'):.0f} MiB", flush=True)  # since its last run began
"""


def write_streets(root: Path, size: tuple[int, int]) -> None:
    """Two images of SYNTHIA, of GTA5 and of Cityscapes train, one of val, without what the renderer notes."""
    common = {"height": size[0], "width": size[1], "seed": 0, "n_workers": 1, "progress": False}
    numbers = {("synthia", "all"): 2, ("gta5", "all"): 2, ("cityscapes", "train"): 2}
    for (style, split), n_images in (numbers | {("cityscapes", "val"): 1}).items():
        city.write_city(root / style, style=style, split=split, n_images=n_images, **common)
    for note in root.glob("*/*.json"):
        note.unlink()


def write_weights(path: Path) -> None:
    """A state dict of torchvision's ResNet-101, random and with its classifier, as a user downloads it."""
    torch.manual_seed(0)
    path.parent.mkdir(parents=True)
    torch.save(resnet101(weights=None).state_dict(), path)


def write_profile(root: Path, name: str, semantic: dict, instance: dict) -> None:
    """`paper` with these folders, these changes of its networks, and what makes it short."""
    crop = {"augmentation": {"height": 64, "width": 128}}
    few = {"iterations": 2, "batch_size": 1, **crop}
    section = {
        "data": {kind: str(root / "data" / kind) for kind in ("synthia", "gta5", "cityscapes")},
        "semantic_baseline": {**few, "network": semantic},
        "batch_norm": {"n_batches": 1, "batch_size": 1, "target_batch_size": 1, **crop},
        "self_training": {**few, "n_target": 1, "n_views": 2},
        "instance_baseline": {**few, "network": instance, "n_selection": 1},
        "instance_batch_norm": {"n_batches": 1, "batch_size": 1},
        "instance_self_training": {"iterations": 2, "batch_size": 2, "source_share": 0.5},
        "panoptic": {"n_samples": 1},
    }
    section["data"] |= {"n_val_synthia": 1, "n_val_gta5": 1, "gta5_missing": 0, "mix_requires": []}
    section["data"]["train_size"] = [64, 128]
    compute = {"accelerator": "cpu", "precision": "32-true", "loader_workers": 0}
    profile = {"extends": "paper", "seeds": [0], "compute": compute, "city": section, **LEFT_OUT}
    (root / f"{name}.yaml").write_text(yaml.safe_dump(profile))


def run_commands(root: Path, *lines: str) -> tuple[str, int]:
    """What the commands print, each in turn in one other process whose project is `root`; its peak in MiB.

    That is the highest of its runs, which record theirs and begin anew, and of what came after them.
    """
    (root / "pyproject.toml").write_text('[project]\nname = "panolib"\n')
    (root / "notebooks").symlink_to(STUDY / "notebooks")
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, *lines], cwd=root, text=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(STUDY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    peaks = [int(mib) for mib in re.findall(r"peak memory (\d+) MiB", done.stdout)]
    for file in root.glob("results/*/runs/*/run.json"):
        peaks.append(json.loads(file.read_text())["peak_memory_mb"] or 0)
    return done.stdout, max(peaks)


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    """The folders by the size of their images."""
    roots = {size: tmp_path_factory.mktemp("paper") for size in (FULL, SMALL)}
    for size, root in roots.items():
        write_streets(root / "data", size)
    return roots


def test_the_chain_at_full_size(streets):
    """Plan, baselines, ABN, self-training of both branches, inference at 1024 x 2048, official exports."""
    root = streets[FULL]
    encoder = {"name": "test_efficientnet", "weights": None}
    narrow = {"encoder": encoder, "decoder_channels": [16, 16, 8, 8, 8]}
    write_profile(root, "narrow", {"encoder": encoder}, narrow)
    out, peak = run_commands(
        root,
        "reproduce --dry-run --notebook 07 --profile narrow.yaml",
        "train --only city-panoptic-self_trained-s0 --workers 1 --profile narrow.yaml",
        "export --run city-panoptic-self_trained-s0 --out official --profile narrow.yaml",
    )
    assert "data of city, images: " in out and "disk: " in out
    assert len(list((root / "official" / "semantic").rglob("*_labelIds.png"))) == 1
    assert len(list((root / "official" / "panoptic").rglob("*.png"))) == 1
    runs = {path.name for path in (root / "results" / "narrow" / "runs").iterdir()}
    rungs = ("source_only", "abn", "self_trained")
    wanted = {f"city-{branch}-{rung}-s0" for branch in ("semantic", "instance") for rung in rungs}
    assert wanted | {"city-panoptic-self_trained-s0"} <= runs
    assert 1000 < peak < 3500  # 2330 measured; a map of 19 classes of a whole image is 160


def test_resnet_101_takes_its_steps_with_weights_of_torchvision(streets, monkeypatch, tmp_path):
    """Both branches with the networks of the profile; weights by name, from torch's cache, and by file."""
    root, file = streets[SMALL], ResNet101_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / file
    write_weights(cached)
    write_profile(root, "deep", {}, {"encoder": {"name": "resnet101", "weights": str(cached)}})
    _, peak = run_commands(root, "train --only city-instance-self_trained-s0 --workers 1 --profile deep.yaml")
    for branch in ("semantic", "instance"):
        run = root / "results" / "deep" / "runs" / f"city-{branch}-self_trained-s0"
        assert len((run / "curves.csv").read_text().splitlines()) == 3
    assert 1030 < peak < 4000  # 2640 measured; five times the weights, of which Adam keeps two, are 1030
