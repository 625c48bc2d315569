"""Profile paper on folders in the official layouts at full size: the chain of commands, in another process.

What differs from the profile: three images a data set, two iterations, small crops, the CPU, and a narrow
network where ResNet-101 would take an hour; that one takes its steps in a test of its own.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
import yaml

from panolib.data.render import city
from panolib.profiles import project_root

pytestmark = pytest.mark.slow

STUDY = project_root(Path(__file__).parent)
FULL, SMALL = (1024, 2048), (128, 256)
LEFT_OUT = dict.fromkeys(("nuclei", "camvid", "experiments", "detr", "performance", "realtime"))
COMMANDS = """
import sys
from panolib.__main__ import main
for line in sys.argv[1:]:
    print("command:", line, flush=True)
    if main(line.split()):
        raise SystemExit("failed: " + line)
"""


def write_streets(root: Path, size: tuple[int, int]) -> None:
    """Three images of SYNTHIA, of GTA5 and of every split of Cityscapes, without what the renderer notes."""
    common = {"n_images": 3, "height": size[0], "width": size[1], "seed": 0}
    for style, split in (("synthia", "all"), ("gta5", "all"), ("cityscapes", "train"), ("cityscapes", "val")):
        city.write_city(root / style, style=style, split=split, n_workers=1, progress=False, **common)
    for note in root.glob("*/*.json"):
        note.unlink()


def write_weights(root: Path, depth: int) -> Path:
    """A state dict of torchvision's ResNet, random and with its classifier, as a user downloads it."""
    torch.manual_seed(0)
    path = root / f"resnet{depth}.pth"
    torch.save(torchvision.models.get_model(f"resnet{depth}", weights=None).state_dict(), path)
    return path


def write_profile(root: Path, name: str, encoder: str, weights: Path | None) -> None:
    """`paper` with these folders, this encoder, and what makes it short."""
    crop = {"augmentation": {"height": 64, "width": 128}}
    few = {"iterations": 2, "batch_size": 1, **crop}
    network = {"encoder": {"name": encoder, "weights": None if weights is None else str(weights)}}
    instance = {**network, "decoder_channels": [16, 16, 8, 8, 8]}
    section = {
        "data": {kind: str(root / "data" / kind) for kind in ("synthia", "gta5", "cityscapes")},
        "semantic_baseline": {**few, "network": network},
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


def run_commands(root: Path, *lines: str) -> str:
    """What the commands print, each in turn in one other process whose project is `root`."""
    (root / "pyproject.toml").write_text('[project]\nname = "panolib"\n')
    (root / "notebooks").symlink_to(STUDY / "notebooks")
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, *lines], cwd=root, text=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(STUDY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    scale = 2**20 if sys.platform == "darwin" else 2**10
    print(f"peak memory {usage.ru_maxrss / scale:.0f} MiB, {usage.ru_utime:.0f} s of the processor")
    return done.stdout


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
    write_profile(root, "narrow", "test_efficientnet", None)
    out = run_commands(
        root,
        "reproduce --dry-run --notebook 07 --profile narrow.yaml",
        "train --only city-panoptic-self_trained-s0 --workers 1 --profile narrow.yaml",
        "export --run city-panoptic-self_trained-s0 --out official --profile narrow.yaml",
    )
    assert "data of city, images: " in out and "disk: " in out
    assert len(list((root / "official" / "semantic").rglob("*_labelIds.png"))) == 3
    assert len(list((root / "official" / "panoptic").rglob("*.png"))) == 3
    runs = {path.name for path in (root / "results" / "narrow" / "runs").iterdir()}
    rungs = ("source_only", "abn", "self_trained")
    wanted = {f"city-{branch}-{rung}-s0" for branch in ("semantic", "instance") for rung in rungs}
    assert wanted | {"city-panoptic-self_trained-s0"} <= runs


def test_resnet_101_takes_its_steps_from_a_file_of_torchvision(streets):
    """Baseline, ABN and self-training of the semantic branch with the network of the profile itself."""
    root = streets[SMALL]
    write_profile(root, "deep", "resnet101", write_weights(root, 101))
    run_commands(root, "train --only city-semantic-self_trained-s0 --workers 1 --profile deep.yaml")
    curves = (root / "results/deep/runs/city-semantic-self_trained-s0/curves.csv").read_text().splitlines()
    assert len(curves) == 3
