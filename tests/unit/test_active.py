"""Active learning: how pairs are ranked, who answers, the session and its file, what training makes of it."""

from __future__ import annotations

import json
import shutil
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from tiny_runs import tiny_study

from panolib.__main__ import main
from panolib.active.pairs import NETWORKS, packed, unpacked
from panolib.active.person import choice, outlined, true_overlaps
from panolib.active.pictures import ALL
from panolib.active.queries import changed_share, expected_change, overlap, ranked
from panolib.active.session import DamagedAnswers, Pair, PairFolder, Session, open_session, read_answers
from panolib.config import ProfileError
from panolib.data.samples import Sample
from panolib.data.views import UNKNOWN
from panolib.labels import VOID
from panolib.load import load
from panolib.profiles import load_yaml, project_root
from panolib.study.active import FULL_LABELS, NOBODY, PERSON, Course, courses, read_settings
from panolib.study.person import OtherAnswers, sides, write_run_pairs
from panolib.training.crops import answered_weights
from panolib.training.instance_targets import chosen_instead

PROFILES = project_root() / "notebooks" / "profiles"


def squares(*boxes, size=(20, 30)):
    """int64 array: squares 1, 2, .. at (row, column, height, width)."""
    labels = np.zeros(size, np.int64)
    for number, (row, column, height, width) in enumerate(boxes, start=1):
        labels[row : row + height, column : column + width] = number
    return labels


def sample(instance, *, crowd=None, name="a"):
    """A labelled image with one class of things."""
    crowd = np.zeros(instance.shape, bool) if crowd is None else crowd
    semantic = ((instance > 0) | crowd).astype(np.uint8)
    return Sample(np.zeros((*instance.shape, 3), np.uint8), semantic, instance.astype(np.int32), crowd, name)


TWO = squares((2, 2, 4, 4), (10, 10, 4, 8))
MERGED = np.where(TWO > 0, 1, 0)


# --- what is asked ----------------------------------------------------------------------------------------


def test_overlap_by_hand():
    # the merged mask of 48 pixels has IoU 16 / 48 and 32 / 48 with its parts; its own best is the second
    assert overlap(TWO, MERGED) == pytest.approx((16 / 48 + 32 / 48 + 32 / 48) / 3)
    assert overlap(MERGED, TWO) == overlap(TWO, MERGED)
    assert overlap(TWO, TWO) == 1.0 and overlap(TWO, np.where(TWO > 0, 3 - TWO, 0)) == 1.0
    empty = np.zeros_like(TWO)
    assert overlap(TWO, empty) == 0.0 and overlap(empty, empty) == 1.0
    with pytest.raises(ValueError, match="expected one size"):
        overlap(TWO, TWO[:10])


def test_changed_pixels_are_those_of_objects_without_a_partner():
    assert changed_share(TWO, TWO) == 0.0
    # the merged mask is the second square grown by the first, whose 16 pixels change
    assert changed_share(TWO, MERGED) == pytest.approx(16 / TWO.size)
    assert changed_share(TWO, np.zeros_like(TWO)) == pytest.approx(48 / TWO.size)


def test_the_expected_change_follows_the_stabilities():
    assert expected_change(TWO, MERGED, 0.2, 0.6) == pytest.approx(0.75 * 16 / TWO.size)
    assert expected_change(TWO, MERGED, 0.0, 0.0) == pytest.approx(0.5 * 16 / TWO.size)
    assert expected_change(TWO, TWO, 0.2, 0.6) == 0.0


def test_rankings():
    scores = {"disagreement": np.array([0.1, 0.5, 0.5, 0.9])}
    assert ranked("disagreement", scores, 4, seed=0).tolist() == [3, 1, 2, 0]
    drawn = ranked("random", scores, 50, seed=0)
    assert sorted(drawn) == list(range(50)) and drawn.tolist() == ranked("random", {}, 50, seed=0).tolist()
    assert drawn.tolist() != ranked("random", {}, 50, seed=1).tolist()


# --- who answers ------------------------------------------------------------------------------------------


def test_the_person_sees_objects_without_groups_and_void():
    crowd = squares((15, 20, 5, 10)) > 0
    truth = sample(np.where(TWO > 0, 1000 + TWO, 0), crowd=crowd)
    truth.semantic[0] = VOID
    found = np.where(crowd, 3, TWO)
    found[0] = 4
    assert true_overlaps(truth, [found, MERGED]) == [1.0, pytest.approx(overlap(TWO, MERGED))]


def test_how_often_a_person_is_wrong():
    names = [f"image {i}" for i in range(2000)]
    taken = {
        wrong: np.array([choice([0.4, 0.6], wrong=wrong, seed=0, image=name) for name in names])
        for wrong in (0.0, 0.1, 0.2)
    }
    assert taken[0.0].all() and choice([0.6, 0.4], wrong=0.0, seed=0, image="a") == 0
    for share in (0.1, 0.2):
        assert (taken[share] == 0).mean() == pytest.approx(share, abs=0.03)
    assert (taken[0.2] <= taken[0.1]).all(), "who is wrong more often is wrong on the same images too"


@pytest.mark.parametrize(("seconds", "n"), [(0, 1), (19, 1), (39, 1), (40, 2), (60, 4), (1000, 4)])
def test_full_labels_are_whole_images_and_at_least_one(seconds, n):
    images = [sample(labels, name=name) for name, labels in zip("abcd", (TWO, TWO, MERGED, MERGED))]
    found = dict(outlined(images, seconds, 10.0))
    assert list(found) == ["a", "b", "c", "d"][:n]
    assert (found["a"] == TWO).all()


def test_maps_are_kept_whole_and_small():
    labels = squares(*((r, c, 3, 3) for r in range(0, 20, 4) for c in range(0, 30, 4)))
    labels[-1, -1] = 65535
    assert (unpacked(packed(labels)) == labels).all() and len(packed(labels)) < labels.size
    with pytest.raises(ValueError, match=r"ids are 0 \.\. 65536; expected 0 \.\. 65535"):
        packed(np.where(labels == 65535, 65536, labels))


# --- what an answer does ----------------------------------------------------------------------------------


def test_an_answered_image_keeps_what_was_chosen_and_the_others_their_clusters():
    clustered = torch.from_numpy(np.stack([TWO, TWO, TWO]))
    chosen = torch.full(clustered.shape, UNKNOWN)
    chosen[0] = torch.from_numpy(7 * MERGED)
    chosen[0, :, 25:] = UNKNOWN  # padding
    chosen[2] = 0  # the empty segmentation was the better one
    chosen[2, 0, :2] = 5  # below the smallest instance
    kept = chosen_instead(clustered, chosen, min_area=4)
    assert (kept[0].numpy() == MERGED).all() and (kept[1].numpy() == TWO).all() and not kept[2].any()


def test_answered_images_are_drawn_as_often_as_is_said():
    weights = answered_weights([True, False, False, True, False], 0.5)
    assert weights.shape == (1, 5) and weights.sum() == pytest.approx(1.0)
    assert weights[0].tolist() == pytest.approx([0.25, 1 / 6, 1 / 6, 0.25, 1 / 6])
    for everyone in ([True, True], [False, False]):
        assert answered_weights(everyone, 0.9)[0].tolist() == [0.5, 0.5]


# --- the session ------------------------------------------------------------------------------------------


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self):
        return self.now


def session(folder, n=3, clock=None):
    names = [f"image {i}" for i in range(n)]
    image = np.zeros((*TWO.shape, 3), np.uint8)
    pairs = [Pair(name, image, (TWO, MERGED), ("teacher", "student")) for name in names]
    return Session(pairs, names, folder / "answers.jsonl", clock=clock or Clock())


def choices_of(found):
    return {name: answer.choice for name, answer in found.answers.items()}


def test_answers_are_kept_at_once_and_a_new_session_goes_on(tmp_path):
    clock = Clock()
    asked = session(tmp_path, clock=clock)
    assert asked.current.name == "image 0" and np.isnan(asked.seconds_per_answer) and not asked.file.exists()
    for key, seconds in (("1", 2.0), ("0", 4.0)):
        clock.now += seconds
        asked.choose(key)
    lines = [json.loads(line) for line in asked.file.read_text().splitlines()]
    assert lines[0] == {
        "image": "image 0", "shown": ["teacher", "student"], "choice": "teacher", "seconds": 2.0
    }  # fmt: skip
    assert asked.seconds_per_answer == 3.0
    again = session(tmp_path)
    assert choices_of(again) == {"image 0": "teacher", "image 1": None} and again.current.name == "image 2"
    again.choose("2")
    assert again.current is None and choices_of(again)["image 2"] == "student"
    again.choose("1")
    assert len(again.answers) == len(again) == 3


def test_undo_asks_again_also_after_a_restart(tmp_path):
    asked = session(tmp_path)
    asked.undo()
    for key in "112":
        asked.choose(key)
    asked.undo()
    asked.undo()
    assert choices_of(asked) == {"image 0": "teacher"} and asked.current.name == "image 1"
    again = session(tmp_path)
    assert choices_of(again) == {"image 0": "teacher"} and again.current.name == "image 1"
    again.choose("2")
    assert choices_of(session(tmp_path)) == {"image 0": "teacher", "image 1": "student"}


def test_a_line_that_a_kill_cut_off_is_asked_again(tmp_path):
    asked = session(tmp_path)
    asked.choose("1")
    with asked.file.open("a") as file:
        file.write('{"image": "image 1", "sho')
    content = asked.file.read_bytes()
    assert list(read_answers(asked.file)) == ["image 0"] and asked.file.read_bytes() == content
    again = session(tmp_path)
    assert choices_of(again) == {"image 0": "teacher"}
    again.choose("2")
    assert choices_of(session(tmp_path)) == {"image 0": "teacher", "image 1": "student"}


@pytest.mark.parametrize(
    "line",
    ["no json", "[]", '{"undo": "image 1"}', '{"image": "a"}',
     '{"image": "a", "shown": ["x", "y"], "choice": "z", "seconds": 1}'],
)  # fmt: skip
def test_a_line_that_is_no_answer_is_named(tmp_path, line):
    asked = session(tmp_path)
    asked.choose("1")
    with asked.file.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DamagedAnswers, match=r"answers\.jsonl: line 2: expected an answer with image, shown"):
        session(tmp_path)


def test_answers_about_other_images_stay(tmp_path):
    session(tmp_path, n=1).choose("1")
    image = np.zeros((*TWO.shape, 3), np.uint8)
    later = Session([Pair("other", image, (TWO, MERGED), ("teacher", "student"))], ["other"],
                    tmp_path / "answers.jsonl")  # fmt: skip
    later.undo()
    assert later.answers == {} and later.current.name == "other"
    later.choose("1")
    assert list(choices_of(session(tmp_path))) == ["image 0"]


def test_a_pair_is_read_once_however_it_is_shown(tmp_path):
    class Counting(list):
        def __getitem__(self, number):
            asked.append(number)
            return super().__getitem__(number)

    asked, names = [], ["a", "b"]
    large = np.zeros((500, 400), int)
    large[10:20, 10:20] = 1
    image = np.zeros((*large.shape, 3), np.uint8)
    pairs = [Pair(name, image, (large, 0 * large), ("teacher", "student")) for name in names]
    found = Session(Counting(pairs), names, tmp_path / "answers.jsonl")
    first = found.window
    assert [part.stop - part.start for part in first] == [128, 128]
    found.press("z")
    assert found.window == ALL and found.outlined
    found.press("h")
    assert not found.outlined and not found.answers
    found.press("z")
    assert found.window == first and asked == [0]
    found.press("1")
    assert found.outlined and found.current.name == "b" and asked == [0, 1]
    found.press("u")
    assert found.current.name == "a"


def test_wrong_keys_and_names(tmp_path):
    with pytest.raises(ValueError, match="key '3': expected one of 1, 2, 0"):
        session(tmp_path).choose("3")
    with pytest.raises(ValueError, match="different names"):
        Session([None, None], ["a", "a"], tmp_path / "answers.jsonl")


# --- as it is declared ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def declared(tmp_path_factory):
    """(study, {(domain, course, round): {branch and rung: run}})."""
    folder = tmp_path_factory.mktemp("active")
    file = folder / "few.yaml"
    left_out = ("camvid", "experiments", "detr", "realtime", "performance", "objectness", "refinement")
    others = "".join(f"{name}: null\n" for name in left_out)
    section = "active: {domains: [city, nuclei], answers: [2, 5], wrong: [0.1, 0.5]}\n"
    file.write_text(f"extends: smoke\n{others}{section}")
    loaded, found = load(file, root=folder, train=False), defaultdict(dict)
    for tag in loaded.tags:
        if tag.experiment == "active":
            run, at = loaded.runs[tag.run], dict(tag.values)
            course = Course(at["strategy"], at["answers"], at["wrong"])
            found[run.domain, course, at["round"]][f"{run.branch} {run.rung}".strip()] = run
    return loaded, found


def test_every_course_goes_on_from_the_round_before(declared):
    loaded, found = declared
    settings = read_settings(loaded.profile.active, "few.yaml")
    assert {(domain, course) for domain, course, _ in found} == {
        (domain, course) for domain in ("city", "nuclei") for course in courses(settings)
    }
    for (domain, course, number), runs in found.items():
        before = found[domain, course, 1] if number == 2 else {}
        start = before.get("instance self_trained", loaded.runs[f"{domain}-instance-self_trained-s0"])
        parents = dict(runs["instance self_trained"].parents)
        assert parents["start"] is start
        assert ("panoptic teacher" in runs) == (number == settings.rounds)
        if course.strategy == NOBODY:
            assert "answers" not in parents and runs["instance self_trained"].spec.answered_share is None
            continue
        assert parents["answers"] is runs["answers"]
        if course.strategy == FULL_LABELS:
            asked = course.n_answers * number // 2
            assert runs["answers"].spec.seconds == asked * settings.seconds_per_answer
            continue
        candidates = dict(runs["answers"].parents)["candidates"]
        assert dict(candidates.parents)["instance"] is start, "of the networks at that time"
        assert dict(runs["answers"].parents).get("before") is before.get("answers")


def test_five_answers_in_two_rounds(declared):
    course = Course("random", 5)
    assert [declared[1]["city", course, n]["answers"].spec.n_answers for n in (1, 2)] == [2, 3]


def test_labels_are_read_by_the_person_alone(declared):
    for (_, course, _), runs in declared[1].items():
        for name, run in runs.items():
            if not name.startswith("panoptic"):
                target = run.spec.target
                assert target.endswith(":unlabelled") == (name != "answers"), (course, name)


def test_courses_train_alike_but_for_the_answers(declared):
    specs = defaultdict(set)
    for (domain, _, number), runs in declared[1].items():
        specs[domain, number].add(replace(runs["instance self_trained"].spec, answered_share=None))
    assert all(len(found) == 1 for found in specs.values())
    first = {runs["candidates"].key for (domain, _, number), runs in declared[1].items()
             if domain == "city" and number == 1 and "candidates" in runs}  # fmt: skip
    assert len(first) == 1, "the first questions are about one pair of networks"


def test_fewer_answers_than_rounds_are_one_error(tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text("extends: smoke\nactive: {answers: [1]}\n")
    with pytest.raises(ProfileError, match=r"wrong\.yaml: active: .*expected 2 or more, one a round"):
        load(file, root=tmp_path, train=False)


# --- a real person ----------------------------------------------------------------------------------------

CANDIDATES = "city-candidates-active.disagreement.2.1-s0"


def person_runs(loaded):
    """{(branch and rung, round): run} of the course of a real person."""
    values = [(loaded.runs[tag.run], dict(tag.values)) for tag in loaded.tags if tag.experiment == "active"]
    return {(f"{run.branch} {run.rung}".strip(), at["round"]): run
            for run, at in values if at["strategy"] == PERSON}  # fmt: skip


def answer_all(folder, keys):
    """Press a key for each of the first pairs of a folder."""
    asked = open_session(folder)
    for key in keys:
        asked.choose(key)
    return asked.answers


def with_answers(root, folder):
    """The tiny study with the answers of a folder."""
    profile = load_yaml(root / "tiny.yaml")
    profile["active"]["answers_folder"] = str(folder)
    (root / "tiny.yaml").write_text(yaml.safe_dump(profile))
    return load(root / "tiny.yaml", root=root)


def copied(pairs, to):
    shutil.copytree(pairs, to / "pairs")
    return to / "pairs"


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """(root, the tiny study, its pairs in a folder), made without the labels of target train."""
    root = tmp_path_factory.mktemp("person")
    (root / "pyproject.toml").write_text('[project]\nname = "panolib"\n')
    loaded = tiny_study(root)
    loaded.prepare_data(progress=False, domains=("city",))
    (labels,) = root.rglob("gtFine/train")
    shutil.rmtree(labels)
    loaded.store.get(loaded.runs[CANDIDATES])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("PANOLIB_TRAIN", "0")
        arguments = ["pairs", "--profile", str(root / "tiny.yaml"), "--run", CANDIDATES]
        assert main([*arguments, "--out", str(root / "pairs")]) == 0
        assert main([*arguments, "--out", str(root / "pairs")]) == 1, "pairs that are there stay"
    return root, loaded, root / "pairs"


def test_the_pairs_of_a_run_come_most_different_first_and_left_is_drawn(asked, tmp_path):
    _, loaded, folder = asked
    kept = loaded.store.final_state(loaded.runs[CANDIDATES])
    pairs = list(PairFolder(folder))
    differs = [1 - overlap(*pair.labels) for pair in pairs]
    assert len(pairs) == np.count_nonzero(kept["scores"]["disagreement"].numpy()) >= 3
    assert differs == sorted(differs, reverse=True) and differs[-1] > 0
    for pair in pairs:
        assert sorted(pair.shown) == sorted(NETWORKS) and pair.image.shape == (*pair.labels[0].shape, 3)
        for name, labels in zip(pair.shown, pair.labels):
            assert (labels == unpacked(kept[name][pair.name])).all()
    assert write_run_pairs(loaded.store, loaded.sources, loaded.runs[CANDIDATES], tmp_path / "again") == len(
        pairs
    )
    assert [pair.shown for pair in PairFolder(tmp_path / "again")] == [pair.shown for pair in pairs]
    left = {sides("a", seed)[0] for seed in range(20)}
    assert left == set(NETWORKS)


def test_a_person_trains_without_any_label(asked, tmp_path):
    root, _, folder = asked
    folder = copied(folder, tmp_path)
    given = answer_all(folder, "201")
    loaded = with_answers(root, folder)
    runs = person_runs(loaded)
    answers = runs["answers", 1]
    assert {run.spec.target for (name, _), run in runs.items() if not name.startswith("panoptic")} == {
        "cityscapes/train:unlabelled"
    }
    assert dict(answers.parents)["candidates"] is loaded.runs[CANDIDATES], "the pairs that were shown"

    trained = runs["instance self_trained", 1]
    loaded.store.get(trained)
    labels = loaded.store.final_state(answers)["labels"]
    kept = loaded.store.final_state(loaded.runs[CANDIDATES])
    chosen = {image: answer.choice for image, answer in given.items() if answer.choice is not None}
    assert len(given) == 3 and labels.keys() == chosen.keys() and len(chosen) == 2
    assert all(torch.equal(labels[image], kept[choice][image]) for image, choice in chosen.items())
    metrics = loaded.store.get(answers).metrics
    assert metrics["n_answers"] == 3 and metrics["chose_neither"] == pytest.approx(1 / 3)
    assert {row["image"]: row["chosen"] for row in metrics["rows"]} == {
        image: answer.choice or "neither" for image, answer in given.items()
    }

    with_labels = next(run for name, run in loaded.runs.items() if "answers-active.disagreement" in name)
    with pytest.raises(Exception, match="gtFine"):  # the simulated person does need them
        loaded.store.get(with_labels)


def test_a_person_is_asked_once_and_trained_as_long_as_the_others(asked, tmp_path):
    root, before, folder = asked
    folder = copied(folder, tmp_path)
    answer_all(folder, "12")
    loaded = with_answers(root, folder)
    runs, rounds = person_runs(loaded), read_settings(loaded.profile.active, "tiny.yaml").rounds
    trained = [runs["instance self_trained", number] for number in range(1, rounds + 1)]
    assert rounds == 2 and ("answers", 2) not in runs and ("candidates", 2) not in runs
    assert {dict(run.parents)["answers"].name for run in trained} == {runs["answers", 1].name}
    assert dict(trained[1].parents)["start"] is trained[0]
    others = {replace(run.spec, answered_share=None) for name, run in loaded.runs.items()
              if name.startswith("city-instance-self_trained-active.")}  # fmt: skip
    assert len(others) == 1
    assert ("panoptic teacher", 2) in runs
    assert {name: run.key for name, run in loaded.runs.items() if "-active.person." not in name} == {
        name: run.key for name, run in before.runs.items()
    }


def test_the_key_of_a_person_follows_the_answers(asked, tmp_path):
    root, _, folder = asked
    folder = copied(folder, tmp_path)
    answer_all(folder, "12")
    file = folder / "answers.jsonl"
    first, second = file.read_text().splitlines()

    def key(*lines):
        file.write_text("".join(f"{line}\n" for line in lines))
        return person_runs(with_answers(root, folder))["answers", 1].key

    undo = json.dumps({"undo": json.loads(second)["image"]})
    other = json.dumps({**json.loads(second), "choice": None})
    same = {key(first, second), key(second, first), key(first, second, undo, second)}
    assert len(same) == 1 and len({*same, key(first), key(first, other)}) == 3


@pytest.mark.parametrize(
    ("spoil", "words"),
    [("image", "1 answers are about images that the target does not have, the first 'elsewhere'"),
     ("key", "its pairs are of a run with the key 000; expected those of city-candidates")],
)  # fmt: skip
def test_answers_about_other_pairs_are_one_error(asked, tmp_path, spoil, words):
    root, _, folder = asked
    folder = copied(folder, tmp_path)
    answer_all(folder, "12")
    if spoil == "image":
        with (folder / "answers.jsonl").open("a") as file:
            line = {"image": "elsewhere", "shown": NETWORKS, "choice": "teacher", "seconds": 1}
            file.write(json.dumps(line) + "\n")
    else:
        made_by = json.loads((folder / "fingerprint.json").read_text())
        (folder / "fingerprint.json").write_text(json.dumps({**made_by, "key": "000"}))
    loaded = with_answers(root, folder)
    with pytest.raises(OtherAnswers, match=words):
        loaded.store.get(person_runs(loaded)["answers", 1])
