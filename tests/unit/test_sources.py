"""Data sets by name: what their keys follow, what may be read, how much memory they take."""

from __future__ import annotations

import collections
import pickle
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from panolib.config import from_mapping
from panolib.data import fingerprints
from panolib.data.domains import RealData
from panolib.data.errors import MissingData
from panolib.data.readers import GTA5
from panolib.data.readers import city as streets_module
from panolib.data.readers.camvid import CamVidSources
from panolib.data.readers.city import CityData, CitySources, EmbeddedCity
from panolib.data.readers.nuclei import EmbeddedNuclei, NucleiData, NucleiSources, modality_of
from panolib.data.samples import InMemory, Memory, n_bytes
from panolib.labels import CITYSCAPES
from panolib.profiles import load_yaml, project_root

PROFILES = project_root(Path(__file__)) / "notebooks" / "profiles"
SIZE = (8, 12)
ROAD, TRUCK, TRAIN = (CITYSCAPES.file_ids[i] for i in CITYSCAPES.ids_of(["road", "truck", "train"]))


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def frame(root: Path, name: str, *label_ids: int) -> None:
    """A GTA5 frame whose columns show these classes in turn."""
    label = np.resize(np.array(label_ids, np.uint8), SIZE[1])
    save(root / f"images/{name}.png", np.full((*SIZE, 3), int(name), np.uint8))
    save(root / f"labels/{name}.png", np.tile(label, (SIZE[0], 1)))


@pytest.fixture
def streets(tmp_path):
    """Ten frames of GTA5, of which the odd ones show truck and train; three images of SYNTHIA."""
    for i in range(10):
        frame(tmp_path / "g", str(i), ROAD, TRUCK, *([TRAIN] if i % 2 else []))
    for i in range(3):
        save(tmp_path / f"s/RGB/{i}.png", np.zeros((*SIZE, 3), np.uint8))
        save(tmp_path / f"s/GT/LABELS/{i}.png", np.zeros((*SIZE, 3), np.uint16))
    return tmp_path


def city(root: Path, **values) -> CitySources:
    settings = CityData("s", "g", "c", None, 1, 2, None, ("truck", "train"))
    return CitySources(replace(settings, **values), root)


# ---------------------------------------------------------------- keys


def test_keys_follow_the_folders_and_ask_each_once(streets, monkeypatch):
    asked, fingerprint = collections.Counter(), fingerprints.folder_fingerprint

    def counted(folder, *suffixes):
        asked.update([folder.name])
        return fingerprint(folder, *suffixes)

    monkeypatch.setattr(fingerprints, "folder_fingerprint", counted)
    data = city(streets)
    names = list(CitySources.own)
    before = {name: data.fingerprint(name) for name in names * 20}
    assert asked == {"s": 1, "g": 1, "c": 1} and len(set(before.values())) == len(names)
    frame(streets / "g", "3", ROAD, TRAIN)
    after = {name: city(streets).fingerprint(name) for name in names}
    assert [name for name in names if before[name] != after[name]] == names[2:6]


def test_a_folder_that_comes_later_enters_the_key(streets):
    data = city(streets)
    before = data.fingerprint("cityscapes/train")
    save(streets / "c/leftImg8bit/train/a/x_leftImg8bit.png", np.zeros((2, 2, 3), np.uint8))
    assert data.fingerprint("cityscapes/train") != before


@pytest.mark.parametrize("name", ["gta5/train", "gta5/train:unlabelled", "mix/train"])
def test_files_that_change_after_the_keys_were_made_are_refused(streets, name):
    data = city(streets)
    data.fingerprint(name)
    frame(streets / "g", "3", TRAIN, TRUCK)
    with pytest.raises(ValueError, match=r"g: fingerprint .* when the profile was loaded"):
        data.open(name)


def test_memory_is_no_part_of_a_key(streets):
    for name in ("gta5/train", "mix/val"):
        assert city(streets, memory_gb=0.0).fingerprint(name) == city(streets).fingerprint(name)


def test_rendered_streets_of_other_settings_are_refused(tmp_path):
    embedded = EmbeddedCity(n_synthia=2, n_gta5=2, n_train=1, n_val=1, height=32, width=64, seed=0)
    values = {"embedded": embedded, "n_val_synthia": 1, "n_val_gta5": 1}
    city(tmp_path, **values).prepare(progress=False)
    assert len(city(tmp_path, **values).open("cityscapes/val")) == 1
    other = city(tmp_path, **values | {"embedded": replace(embedded, seed=1)})
    for name in ("cityscapes/val", "cityscapes/train:unlabelled", "gta5/train"):
        with pytest.raises(ValueError, match="seed"):
            other.open(name)


# ---------------------------------------------------------------- MIX


def chosen(data):
    """Names of the GTA5 frames that entered MIX."""
    return [name.removeprefix("gta5/") for name in data.open("mix/train").ids if name.startswith("gta5/")]


def test_mix_holds_the_chosen_frames_behind_synthia(streets):
    mix = city(streets).open("mix/train")
    assert mix.ids == ["synthia/0", "synthia/1", *(f"gta5/{i}" for i in (1, 3, 5, 7))]
    assert [int(sample.image[0, 0, 0]) for sample in mix][2:] == [1, 3, 5, 7]


def test_mix_reads_each_label_once_and_only_chosen_images(streets, monkeypatch):
    read = collections.Counter()

    class Counting(GTA5):
        def semantic(self, index):
            read[f"label {self.ids[index]}"] += 1
            return super().semantic(index)

        def __getitem__(self, index):
            read[f"image {self.ids[index]}"] += 1
            return super().__getitem__(index)

    monkeypatch.setattr(streets_module, "GTA5", Counting)
    list(city(streets).open("mix/train"))
    assert read == {f"label {i}": 1 for i in range(8)} | {f"image {i}": 1 for i in (1, 3, 5, 7)}
    read.clear()
    assert chosen(city(streets, mix_requires=("train",))) == list("1357")
    assert not any(name.startswith("label") for name in read)  # the index of classes is on disk
    frame(streets / "g", "2", TRAIN, TRUCK)
    assert chosen(city(streets)) == list("12357")
    assert sum(n for name, n in read.items() if name.startswith("label")) == 8


def test_a_damaged_index_of_classes_is_made_anew(streets):
    assert chosen(city(streets)) == list("1357")
    (path,) = (streets / "cache/classes").iterdir()
    for content in (b"", b"123", path.read_bytes()[:-9]):
        path.write_bytes(content)
        assert chosen(city(streets)) == list("1357")


def test_mix_without_any_frame_is_an_error(streets):
    data = city(streets, mix_requires=("train", "bus"))
    with pytest.raises(ValueError, match=r"g: none of 8 frames of 'train' .*\(train in 4, bus in 0\)"):
        data.open("mix/train")


def test_damaged_label_stops_the_choice_of_frames(streets):
    path = streets / "g/labels/4.png"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"labels/4.png: no readable image .* cut short"):
        city(streets).open("mix/train")


# ---------------------------------------------------------------- frames without label


def test_missing_labels_up_to_a_number(streets, capsys):
    for i in (1, 8):
        (streets / f"g/labels/{i}.png").unlink()
    with pytest.raises(FileNotFoundError, match="2 of 10 images have no label, the first is 1"):
        city(streets).open("gta5/train")
    with pytest.raises(FileNotFoundError, match=r"g: 2 frames lack .*: 1, 8; expected at most 1"):
        city(streets, gta5_missing=1).open("mix/train")
    assert capsys.readouterr().err == ""
    data = city(streets, gta5_missing=2)
    assert data.open("gta5/train").ids == ["0", *"234567"] and data.open("gta5/val").ids == ["9"]
    assert data.open("mix/train").ids[2:] == ["gta5/3", "gta5/5", "gta5/7"]
    assert capsys.readouterr().err == f"{streets / 'g'}: 2 frames left out that lack their image or label\n"


def test_key_follows_what_may_be_missing(streets):
    for name, follows in (("gta5/train", True), ("mix/train", True), ("synthia/train", False)):
        keys = {city(streets, gta5_missing=n).fingerprint(name) for n in (0, 1, 25)}
        assert len(keys) == (3 if follows else 1)


def test_profile_paper_allows_what_downloads_miss():
    data = from_mapping(CityData, load_yaml(PROFILES / "paper.yaml")["city"]["data"], where="paper")
    assert data.gta5_missing == 25
    assert CityData("s", "g", "c", None, 1, 2, None, ()).gta5_missing == 0


# ---------------------------------------------------------------- bounded memory


class Counted(GTA5):
    """Counts how often each frame is decoded."""

    def __init__(self, *args, **kwargs):
        self.decoded = collections.Counter()
        super().__init__(*args, **kwargs)

    def __getitem__(self, index):
        self.decoded[index] += 1
        return super().__getitem__(index)


def test_memory_keeps_the_most_recently_used_within_its_bound(streets):
    data = Counted(streets / "g", "all")
    size = n_bytes(data[0])
    assert size == SIZE[0] * SIZE[1] * (3 + 1 + 4 + 1)  # image, semantic, instance, crowd
    memory = Memory(3.5 * size)
    served = InMemory(data, memory=memory)
    assert sum(data.decoded.values()) == 2  # one here, one to see that ten do not fit
    data.decoded.clear()
    for index in (0, 1, 2, 0, 3, 0, 1):  # 3 takes the place of 1, then 1 that of 2
        assert int(served[index].image[0, 0, 0]) == index
        assert memory.n_bytes <= memory.max_bytes
    assert data.decoded == {1: 2, 2: 1, 3: 1}
    for index in range(10):
        served[index]
    assert memory.n_bytes == 3 * size


def test_memory_is_shared_by_data_sets(streets):
    one, other = (Counted(streets / "g", "all") for _ in range(2))
    memory = Memory(4 * n_bytes(one[0]))
    sets = [InMemory(data, memory=memory) for data in (one, other)]
    for index in range(10):
        for data in sets:
            assert int(data[index].image[0, 0, 0]) == index
            assert memory.n_bytes <= memory.max_bytes


def test_what_fits_is_decoded_once_and_at_once(streets):
    data = Counted(streets / "g", "all")
    served = InMemory(data, memory=Memory(1e6))
    assert data.decoded == dict.fromkeys(range(10), 1)
    assert served[-1] is served[9] and sum(data.decoded.values()) == 10
    with pytest.raises(IndexError):
        served[10]


@pytest.mark.parametrize("bound", [0, 1, 1e6])
def test_samples_do_not_depend_on_the_bound(streets, bound):
    served = city(streets, memory_gb=bound / 1e9).open("mix/train")
    expected = city(streets).open("mix/train")
    for sample, wanted in zip(served, expected, strict=True):
        assert sample.id == wanted.id
        np.testing.assert_array_equal(sample.image, wanted.image)
        np.testing.assert_array_equal(sample.semantic, wanted.semantic)


def test_a_copy_in_another_process_starts_empty_with_the_same_bound(streets):
    for bound in (0, 5000):
        served = InMemory(GTA5(streets / "g", "all"), memory=Memory(bound))
        copy = pickle.loads(pickle.dumps(served))
        assert copy._memory.n_bytes == 0 and copy._memory.max_bytes == bound
        np.testing.assert_array_equal(copy[3].image, served[3].image)
        assert copy._memory.n_bytes <= bound


# ---------------------------------------------------------------- real images of a record


@pytest.fixture
def stage1(tmp_path):
    """The nuclei as README says: {id}/images/{id}.png, {id}/masks/*.png, no table and no lists."""
    for number in range(20):
        folder = tmp_path / f"stage1_train/cell {number}"
        image = np.full((*SIZE, 4), 255, np.uint8)
        image[..., :3] = 200 if number % 5 == 0 else 20
        if number % 5 == 1:
            image[2, 2, 0] = 90  # stained
        save(folder / f"images/cell {number}.png", image)
        (folder / "masks").mkdir()
        for name, column in (("a", 0), ("b", 6)) if number != 2 else ():
            mask = np.zeros(SIZE, np.uint8)
            mask[2:5, column : column + 3] = 255
            save(folder / f"masks/{name}.png", mask)
    return tmp_path


def nuclei(top: Path, **values) -> NucleiSources:
    settings = from_mapping(NucleiData, load_yaml(PROFILES / "cpu.yaml")["nuclei"]["data"], where="cpu")
    settings = replace(settings, embedded=EmbeddedNuclei(1, 1, 64, 64, 0), scenes="scenes")
    return NucleiSources(replace(settings, **values), top)


@pytest.mark.parametrize("root", ["stage1_train", "."])
def test_steps_of_the_readme_for_nuclei(stage1, root):
    """Profile cpu, the folder of the README, `fingerprint: null`."""
    data = nuclei(stage1, root=root, fingerprint=None)
    assert data.available()
    train, val = data.open("nuclei/train"), data.open("nuclei/val")
    grey = [f"cell {number}" for number in range(20) if number % 5 > 1]
    assert sorted([*train.ids, *val.ids]) == sorted(grey) and len(val) > 0
    assert {len(np.unique(sample.instance)) for sample in train} <= {1, 3}
    everything = [*train, *val]
    assert [sample.id for sample in everything if not sample.instance.any()] == ["cell 2"]
    assert len(data.open("nuclei/train:unlabelled")) == len(train)
    key = data.fingerprint("nuclei/train")
    (stage1 / "stage1_train/cell 3/masks/b.png").unlink()
    assert nuclei(stage1, root=root, fingerprint=None).fingerprint("nuclei/train") != key


@pytest.mark.parametrize(
    ("pixels", "modality"),
    [
        (np.full((4, 4, 3), 44), "fluorescence_grey"),
        (np.full((4, 4, 3), 226), "brightfield_grey"),
        (np.eye(4)[..., None] * (1, 2, 3), "histology_colour"),
    ],
)
def test_modality_of_an_image(pixels, modality):
    assert modality_of(pixels.astype(np.uint8)) == modality


def test_unknown_modality_without_a_table(stage1):
    with pytest.raises(ValueError, match=r"no modality 'fluo', expected one of \['fluorescence_grey', "):
        nuclei(stage1, root="stage1_train", fingerprint=None, modality="fluo").open("nuclei/train")


def camvid(root: Path, **values) -> CamVidSources:
    settings = RealData(root="v", size=None, fingerprint=None)
    return CamVidSources(replace(settings, **values), root, city(root))


@pytest.fixture
def recorded(tmp_path):
    """(open sources with a pinned name, contents of the folder, folder)."""
    for name in ("a", "b"):
        save(tmp_path / f"v/train/{name}.png", np.zeros((*SIZE, 3), np.uint8))
        save(tmp_path / f"v/trainannot/{name}.png", np.full(SIZE, 3, np.uint8))
    contents = fingerprints.folder_fingerprint(tmp_path / "v")
    return lambda **values: camvid(tmp_path, fingerprint="name", **values), contents, tmp_path / "v"


def test_recorded_images_keep_their_name_in_keys(recorded):
    pinned, contents, folder = recorded
    assert pinned(contents=contents).fingerprint("camvid/train") == "name:None:camvid/train"
    assert len(pinned(contents=contents).open("camvid/train")) == 2
    folder.rename(folder.with_name("elsewhere"))
    assert pinned(contents=contents).fingerprint("camvid/train") == "name:None:camvid/train"
    with pytest.raises(MissingData, match="PANOLIB_CAMVID_ROOT"):
        pinned(contents=contents).open("camvid/train")


def test_other_images_never_have_the_key_of_the_recorded_ones(recorded):
    pinned, contents, folder = recorded
    save(folder / "trainannot/b.png", np.full(SIZE, 4, np.uint8))
    data = pinned(contents=contents)
    assert data.fingerprint("camvid/train").startswith(fingerprints.folder_fingerprint(folder))
    advice = "set fingerprint in the data of camvid to null"
    with pytest.raises(ValueError, match=rf"v: fingerprint .* expects {contents}; {advice}"):
        data.open("camvid/train")
    with pytest.raises(ValueError, match=f"expects name; {advice}"):
        pinned().open("camvid/train")
    assert len(camvid(folder.parent).open("camvid/train")) == 2


def test_edited_list_of_recorded_nuclei_is_refused(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / f"n/images/{name}.png", np.full(SIZE, 20, np.uint8))
        save(tmp_path / f"n/labels/{name}.png", np.ones(SIZE, np.uint16))
    (tmp_path / "n/splits").mkdir()
    path = tmp_path / "n/splits/train.txt"
    path.write_text("a\n")
    contents = fingerprints.folder_fingerprint(tmp_path / "n")
    assert nuclei(tmp_path, root="n", contents=contents).open("nuclei/train").ids == ["a"]
    key = nuclei(tmp_path, root="n", contents=contents).fingerprint("nuclei/train")
    path.write_text("b\n")
    data = nuclei(tmp_path, root="n", contents=contents)
    assert data.fingerprint("nuclei/train") != key
    with pytest.raises(ValueError, match="set fingerprint in the data of nuclei to null"):
        data.open("nuclei/train")


def test_real_images_that_change_after_the_keys_were_made_are_refused(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / f"camvid/train/{name}.png", np.zeros((*SIZE, 3), np.uint8))
        save(tmp_path / f"camvid/trainannot/{name}.png", np.zeros(SIZE, np.uint8))
    data = CamVidSources(RealData("camvid", None, None), tmp_path, city(tmp_path))
    data.fingerprint("camvid/train")
    assert len(data.open("camvid/train")) == 2
    save(tmp_path / "camvid/train/b.png", np.ones((*SIZE, 3), np.uint8))
    with pytest.raises(ValueError, match=r"camvid: fingerprint .* when the profile was loaded"):
        data.open("camvid/train:unlabelled")


def test_objects_are_measured_of_scenes_that_are_not_drawn_yet(tmp_path, monkeypatch):
    data = nuclei(tmp_path)
    sizes, shares = data.object_sizes("nuclei_scenes/val")
    assert len(shares) == 1 and len(sizes) > 0 and (sizes > 1).all() and 0 < shares[0] < 1
    monkeypatch.setattr(NucleiSources, "open", None)  # measured once
    assert data.object_sizes("nuclei_scenes/val")[0] is sizes


def test_rendered_nuclei_of_other_settings_are_refused(tmp_path):
    data = nuclei(tmp_path)
    data.prepare(progress=False)
    assert len(data.open("nuclei_scenes/val")) == 1
    other = nuclei(tmp_path, embedded=EmbeddedNuclei(1, 1, 64, 64, 1))
    with pytest.raises(ValueError, match="scenes/val: holds other files than the profile says"):
        other.open("nuclei_scenes/val")
