"""panolib: the support library of a reproducible study of self-trained panoptic segmentation."""

__version__ = "0.1.0"
