"""HDF5 as pandas and SLEAP's own writers make it, and what is refused of it."""

import io
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
from format_samples import bodies, recorded

from posefix_jax.core.joint_sets import COCO
from posefix_jax.data.formats import Edit
from posefix_jax.data.pose_files import open_pose_file
from posefix_jax.types import PosefixError

h5py = pytest.importorskip("h5py")


def opened(folder: Path, data: bytes):
    (folder / "t.h5").write_bytes(data)
    return open_pose_file(str(folder / "t.h5"), skeleton=None, preferred=COCO)


def people(file) -> list:
    return [pose for element in file.elements() for pose in element.poses]


def edited(folder: Path, data: bytes, joints: np.ndarray | None = None) -> bytes:
    """The file as it is written, with the first person's joints replaced."""
    file = opened(folder, data)
    edits = [Edit(element) for element in file.elements()]
    if joints is not None:
        next(edit for edit in edits if edit.element.poses).joints[0] = joints
    with open(folder / "out.h5", "wb") as out, file.format.writer(out) as write:
        for edit in edits:  # as separate parts of a job do
            write(file.format.write_back(file, [edit]))
    return (folder / "out.h5").read_bytes()


@pytest.mark.parametrize(
    "name", ["deeplabcut_video.h5", "deeplabcut_labels.h5", "sleap_matlab.h5", "sleap_standard.h5"]
)
def test_what_does_not_change_is_not_written(name, tmp_path):
    assert edited(tmp_path, recorded(name)) == recorded(name)


@pytest.mark.parametrize("name", ["deeplabcut_video.h5", "sleap_matlab.h5", "sleap_standard.h5"])
def test_one_person_changes_and_nobody_else(name, tmp_path):
    """The missing joint of the second, the empty second row and the names stay."""
    before = people(opened(tmp_path, recorded(name)))
    new = before[0].joints.copy()
    new[4] = 0.25, 0.5, 0.75
    after = people(opened(tmp_path, edited(tmp_path, recorded(name), new)))
    np.testing.assert_array_equal(after[0].joints, new)
    assert [(pose.image, pose.track) for pose in after] == [(1, "m1"), (1, "m2"), (2, "m1")]
    for old, same in zip(before[1:], after[1:], strict=True):
        np.testing.assert_array_equal(same.joints, old.joints)
    np.testing.assert_array_equal(before[0].joints, bodies(COCO)[0])


def test_the_rest_of_a_file_stays(tmp_path):
    """Another table, an attribute, SLEAP's other arrays."""
    data = io.BytesIO(recorded("sleap_matlab.h5"))
    with h5py.File(data, "r+") as archive:
        archive["mine/deep"] = np.arange(5)
        archive.attrs["by"] = "me"
        names = list(archive)
        occupancy = archive["track_occupancy"][()]
    new = bodies(COCO)[0] + 1
    with h5py.File(io.BytesIO(edited(tmp_path, data.getvalue(), new)), "r") as archive:
        assert list(archive) == names and archive.attrs["by"] == "me"
        np.testing.assert_array_equal(archive["mine/deep"][()], np.arange(5))
        np.testing.assert_array_equal(archive["track_occupancy"][()], occupancy)


def test_deeplabcuts_labels(tmp_path):
    """Fixed arrays: the path in three levels, no likelihood, NaN where nothing is labelled."""
    file = opened(tmp_path, recorded("deeplabcut_labels.h5"))
    first, second = people(file)
    assert (first.image, second.image) == ("labeled-data/mouse/img001.png", "labeled-data/mouse/img002.png")
    assert file.skeleton.joints == COCO.joints[:4]
    np.testing.assert_array_equal(first.joints[:, :2], bodies(COCO)[0, :4, :2])
    assert first.joints[:, 2].tolist() == [1, 1, 1, 1] and second.joints[:, 2].tolist() == [1, 1, 0, 1]


def test_sleap_labels_without_a_score(tmp_path):
    """A point that somebody placed by hand has coordinates and no score: it is there."""
    data = io.BytesIO(recorded("sleap_matlab.h5"))
    with h5py.File(data, "r+") as archive:
        scores = archive["point_scores"][()]
        archive["point_scores"][...] = np.full_like(scores, np.nan)
    first, second, _ = people(opened(tmp_path, data.getvalue()))
    assert (first.joints[:, 2] == 1).all() and second.joints[:, 2].tolist() == [1] * 16 + [0]


def changed(name: str, change) -> bytes:
    data = io.BytesIO(recorded(name))
    with h5py.File(data, "r+") as archive:
        change(archive)
    return data.getvalue()


def set_names(archive, value: object) -> None:
    archive["df_with_missing/table"].attrs["values_block_0_kind"] = np.bytes_(pickle.dumps(value, 0))


def move(archive, name: str, value: object) -> None:
    del archive[name]
    archive[name] = value


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("deeplabcut_video.h5", lambda a: set_names(a, Path("x")), "column names are stored as .*Path"),
        ("deeplabcut_video.h5", lambda a: set_names(a, print), "column names are stored as .*print"),
        ("deeplabcut_video.h5", lambda a: set_names(a, [("a", "b", "x")]), "1 names for 102 columns"),
        ("deeplabcut_video.h5", lambda a: set_names(a, ["x"] * 102), "102 names for 102 columns"),
        (
            "deeplabcut_video.h5",
            lambda a: set_names(a, [("s", "b", "z")] * 102),
            "'z' of 'b', twice or not one of x, y",
        ),
        ("deeplabcut_video.h5", lambda a: a.copy("df_with_missing", "other"), "2 tables"),
        (
            "deeplabcut_video.h5",
            lambda a: move(a, "df_with_missing/table", np.zeros((2, 102))),
            "has a table of ; expected one table of floats",
        ),
        (
            "deeplabcut_video.h5",
            lambda a: move(a, "df_with_missing/table", h5py.ExternalLink("/etc/other.h5", "/t")),
            "is not there, or is a link",
        ),
        (
            "deeplabcut_labels.h5",
            lambda a: move(a, "df_with_missing/block0_values", np.zeros((2, 9))),
            r"\[2, 9\] values",
        ),
        (
            "sleap_matlab.h5",
            lambda a: move(a, "tracks", h5py.SoftLink("/point_scores")),
            "tracks is not there, or is a link",
        ),
        ("sleap_matlab.h5", lambda a: move(a, "node_names", np.arange(17)), "expected up to 1000 names"),
        ("sleap_matlab.h5", lambda a: move(a, "tracks", np.zeros((2, 2, 17))), r"tracks is float64 \[2, 2, 17\]"),
        ("sleap_matlab.h5", lambda a: move(a, "tracks", np.zeros((2, 2, 17, 3), int)), "tracks is int64"),
        ("sleap_matlab.h5", lambda a: move(a, "tracks", np.zeros((2, 2, 16, 3))), "other sizes"),
    ],
)
def test_other_files_are_refused_in_one_line(name, change, message, tmp_path):
    with pytest.raises(PosefixError, match=message) as error:
        people(opened(tmp_path, changed(name, change)))
    assert str(tmp_path / "t.h5") in str(error.value) and "\n" not in str(error.value)


def test_arrays_that_are_mostly_claims_are_refused(tmp_path):
    """An array of a terabyte of which nothing is stored."""

    def huge(archive):
        del archive["tracks"]
        archive.create_dataset("tracks", (2, 2, 17, 1 << 34), "f8", chunks=(2, 2, 17, 64), compression="gzip")

    with pytest.raises(PosefixError, match="hardly any are stored"):
        people(opened(tmp_path, changed("sleap_matlab.h5", huge)))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("short", [8, -8])
def test_chunks_of_another_length_are_refused(packed, short, tmp_path):
    """HDF5's library reads and writes past the end of one that unpacks to too little, and ends the process."""

    def change(archive):
        stored = archive["point_scores"]
        data = bytes(stored[()].nbytes - short)
        stored.id.write_direct_chunk((0, 0, 0), zlib.compress(data) if packed else data, 0 if packed else 1)

    with pytest.raises(PosefixError, match="point_scores has a chunk of"):
        people(opened(tmp_path, changed("sleap_matlab.h5", change)))


@pytest.mark.parametrize("kind", [None, "gzip"])
def test_checksums_and_shuffled_bytes_are_read(kind, tmp_path):
    def change(archive):
        values, dims = archive["tracks"][()], archive["tracks"].attrs["dims"]
        del archive["tracks"]
        stored = archive.create_dataset("tracks", data=values, compression=kind, shuffle=True, fletcher32=True)
        stored.attrs["dims"] = dims

    found = people(opened(tmp_path, changed("sleap_matlab.h5", change)))
    np.testing.assert_array_equal(found[0].joints, bodies(COCO)[0])


def test_other_compression_is_refused(tmp_path):
    def change(archive):
        del archive["point_scores"]
        archive.create_dataset("point_scores", (2, 17, 4), "f8", compression="lzf")

    with pytest.raises(PosefixError, match="another filter than gzip; write it again without"):
        people(opened(tmp_path, changed("sleap_matlab.h5", change)))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("frames", "instances", "points"), "this is SLEAP's project .* export it as an analysis file"),
        (("stuff",), "holds stuff; expected DeepLabCut's table or SLEAP's analysis file"),
        ((), "holds nothing"),
    ],
)
def test_files_of_other_things_are_refused(names, message, tmp_path):
    data = io.BytesIO()
    with h5py.File(data, "w") as archive:
        for name in names:
            archive[name] = np.zeros(3)
    with pytest.raises(PosefixError, match=message):
        opened(tmp_path, data.getvalue())


def test_damaged_files_are_refused(tmp_path):
    for data in (b"\x89HDF\r\n\x1a\n" + bytes(100), recorded("sleap_matlab.h5")[:4000]):
        with pytest.raises(PosefixError, match="damaged, or of another form"):
            opened(tmp_path, data)
