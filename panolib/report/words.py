"""The reader's words, colours and markers: how tables and figures call what the grid calls by short names."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pandas as pd

OKABE_ITO = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")

WORDS = {
    # rungs
    "source_only": "source only", "abn": "ABN", "adabn": "AdaBN", "control": "control",
    "self_trained": "self-trained", "teacher": "self-trained, teacher", "oracle": "oracle",
    "otsu_components": "Otsu + components", "otsu_watershed": "Otsu + watershed",
    "mask_watershed": "watershed of masks",
    # domains, sources, networks
    "city": "Cityscapes style", "camvid": "CamVid", "nuclei": "nuclei",
    "mix": "MIX", "syn": "SYN", "gta": "GTA",
    "v2": "DeepLabV2", "v3": "DeepLabV3", "v3plus": "DeepLabV3+",
    # clustering
    "mean_shift": "mean-shift", "mean_shift_plus": "mean-shift+", "mean_shift_peel": "peeling",
    "mean_shift_grid": "image grid", "agglomerative": "agglomerative", "hdbscan": "HDBSCAN",
    "connected_components": "connected components", "baseline": "before self-training (ABN)",
    "zero": "epsilon zero", "decay": "epsilon decaying",
    # workflows
    "all": "all things", "icm": "one class (ICM)", "base": "group, common baseline (BASE)",
    "ccm": "group, own baseline (CCM)", "ccm baseline": "baselines of groups",
    # whom a person is asked about
    "disagreement": "disagreement", "expected_change": "expected change", "full_labels": "full labels",
    # the peer on nuclei
    "mean_teacher": "mean teacher", "torch_em": "torch-em",
    "torch_em.defaults": "torch-em, default watershed", "torch_em.student": "torch-em, student",
    # methods of real-time adaptation
    "fcd": "adversarial, FCD", "light": "adversarial, light", "ssl1": "SSL, 1 layer", "ssl2": "SSL, 2 layers",
    "ssl3": "SSL, 3 layers", "ssl1_image": "SSL, 1 layer, thresholds per image",
    "plain": "no augmentation", "colour": "colour policy", "colour-half": "colour policy, half the epochs",
    "mpl_old": "MPL, old minus new", "mpl_new": "MPL, new minus old", "mpl_rt": "MPL of RT",
    # parts of the recipe
    "slow_teacher": "slow teacher", "class_mix": "class-mix", "rare_source": "rare source",
    "ego_rows": "rows of the own car", "confident_weight": "weight by sure pixels",
    "paste": "pasted instances",
    # metrics
    "iou": "IoU", "ap": "AP", "ap50": "AP50", "threat_score": "threat score",
    "threat_class_mean": "threat score, class mean", "threat_pooled": "threat score, pooled",
    "threat_false": "false among found objects",
    "sq_rq_19": "SQ x RQ, 19 classes", "void": "void", "segments": "segments an image",
    "class_mean": "class mean", "image_mean": "image mean", "clustering_s": "clustering, s",
    "step_s": "whole step, s",
    "tp": "TP", "fp": "FP", "fn": "FN", "pull": "pull", "push": "push", "object_dice": "object Dice",
    "step_gflop": "step of one image, GFLOP", "forward_gflop": "forward pass of one image, GFLOP",
}  # fmt: skip
COLOURS = {  # of rungs, and what looks like them
    "source_only": "#7F7F7F", "abn": "#E69F00", "adabn": "#D55E00", "control": "#CC79A7",
    "self_trained": "#0072B2", "teacher": "#56B4E9", "oracle": "#009E73", "baseline": "#7F7F7F",
}  # fmt: skip
METRIC = r"(miou|pq_plus|pq|sq_matched|sq|rq)(?:_(\d+))?"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def word(name) -> str:
    """How a reader is told a short name, a metric ("miou_19": "mIoU, 19 classes"), or anything else."""
    if name in WORDS:
        return WORDS[name]
    if isinstance(name, str) and (match := re.fullmatch(r"fcd\.([\d.]+)|plain-n(\d+)", name)):
        return f"adversarial, FCD, lambda {match[1]}" if match[1] else f"{match[2]} images"
    if isinstance(name, str) and (match := re.fullmatch(METRIC, name)):
        metric = {"miou": "mIoU", "pq_plus": "PQ+", "sq_matched": "SQ of matched classes"}
        text = metric.get(match[1], match[1].upper())
        return f"{text}, {match[2]} classes" if match[2] else text
    return str(name)


def colours(names: Iterable) -> dict[str, str]:
    """{name: colour}: the fixed one of a rung, else one of the palette that no rung of these has."""
    names = list(dict.fromkeys(names))
    fixed = {name: COLOURS[name] for name in names if name in COLOURS}
    free = [colour for colour in ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
            if colour not in fixed.values()]  # fmt: skip
    others = [name for name in names if name not in fixed]
    return {**fixed, **{name: free[i % len(free)] for i, name in enumerate(others)}}


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The same table with index, columns and texts in the reader's words."""
    shown = table.rename(index=word, columns=word)
    shown.index.names = [word(name) if name else name for name in shown.index.names]
    texts = shown.select_dtypes(["object", "string"]).columns
    shown[texts] = shown[texts].map(word)
    return shown
