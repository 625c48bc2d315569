"""``python -m panolib adapt``: from a user's labelled images to images without labels, one folder of results.

The folder gets a profile that says all settings, and the study's own engine trains it: every run is recorded
below the folder, and what is stopped goes on with the same command.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from panolib.data.any_image import Page, n_pages, n_pixels
from panolib.data.check import FolderCheck, check_folders
from panolib.data.folders import FolderSet
from panolib.data.intensity import as_colour
from panolib.data.readers.own import OwnSources
from panolib.dry_run import check_disk
from panolib.errors import UserError
from panolib.lab.engine import get_all
from panolib.lab.files import write
from panolib.lab.records import Record
from panolib.lab.run import Run, with_parents
from panolib.load import load
from panolib.profiles import merged
from panolib.report import adaptation
from panolib.report.model_card import model_card
from panolib.study.apply import PanopticResult, load_networks, predict
from panolib.study.packaged import PanopticNetworks, read_package, write_package
from panolib.study.parents import CLEANUP
from panolib.study.study import TEACHER, Study, run_name
from panolib.your_images.adapt_folder import (
    BUDGET,
    DOMAIN,
    PREDICTIONS,
    PROFILE,
    REPORT,
    WEIGHTS,
    check_own,
    iterations_there,
    left_as_found,
    profile_settings,
    start_settings,
    write_profile,
    write_start,
)
from panolib.your_images.given import AdaptError, check_folders_apart
from panolib.your_images.predict_files import SHEET, full_warnings, predict_files, report

RUNGS = ("source_only", "adabn", "self_trained", TEACHER)  # those that need no label of the target
STUDENT, SHOWN = "self_trained", TEACHER  # who is trained; who predicts: its average varies less
WHO = {  # of the rungs, as the report says it
    "source_only": "trained on the labelled source; it has seen no image of the target",
    "adabn": "source_only with the batch statistics of the target; nothing else is trained on the target",
    STUDENT: "the student: adabn, trained further on pseudo-labels of the target",
    TEACHER: "the moving average of the student, which made the pseudo-labels",
}
NO_WARNING = (
    "none. Looked for: a class or objects that vanish, merge or break up, student and teacher apart, images "
    "full of objects, counts far from Otsu's or from one another. That none is seen is no score: look at "
    "predictions/, or give some labels (--labels)"
)
NAMES = (
    f"plan: runs are named {DOMAIN}-WHAT-WHO: semantic trains classes, instance trains objects, cleanup "
    "chooses on the source how pixels become objects, panoptic scores both together"
)
INTENSITY = "--intensity 1 99.8"  # an example
REHEARSED = 12  # iterations of short trainings, which measure what a step takes
AFTER = 20.0  # seconds for a million pixels of the target, measured: clean-up chosen, predictions, report
FEWEST = 20  # iterations of a training that --minutes leaves
N_TOLD = 10  # problems of the folders that are told one by one
N_COMPARED = 24  # target images on which the rungs are compared in the report


def adapt(
    source: str | Path, target: str | Path, out: Path, *, start: str | None = None,
    profile: str | None = None, labels: Path | None = None, label_set: str | None = None,
    diameter: float | None = None, intensity: tuple[float, float] | None = None, workers: int = 2,
    rehearse: bool = True, minutes: float | None = None,
) -> int:  # fmt: skip
    """Train on labelled images, adapt to others, and say what came out.

    The folder gets `adapt.yaml` (the settings), `results/` (every run), `weights/` (a file and a model card
    for source only, AdaBN, and student and teacher of self-training), `predictions/` (as of `predict`, by the
    teacher) and `report.html`.

    Parameters
    ----------
    source, target : str or Path
        Folders in one of the layouts of `data.readers.own.READERS`; labels of the target are not opened.
    out : Path
        Goes on there, if the settings are the same.
    start : str, optional
        Networks from which training on the source begins, as of `predict`; else from what the profile says.
    profile : str, optional
        Whose settings and iterations are taken. Default: those of cpu, with the iterations of `BUDGET`.
    labels : Path, optional
        Images of the target with labels, in one of the layouts; they are scored.
    label_set : str, optional
        A name or a YAML file (`data.label_sets`).
    diameter : float, optional
        Median diameter of objects in the target, pixels, to which the source is rescaled.
    intensity : tuple of float, optional
        Percentiles of each image that become black and white. Default: what `start` knows, else those of
        `data.intensity.STRETCHED`.
    rehearse : bool
        False: no short training says beforehand how many minutes all of it takes.
    minutes : float, optional
        The trainings get a share of their iterations, never more and at least `FEWEST` each, with which all
        of it takes no longer by the rehearsal. What goes on keeps the iterations that it began with.

    Returns 1 if an image of the target could not be predicted, else 0. Raises AdaptError with all that is
    wrong with the folders, a line each, and for a folder of other settings; UserError or OSError for a folder
    that cannot be written and a disk that is too small, before anything is trained.
    """
    check_own(out)
    check_folders_apart(out, source, target, labels)
    settings = profile_settings(source, target, profile, label_set, diameter)
    begins = None if start is None else load_networks(start)
    if begins is not None:
        settings[DOMAIN] = merged(settings[DOMAIN], start_settings(begins, out), PROFILE, DOMAIN)
    if intensity is not None:
        given = {"data": {"intensity": {"percentiles": list(intensity)}}}
        settings[DOMAIN] = merged(settings[DOMAIN], given, "--intensity", DOMAIN)
    if minutes is not None and (out / "results").exists():
        settings[DOMAIN] = merged(settings[DOMAIN], iterations_there(out / PROFILE), PROFILE, DOMAIN)
    with left_as_found(out):
        path = write_profile(out, settings)  # before all else: it says that the folder is this command's
        if begins is not None:
            write_start(begins, out)
        study = load(path, root=out)
        sources: OwnSources = study.sources[DOMAIN]
        known = "8 bits" if start is None else f"8 bits, as --start {start} knows"
        check = check_folders(sources, depth=f"{known}, or percentiles for them: {INTENSITY}")
        if check.problems:
            n_more = len(check.problems) - N_TOLD
            raise AdaptError("\n".join(check.problems[:N_TOLD] + [f"and {n_more} more"] * (n_more > 0)))
        print(check, flush=True)
        labelled = None if labels is None else sources.labelled(labels)
        if labelled is not None and not sum(s.instance.any() or s.crowd.any() for s in labelled):  # reads all
            found = f"no object in any of {len(labelled)} masks"
            raise AdaptError(f"--labels {labels}: {found}, expected label images with objects")
        runs = _runs(study)
        check_disk(study, runs, workers=workers)
    on_disk = sources.on_disk("target", "train", False)
    share = _print_plan(study, path, with_parents(runs), workers, rehearse, minutes, on_disk.image_files)
    if share < 1:
        all_of = {name: getattr(study.profile.ladders[DOMAIN], name)["iterations"] for name in BUDGET}
        fewer = {name: {"iterations": _fewer(n, share)} for name, n in all_of.items()}
        settings[DOMAIN] = merged(settings[DOMAIN], fewer, PROFILE, DOMAIN)
        study = load(write_profile(out, settings), root=out)
        runs = _runs(study)
    records = get_all(study.store, with_parents(runs), workers)

    files = {rung: out / WEIGHTS / f"{rung}.safetensors" for rung in RUNGS}
    initial = "" if begins is None else f"the networks of run {begins.recipe.run} ({begins.recipe.key[:12]})"
    for run, file in zip(runs, files.values()):
        recipe = write_package(study.store, study.sources, run, file)
        card = model_card(study.store, study.sources, run, recipe, file.name, initial=initial)
        write(file.with_suffix(".md"), card.encode())
    images = [str(image) for image in on_disk.image_files]
    predictions = out / PREDICTIONS  # of other weights, if images have changed since
    broken = predict_files(images, str(files[SHOWN]), predictions, overwrite=True)
    status = report(broken, predictions)
    print("comparing the networks for the report", flush=True)
    networks = {rung: read_package(file) for rung, file in files.items()}
    begun = start is not None
    notes = check.warnings + (few_iterations_warning(study, begun) if profile is None else [])
    _write_report(out, path, check, notes, networks, on_disk, records, labelled)
    return status


def _runs(study: Study) -> list[Run]:
    return [study.runs[run_name(DOMAIN, "panoptic", rung, study.seeds[0], CLEANUP)] for rung in RUNGS]


def _fewer(iterations: int, share: float) -> int:
    """A share of the iterations of a training."""
    return min(iterations, max(FEWEST, int(share * iterations)))


# --- the plan ---------------------------------------------------------------------------------------------


def _print_plan(
    study: Study, path: Path, runs: Sequence[Run], workers: int, rehearse: bool, minutes: float | None,
    target: Sequence[Path],
) -> float:  # fmt: skip
    """Iterations, minutes by a measured step, and memory of what is not recorded yet.

    `target` are the image files that will be predicted. Returns the share of the iterations that `minutes`
    leave.
    """
    missing = [run for run in runs if study.store.load(run) is None]
    iterations = sum(getattr(run.spec, "iterations", 0) for run in missing)
    print(f"\nplan: {len(missing)} of {len(runs)} runs to do, {iterations:,} iterations", flush=True)
    if missing:
        print(NAMES, flush=True)
    goes_on = study.results.exists()  # what is left takes no longer than what was said at the beginning
    if goes_on and minutes is not None:
        print(f"plan: it goes on with the iterations of {path}; another --out takes others", flush=True)
    if goes_on or not (rehearse or minutes is not None):
        return 1.0
    print("rehearsing every step, then measuring its time: a few minutes", flush=True)
    try:
        seconds, peak_mb = measured(path, workers)
    except KeyboardInterrupt:
        told = "stopped in the rehearsal, before training; the same command begins with the rehearsal again"
        raise KeyboardInterrupt(told) from None
    after = AFTER * sum(map(_n_pixels, target)) / 1e6
    share = 1.0 if minutes is None else share_within(runs, seconds, workers, minutes - after / 60)
    expected = (expected_seconds(runs, seconds, workers, share) + after) / 60
    if minutes is not None:
        n = sum(_fewer(run.spec.iterations, share) for run in runs if hasattr(run.spec, "iterations"))
        least = f"at least {FEWEST} a training"
        if expected > minutes:
            least = f"the fewest, {FEWEST} a training, which take longer"
        kept = "all iterations fit" if share == 1 else f"{n:,} of {iterations:,} iterations, {least}"
        print(f"plan: for --minutes {minutes:g} from now on {kept}", flush=True)
    memory = "" if peak_mb is None else f", {workers} x {peak_mb / 1000:.1f} GB of memory"
    advice = "; --minutes N takes fewer iterations" if minutes is None else ""
    idle = "more if other programs are busy"
    print(f"plan: about {expected:.0f} minutes with {workers} processes, {idle}{memory}{advice}", flush=True)
    return share


def measured(path: Path, workers: int) -> tuple[dict[str, tuple[float, float]], float | None]:
    """Short trainings of a profile in a temporary folder, which also show that all of it runs.

    Returns
    -------
    seconds : dict
        By name of the run: (with one iteration, each further one), of runs beside one another.
    peak_mb : float or None
        Largest memory of a process, MiB.
    """
    with tempfile.TemporaryDirectory() as folder:
        short = {section: {"iterations": REHEARSED} for section in BUDGET}
        rehearsal = Path(folder) / "rehearsal.yaml"
        rehearsal.write_text(yaml.safe_dump({"extends": str(path), DOMAIN: short}))
        study = load(rehearsal, root=Path(folder))
        study.store.title = "rehearsal: "
        name = run_name(DOMAIN, "panoptic", STUDENT, study.seeds[0], CLEANUP)
        found = get_all(study.store, with_parents([study.runs[name]]), workers)
    seconds = {}
    for name, record in found.items():
        each = record.info["step_s"] if hasattr(record.run.spec, "iterations") else 0.0
        seconds[name] = max(0.0, record.info["wall_s"] - (REHEARSED - 1) * each), each
    peaks = [record.info["peak_memory_mb"] for record in found.values()]
    return seconds, max((mb for mb in peaks if mb), default=None)


def share_within(
    runs: Sequence[Run], seconds: Mapping[str, tuple[float, float]], workers: int, minutes: float
) -> float:
    """The largest share of their iterations, in hundredths, with which runs take no longer; 0 for none."""
    shares = (percent / 100 for percent in range(100, 0, -1))
    fits = (share for share in shares if expected_seconds(runs, seconds, workers, share) <= 60 * minutes)
    return next(fits, 0.0)


def expected_seconds(
    runs: Sequence[Run], seconds: Mapping[str, tuple[float, float]], workers: int, share: float = 1.0
) -> float:
    """What runs take: all of them on `workers` processes, but never less than the longest chain of parents.

    A run that was not measured takes as long as one of its kind. `share` of the iterations are taken.
    """
    kinds = {run.kind: seconds[run.name] for run in runs if run.name in seconds}
    took: dict[str, float] = {}
    ends: dict[str, float] = {}
    for run in sorted(runs, key=lambda run: len(with_parents([run]))):
        once, each = seconds.get(run.name) or kinds.get(run.kind, (0.0, 0.0))
        took[run.name] = once + each * (_fewer(getattr(run.spec, "iterations", 1), share) - 1)
        begins = max((ends.get(parent.name, 0.0) for _, parent in run.parents), default=0.0)
        ends[run.name] = begins + took[run.name]
    return max(sum(took.values()) / workers, max(ends.values(), default=0.0))


# --- the report -------------------------------------------------------------------------------------------


def _write_report(
    out: Path, path: Path, check: FolderCheck, notes: Sequence[str],
    networks: Mapping[str, PanopticNetworks], target: FolderSet, records: Mapping[str, Record],
    labelled: FolderSet | None,
) -> None:  # fmt: skip
    results = _compared(networks, target.image_files)
    label_set = networks[STUDENT].label_set
    found = {rung: adaptation.findings(of_rung, label_set) for rung, of_rung in results.items()}
    agreed = adaptation.agreement(results[STUDENT], results[TEACHER])
    trained = {"semantic": "", "instance": CLEANUP}  # branch -> variant of its self-training
    semantic, instance = (
        records[run_name(DOMAIN, branch, STUDENT, 0, variant)].curves for branch, variant in trained.items()
    )
    counted = {"labelled pixels": semantic["coverage"], "pseudo-instances": instance["pseudo_instances"]}
    weights = {rung: out / WEIGHTS / f"{rung}.safetensors" for rung in RUNGS}
    warnings = [
        *adaptation.collapse_warnings(found["source_only"], found[STUDENT], agreed, counted),
        *adaptation.object_warnings(
            found[SHOWN], source_share=check.object_share, otsu_count=check.otsu_count
        ),
        *adaptation.dissent_warning(found, SHOWN, weights, check.otsu_count),
        *notes,
    ]
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)
    warnings += full_warnings(out / PREDICTIONS)  # printed with the predictions
    said = [f"{rung}: {who}" for rung, who in WHO.items()]
    said.append(f"predictions/ is by {SHOWN}. With a file of {out / 'weights'} another one predicts:")
    said.append("python -m panolib predict IMAGES --weights FILE --out DIR")
    parts: dict[str, Any] = {"Warnings": warnings or NO_WARNING, "The networks": "\n".join(said)}
    if labelled is not None:
        table = pd.DataFrame({rung: adaptation.scores(each, labelled) for rung, each in networks.items()}).T
        print((100 * table).round(1).to_string(na_rep="-"))
        parts[f"Scores on {len(labelled)} images with labels, %"] = (100 * table).round(1)
    rows = {rung: each.row() for rung, each in found.items()}
    parts[f"What the networks find in {found[STUDENT].n_images} images of the target"] = pd.DataFrame(rows).T
    parts["Agreement of student and teacher"] = adaptation.agreement_text(agreed)
    sheet = out / PREDICTIONS / SHEET
    if sheet.is_file():
        parts["Predictions"] = sheet.read_bytes()
    panels = {
        "classes: self-training": semantic[["iteration", "source_loss", "target_loss"]],
        "classes: share of pixels with a pseudo-label": semantic[["iteration", "coverage"]],
        "objects: self-training": instance[["iteration", "source_loss", "target_loss"]],
        "objects: pseudo-instances a crop": instance[["iteration", "pseudo_instances"]],
    }
    for branch in ("semantic", "instance"):
        before = records[run_name(DOMAIN, branch, "source_only", 0)].curves
        drawn = ["loss"] if "loss" in before else [name for name in before if name != "iteration"]
        panels[f"{branch}: on the source"] = before[["iteration", *drawn]]
    parts["Curves"] = adaptation.curves_figure(panels)
    parts["The two folders"] = str(check)
    parts["Settings"] = path.read_text()
    write(out / REPORT, adaptation.page("Adaptation to your images", parts).encode())
    print(f"written: {out / 'report.html'}")


def few_iterations_warning(study: Study, begun: bool = False) -> list[str]:
    """That the trainings have had less than half of the iterations of `BUDGET`; `begun` with networks."""
    ladder = study.profile.ladders[DOMAIN]
    n, default = sum(getattr(ladder, name)["iterations"] for name in BUDGET), sum(BUDGET.values())
    if n >= default / 2:
        return []
    before = "; the networks of --start may do better by themselves" if begun else ""
    return [
        f"trained for {n:,} iterations, {n / default:.0%} of the default: expect little of these networks; "
        f"without --minutes and with another --out they train longer{before}"
    ]


def _compared(
    networks: Mapping[str, PanopticNetworks], files: Sequence[Path]
) -> dict[str, list[PanopticResult]]:
    """What every rung says about the same images, at most `N_COMPARED` from all over the target."""
    pages = _pages(files)
    chosen = np.unique(np.linspace(0, len(pages) - 1, N_COMPARED).round().astype(int))
    images = [as_colour(pages[i].read(), pages[i]) for i in chosen]
    return {rung: [predict(image, each) for image in images] for rung, each in networks.items()}


def _n_pixels(file: Path) -> int:
    """Pixels of all pages of a file, as if they were as large as the first; 0 where it cannot be read."""
    with contextlib.suppress(UserError):
        return n_pixels(file) * n_pages(file)
    return 0


def _pages(files: Sequence[Path]) -> list[Page]:
    """The pages of all files but of those that cannot be read, which `predict` tells."""
    pages = []
    for file in files:
        with contextlib.suppress(UserError):
            pages += [Page(file, i) for i in range(n_pages(file))]
    return pages
