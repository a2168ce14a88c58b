"""Files of arrays that are no poses, or in types that cannot hold them: refused with what is expected."""

import numpy as np
import pytest

from posefix_jax.core.joint_sets import COCO
from posefix_jax.data.pose_files import open_pose_file
from posefix_jax.types import PosefixError


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image_id": [1]}, r"has arrays image_id \[1\]; expected keypoints"),
        ({"keypoints": np.ones((1, 17, 3))}, "expected keypoints .* and image_id"),
        ({"keypoints": np.ones((1, 51)), "image_id": [1]}, r"keypoints are float64 \[1, 51\]; expected floats"),
        ({"keypoints": np.ones((1, 17, 3), int), "image_id": [1]}, "keypoints are int64"),
        (
            {"keypoints": np.ones((2, 17, 3)), "image_id": [1]},
            r"image_id is int64 \[1\]; expected integers or text \[2\]",
        ),
        ({"keypoints": np.ones((1, 17, 3)), "image_id": [1.5]}, "image_id is float64"),
        ({"keypoints": np.ones((1, 17, 3)), "image_id": np.array([None])}, "image_id is object"),
        ({"keypoints": np.asfortranarray(np.ones((2, 17, 3))), "image_id": [1, 2]}, "Fortran order"),
        ({"keypoints": np.ones((1, 17, 3)), "file_name": [""]}, "row 0 names no photograph"),
    ],
)
def test_archives_that_are_no_poses_are_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "a.npz", **{name: np.asarray(array) for name, array in arrays.items()})
    with pytest.raises(PosefixError, match=message):
        for _ in open_pose_file(str(tmp_path / "a.npz"), skeleton=None, preferred=COCO).elements():
            pass


def test_files_of_one_array_and_of_programs_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((1, 17, 3)))
    (tmp_path / "a.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04")
    for name, message in (("a.npy", "numpy.savez"), ("a.mat", "scipy.io.loadmat"), ("a.pkl", "can hold programs")):
        with pytest.raises(PosefixError, match=message):
            open_pose_file(str(tmp_path / name), skeleton=None, preferred=COCO)


def test_tables_that_cannot_hold_what_comes_out_are_refused(tmp_path):
    import pyarrow
    import pyarrow.parquet

    values = [[1, 2, 1] * 17]
    for columns, message in (
        ({"image_id": [1], "keypoints": values}, r"keypoints are list<element: int64>; expected a list of float"),
        ({"image_id": [1], "keypoints": [1.0]}, "keypoints are double"),
        ({"image_id": [1], "keypoints": [[1.0] * 51], "score": [1]}, "score is int64"),
        ({"image": [1], "keypoints": [[1.0] * 51]}, "expected image_id"),
    ):
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
        with pytest.raises(PosefixError, match=message):
            open_pose_file(str(tmp_path / "t.parquet"), skeleton=None, preferred=COCO)
