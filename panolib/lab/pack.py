"""Records and weights in a few files of bounded size, to carry from the machine that trained to another."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection

from panolib.errors import UserError, one_line
from panolib.lab.files import check_writable, load_checkpoint, remove_folder, save_checkpoint
from panolib.lab.run import Run
from panolib.lab.store import Store

PART_BYTES = 15 * 2**20
_NAME = "runs.tar.{:03d}"
_END = "complete"  # last entry of the tar file


class BadPack(UserError, ValueError):
    """Files that are not what `pack` wrote."""


def pack(store: Store, runs: Iterable[Run], folder: Path) -> list[Path]:
    """Write what is recorded of `runs` as parts of one tar file, none above `PART_BYTES`.

    Weights are in half precision, half as large; what has one dimension (biases, the statistics of batch
    norm, whose variances half precision cannot hold) stays as it is. A network that goes on from them differs
    by rounding from one that goes on from the weights themselves.

    Raises FileExistsError if the folder already holds parts.
    """
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if found := sorted(folder.glob("runs.tar.*")):
        raise FileExistsError(f"{found[0]}: is there already, expected a folder without parts of a pack")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        whole, half = Path(scratch) / "runs.tar", Path(scratch) / "checkpoint.pt"
        with tarfile.open(whole, "w") as tar:
            for run in runs:
                if store.load(run) is None:
                    continue
                for file in sorted(file for file in store.folder(run).rglob("*") if file.is_file()):
                    kept = file
                    if file.name == "checkpoint.pt":
                        kept = half
                        content = load_checkpoint(file, "train the run again", key=str, state=dict)
                        save_checkpoint(half, {**content, "state": halved(content["state"])})
                    tar.add(kept, f"{run.name}/{file.relative_to(store.folder(run))}")
            tar.addfile(tarfile.TarInfo(_END))
        paths = []
        with whole.open("rb") as file:
            while part := file.read(PART_BYTES):
                paths.append(folder / _NAME.format(len(paths)))
                paths[-1].write_bytes(part)
    return paths


def unpack(store: Store, folder: Path) -> list[str]:
    """Put packed records, and weights in single precision, below the root of a store; names of their runs.

    A record that is there is replaced. Raises BadPack if a part is missing, or the files are no pack.
    """
    paths = sorted(folder.glob("runs.tar.*"))
    names = [_NAME.format(i) for i in range(len(paths))]
    if not paths or [path.name for path in paths] != names:
        found = ", ".join(path.name for path in paths) or "none"
        raise BadPack(f"{folder}: expected runs.tar.000 and all that follow, found {found}")
    content = io.BytesIO(b"".join(path.read_bytes() for path in paths))
    store.root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store.root) as scratch:
        try:
            with tarfile.open(fileobj=content) as tar:
                tar.extractall(scratch, filter="data")
        except (tarfile.TarError, EOFError) as error:
            reason = one_line(error, most=200)
            raise BadPack(f"{folder}: expected a pack, found files that cannot be read ({reason})") from error
        end = Path(scratch) / _END
        if not end.exists():
            raise BadPack(f"{folder}: expected a part beyond {paths[-1].name}, found none")
        end.unlink()
        found = sorted(run.name for run in Path(scratch).iterdir())
        for name in found:
            weights = Path(scratch) / name / "checkpoint.pt"
            if weights.exists():
                state = load_checkpoint(weights, "pack the run again", key=str, state=dict)
                save_checkpoint(weights, {**state, "state": single(state["state"])})
            remove_folder(store.root / "runs" / name)
            (store.root / "runs").mkdir(exist_ok=True)
            (Path(scratch) / name).rename(store.root / "runs" / name)
    return found


def halved(state: Any) -> Any:
    """A state with its float32 tensors of two dimensions or more in float16.

    What has one dimension stays: biases, and the statistics of batch norm, which float16 cannot hold.
    """

    def change(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.half() if tensor.dtype == torch.float32 and tensor.ndim > 1 else tensor

    return apply_to_collection(state, torch.Tensor, change)


def single(state: Any) -> Any:
    """A state with its float16 tensors in float32: `halved` undone, but for the rounding."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float() if tensor.dtype == torch.float16 else tensor

    return apply_to_collection(state, torch.Tensor, change)
