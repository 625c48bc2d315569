"""Panoptic maps as pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from panolib.labels import LabelSet


def panoptic_picture(panoptic_map, segments_info: Sequence[dict], label_set: LabelSet) -> np.ndarray:
    """uint8 [H, W, 3]: class colours, things in shades of theirs, segment borders white, void black."""
    panoptic_map = np.asarray(panoptic_map)
    palette = label_set.palette().astype(np.float32)
    ids, position = np.unique(panoptic_map, return_inverse=True)
    colours = np.zeros((len(ids), 3), np.float32)
    segments = {segment["id"]: segment for segment in segments_info}
    for row, segment_id in enumerate(ids.tolist()):
        segment = segments.get(segment_id)
        if segment is None:
            continue
        shade = 0.35 * ((segment_id * 0.618034) % 1.0) if segment["isthing"] else 0.0
        colours[row] = palette[segment["category_id"]] * (1 - shade) + 255 * shade
    picture = colours[position.reshape(panoptic_map.shape)]
    is_thing = np.isin(panoptic_map, [s["id"] for s in segments_info if s["isthing"]])
    border = np.zeros(panoptic_map.shape, bool)
    for axis in (0, 1):
        change = np.diff(panoptic_map, axis=axis) != 0
        border[tuple(slice(0, -1) if a == axis else slice(None) for a in (0, 1))] |= change
    picture[border & is_thing] = 255
    return picture.round().astype(np.uint8)
