"""The metrics of other data sets than COCO, each against numbers worked out by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
from metric_files import one_joint, person, pose, row, scorer, whole_body

from posefix_jax.core.joint_sets import COCO, CROWDPOSE, MPII, POSETRACK, POSETRACK17, WHOLEBODY
from posefix_jax.data.coco import Person
from posefix_jax.data.formats import Pose
from posefix_jax.evaluation.evaluate import EvaluateOptions, evaluate, table_of
from posefix_jax.evaluation.posetrack import JOINTS, inside, posetrack_scores
from posefix_jax.evaluation.scores import Truth
from posefix_jax.types import PosefixError


@pytest.fixture
def score(tmp_path):
    return scorer(tmp_path)


# PoseTrack


def test_posetrack_by_hand(score):
    """Right wrist 15 px off (right, 0.5 heads), left wrist 16 px off (wrong): AP 100 and 0; Total 14 of 15."""
    truth = [person(1, pose(POSETRACK))]
    assert set(score(POSETRACK, [1], truth, [row(1, pose(POSETRACK), 0.9)]).values()) == {100.0}
    moved = pose(POSETRACK, moved={"right_wrist": 15, "left_wrist": 16})
    figures = score(POSETRACK, [1], truth, [row(1, moved, 0.9)])
    assert figures == pytest.approx(
        {"Head": 100, "Shou": 100, "Elb": 100, "Wri": 50, "Hip": 100, "Knee": 100, "Ankl": 100, "Total": 1400 / 15}
    )


def test_posetrack_2017_joints_in_their_order(score):
    moved = pose(POSETRACK17, moved={"nose": 16})
    figures = score(POSETRACK17, [1], [person(1, pose(POSETRACK17))], [row(1, moved, 0.9)])
    # Head is head top, neck, nose: (100 + 100 + 0) / 3.
    assert figures["Head"] == pytest.approx(200 / 3) and figures["Total"] == pytest.approx(1400 / 15)


def test_posetrack_double_belongs_to_nobody(score):
    """The pose with more joints right is the person's. The other's joints are all wrong, its right ones too:
    of each joint, first 0 of 1, then 1 of 2 right: AP 50. With the lower score it comes after and costs nothing."""
    truth = [person(1, pose(POSETRACK))]
    worse = pose(POSETRACK, moved={"nose": 16})
    for of_worse, ap in ((0.95, 50.0), (0.85, 100.0)):
        figures = score(POSETRACK, [1], truth, [row(1, pose(POSETRACK), 0.9), row(1, worse, of_worse)])
        assert set(figures.values()) == {ap}
    # Two equal ones: the higher score is the person's.
    assert score(POSETRACK, [1], truth, [row(1, pose(POSETRACK), s) for s in (0.5, 0.9)])["Total"] == 100.0


def test_posetrack_equal_scores_count_together(score):
    """One right and one wrong at the same score: 1 of 2, AP 50 in any order; the two people have recall 1/2: 25."""
    truth = [person(1, pose(POSETRACK)), person(2, pose(POSETRACK))]
    rows = [row(1, pose(POSETRACK), 0.9), row(2, pose(POSETRACK, y=500), 0.9)]
    assert set(score(POSETRACK, [1, 2], truth, rows).values()) == {25.0}
    # With scores of their own: the right one first, precision 1 up to recall 1/2: 50.
    rows[1]["score"] = 0.8
    assert set(score(POSETRACK, [1, 2], truth, rows).values()) == {50.0}


def test_posetrack_unannotated_joints(score):
    """A has no left ankle, so A's detected one is wrong. B's is right, but its score is lower: 1 of 2, AP 50.
    Ankl = (50 + 100) / 2. Where nobody has one it is left out of Ankl and Total."""
    a, b = pose(POSETRACK, absent=["left_ankle"]), pose(POSETRACK, y=500)
    rows = [row(1, pose(POSETRACK), 0.9), row(1, b, 0.8)]
    figures = score(POSETRACK, [1], [person(1, a), person(1, b)], rows)
    assert figures["Ankl"] == pytest.approx(75) and figures["Total"] == pytest.approx(1450 / 15)
    figures = score(POSETRACK, [1], [person(1, a)], rows[:1])
    assert figures["Ankl"] == 100 and figures["Total"] == 100
    # A visibility of 0 with a place is annotated (occluded): the wrong place costs.
    a[POSETRACK.joints.index("left_ankle")] = (5, 5, 0)
    assert score(POSETRACK, [1], [person(1, a)], rows[:1])["Ankl"] == 50
    # Nobody has any: -1, as where COCO has none.
    nobody = [person(1, np.zeros((17, 3)))]
    assert score(POSETRACK, [1], nobody, rows[:1])["Total"] == -1


def test_posetrack_ignore_regions_and_empty_frames(score):
    """A wrong pose with the higher score halves AP; inside an ignored region, or in a frame without people, it is none."""
    truth = [person(1, pose(POSETRACK))]
    rows = [row(1, pose(POSETRACK), 0.9), row(1, pose(POSETRACK, y=500), 0.95)]
    assert score(POSETRACK, [1], truth, rows)["Total"] == 50
    region = {"ignore_regions_x": [[0, 3000, 3000, 0]], "ignore_regions_y": [[400, 400, 700, 700]]}
    assert score(POSETRACK, {1: region}, truth, rows)["Total"] == 100
    # True joints in a region count neither: head top stands at (300, 50).
    region = {"ignore_regions_x": [[290, 310, 310, 290]], "ignore_regions_y": [[0, 0, 99, 99]]}
    moved = pose(POSETRACK, moved={"head_top": 16})
    figures = score(POSETRACK, {1: region}, truth, [row(1, moved, 0.9)])
    assert figures["Head"] == 100 and figures["Total"] == 100  # the moved one is outside, of a joint nobody has
    rows[1]["image_id"] = 2
    assert score(POSETRACK, [1, 2], truth, rows)["Total"] == 100


def test_posetrack_scores_a_joint(score):
    """`scores` go before `score`: of the nose, the wrong one (0.2) comes after the right one (0.3): 100, else 50."""
    truth = [person(1, pose(POSETRACK))]
    wrong = row(1, pose(POSETRACK, y=500), 0.9, scores=[0.2] + [0.4] * 16)
    figures = score(POSETRACK, [1], truth, [row(1, pose(POSETRACK), 0.1, scores=[0.3] * 17), wrong])
    assert figures["Head"] == pytest.approx(200 / 3) and figures["Total"] == pytest.approx((100 + 14 * 50) / 15)


def test_posetrack_folders_objects_and_sequences(tmp_path):
    """A file a video; results are objects with annotations. One video is perfect, one is missed: recall 1/2, AP 50."""
    category = {"id": 1, "name": "person", "keypoints": list(POSETRACK.joints), "skeleton": []}
    for folder in ("truth", "rows", "before"):
        (tmp_path / folder).mkdir()
    for video in (1, 2):
        frames = [10 * video + i for i in range(3)]
        images = [{"id": i, "vid_id": f"{video:06d}", "file_name": f"{i}.jpg"} for i in frames]
        truth = {"images": images, "categories": [category]}
        truth["annotations"] = [{"id": i, **person(i, pose(POSETRACK))} for i in frames]
        rows = [row(i, pose(POSETRACK, y=0 if video == 1 else 500), 0.9 - 0.1 * video) for i in frames]
        for name, what in (("truth", truth), ("rows", {"annotations": rows}), ("before", rows[:1])):
            (tmp_path / name / f"{video}.json").write_text(json.dumps(what))
    files = {name: tmp_path / folder for name, folder in (("results", "rows"), ("annotations", "truth"))}
    report = evaluate(EvaluateOptions(**files, against=tmp_path / "before", out=tmp_path / "out.json", samples=200))
    assert report["metric"] == "posetrack" and report["units"] == 2 and report["unit"] == "sequences"
    assert report["after"]["Total"] == pytest.approx(50)
    # Before: one of six people, one right pose of two: recall 1/6 at precision 1.
    assert report["before"]["Total"] == pytest.approx(100 / 6)
    # A draw is both videos (50), twice the first (100, before 1/3), or twice the second (0).
    assert report["interval"] == pytest.approx((0.0, 200 / 3))
    assert json.loads((tmp_path / "out.json").read_text())["after"] == report["after"]
    assert (
        table_of(report).splitlines()[-1].startswith("Total changes by +33.33, 95% interval [+0.00, +66.67] over seq")
    )


def naive_posetrack(people, rows, image_ids):
    """Joint by joint, as the rules are told; for people who stand far apart and scores that all differ."""
    aps = []
    for name in JOINTS:
        k, found, total = POSETRACK.joints.index(name), [], 0
        for image in image_ids:
            group = [p for p in people if p.image_id == image]
            poses = [r.joints for r in rows if r.image == image]
            scores = [r.score for r in rows if r.image == image]
            total += sum(p.joints[k].any() for p in group)

            def near(a, p, k):
                both = a[k].any() and p.joints[k].any()
                return both and np.hypot(*(a[k] - p.joints[k])[:2]) <= 0.5 * p.head_size

            all_k = [POSETRACK.joints.index(j) for j in JOINTS]
            pck = [
                [sum(near(a, p, i) for i in all_k) / max(sum(p.joints[i].any() for i in all_k), 1) for p in group]
                for a in poses
            ]
            for r, (a, s) in enumerate(zip(poses, scores, strict=True)):
                if a[k].any():
                    best = max(pck[r])
                    p = pck[r].index(best)
                    rivals = [(pck[q][p], scores[q]) for q in range(len(poses)) if max(pck[q]) == pck[q][p]]
                    mine = best > 0 and (best, s) == max(rivals)
                    found.append((s, bool(mine and near(a, group[p], k))))
        found.sort(reverse=True)
        right = np.cumsum([good for _, good in found])
        precision = right / np.arange(1, len(found) + 1)
        recall = np.concatenate([[0], right / total])
        aps.append(100 * sum((recall[i + 1] - recall[i]) * precision[i:].max() for i in range(len(found))))
    return float(np.mean(aps))


def test_posetrack_against_a_naive_one_and_its_resampling():
    """Random people and poses; and a draw of frames is a file that has the frames so often."""
    rng = np.random.default_rng(3)
    people, rows = [], []
    for image in range(6):
        for i in range(3):
            joints = pose(POSETRACK, y=300 * i)
            joints[rng.random(17) < 0.2] = 0
            people.append(Person(len(people), image, joints, (0.0, 0.0, 1.0, 1.0), 1.0, 20.0 + 7 * rng.random()))
            for _ in range(rng.integers(0, 3)):
                spread = rng.choice([1.0, 3.0, 6.0])
                guess = pose(POSETRACK, y=300 * i) + [[*rng.normal(0, spread, 2), 0]]
                guess[rng.random(17) < 0.1] = 0
                guess[:, :2] += (guess[:, :2] != 0) * rng.normal(0, spread, (17, 2))
                guess[guess[:, 2] == 0] = 0
                rows.append(Pose(image, guess, score=float(rng.random())))
    scores = posetrack_scores(Truth({i: {} for i in range(6)}, people, POSETRACK), rows)
    assert 20 < scores.figures["Total"] < 90
    counts = np.array([2, 0, 1, 3, 1, 0])
    images, again, repeated = {}, [], []
    for image, count in enumerate(counts):
        for copy in range(count):
            name = f"{image}-{copy}"
            images[name] = {}
            again += [replace(p, image_id=name) for p in people if p.image_id == image]
            repeated += [r._replace(image=name) for r in rows if r.image == image]
    expected = posetrack_scores(Truth(images, again, POSETRACK), repeated).figures["Total"]
    assert scores.resampled(counts) == pytest.approx(expected)
    assert scores.figures["Total"] == pytest.approx(naive_posetrack(people, rows, range(6)))


def test_inside_a_polygon():
    corners = np.array([(0, 0), (10, 0), (10, 10), (5, 5), (0, 10)], float)  # a notch from above, its tip at (5, 5)
    points = np.array([(5, 2), (5, 7), (2, 7), (8, 7), (11, 5), (5, 0), (0, 0), (5, 5), (-1, 10)], float)
    expected = [True, False, True, True, False, False, False, False, False]  # edges and corners are outside
    assert inside(points, corners).tolist() == expected
    assert inside(points, corners[::-1]).tolist() == expected
    assert not inside(points, corners[:2]).any()


# MPII


def test_pckh_by_hand(score):
    """Head size 30: 15 px is right at 0.5, 3 px at 0.1. Of the 14 joints of a person, one (an ankle) is wrong at 0.5
    and two more at 0.1; pelvis and thorax do not count. The second person has no row: all wrong, half of the joints."""
    truth = [person(1, pose(MPII))]
    assert set(score(MPII, [1], truth, [row(1, pose(MPII), 1.0)]).values()) == {100.0}
    wrong = {"right_ankle": 15.1, "pelvis": 900, "thorax": 900}
    moved = pose(MPII, moved={"left_wrist": 15, "neck": 3.1, "left_hip": 3, **wrong})
    figures = score(MPII, [1], truth, [row(1, moved, 1.0)])
    assert figures == pytest.approx(
        {"Head": 100, "Shoulder": 100, "Elbow": 100, "Wrist": 100, "Hip": 100, "Knee": 100, "Ankle": 50}
        | {"Mean": 1300 / 14, "Mean@0.1": 1100 / 14}
    )
    truth.append(person(1, pose(MPII, y=1000)))
    figures = score(MPII, [1], truth, [row(1, moved, 1.0)])
    assert figures["Mean"] == pytest.approx(1300 / 28) and figures["Ankle"] == 25


def test_people_in_photographs_that_are_not_listed_do_not_count(score, capsys):
    """As in pycocotools, but with a line. PCKh ended in a KeyError."""
    truth = [person(1, pose(MPII)), person(5, pose(MPII))]
    assert set(score(MPII, [1], truth, [row(1, pose(MPII), 1.0)]).values()) == {100.0}
    assert "1 of 2 people are in photographs that its `images` do not list" in capsys.readouterr().err


def test_pckh_mean_is_weighted_by_labelled_joints(score):
    """Ten people with 14 joints each, all right, and one with a wrist alone, wrong: 140 of 141 joints; of the 11 left
    wrists 10, so Wrist is (1000 / 11 + 100) / 2. Joints nobody labelled are left out."""
    alone = pose(MPII, absent=[joint for joint in MPII.joints if joint != "left_wrist"])
    truth = [person(i, pose(MPII)) for i in range(10)] + [person(10, alone)]
    rows = [row(i, pose(MPII), 1.0) for i in range(10)] + [row(10, pose(MPII, y=500), 1.0)]
    figures = score(MPII, range(11), truth, rows)
    assert figures["Mean"] == pytest.approx(100 * 140 / 141)
    assert figures["Wrist"] == pytest.approx((1000 / 11 + 100) / 2)
    assert score(MPII, [1], [person(1, alone)], [row(1, alone, 1.0)])["Knee"] == -1


def test_pckh_whose_a_row_is(score):
    """Without ids the better fits; with `annotation_id` it is that person's, however bad."""
    a, b = pose(MPII), pose(MPII, y=1000)
    truth = [person(1, a, id=7), person(1, b, id=8)]
    assert score(MPII, [1], truth, [row(1, b, 0.5), row(1, a, 0.9)])["Mean"] == 100
    swapped = [row(1, b, 0.5, annotation_id=7), row(1, a, 0.9, annotation_id=8)]
    assert score(MPII, [1], truth, swapped)["Mean"] == 0
    # Doubles: one counts. Of two with the same id it is the one with the higher score.
    assert score(MPII, [1], truth, [row(1, a, 0.5), row(1, a, 0.9)])["Mean"] == 50
    doubles = [row(1, a, 0.5, annotation_id=7), row(1, b, 0.9, annotation_id=7)]
    assert score(MPII, [1], truth, doubles)["Mean"] == 0
    # An absent joint is wrong, also where the true one stands at (0, 0) nearly.
    near_corner = pose(MPII)
    near_corner[0] = (1, 1, 2)
    assert score(MPII, [1], [person(1, near_corner)], [row(1, pose(MPII, absent=["right_ankle"]), 1.0)])["Ankle"] == 50


def test_pckh_interval_and_head_size(score):
    """`head_size` goes before `bbox_head`. Two photographs, of which one gains everything: the difference is 0, 50 or
    100 by how often a draw has it."""
    truth = [person(i, pose(MPII), head_size=100.0) for i in (1, 2)]
    after = [row(i, pose(MPII, moved={"head_top": 50}), 1.0) for i in (1, 2)]
    before = [row(1, pose(MPII), 1.0), row(2, pose(MPII, y=500), 1.0)]
    report = score(MPII, [1, 2], truth, after, against=before, samples=100)
    assert report["after"]["Mean"] == 100 and report["before"]["Mean"] == 50
    assert report["interval"] == pytest.approx((0, 100)) and report["unit"] == "photographs"


# What goes wrong


def test_one_clear_line(score, tmp_path):
    headless = {**person(1, pose(POSETRACK)), "bbox_head": [5, 5, 0, 0]}
    rows = [row(1, pose(POSETRACK), 0.9)]
    with pytest.raises(PosefixError, match=r"truth.json: annotation 1 \(image 1\) has no bbox_head"):
        score(POSETRACK, [1], [headless], rows)
    with pytest.raises(PosefixError, match="truth.json: annotation 0: bbox_head must be 4 numbers"):
        score(POSETRACK, [1], [{**headless, "bbox_head": [1, 2]}], rows)
    with pytest.raises(PosefixError, match="annotation 1 .image 1. has neither head_size nor a bbox_head"):
        score(MPII, [1], [{**person(1, pose(MPII)), "bbox_head": None}], [row(1, pose(MPII), 0.9)])
    with pytest.raises(PosefixError, match="row 0: scores must be 17 numbers"):
        score(POSETRACK, [1], [person(1, pose(POSETRACK))], [{**rows[0], "scores": [1.0]}])
    with pytest.raises(PosefixError, match="image 1: ignore_regions_x and ignore_regions_y must list"):
        score(POSETRACK, {1: {"ignore_regions_x": [[1, 2, 3]]}}, [person(1, pose(POSETRACK))], rows)
    with pytest.raises(PosefixError, match="row 0 has annotation_id 9, which is nobody in image 1"):
        score(MPII, [1], [person(1, pose(MPII))], [row(1, pose(MPII), 0.9, annotation_id=9)])
    with pytest.raises(PosefixError, match="image 1 has no crowdIndex"):
        score(CROWDPOSE, [1], [one_joint(1)], [row(1, pose(CROWDPOSE), 0.9)])
    with pytest.raises(PosefixError, match="skeleton crowdpose has no right_ankle|has no head_bottom, nose"):
        score(CROWDPOSE, [1], [one_joint(1)], [row(1, pose(CROWDPOSE), 0.9)], metric="posetrack")
    with pytest.raises(PosefixError, match="skeleton posetrack has no neck, which PCKh needs"):
        score(POSETRACK, [1], [person(1, pose(POSETRACK))], rows, metric="pckh")
    with pytest.raises(PosefixError, match="face_kpts must be 204 numbers"):
        score(COCO, [1], [{**person(1, pose(WHOLEBODY)), **whole_body(pose(WHOLEBODY)), "face_kpts": [1]}], rows)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PosefixError, match="no .json file in this folder"):
        evaluate(EvaluateOptions(results=tmp_path / "rows.json", annotations=tmp_path / "empty"))
