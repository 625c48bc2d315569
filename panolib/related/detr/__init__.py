"""DETR-panoptic on the city, beside our embedding-based pipeline (methods section 10)."""
