"""Text tables of poses: what their headers may say, what is refused, and edits that change single cells."""

import numpy as np
import pytest
from format_samples import bodies

from posefix_jax.core.joint_sets import COCO
from posefix_jax.core.skeleton import Skeleton
from posefix_jax.data.formats import Edit
from posefix_jax.data.formats.base import PoseFile
from posefix_jax.data.pose_files import PoseFiles, open_pose_file
from posefix_jax.refining.inspect_files import InspectOptions, inspect_files
from posefix_jax.types import PosefixError


def opened(tmp_path, text: str, name: str = "t.csv", skeleton: Skeleton | None = None) -> PoseFile:
    (tmp_path / name).write_bytes(text.encode())
    return open_pose_file(str(tmp_path / name), skeleton=skeleton, preferred=COCO)


def people(file: PoseFile) -> list:
    return [pose for element in file.elements() for pose in element.poses]


@pytest.mark.parametrize("number", ["{}", "kp{}", "keypoint_{}"])
def test_names_in_any_spelling(number, tmp_path):
    """Case, spaces, dots, camel case, axis first or last; numbers in the order of the numbers, not of the columns."""
    pose = bodies(COCO)[0]
    values = ",".join(map(str, pose.reshape(-1).tolist()))
    spelled = [
        f"{name.title().replace('_', ' ')}.X|x_{name}|{name}X".split("|")[i % 3] for i, name in enumerate(COCO.joints)
    ]
    others = [s.replace("X", "Y").replace("x_", "y_") for s in spelled], [f"{n}-likelihood" for n in COCO.joints]
    header = ",".join(",".join(triple) for triple in zip(spelled, *others, strict=True))
    (found,) = people(opened(tmp_path, f"Frame,{header}\n7,{values}\n"))
    np.testing.assert_array_equal(found.joints, pose)
    assert found.image == 7 and found.score is None
    order = sorted(range(17), key=str)
    header = ",".join(f"{n}_x,{n}_y,{n}_conf" for n in (number.format(i) for i in order))
    values = ",".join(map(str, pose[order].reshape(-1).tolist()))
    file = opened(tmp_path, f"file_name,{header},bbox_x,bbox_y\n00.jpg,{values},1,2\n")
    assert file.skeleton is COCO
    np.testing.assert_array_equal(people(file)[0].joints, pose)


def test_a_table_of_any_joints(tmp_path):
    """Not in the order of a built-in set: read by name; of no set: a skeleton of the columns."""
    file = opened(tmp_path, "image_id,left_eye_x,left_eye_y,tail_x,tail_y\na b.png,1,2,3,4\n")
    assert file.skeleton.joints == ("left_eye", "tail")
    assert people(file)[0].joints.tolist() == [[1, 2, 1], [3, 4, 1]] and people(file)[0].image == "a b.png"
    backwards = [f"{joint}_{axis}" for joint in reversed(COCO.joints) for axis in "xy"]
    text = f"image_id,{','.join(backwards)}\n1,{','.join(str(i) for i in range(34))}\n"
    assert opened(tmp_path, text).skeleton is COCO
    assert people(opened(tmp_path, text))[0].joints[0].tolist() == [32, 33, 1]
    with pytest.raises(PosefixError, match="no columns of nose, left_eye, .*; leave out --skeleton"):
        people(opened(tmp_path, "image_id,tail_x,tail_y\n1,3,4\n", skeleton=COCO))


@pytest.mark.parametrize("cell", ["", "NaN", "null", '""', " ", "NA"])
def test_empty_cells_are_missing_joints_that_can_be_filled_in(cell, tmp_path):
    row = f'"a ""b"", c.png" ;{cell};{cell};0.9; 1.50 ;2; "+3e0"\r\n'
    file = opened(tmp_path, "image;nose_x;nose_y;nose_score;left_eye_x;left_eye_y;left_eye_score\r\n" + row)
    (element,) = (e for e in file.elements() if e.poses)
    (pose,) = element.poses
    assert pose.joints.tolist() == [[0, 0, 0], [1.5, 2, 3]] and pose.image == 'a "b", c.png'
    assert file.format.edited(file, Edit(element, {0: pose.joints})) == row
    new = np.array(pose.joints)
    new[0] = 7, 8.00049, 0.25
    quoted = '"{}"' if '"' in cell else "{}"
    expected = row.replace(f";{cell};{cell};0.9", f";{quoted.format('7.0')};{quoted.format('8.0')};0.25")
    after = file.format.edited(file, Edit(element, {0: new}))
    assert [part.strip() for part in after.split(";")] == [part.strip() for part in expected.split(";")]
    assert after.endswith('; 1.50 ;2; "+3e0"\r\n')


def test_what_marks_a_missing_joint(tmp_path):
    header = "image,nose_x,nose_y,nose_v\n"
    for values, missing in (("0,0,2", 1), ("-1,-1,1", 1), ("5,0,1", 0), ("5,5,0", 1), ("5,5,-1", 1), ("5,5,2", 0)):
        (pose,) = people(opened(tmp_path, f"{header}1,{values}\n"))
        assert (pose.joints[0, 2] <= 0) == bool(missing), values
    file = opened(tmp_path, header + "1,0,0,0\n")
    element = next(iter(file.elements()))
    # A column of visibilities gets one.
    assert file.format.edited(file, Edit(element, {0: np.array([[5, 6, 0.3]])})) == "1,5.0,6.0,2\n"


LONG = "image,person,joint,x,y,score\n"


def test_records_per_joint(tmp_path):
    """A joint that a person lacks gets a record of its own; without a person's column, a joint again is the next person."""
    rows = "1,a,nose,1,2,0.5\n1,a,Left Eye,3,4,0.5\n\n1,b,nose,5,6,0.5"
    file = opened(tmp_path, LONG + rows)
    elements = list(file.elements())
    a, b = people(file)
    assert (a.track, b.track) == ("a", "b") and b.joints.tolist() == [[5, 6, 0.5], [0, 0, 0]]
    texts = []
    for element in elements:
        new = {0: np.array([[5, 6, 0.5], [7, 8, 0.25]])} if element.poses and element.poses[0].track == "b" else {}
        texts += [element.lead, file.format.edited(file, Edit(element, new))]
    assert "".join(texts) == LONG + rows + "\n1,b,left_eye,7.0,8.0,0.25"
    file = opened(tmp_path, "image,joint,x,y\n" + "1,nose,1,2\n1,neck,3,4\n1,nose,5,6\n1,neck,7,8\n")
    assert [pose.joints[:, 0].tolist() for pose in people(file)] == [[1, 3], [5, 7]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("image_id,keypoints,score\n1,2,3\n", "columns image_id, keypoints, score, none of which are joints"),
        ("nose_x,nose_y\n1,2\n", "none called image_id or file_name or filename, ..."),
        ("image,nose_x,nose_score\n1,2,3\n", "a column for nose, but none for its y"),
        ("image,nose_x,nose_y,Nose.X\n1,2,3,4\n", "two columns for x of nose"),
        ("image,image,nose_x,nose_y\n1,2,3,4\n", "two columns called 'image'"),
        ('image,"nose"_x,nose_y\n1,2,3\n', "a broken header"),
        ("image,nose_x,nose_y\n1,2\n", "line 2: has 2 cells, expected 3, as in the header"),
        ("image,nose_x,nose_y\n1,2,b\n", "row 0: column 'nose_y': 'b' is no number"),
        ("image;nose_x;nose_y\n1;2,5;3\n", "'2,5' is no number; expected a decimal point"),
        ("image,nose_x,nose_y\n,2,3\n", "row 0: line 2: column 'image' names no photograph"),
        ('image,nose_x,nose_y\n1,2,"3\n', "line 2: a quote has no end"),
        ("image,nose_x,nose_y\n1,2,\xff\n".encode("latin-1").decode("latin-1"), "'ÿ' is no number"),
        ("image,joint,x\n1,nose,3\n", "none of which are joints"),
        (LONG + "1,a,nose,1,2,3\n2,a,nose,1,2,3\n1,a,neck,1,2,3\n", "line 4: more of a person after another one"),
        (LONG + "1,a,nose,1,2,3\n1,a,nose,1,2,3\n", "line 3: joint 'nose', twice in one person"),
        (LONG + "1,a,3,1,2,3\n", "joints are called '3'; expected names"),
        ("scorer,a,a\nbodyparts,nose,nose\ncoords,x,z\n1,2,3\n", "'z' of 'nose', twice or not one of x, y, likelihood"),
        ("scorer,a,a\ncoords,x,y\n1,2,3\n", "the header has lines scorer, coords"),
        ("scorer,a,a\nbodyparts,nose\ncoords,x,y\n1,2,3\n", "lines of 3, 2, 3 cells"),
        ("scorer,a\nbodyparts,nose\ncoords,x\n1,2\n", "no x or no y of 'nose'"),
    ],
)
def test_damaged_tables_are_refused_in_one_line(text, message, tmp_path):
    with pytest.raises(PosefixError) as error:
        people(opened(tmp_path, text))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_deeplabcuts_labels(tmp_path):
    """Labelled data: the path in three columns, no likelihood, empty cells where nothing is labelled."""
    text = (
        "scorer,,,me,me,me,me\nbodyparts,,,snout,snout,tail,tail\ncoords,,,x,y,x,y\n"
        "labeled-data,mouse,img001.png,1.5,2,,\n"
    )
    file = opened(tmp_path, text)
    (pose,) = people(file)
    assert pose.image == "labeled-data/mouse/img001.png" and file.skeleton.joints == ("snout", "tail")
    assert pose.joints.tolist() == [[1.5, 2, 1], [0, 0, 0]]


OWN = {"clip": "image_id", "snout.x": "nose_x", "snout.y": "nose_y", "how sure": "nose_score"}


def test_columns_of_other_names(tmp_path):
    """They are read by our names; the header stays what it was."""
    text = '"clip";snout.x;snout.y;"how sure";tail_x;tail_y\n7;1;2;0.5;3;4\n'
    (tmp_path / "t.csv").write_text(text)
    options = {"skeleton": None, "preferred": COCO, "columns": OWN}
    source = PoseFiles.open([(str(tmp_path / "t.csv"), "")], **options)
    assert source.skeleton.joints == ("nose", "tail")
    elements = [element for _, element in source.elements()]
    (pose,) = elements[0].poses
    assert pose.image == 7 and pose.joints.tolist() == [[1, 2, 0.5], [3, 4, 1]]
    new = pose.joints.copy()
    new[0] = 8, 9, 0.25
    edits = [Edit(elements[0], {0: new}), *map(Edit, elements[1:])]
    written = source.format.write_back(source.files[0], edits).decode()
    assert written == text.replace("7;1;2;0.5", "7;8.0;9.0;0.25")


@pytest.mark.parametrize(
    ("name", "text", "pairs", "message"),
    [
        (
            "t.csv",
            "clip,nose_x,nose_y\n1,2,3\n",
            ["image_id=clib"],
            "has no column 'clib'; it has clip, nose_x, nose_y",
        ),
        ("t.csv", "clip,nose_x,nose_y\n1,2,3\n", ["clip"], "'clip' is not OURS=THEIRS"),
        ("t.csv", "clip,nose_x,nose_y\n1,2,3\n", ["image_id=clip", "frame=clip"], "names a column again"),
        ("t.csv", "clip,nose_x,nose_y\n1,2,3\n", ["a,b=clip"], "is not OURS=THEIRS"),
        ("t.csv", "clip,frame,a_x,a_y\n1,2,3,4\n", ["frame=clip"], "two columns called 'frame'"),
        ("t.csv", "clip,nose_x,nose_y\n1,2,3\n", [], "say which it is with --columns image_id=NAME"),
        ("t.json", '[{"image_id": 1, "category_id": 1, "keypoints": [], "score": 1}]', ["a=b"], "is a coco file; only"),
        ("d.csv", "scorer,a,a\nbodyparts,n,n\ncoords,x,y\n1,2,3\n", ["a=b"], "is a deeplabcut file; only"),
    ],
)
def test_columns_that_are_not_there(name, text, pairs, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(PosefixError, match=message) as error:
        inspect_files(InspectOptions((str(tmp_path / name),), columns=tuple(pairs)))
    assert "\n" not in str(error.value)
