"""One file of every format, as its writer lays it out."""

import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from posefix_jax.core.joint_sets import (
    BLAZEPOSE,
    COCO,
    MPII,
    OPENPOSE18,
    OPENPOSE25,
    POSETRACK,
    POSETRACK17,
    WHOLEBODY,
    WHOLEBODY_KEYS,
)
from posefix_jax.data.pose_files import open_pose_file

WIDTH, HEIGHT = 320, 240


def bodies(skeleton, count: int = 3, seed: int = 0) -> np.ndarray:
    """[n, K, 3] poses within a photograph of 320 x 240; the second lacks its last joint."""
    rng = np.random.default_rng(seed)
    joints = rng.uniform((60, 40, 0.3), (260, 200, 1), (count, skeleton.num_joints, 3)).round(3)
    joints[1, -1] = 0
    return joints


def files_of(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def read(path: Path) -> list:
    """All people, as (image, joints, track)."""
    people = []
    for file in files_of(path):
        for element in open_pose_file(str(file), skeleton=None, preferred=COCO).elements():
            people += [(p.image, p.joints, p.track) for p in element.poses]
    return people


def write_rows(path: Path, rows: list, **more) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, **more))
    return str(path)


def row_of(image, pose, score=0.5) -> dict:
    return {"image_id": image, "category_id": 1, "keypoints": flat(pose), "score": score}


def flat(pose) -> list:
    return pose.reshape(-1).tolist()


def part_of(pose) -> np.ndarray:
    return pose / [WIDTH, HEIGHT, 1]


def wholebody_row(image, pose, **more) -> dict:
    """A row of COCO-WholeBody results: https://github.com/jin-s13/COCO-WholeBody/blob/master/data_format.md."""
    ends = np.cumsum([0, *WHOLEBODY_KEYS.values()]).tolist()
    parts = {key: flat(pose[a:b]) for key, a, b in zip(WHOLEBODY_KEYS, ends, ends[1:], strict=False)}
    return {"image_id": image, "category_id": 1, **parts, "score": 0.5, **more}


# One file of each format as its writer lays it out, with keys of its own, odd spacing and digits: two people in
# photograph 1, one in photograph 2. `{name: [(file, text), ...], skeleton}`.
def samples(seed: int = 0) -> dict:
    a, b, c = bodies(COCO, seed=seed)

    def row(image, pose, **more):
        return {"image_id": image, "category_id": 1, "keypoints": flat(pose), "score": 0.75, **more}

    def instance(pose):
        return {"keypoints": pose[:, :2].tolist(), "keypoint_scores": pose[:, 2].tolist(), "bbox": [[1.0, 2, 3, 4]]}

    def frame(key, image, *poses):
        return {key: image, "instances": [instance(pose) for pose in poses], "more": None}

    def points(pose):
        point = [{"id": [j], "x": [x], "y": [y], "is_visible": [1]} for j, (x, y, s) in enumerate(pose.tolist()) if s]
        return {"x1": [1.5], "track_id": [7], "annopoints": [{"point": point}]}

    def marks(pose):
        return [{"x": x, "y": y, "z": -0.1, "visibility": s} for x, y, s in part_of(pose).tolist()]

    def named_marks(pose, names):
        return [{"name": n, **mark} for n, mark in zip(names, marks(pose), strict=True) if mark["visibility"]]

    def by_name(pose, names):
        return {mark.pop("name"): mark for mark in named_marks(pose, names)}

    def result(pose):
        x, y, s = pose.T.tolist()
        keypoints = {"x": x, "y": y, "visible": s}
        box = {"x1": 1.5, "y1": 2.0, "x2": 30.0, "y2": 40.0}
        return {"name": "person", "class": 0, "confidence": 0.91, "box": box, "keypoints": keypoints}

    def keyed(people, joints, *images):
        found = zip(images, ([e[0], e[1]], [e[2]]), strict=True)
        return {
            f"{i:012d}.png": {"version": "AlphaPose v0.3", people: [{joints: flat(p)} for p in poses]}
            for i, poses in found
        }

    def tracked_by_flow(pose, track):
        return {"keypoints": flat(pose), "scores": 2.5, "box": [1, 2, 3, 4], "idx": track}

    def mpii(image, pose):
        seen = pose[:, 2] > 0
        xy = np.where(seen[:, None], pose[:, :2] + 1, -1.0).tolist()
        return {
            "joints_vis": [int(v) for v in seen],
            "joints": xy,
            "image": f"{image:012d}.png",
            "scale": 3.0,
            "center": [9, 8],
        }

    def kinetics(frame, *poses):
        people = [{"pose": part_of(p)[:, :2].reshape(-1).tolist(), "score": p[:, 2].tolist()} for p in poses]
        return {"frame_index": frame, "skeleton": people}

    def openpose(*poses):
        people = [{"person_id": [-1], "pose_keypoints_2d": flat(pose), "face_keypoints_2d": []} for pose in poses]
        return json.dumps({"version": 1.3, "people": people})

    def yolo(pose, tail=""):
        return " ".join(["0  0.5 0.5 0.25 0.5", *(f"{v:.6g}" for v in flat(part_of(pose)))]) + tail + "\n"

    def table(delimiter, end, *rows):
        return "".join(delimiter.join(map(str, row)) + end for row in rows)

    def cells(pose, lacking=("", "", "")):
        return [v for joint in pose.tolist() for v in (joint if joint[2] else lacking)]

    columns = [f"{joint}_{axis}" for joint in COCO.joints for axis in ("x", "y", "score")]
    quoted = [f'"{j.title()} {a}"' for j in COCO.joints for a in ("X", "Y", "Confidence")]
    nodes = [f"{joint}.{axis}" for joint in COCO.joints for axis in ("x", "y", "score")]
    people = ((1, a), (1, b), (2, c))
    named = [(f"{image:012d}.png", pose) for image, pose in people]
    by_joint = [
        [f"{image:012d}.png", f"p{i}", joint, *values, ""]
        for i, (image, pose) in enumerate(people)
        for joint, values in zip(COCO.joints, pose.tolist(), strict=True)
        if values[2]
    ]
    coords = ["x", "y", "likelihood"]
    pair = [[image, *cells(one), *cells(two)] for image, one, two in ((1, a, b), (2, c, np.zeros((17, 3))))]
    images = [{"id": i, "file_name": f"{i:012d}.png", "width": WIDTH} for i in (1, 2)]
    category = {"id": 1, "name": "person", "keypoints": list(COCO.joints)}
    rows = [row(1, a, track="kept"), row(1, b, bbox=[1.50, 2e1, 3, 4]), row(2, c)]
    tracked = [{"id": i, "track_id": i, **r} for i, r in enumerate(rows)]
    o = bodies(OPENPOSE25, seed=seed)
    p = bodies(POSETRACK17, seed=seed)
    m = bodies(BLAZEPOSE, seed=seed)
    e = bodies(OPENPOSE18, seed=seed)
    h = bodies(MPII, seed=seed)
    w = bodies(WHOLEBODY, seed=seed)
    lines = "\n".join(json.dumps(r) for r in rows)
    return {
        # https://cocodataset.org/#format-results
        "coco": ([("r.json", json.dumps(rows, indent=1))], COCO),
        "coco-gz": ([("r.json.gz", json.dumps(rows))], COCO),
        "coco-lines": ([("r.jsonl", lines + "\n")], COCO),
        # https://github.com/MVIG-SJTU/AlphaPose/blob/master/docs/output.md
        "alphapose": (
            [("a.json", json.dumps([{**r, "image_id": f"{r['image_id']:012d}.png", "idx": [0.0]} for r in rows]))],
            COCO,
        ),
        # https://cocodataset.org/#format-data
        "coco-annotations": (
            [("gt.json", json.dumps({"info": {}, "images": images, "annotations": tracked, "categories": [category]}))],
            COCO,
        ),
        "posetrack18": (
            [("p.json", json.dumps({"images": [{**i, "vid_id": "9"} for i in images], "annotations": tracked}))],
            POSETRACK,
        ),
        # https://github.com/leonid-pishchulin/poseval
        "posetrack17": (
            [
                (
                    "p.json",
                    json.dumps(
                        {
                            "annolist": [
                                {"image": [{"name": "v/000000000001.png"}], "annorect": [points(p[0]), points(p[1])]},
                                {"image": [{"name": "v/000000000002.png"}], "annorect": [points(p[2]), {"x1": [0]}]},
                                {"image": [{"name": "v/000000000003.png"}], "annorect": []},
                            ]
                        }
                    ),
                )
            ],
            POSETRACK17,
        ),
        # https://github.com/jin-s13/COCO-WholeBody/blob/master/data_format.md
        "coco-wholebody": (
            [("w.json", json.dumps([wholebody_row(i, p) for i, p in zip((1, 1, 2), w, strict=True)]))],
            WHOLEBODY,
        ),
        "coco-wholebody-annotations": (
            [
                (
                    "w.json",
                    json.dumps(
                        {
                            "images": images,
                            "annotations": [
                                wholebody_row(i, p, id=i, foot_valid=True) for i, p in zip((1, 1, 2), w, strict=True)
                            ],
                            "categories": [category],
                        }
                    ),
                )
            ],
            WHOLEBODY,
        ),
        # https://detectron2.readthedocs.io/en/latest/modules/evaluation.html (COCOEvaluator)
        "detectron2": (
            [("d.json", json.dumps([{"image_id": 1, "instances": rows[:2]}, {"image_id": 2, "instances": rows[2:]}]))],
            COCO,
        ),
        # https://mmpose.readthedocs.io/en/latest/user_guides/inference.html
        "mmpose": ([("m.json", json.dumps([frame("frame_id", 1, a, b), frame("frame_id", 2, c)]))], COCO),
        "mmpose-video": (
            [("m.json", json.dumps({"meta_info": {"a": [1]}, "instance_info": [frame("frame_id", 1, a, b, c)]}))],
            COCO,
        ),
        "mmpose-image": (
            [("1.json", json.dumps([instance(a), instance(b)])), ("2.json", json.dumps([instance(c)]))],
            COCO,
        ),
        # https://github.com/CMU-Perceptual-Computing-Lab/openpose/blob/master/doc/02_output.md
        "openpose": (
            [
                ("1_keypoints.json", openpose(o[0], o[1])),
                ("2_keypoints.json", openpose(o[2])),
                ("3_keypoints.json", openpose()),
            ],
            OPENPOSE25,
        ),
        "openpose18": ([("1_keypoints.json", openpose(*bodies(OPENPOSE18, seed=seed)))], OPENPOSE18),
        # https://ai.google.dev/edge/mediapipe/solutions/vision/pose_landmarker
        "mediapipe": (
            [("m.jsonl", "\n".join(json.dumps({"image_id": i + 1, "landmarks": [marks(x)]}) for i, x in enumerate(m)))],
            BLAZEPOSE,
        ),
        "mediapipe-named": (
            [
                ("1.json", json.dumps([named_marks(m[0], BLAZEPOSE.joints), named_marks(m[1], BLAZEPOSE.joints)])),
                (
                    "2.json",
                    json.dumps({"frame": 2, "pose_landmarks": by_name(m[2], list(map(str.upper, BLAZEPOSE.joints)))}),
                ),
            ],
            BLAZEPOSE,
        ),
        "mediapipe-by-name": (
            [
                (
                    "m.jsonl",
                    "\n".join(json.dumps({"image_id": i + 1, **by_name(x, BLAZEPOSE.joints)}) for i, x in enumerate(m)),
                )
            ],
            BLAZEPOSE,
        ),
        # https://docs.ultralytics.com/reference/engine/results/ (to_json)
        "ultralytics": (
            [
                ("1.json", json.dumps([result(a), result(b)], indent=2)),
                ("2.json", json.dumps([result(c)])),
                ("3.json", "[]"),
            ],
            COCO,
        ),
        # https://github.com/MVIG-SJTU/AlphaPose/blob/master/docs/output.md
        "alphapose-cmu": ([("a.json", json.dumps(keyed("bodies", "joints", 1, 2)))], OPENPOSE18),
        "alphapose-open": ([("a.json", json.dumps(keyed("people", "pose_keypoints_2d", 1, 2)))], OPENPOSE18),
        "alphapose-sep-json": (
            [(f"{name[:-4]}.json", json.dumps(value)) for name, value in keyed("bodies", "joints", 1, 2).items()],
            OPENPOSE18,
        ),
        "poseflow": (
            [
                (
                    "alphapose-results-forvis-tracked.json",
                    json.dumps(
                        {
                            "000000000003.png": [],
                            "000000000001.png": [tracked_by_flow(a, 1), tracked_by_flow(b, 2)],
                            "000000000002.png": [tracked_by_flow(c, 1)],
                        }
                    ),
                )
            ],
            COCO,
        ),
        # https://github.com/leoxiaobin/deep-high-resolution-net.pytorch, data/mpii/annot/valid.json
        "mpii": (
            [("valid.json", json.dumps([mpii(image, pose) for image, pose in zip((1, 1, 2), h, strict=True)]))],
            MPII,
        ),
        # https://github.com/yysijie/st-gcn, OLD_README.md (Kinetics-skeleton)
        "kinetics-skeleton": (
            [
                (
                    "k.json",
                    json.dumps(
                        {
                            "data": [kinetics(1, e[0], e[1]), kinetics(2, e[2]), kinetics(3)],
                            "label": "yoga",
                            "label_index": 7,
                        }
                    ),
                )
            ],
            OPENPOSE18,
        ),
        "csv": (
            [
                (
                    "t.csv",
                    table(
                        ",",
                        "\n",
                        ["image_id", "note", *columns, "score"],
                        *([i, "", *cells(p), 0.5] for i, p in people),
                    ),
                )
            ],
            COCO,
        ),
        # A spreadsheet's: a byte order mark, semicolons, quotes, DOS line ends, an empty line.
        "csv-quoted": (
            [
                (
                    "t.csv",
                    "\ufeff"
                    + table(
                        ";",
                        "\r\n",
                        ['"File name"', *quoted, "Note"],
                        *([f'"{i}"', *cells(p, ("NaN", " ", "0")), '"a ; ""b"""'] for i, p in named),
                    )
                    + "\r\n",
                )
            ],
            COCO,
        ),
        "csv-joints": (
            [("t.tsv", table("\t", "\n", ["frame", "person", "joint", "x", "y", "likelihood", "z"], *by_joint))],
            COCO,
        ),
        # https://sleap.ai/guides/proofreading.html (Export Analysis CSV)
        "sleap-csv": (
            [
                (
                    "a.csv",
                    table(
                        ",",
                        "\n",
                        ["track", "frame_idx", "instance.score", *nodes],
                        *(["", i, 0.9, *cells(p)] for i, p in people),
                    ),
                )
            ],
            COCO,
        ),
        # https://deeplabcut.github.io/DeepLabCut/docs/standardDeepLabCut_UserGuide.html
        "deeplabcut": (
            [
                (
                    "d.csv",
                    table(
                        ",",
                        "\n",
                        ["scorer", *["DLC_resnet50"] * 102],
                        ["individuals", *["m1"] * 51, *["m2"] * 51],
                        ["bodyparts", *[joint for joint in COCO.joints for _ in coords] * 2],
                        ["coords", *coords * 34],
                        *pair,
                    ),
                )
            ],
            COCO,
        ),
        # https://docs.ultralytics.com/modes/predict/ (save_txt)
        "yolo": ([("1.txt", yolo(a) + yolo(b, " 0.9 3")), ("2.txt", yolo(c, " 0.5")), ("3.txt", "")], COCO),
    }


RECORDED = {"deeplabcut-h5": "deeplabcut_video.h5", "sleap-h5": "sleap_matlab.h5"}
"""The sample of a format that `recorded` reads."""


def recorded(name: str) -> bytes:
    """A file of `bodies(COCO)` that another tool's own writer made.

    `deeplabcut_video.h5`: two animals, as DeepLabCut stores them: pandas 3.1.1, to_hdf(key="df_with_missing",
    format="table"). `deeplabcut_labels.h5`: the first four joints of one, as labelled data: to_hdf(key="df_with_missing").
    `sleap_matlab.h5`, `sleap_standard.h5`: sleap-io 0.9.5, save_analysis_h5(preset="matlab" or "standard").
    """
    return gzip.decompress((Path(__file__).parent / f"fixtures/{name}.gz").read_bytes())


def npz_bytes() -> bytes:
    """An archive of the same people."""
    file = io.BytesIO()
    np.savez(file, keypoints=bodies(COCO), image_id=np.array([1, 1, 2]), scores=np.full(3, 0.5), more=np.arange(9.0))
    return file.getvalue()


def sample_files(names: Sequence[str] = ()) -> list[tuple[str, bytes]]:
    """(file name, content) of the samples, or of those with some names, that are not compressed."""
    found = [
        (name, text.encode())
        for sample, (files, _) in samples().items()
        for name, text in files
        if text and not name.endswith(".gz") and (not names or sample in names)
    ]
    binary = {
        "npz": ("t.npz", npz_bytes()),
        **{name: (file, recorded(file)) for name, file in RECORDED.items()},
    }
    return [*found, *(file for name, file in binary.items() if not names or name in names)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
"""Anything that JSON can hold, for hypothesis."""
