"""panolib: the support library of a reproducible study of self-trained panoptic segmentation."""

import importlib

__version__ = "0.1.0"
__all__ = ["PanopticResult", "predict"]


def __getattr__(name: str):
    """`predict` and `PanopticResult`, imported when they are asked for: they need torch."""
    if name not in __all__:
        raise AttributeError(f"module 'panolib' has no attribute {name!r}")
    return getattr(importlib.import_module("panolib.study.apply"), name)
