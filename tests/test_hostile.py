"""Whatever arrives in a file: no traceback, and one line that names the file (benchmarks/hostile.py finds such files)."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import category, detections_of, identity_network
from released import write_bundle
from safetensors.numpy import save_file

from posefix_jax.cli import main
from posefix_jax.core.geometry import FARTHEST
from posefix_jax.core.joint_sets import COCO, load_skeleton
from posefix_jax.core.models import RefinerSpec
from posefix_jax.core.skeleton import Skeleton
from posefix_jax.core.synthesis import PAPER, read_error_model
from posefix_jax.data.coco import read_annotations
from posefix_jax.data.prepare import summary_of
from posefix_jax.data.records import Manifest
from posefix_jax.evaluation.evaluate import EvaluateOptions, evaluate
from posefix_jax.refining.engine import Engine
from posefix_jax.types import PosefixError, listed, printable, tell, warn
from posefix_jax.weights import import_backbone, import_movenet, with_backbone
from posefix_jax.weights.backbone import save_backbone
from posefix_jax.weights.tensor_bundle import read_bundle

HUGE = 10**400
DEEP = "[" * 100000 + "]" * 100000


def one_line(run, match: str) -> None:
    with pytest.raises(PosefixError, match=match) as error:
        run()
    text = str(error.value)
    assert "\n" not in text and len(text) < 2500


# Annotations


def annotation_file(people, tmp_path, change):
    content = json.loads(people[0].read_text())
    change(content)
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    return path


def setting(*places_and_value):
    """Sets a value at a place, such as ("images", 0, "id", []) does."""
    *places, last, value = places_and_value

    def change(content):
        for place in places:
            content = content[place]
        content[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (setting("annotations", 1, "category_id", [1]), r"truth.json: annotation 1: category_id must be .* \[1\]"),
        (setting("annotations", 1, "image_id", {}), "annotation 1: image_id must be an integer or a name"),
        (setting("annotations", 1, "image_id", HUGE), "annotation 1: image_id must be an integer or a name"),
        (setting("annotations", 1, "id", [7]), "annotation 1: id must be"),
        (setting("annotations", 1, None), "annotation 1 is not an object, found None"),
        (setting("annotations", 2, "bbox", [1, 2, HUGE, 4]), "annotation 2: bbox: each part must be a finite number"),
        (setting("annotations", 2, "bbox", [1, 2, 1e308, 4]), "annotation 2: bbox: each part must be a finite number"),
        (setting("annotations", 2, "bbox", "1234"), "annotation 2: bbox must be 4 numbers"),
        (setting("annotations", 2, "area", -5.0), "annotation 2: the area is -5, expected 0 or more"),
        (setting("annotations", 2, "area", HUGE), "annotation 2: area must be a finite number"),
        (setting("annotations", 2, "keypoints", 0, 1e308), "annotation 2: a keypoint value is not"),
        (setting("annotations", 2, "keypoints", 0, FARTHEST), "annotation 2: a keypoint value is not"),
        (setting("annotations", 2, "head_size", HUGE), "annotation 2: head_size must be a finite number"),
        (setting("annotations", 2, "bbox_head", [0, 0, HUGE, 1]), "annotation 2: bbox_head: each part"),
        (setting("images", 1, "id", []), "image 1: id must be an integer or a name"),
        (setting("images", 1, "id", "a\nb"), "image 1: id must be"),
        (setting("images", 1, 7), "image 1 is not an object"),
        (setting("images", 1, "id", "two"), "some ids are numbers and others names"),
        (setting("images", 1, "width", HUGE), "image 1: width must be a finite number"),
        (setting("images", 1, "vid_id", []), "image 1: vid_id must be"),
        (setting("images", 1, "file_name", ["a"]), "image 1: file_name must be"),
        (setting("categories", 0, "id", [1]), "a category: id must be"),
        (setting("categories", 0, "keypoints", [1] * 17), "the first category with keypoints: the keypoints"),
        (setting("categories", 0, "keypoints", 3, "a\nb"), "the first category with keypoints: the keypoints"),
    ],
)
def test_an_odd_annotation_is_named(change, match, people, tmp_path):
    path = annotation_file(people, tmp_path, change)
    one_line(lambda: read_annotations(path), match)
    one_line(lambda: read_annotations(path, COCO), match)


def test_a_number_of_keypoints_of_400_digits_is_none(people, tmp_path):
    truth = annotation_file(people, tmp_path, setting("annotations", 0, "num_keypoints", HUGE))
    assert read_annotations(truth).everybody[0].num_keypoints is None


def test_guessed_limbs_of_odd_values_are_told_in_a_short_line(people, tmp_path, capsys):
    def change(content):
        content["categories"][0] |= {"keypoints": [f"j{i}" for i in range(17)], "name": "a\nb\x1b[31m"}
        content["categories"][0]["skeleton"] = [["x" * 5000], HUGE, {}, [1], [2], [3]]

    assert read_annotations(annotation_file(people, tmp_path, change)).skeleton.name == "custom"
    (line,) = capsys.readouterr().err.splitlines()
    assert "and 2 more; they are not drawn" in line and len(line) < 2500


def test_sixty_thousand_categories_are_not_listed(people, tmp_path, capsys):
    def change(content):
        content["categories"] += [category() | {"id": i + 2, "name": f"n{i}\n\x1b[31m"} for i in range(60000)]

    truth = annotation_file(people, tmp_path, change)
    (tmp_path / "d.json").write_text(json.dumps(detections_of(people[0])))
    evaluate(EvaluateOptions(tmp_path / "d.json", truth, samples=2))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 3 and max(map(len, lines)) < 500


def test_unread_photographs_are_told_by_their_number():
    manifest = Manifest(COCO, ("s",), 60000, 60000, (1,) * 17, 0, 64, {}, ("\x1b[31m.png: gone",) * 60000, ())
    lines = summary_of([manifest]).splitlines()
    assert len(lines) == 12 and "59990 more" in lines[-1] and "\x1b" not in "".join(lines)


# What is printed


def test_control_characters_and_long_lists_do_not_reach_the_terminal(capsys):
    tell("a\x1b[31m\u202eb")
    warn("a\nb\x07" + "x" * 100000)
    told = capsys.readouterr().err
    assert told.splitlines()[0] == "a\\x1b[31m\\u202eb" and len(told.splitlines()) == 2 and len(told) < 2500
    assert str(PosefixError("\ud800\x00")) == "\\ud800\\x00"
    assert printable("写真　1 é\n") == "写真　1 é\n"
    assert listed(range(60000)) == "0, 1, 2, 3 and 59996 more" and listed("ab") == "a, b"


# Skeletons


@pytest.mark.parametrize(
    "change",
    [
        {"sigmas": [float("inf")] * 17},
        {"sigmas": [1e-200] * 17},
        {"sigmas": [HUGE] * 17},
        {"sigmas": ["1"] * 17},
        {"joints": list(range(17))},
        {"joints": ["a\nb", *COCO.joints[1:]]},
        {"joints": [*"abcdefghijklmnop", "\ud800"]},
        {"joints": "abcdefghijklmnopq"},
        {"joints": ["a"] * 60000},
        {"name": "\x1b[31m"},
        {"name": [[]]},
        {"groups": ["a\nb"] * 17},
        {"groups": [1] * 17},
        {"flip_pairs": [[0, float("inf")]]},
        {"flip_pairs": [[0, HUGE]]},
        {"limbs": [[0, 1.5]]},
        {"never_annotated": [float("inf")]},
    ],
)
def test_an_odd_skeleton_is_refused(change, tmp_path):
    (tmp_path / "s.json").write_text(json.dumps(COCO.to_dict() | change))
    one_line(lambda: load_skeleton(str(tmp_path / "s.json")), "s.json")


@pytest.mark.parametrize("text", [DEEP, "1" * 5000, "7", "[]", '"\\ud800"', "\udcff"])
def test_a_skeleton_of_odd_text_is_refused(text, tmp_path):
    (tmp_path / "s.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    one_line(lambda: load_skeleton(str(tmp_path / "s.json")), "s.json")
    one_line(lambda: read_error_model(tmp_path / "s.json"), "s.json")


def test_names_of_any_language_are_joints():
    fields = COCO.to_dict() | {"joints": ["鼻　先", "œil gauche", *COCO.joints[2:]]}
    assert Skeleton.from_dict(fields).joints[0] == "鼻　先"


# Error models, configs, specs


@pytest.mark.parametrize(
    "change",
    [
        {"name": "a\nb"},
        {"name": []},
        {"count_bins": [HUGE, 5]},
        {"count_bins": ["5", "10"]},
        {"count_bins": [2**40, 5]},
        {"crowded": [[1, 2, 3]]},
        {"crowded": [[10, 1e308]]},
        {"sigma": 1e308},
        {"sigma": float("nan")},
        {"miss_weight": -1.0},
        {"miss_weight": HUGE},
        {"good_ks": "0.9"},
        {"together": {"jitter": [HUGE, 0]}},
        {"rates": {"other\x1b": {kind: [[0.1, 0.1]] * 3 for kind in ("jitter", "inversion", "swap", "miss")}}},
        {"rates": {"other": {kind: [[HUGE, 0.1]] * 3 for kind in ("jitter", "inversion", "swap", "miss")}}},
    ],
)
def test_an_odd_error_model_is_refused(change, tmp_path):
    (tmp_path / "e.json").write_text(json.dumps(json.loads(PAPER.to_json()) | change))
    one_line(lambda: read_error_model(tmp_path / "e.json"), "e.json")


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("model", {"width": 4.0}),
        ("model", {"width": 2**40}),
        ("model", {"crop_hw": [64, "64"]}),
        ("model", {"crop_hw": [64, 32 << 20]}),
        ("model", {"pose_sigma": HUGE}),
        ("model", {"pose_amplitude": float("nan")}),
        ("model", {"image_std": [0.0, 1.0, 1.0]}),
        ("model", {"image_mean": [[1], 2, 3]}),
        ("model", {"norm_epsilon": 1e308}),
        ("model", {"skips": 1}),
        ("model", {"backbone": ["resnet18"]}),
        ("decode", {"temperature": float("nan")}),
        ("decode", {"trust_weights": ["1"] * 7}),
        ("decode", {"method": {}}),
        ("skeleton", {"joints": list(range(17))}),
        ("trained_joints", None),
    ],
)
def test_an_odd_spec_is_refused(part, change, tiny_spec):
    fields = tiny_spec.to_dict()
    fields[part] = fields[part] | change if isinstance(change, dict) else change
    match = {"trained_joints": "not a refiner's spec"}.get(part, part)
    one_line(lambda: RefinerSpec.from_dict(json.loads(json.dumps(fields))), match)


def test_every_spec_reads_what_it_wrote(tiny_spec):
    assert RefinerSpec.from_dict(json.loads(json.dumps(tiny_spec.to_dict()))) == tiny_spec


FIELDS = {
    "errors": '"posefix"',
    "errors[0]": "(1,)",
    "data": "None",
    "error_weights": '(float("nan"),)',
    "seed": "10**400",
    "epochs": "1.5",
    "out": r'"a\0b"',
    "stop_after": 'float("inf")',
    "stop_after ": "1e20",
    "model": "DecodeConfig()",
    "data.repeats": "DataConfig(repeats=1.0)",
    "data.repeats ": "DataConfig(repeats=(1e9,))",
}


def test_an_odd_config_is_refused_with_the_fields_name(tmp_path):
    """In a process of its own: tests check the arguments of dataclasses before these can."""
    for number, (field, value) in enumerate(FIELDS.items()):
        name = field.strip().split(".")[0].removesuffix("[0]")
        text = "from posefix_jax import *\nfrom posefix_jax.training.config import *\n"
        (tmp_path / f"{number}.py").write_text(f"{text}def config(): return Config({name}={value})\n")
    script = (
        "import sys\nfrom posefix_jax.cli import main\n"
        "print([main(['train', path, '--quiet']) for path in sys.argv[1:]])"
    )
    files = [str(tmp_path / f"{number}.py") for number in range(len(FIELDS))]
    done = subprocess.run([sys.executable, "-c", script, *files], capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert done.stdout.strip() == str([2] * len(FIELDS)) and len(lines) == len(FIELDS), done.stderr
    for file, field, line in zip(files, FIELDS, lines, strict=True):
        assert line.startswith(f"posefix: {file}: {field.strip().removesuffix('[0]')} must be"), line


# Weights


def test_odd_arrays_of_a_state_dict_are_refused(tmp_path):
    arrays = {"layer1.0.conv1.weight": np.ones((4, 4, 3, 3), np.float32)}
    from weights.test_weights import torch_resnet18

    whole = {
        name: array[tuple(slice(2) for _ in array.shape)]
        for name, array in torch_resnet18(np.random.default_rng(0)).items()
    }
    units = {name: np.ascontiguousarray(array) for name, array in whole.items()}
    for name, array, match in (
        ("layer1.0.conv1.weight", np.ones(4, np.float32), "expected weights with 4 axes, found float32 of shape"),
        ("bn1.weight", np.ones(2, np.complex64), "expected weights with 1 axes, found complex64"),
        ("bn1.weight", np.full(2, np.nan, np.float32), "bn1.weight: a weight is not a finite number"),
    ):
        save_file({**units, name: array}, tmp_path / "w.safetensors")
        one_line(lambda: import_backbone(tmp_path / "w.safetensors", tmp_path / "x.npz"), f"{name}: .*{match[-30:]}")
    assert arrays and not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.__setitem__(0, 7),
        lambda weights: weights[0].__setitem__("name", []),
        lambda weights: weights[0].__setitem__("shape", HUGE),
        lambda weights: weights[0].__setitem__("dtype", []),
        lambda weights: weights[0].__setitem__("shape", [-1]),
    ],
)
def test_an_odd_graph_model_is_refused(change, tmp_path):
    weights = [{"name": "Conv1/Conv2D_weights", "shape": [1], "dtype": "float32"}]
    change(weights)
    (tmp_path / "a.bin").write_bytes(np.float32(np.nan).tobytes())
    (tmp_path / "m.json").write_text(json.dumps({"weightsManifest": [{"paths": ["a.bin"], "weights": weights}]}))
    one_line(lambda: import_movenet(tmp_path / "m.json", tmp_path / "x.npz"), "m.json")


def test_a_graph_model_reads_only_files_beside_it(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "a.bin").write_bytes(bytes(4))
    manifest = [{"paths": ["../a.bin"], "weights": []}]
    (tmp_path / "in" / "m.json").write_text(json.dumps({"weightsManifest": manifest}))
    one_line(lambda: import_movenet(tmp_path / "in" / "m.json", tmp_path / "x.npz"), "does not lie inside")
    (tmp_path / "in" / "m.json").write_text(DEEP)
    one_line(lambda: import_movenet(tmp_path / "in" / "m.json", tmp_path / "x.npz"), "not a TensorFlow.js graph model")


def test_a_bundle_whose_count_of_files_is_no_number_is_refused(tmp_path):
    write_bundle(tmp_path / "b.ckpt", {"a": np.zeros(3, np.float32)})
    index = tmp_path / "b.ckpt.index"
    count, no_number = b"\x00\x00\x02\x08\x01", b"\x00\x00\x02\x0a\x00"  # a name of no letters, and field 1
    assert index.read_bytes().count(count) == 1
    index.write_bytes(index.read_bytes().replace(count, no_number))
    one_line(lambda: read_bundle(tmp_path / "b.ckpt"), "b.ckpt.index: not a TensorFlow checkpoint index")


FRESH = {
    "params": {"backbone": {"stem": {"kernel": np.ones((3, 3, 20, 4), np.float32)}}, "head": {"bias": np.ones(17)}},
    "batch_stats": {"backbone": {"stem_norm": {"mean": np.ones(4, np.float32)}}},
}
GOOD = {
    "params/stem/kernel": np.full((3, 3, 3, 4), 2.0, np.float32),
    "batch_stats/stem_norm/mean": np.full(4, 2.0, np.float32),
}


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"batch_stats/stem_norm/mean": GOOD["batch_stats/stem_norm/mean"]}, "params/stem/kernel is missing"),
        (GOOD | {"params/stem/kernel": np.ones(())}, r"params/stem/kernel \(\), expected \(3, 3, 20, 4\)"),
        (GOOD | {"params/stem/kernel/x": np.ones(1)}, "not a file that `posefix import` wrote, or damaged"),
        (GOOD | {"batch_stats/stem_norm/mean": np.array(["a"])}, "batch_stats/stem_norm/mean: expected weights"),
        (GOOD | {"batch_stats/stem_norm/mean": np.full(4, np.inf)}, "a weight is not a finite number"),
        ({"params": np.ones(3)}, "not a file that `posefix import` wrote, or damaged"),
    ],
)
def test_odd_arrays_to_start_from_are_refused(arrays, match, tmp_path):
    save_backbone(tmp_path / "b.npz", "resnet18", tmp_path / "s", arrays, [])
    one_line(lambda: with_backbone(FRESH, tmp_path / "b.npz", "resnet18"), f"b.npz.*{match}")


def test_a_cut_file_to_start_from_is_refused(tmp_path):
    save_backbone(tmp_path / "b.npz", "resnet18", tmp_path / "s", GOOD, ["a\x1b\n"] * 100)
    merged = with_backbone(FRESH, tmp_path / "b.npz", "resnet18")
    kernel = merged["params"]["backbone"]["stem"]["kernel"]
    assert (kernel[:, :, :3] == 2).all() and (kernel[:, :, 3:] == 1).all()
    data = (tmp_path / "b.npz").read_bytes()
    for cut in (data[:100], data[:-10], b"", data[:50] + b"x" + data[51:], b"\x93NUMPY", data[:-4] + b"\xff" * 4):
        (tmp_path / "b.npz").write_bytes(cut)
        one_line(lambda: with_backbone(FRESH, tmp_path / "b.npz", "resnet18"), "b.npz: not a file")


# By command


def test_a_command_ends_with_one_line(people, tmp_path, capsys):
    truth = annotation_file(people, tmp_path, setting("images", 0, "id", ["\x1b[31m" * 3]))
    (tmp_path / "d.json").write_text(json.dumps(detections_of(people[0])))
    for job in (
        ["evaluate"],
        ["analyze", "--out", str(tmp_path / "o")],
        ["analyze", "fit", "--out", str(tmp_path / "o")],
    ):
        arguments = [str(tmp_path / "d.json"), "--annotations", str(truth)]
        words = 2 if job[1:2] == ["fit"] else 1
        assert main([*job[:words], *arguments, *job[words:]]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("posefix: ") and "image 0: id must be" in line and line.isprintable()


@pytest.mark.parametrize("far", [1e308, FARTHEST, float("inf"), float("nan")])
def test_a_joint_or_box_that_far_away_is_none(far, tiny_spec):
    engine, image = Engine(identity_network(tiny_spec), {}, tiny_spec), np.zeros((64, 64, 3), np.uint8)
    pose = np.tile([20.0, 30.0, 1.0], (17, 1))
    pose[0, 0], pose[1, 1] = far, -far
    crop = engine.crop(image, pose)
    assert not crop.present[:2].any() and crop.present[2:].all() and np.isfinite(crop.crop_xy).all()
    assert engine.crop(image, np.zeros((17, 3)), box=(0, 0, far, 10)) is None
    assert engine.crop(image, np.zeros((17, 3)), box=(0, 0, 10, 10)) is not None
