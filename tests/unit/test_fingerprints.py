"""What a data folder holds, as one hash: it follows every file that a reader may open, and no other."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from panolib.data import fingerprints
from panolib.data.fingerprints import folder_fingerprint, remembered

PNG = [cv2.IMWRITE_PNG_COMPRESSION, 0]  # sizes do not depend on pixels


def save(path: Path, value: int | np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((4, 6), value, np.uint8) if isinstance(value, int) else value
    assert cv2.imwrite(str(path), pixels, PNG)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    for name in ("a", "b"):
        save(root / f"images/{name}.png", 3)
        save(root / f"labels/{name}.png", 7)
    (root / "splits").mkdir()
    (root / "splits/train.txt").write_text("a\nb\n")
    (root / "index.csv").write_text("id,modality\na,x\nb,y\n")
    return root


def delete_frame(root):
    for part in ("images", "labels"):
        (root / part / "b.png").unlink()


CHANGES = {
    "frame added": lambda root: save(root / "images/c.png", 3),
    "frame added in upper case": lambda root: save(root / "images/C.PNG", 3),
    "frame deleted": delete_frame,
    "frame renamed": lambda root: (root / "images/b.png").rename(root / "images/c.png"),
    "frame in a deeper folder": lambda root: save(root / "images/more/c.png", 3),
    "label of equal size": lambda root: save(root / "labels/b.png", 8),
    "list edited": lambda root: (root / "splits/train.txt").write_text("b\na\n"),
    "list added": lambda root: (root / "splits/val.txt").write_text("a\n"),
    "list deleted": lambda root: (root / "splits/train.txt").unlink(),
    "table edited": lambda root: (root / "index.csv").write_text("id,modality\na,y\nb,x\n"),
    "table deleted": lambda root: (root / "index.csv").unlink(),
    "empty file": lambda root: (root / "labels/b.png").write_bytes(b""),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("linked", ["not", "root", "folders", "files", "chain"])
def test_fingerprint_follows_every_file_that_is_read(folder, tmp_path, change, linked):
    root = tmp_path / "root"
    if linked == "not":
        root = folder
    elif linked in ("root", "chain"):
        target = folder
        if linked == "chain":
            target = tmp_path / "between"
            target.symlink_to(folder)
        root.symlink_to(target)
    elif linked == "folders":
        root.mkdir()
        for path in folder.iterdir():
            (root / path.name).symlink_to(path)
    else:
        for path in (path for path in folder.rglob("*") if path.is_file()):
            link = root / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(path, link.parent))
    before = folder_fingerprint(root)
    assert before == folder_fingerprint(folder)  # a copy made of links is the same data
    through_links = [CHANGES[name] for name in ("label of equal size", "list edited", "table edited")]
    change(folder if change in through_links else root)
    assert folder_fingerprint(root) != before


def test_fingerprint_tells_large_images_of_equal_size_apart(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (200, 400, 3), dtype=np.uint8)
    save(folder / "images/a.png", pixels)
    before, size = folder_fingerprint(folder), (folder / "images/a.png").stat().st_size
    pixels[100, 200, 1] ^= 1  # one bit in the middle
    save(folder / "images/a.png", pixels)
    assert (folder / "images/a.png").stat().st_size == size > 200_000
    assert folder_fingerprint(folder) != before


def test_fingerprint_tells_large_damaged_images_apart(folder):
    """Without a PNG's end there is no checksum of the pixels in it."""
    path = folder / "images/a.png"
    path.write_bytes(bytes(200_000))
    before = folder_fingerprint(folder)
    path.write_bytes(bytes(100_000) + b"1" + bytes(99_999))
    assert folder_fingerprint(folder) != before


def test_fingerprint_ignores_what_nobody_reads(folder, tmp_path):
    before = folder_fingerprint(folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "images/.DS_Store").write_bytes(b"1")
    save(folder / "images/._a.png", 3)
    (folder / "empty").mkdir()
    os.utime(folder / "images/a.png", (1, 1))
    assert folder_fingerprint(folder) == before
    shutil.copytree(folder, tmp_path / "copy")
    assert folder_fingerprint(tmp_path / "copy") == before


def test_fingerprint_of_lists_behind_a_link_of_another_name(folder):
    (folder / "splits").rename(folder / "lists")
    (folder / "splits").symlink_to("lists")
    before = folder_fingerprint(folder)
    (folder / "lists/train.txt").write_text("b\n")
    assert folder_fingerprint(folder) != before


def test_fingerprint_ends_where_links_lead_in_circles(folder):
    (folder / "images/up").symlink_to("..")
    (folder / "images/itself").symlink_to(".")
    before = folder_fingerprint(folder)
    assert before == folder_fingerprint(folder)
    save(folder / "labels/b.png", 8)
    assert folder_fingerprint(folder) != before


@pytest.mark.parametrize(("name", "target"), [("images/c.png", "../gone.png"), ("more", "gone"), ("a", "a")])
def test_fingerprint_names_a_link_that_leads_nowhere(folder, name, target):
    (folder / name).symlink_to(target)
    with pytest.raises(FileNotFoundError, match=rf"{name}: a link to {target}, which leads nowhere"):
        folder_fingerprint(folder)


def test_fingerprint_of_a_missing_folder(folder):
    assert folder_fingerprint(folder / "gone") == folder_fingerprint(folder / "index.csv") == "missing"


# ---------------------------------------------------------------- remembered on disk


@pytest.fixture
def counted(folder, tmp_path, monkeypatch):
    """(ask, folders asked for): `remembered`, and the calls of `folder_fingerprint`."""
    calls = []
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (1, 1))

    def count(path, suffixes):
        calls.append(path)
        return folder_fingerprint(path, suffixes)

    monkeypatch.setattr(fingerprints, "folder_fingerprint", count)
    return lambda: remembered(folder, tmp_path / "cache"), calls


def settle(monkeypatch):
    """Let all files be old enough: their ctime cannot be set."""
    monkeypatch.setattr("panolib.data.fingerprints._SETTLED_S", -60.0)


def test_files_are_hashed_again_only_after_a_change(counted, folder, monkeypatch):
    settle(monkeypatch)
    ask, calls = counted
    first = ask()
    assert ask() == first == folder_fingerprint(folder) and len(calls) == 1
    for n_calls, change in enumerate(CHANGES.values(), start=2):
        shutil.rmtree(folder / "images/more", ignore_errors=True)
        if not (folder / "images/b.png").exists():
            save(folder / "images/b.png", 3)
        if change is not CHANGES["list deleted"]:
            (folder / "splits/train.txt").touch()
        change(folder)
        assert ask() == folder_fingerprint(folder) and len(calls) == n_calls
        ask()
        assert len(calls) == n_calls


def test_a_change_that_keeps_size_and_mtime_is_seen(counted, folder, monkeypatch):
    settle(monkeypatch)
    ask, calls = counted
    before = ask()
    path = folder / "labels/b.png"
    times = path.stat()
    save(path, 8)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as copying tools do
    assert ask() != before and len(calls) == 2


def test_fresh_files_are_not_remembered(counted):
    ask, calls = counted  # ctime is now, whatever utime says
    assert ask() == ask() and len(calls) == 2


def test_damaged_memory_is_written_anew(counted, tmp_path, monkeypatch):
    settle(monkeypatch)
    ask, calls = counted
    first = ask()
    (path,) = (tmp_path / "cache").iterdir()
    for content in (b"", b"[]", b"{", b"\xff"):
        path.write_bytes(content)
        assert ask() == first
    assert len(calls) == 5


def test_a_folder_that_cannot_be_written_is_no_error(counted, tmp_path):
    (tmp_path / "cache").write_text("a file in its place")
    assert counted[0]()
