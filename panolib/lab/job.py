"""A job: one run in training, as its training function sees it."""

from __future__ import annotations

import datetime
import io
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from panolib.config import to_plain
from panolib.lab import packages, provenance
from panolib.lab.counts import packed
from panolib.lab.files import load_checkpoint, nan_to_null, save_checkpoint, write, write_json
from panolib.lab.records import Record
from panolib.lab.run import Run
from panolib.training import ranks

BAR_OPTIONS: dict[str, Any] = {}  # a worker process gives its bars their line
WRITE_S = 0.5  # between two writes of the curves


class Job:
    """One run in training: what its training function works with.

    Everything random in iteration i is to be a function of the seed and i. Then a run that goes on from a
    checkpoint is bit for bit the run that was never interrupted::

        state = job.resume()                                 # None: begin at job.start = 0
        for i in job.progress(job.start, n_iterations):
            ...
            job.log(i, loss=loss)
            job.checkpoint(lambda: {"model": model.state_dict(), ...}, i + 1)
        job.finish(model.state_dict())
        return metrics

    `start` is the iteration to begin at: 0, or that of the checkpoint after `resume`. `images` are numbers
    of images of the data sets that it opened, for the record.
    """

    def __init__(self, store: Any, run: Run) -> None:  # a `lab.store.Store`, which imports this module
        self.run, self.spec, self.start = run, run.spec, 0
        self.images: dict[str, int] = {}
        self._store, self._folder = store, store.work_folder(run)
        self._rows: list[dict[str, float]] = []  # the curves
        self._pending: list[dict[str, Any]] = []  # rows whose values may still be on the device
        self._last_write = -math.inf
        self._columns: list[str] = ["iteration"]
        self._bar: tqdm | None = None
        self._iterations = 0
        self._commits = [provenance.commit()]  # of every process that worked on the run
        self._wall_before_s, self._began = 0.0, time.perf_counter()
        self._last_checkpoint = time.monotonic()
        self._training_s: float | None = None
        self._step_s: float | None = None
        self._counts: dict[str, np.ndarray] = {}
        self._used: list[tuple[str, int | None]] = []  # device and peak memory until a parent was asked for
        provenance.reset_peak_memory()

    def parent(self, role: str) -> dict:
        """Final state of the parent in this role. Trained first, off this run's clock, if it is not here."""
        return self._ask_parent(role, self._store.final_state)

    def parent_record(self, role: str) -> Record:
        """Record of the parent in this role."""
        return self._ask_parent(role, self._store.get)

    def resume(self) -> dict | None:
        """State of the last checkpoint, on the CPU, or None. Curves and wall time go on from there too.

        Raises CorruptCheckpoint, which says how to go on.
        """
        path = self._folder / "checkpoint.pt"
        if not path.exists():
            return None
        advice = "delete it and give the same command again: training then begins anew"
        entries = {"iteration": int, "rows": list, "columns": list, "wall_s": float, "commits": list}
        saved = load_checkpoint(path, advice, **entries, state=dict)
        self.start, self._rows, self._columns = saved["iteration"], saved["rows"], saved["columns"]
        self._wall_before_s, self._began = saved["wall_s"], time.perf_counter()
        self._commits = [entry for entry in saved["commits"] if entry not in self._commits] + self._commits
        return saved["state"]

    def checkpoint(self, state_fn: Callable[[], dict], iteration: int) -> None:
        """Save what `state_fn` returns, atomically, if the last checkpoint is old enough.

        Parameters
        ----------
        state_fn : function () -> dict
            Tensors, numbers, strings and containers of these; called only when it is time to save.
        iteration : int
            The iteration to go on with: number of finished iterations.
        """
        if time.monotonic() - self._last_checkpoint < self._store.checkpoint_s:
            return
        self.write_curves()  # a loss that is not finite must not be saved
        content = {
            "key": self.run.key, "iteration": iteration, "state": state_fn(), "rows": self._rows,
            "columns": self._columns, "wall_s": self._wall_s(), "commits": self._commits,
        }  # fmt: skip
        save_checkpoint(self._folder / "checkpoint.pt", content)
        self._last_checkpoint = time.monotonic()

    def log(self, iteration: int, **values: float) -> None:
        """Append a row to the curves: finite numbers or one-element tensors by name.

        Tensors stay on their device until the curves are written, so that a training step never waits
        for its own loss.
        """
        self._pending.append({"iteration": int(iteration)} | _averaged(values))
        if time.monotonic() - self._last_write >= WRITE_S:
            self.write_curves()

    def write_curves(self) -> None:
        """Bring the pending rows to the curves and their file.

        Raises FloatingPointError for a value that is not finite, with the iteration and all its values.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        rows = [{name: float(value) for name, value in row.items()} for row in pending]
        for row in rows:
            row["iteration"] = int(row["iteration"])
            if not all(map(math.isfinite, row.values())):
                raise FloatingPointError(
                    f"non-finite value at iteration {row['iteration']}: {row}; expected finite terms"
                )
        known = len(self._columns)
        self._columns = list(dict.fromkeys([*self._columns, *(name for row in rows for name in row)]))
        self._rows += rows
        file = self._folder / "curves.csv"
        if math.isinf(self._last_write) or len(self._columns) > known:  # the first rows of this process
            file.write_text(self._curves_text())
        else:
            with file.open("a") as curves:
                curves.writelines(map(self._line, rows))
        self._last_write = time.monotonic()
        if self._bar is not None:
            last = rows[-1]
            shown = ["loss"] if "loss" in last else list(last)[1:]
            self._bar.set_postfix_str(", ".join(f"{name} {last[name]:.4g}" for name in shown), refresh=False)

    def progress(self, start: int, stop: int) -> Iterator[int]:
        """Iterations `start` ... `stop` - 1, under a progress bar with the last loss and the time to go."""
        self._iterations = max(self._iterations, stop)
        with tqdm(
            total=stop, initial=start, desc=f"{self._store.title}{self.run.name}", dynamic_ncols=True,
            mininterval=float(os.environ.get("TQDM_MININTERVAL", 0.5)), **BAR_OPTIONS,
        ) as self._bar:  # fmt: skip
            half, began = (start + stop) // 2, time.perf_counter()
            for iteration in range(start, stop):
                if iteration == half:  # the first ones take longer
                    began = time.perf_counter()
                yield iteration
                self._bar.update()
            self.write_curves()
            self._step_s = (time.perf_counter() - began) / max(1, stop - half)
        self._bar = None

    def save_sample(self, name: str, image: np.ndarray) -> None:
        """Keep an RGB image, uint8 [H, W, 3], with the record, to look at; `name` has no ending."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"sample {name!r}: expected a uint8 image [H, W, 3], found {image.dtype} {list(image.shape)}"
            )
        ending, content = small_file(image)
        write(self._folder / "samples" / f"{name}{ending}", content)

    def save_counts(self, name: str, counts: np.ndarray) -> None:
        """Keep with the record what every validation image counted for a score.

        `counts` are ints from 0 on, [n_images, n_classes, n_counts]; `name` is that of the score, each once.
        """
        if name in self._counts:
            raise ValueError(f"counts {name!r} are given twice, expected another name")
        self._counts[name] = counts

    def finish(self, state: dict) -> None:
        """Keep the final state of the model for evaluation and for the children of this run."""
        self.write_curves()
        self._training_s = self._wall_s() if state else 0.0  # without weights nothing was trained
        save_checkpoint(self._folder / "final.pt", {"key": self.run.key, "state": state})

    def record(self, metrics: dict) -> None:
        """Write the files of the record. The last one, run.json, is the commit point."""
        write_json(self._folder / "metrics.json", nan_to_null(metrics))
        if self._counts:
            write(self._folder / "counts.npz", packed(self._counts))
        write(self._folder / "curves.csv", self._curves_text().encode())
        write_json(self._folder / "run.json", self._info())

    def _info(self) -> dict[str, Any]:
        """The content of run.json."""
        run, spec = self.run, to_plain(self.run.spec)
        device, peak_memory_mb = self._device_and_peak()
        return {
            "name": run.name,
            "kind": run.kind,
            "version": run.version,
            "key": run.key,
            "spec": spec,
            "seed": spec.get("seed") if isinstance(spec, dict) else None,
            "parents": {role: {"name": parent.name, "key": parent.key} for role, parent in run.parents},
            "data": list(run.data),
            "images": self.images,
            "counts": {name: list(counts.shape) for name, counts in self._counts.items()},
            "iterations": self._iterations,
            "wall_s": round(self._wall_s(), 3),
            "training_s": self._training_s and round(self._training_s, 3),  # before its evaluation
            "step_s": self._step_s and round(self._step_s, 4),  # of an iteration, in the second half of them
            "commit": self._commits[-1]["commit"],
            "dirty": any(entry["dirty"] for entry in self._commits),
            "earlier_commits": [entry["commit"] for entry in self._commits[:-1]],
            "device": device,
            "peak_memory_mb": peak_memory_mb,
            "versions": provenance.versions(),
            "packages": packages.state(),
            "recorded_at": datetime.datetime.now(datetime.UTC).isoformat(),
        }

    def _ask_parent(self, role: str, ask: Callable[[Run], Any]) -> Any:
        """Ask the store about a parent; what that takes is neither this run's time nor its memory."""
        parents = dict(self.run.parents)
        if role not in parents:
            raise KeyError(f"run '{self.run.name}' has no parent in role {role!r}; found {list(parents)}")
        asked = time.perf_counter()
        self._used.append((provenance.device(), provenance.peak_memory_mb()))
        answer = ask(parents[role])
        provenance.reset_peak_memory()
        self._began += time.perf_counter() - asked
        return answer

    def _device_and_peak(self) -> tuple[str, int | None]:
        """What the run computed on, and the most memory in MiB that it took there."""
        used = [*self._used, (provenance.device(), provenance.peak_memory_mb())]
        used = [entry for entry in used if not entry[0].startswith("cpu")] or used
        return used[-1][0], max((mb for _, mb in used if mb is not None), default=None)

    def _wall_s(self) -> float:
        """Seconds of training, over all processes that worked on the run."""
        return self._wall_before_s + time.perf_counter() - self._began

    def _curves_text(self) -> str:
        """The curves as CSV."""
        return ",".join(self._columns) + "\n" + "".join(map(self._line, self._rows))

    def _line(self, row: dict[str, float]) -> str:
        """One line of the curves; an empty cell where nothing was logged."""
        return ",".join(str(row.get(name, "")) for name in self._columns) + "\n"


class Follower(Job):
    """The job of a process that trains a run along with the first one, which records it."""

    def log(self, iteration: int, **values: float) -> None:
        """Take part in the means that the first process logs."""
        _averaged(values)

    def progress(self, start: int, stop: int) -> Iterator[int]:
        """The iterations, without a bar."""
        return iter(range(start, stop))

    def checkpoint(self, state_fn: Callable[[], dict], iteration: int) -> None:
        """Nothing."""

    def save_sample(self, name: str, image: np.ndarray) -> None:
        """Nothing."""

    def save_counts(self, name: str, counts: np.ndarray) -> None:
        """Nothing."""

    def finish(self, state: dict) -> None:
        """The end of what is done together. Raises Followed."""
        raise ranks.Followed


def _averaged(values: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors without gradients, as means over the processes of a run; other numbers as they are."""
    return {
        name: ranks.mean(value.detach()) if isinstance(value, torch.Tensor) else value
        for name, value in values.items()
    }


def small_file(image: np.ndarray) -> tuple[str, bytes]:
    """(ending, content) of a picture to look at, uint8 [H, W, 3].

    Label maps of few colours are PNG, a palette and its indices, without loss; photographs are JPEG: as PNG,
    the same ten beside 170 runs were half of all that is recorded.
    """
    colours, index = np.unique(image.reshape(-1, 3), axis=0, return_inverse=True)
    buffer = io.BytesIO()
    if len(colours) > 256:
        Image.fromarray(image).save(buffer, "JPEG", quality=90, optimize=True)
        return ".jpg", buffer.getvalue()
    picture = Image.fromarray(index.reshape(image.shape[:2]).astype(np.uint8))
    picture.putpalette(colours.tobytes())
    picture.save(buffer, "PNG", optimize=True)
    return ".png", buffer.getvalue()
