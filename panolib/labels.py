"""Label sets: the only place of the library that knows class numbers, names and colours.

A class is addressed by its train id, 0 .. n_classes - 1, everywhere in the library; ``VOID`` marks
pixels without a class. Readers translate file ids to train ids by class *name*.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

VOID = 255


@dataclass(frozen=True)
class LabelSet:
    """Classes of a data set."""

    name: str
    classes: tuple[str, ...]  # names; the position is the train id
    colours: tuple[tuple[int, int, int], ...]  # 8-bit (r, g, b) of each
    things: tuple[str, ...]  # names of the classes with countable instances; all others are stuff
    file_ids: tuple[int, ...]  # of each class in the official files of the data set (Cityscapes "label id")
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # things of one model (thesis 8.3)
    subsets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # over which scores are averaged
    connected_things: bool = False  # every object is one region, as cells are; objects of streets hide others
    # by another label set: which of its classes each class here takes, to score its predictions
    merges: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    void_file_id: int = VOID  # what the files hold where there is no class; 255: they have no id for it

    @property
    def n_classes(self) -> int:
        return len(self.classes)

    @property
    def thing_ids(self) -> tuple[int, ...]:
        return self.ids_of(self.things)

    @property
    def stuff_ids(self) -> tuple[int, ...]:
        return tuple(i for i in range(self.n_classes) if i not in self.thing_ids)

    def ids_of(self, names: Iterable[str]) -> tuple[int, ...]:
        """Train ids of class names. Raises KeyError with the known names for an unknown one."""
        ids = []
        for name in names:
            if name not in self.classes:
                raise KeyError(f"{self.name} has no class {name!r}; it has {list(self.classes)}")
            ids.append(self.classes.index(name))
        return tuple(ids)

    def subset_ids(self, subset: str) -> tuple[int, ...]:
        """Train ids of a named subset."""
        if subset not in self.subsets:
            raise KeyError(f"{self.name} has no subset {subset!r}; it has {sorted(self.subsets)}")
        return self.ids_of(self.subsets[subset])

    def palette(self) -> np.ndarray:
        """uint8 [256, 3]: colour per train id; black for void and for unused ids."""
        table = np.zeros((256, 3), np.uint8)
        table[: self.n_classes] = self.colours
        return table

    def colourise(self, semantic: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] picture of a train-id map [H, W]."""
        return self.palette()[semantic]

    def file_id_table(self) -> np.ndarray:
        """uint8 [256]: file id per train id; that of void elsewhere.

        Raises ValueError for a file id that 8 bits do not hold, and for a void that is a class.
        """
        void = self.void_file_id
        for file_id in (*self.file_ids, void):
            if not 0 <= file_id <= 255:
                raise ValueError(f"{self.name}: file id {file_id}, expected 0 .. 255 for an 8-bit image")
        if void in self.file_ids:
            name = self.classes[self.file_ids.index(void)]
            raise ValueError(f"{self.name}: void is written as {void}, which is the class {name!r}")
        table = np.full(256, void, np.uint8)
        table[: self.n_classes] = self.file_ids
        return table


_CITYSCAPES = (  # name, label id, thing, colour; cityscapesScripts labels.py
    ("road", 7, False, (128, 64, 128)),
    ("sidewalk", 8, False, (244, 35, 232)),
    ("building", 11, False, (70, 70, 70)),
    ("wall", 12, False, (102, 102, 156)),
    ("fence", 13, False, (190, 153, 153)),
    ("pole", 17, False, (153, 153, 153)),
    ("traffic light", 19, False, (250, 170, 30)),
    ("traffic sign", 20, False, (220, 220, 0)),
    ("vegetation", 21, False, (107, 142, 35)),
    ("terrain", 22, False, (152, 251, 152)),
    ("sky", 23, False, (70, 130, 180)),
    ("person", 24, True, (220, 20, 60)),
    ("rider", 25, True, (255, 0, 0)),
    ("car", 26, True, (0, 0, 142)),
    ("truck", 27, True, (0, 0, 70)),
    ("bus", 28, True, (0, 60, 100)),
    ("train", 31, True, (0, 80, 100)),
    ("motorcycle", 32, True, (0, 0, 230)),
    ("bicycle", 33, True, (119, 11, 32)),
)
_NAMES = tuple(row[0] for row in _CITYSCAPES)

CITYSCAPES = LabelSet(
    name="cityscapes",
    classes=_NAMES,
    colours=tuple(row[3] for row in _CITYSCAPES),
    things=tuple(row[0] for row in _CITYSCAPES if row[2]),
    file_ids=tuple(row[1] for row in _CITYSCAPES),
    void_file_id=0,  # "unlabeled"
    groups={
        "auto": ("car", "bus", "truck", "train"),
        "human": ("person", "rider"),
        "bike": ("bicycle", "motorcycle"),
    },
    subsets={
        "19": _NAMES,
        "16": tuple(name for name in _NAMES if name not in ("terrain", "truck", "train")),
    },
)

_CAMVID = (  # name, thing, colour, classes of Cityscapes: the usual grouping of CamVid's 32 classes to 11
    ("sky", False, (128, 128, 128), ("sky",)),
    ("building", False, (128, 0, 0), ("building", "wall")),
    ("pole", False, (192, 192, 128), ("pole",)),
    ("road", False, (128, 64, 128), ("road",)),
    ("pavement", False, (60, 40, 222), ("sidewalk",)),
    ("tree", False, (128, 128, 0), ("vegetation", "terrain")),
    ("sign", False, (192, 128, 128), ("traffic light", "traffic sign")),
    ("fence", False, (64, 64, 128), ("fence",)),
    ("car", True, (64, 0, 128), ("car", "truck", "bus", "train")),
    ("pedestrian", True, (64, 64, 0), ("person",)),
    ("bicyclist", True, (0, 128, 192), ("rider", "motorcycle", "bicycle")),
)

CAMVID = LabelSet(
    name="camvid",
    classes=tuple(row[0] for row in _CAMVID),
    colours=tuple(row[2] for row in _CAMVID),
    things=tuple(row[0] for row in _CAMVID if row[1]),
    file_ids=tuple(range(11)),
    void_file_id=11,  # "unlabelled"
    subsets={"11": tuple(row[0] for row in _CAMVID)},
    merges={CITYSCAPES.name: {row[0]: row[3] for row in _CAMVID}},
)

NUCLEI = LabelSet(
    name="nuclei",
    classes=("background", "nucleus"),
    colours=((32, 32, 48), (86, 180, 233)),
    things=("nucleus",),
    file_ids=(0, 1),
    groups={"nucleus": ("nucleus",)},
    subsets={"2": ("background", "nucleus"), "nucleus": ("nucleus",)},
    connected_things=True,
)

OBJECTS = replace(  # of label images whose values are objects, whatever these are
    NUCLEI,
    name="objects",
    classes=("background", "object"),
    things=("object",),
    groups={"object": ("object",)},
    subsets={"2": ("background", "object"), "object": ("object",)},
)

LABEL_SETS = {label_set.name: label_set for label_set in (CITYSCAPES, CAMVID, NUCLEI, OBJECTS)}


def register_label_set(label_set: LabelSet) -> LabelSet:
    """Make a label set known by its name in this process, where specs and records name it.

    Raises ValueError where another one has the name.
    """
    known = LABEL_SETS.setdefault(label_set.name, label_set)
    if known != label_set:
        raise ValueError(
            f"label set {label_set.name!r} with classes {list(label_set.classes)}: expected another name, "
            f"found a label set that has it, with classes {list(known.classes)}"
        )
    return known


def merged_ids(labels: LabelSet, into: LabelSet) -> np.ndarray:
    """Train id of `into` for every train id of `labels`: how predictions are scored on another data set.

    Returns uint8 [labels.n_classes]. Raises ValueError if nothing says how the classes of `labels` are merged
    into those of `into`, or some have no place.
    """
    if labels.name == into.name:
        return np.arange(labels.n_classes, dtype=np.uint8)
    if labels.name not in into.merges:
        raise ValueError(
            f"classes of {labels.name!r} cannot be merged into those of {into.name!r}; expected its `merges` "
            f"to say which of them each class takes, found those of {', '.join(into.merges) or 'no other'}"
        )
    class_of = {member: name for name, members in into.merges[labels.name].items() for member in members}
    if left := [name for name in labels.classes if name not in class_of]:
        raise ValueError(f"no class of {into.name!r} takes {', '.join(left)} of {labels.name!r}")
    return np.array([into.classes.index(class_of[name]) for name in labels.classes], np.uint8)
