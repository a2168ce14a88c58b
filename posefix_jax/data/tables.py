"""Parquet tables of poses: columns image_id (or file_name), keypoints (flat x, y, score), perhaps score. Needs pyarrow."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from posefix_jax.data.formats import open_binary
from posefix_jax.data.layouts import Element, Pose
from posefix_jax.skeleton import Skeleton
from posefix_jax.types import PosefixError

ROWS = 512
"""Rows an element."""


def _arrow():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise PosefixError("Parquet needs the package pyarrow: pip install 'posefix-jax[parquet]'") from error
    return pyarrow


@contextmanager
def _opened(path: str):
    """The table's file; its own errors become one line."""
    arrow = _arrow()
    with open_binary(path) as file:
        try:
            yield arrow.parquet.ParquetFile(file)
        except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError, arrow.ArrowTypeError) as error:
            raise PosefixError(f"{path}: {error}") from error


def joints_of_table(path: str) -> int:
    """How many joints the table's first row has."""
    with _opened(path) as table:
        names = table.schema_arrow.names
        if "keypoints" not in names or not {"image_id", "file_name"} & set(names):
            raise PosefixError(
                f"{path}: has columns {', '.join(names)}; expected image_id (or file_name) and keypoints"
            )
        for batch in table.iter_batches(1, columns=["keypoints"]):
            return len(batch["keypoints"][0].as_py() or ()) // 3
    raise PosefixError(f"{path}: no row, no poses to work on")


def read_table(path: str, skeleton: Skeleton) -> Iterator[Element]:
    """Batches of rows with their people. Raises PosefixError naming the row that does not fit."""
    count, first = 3 * skeleton.num_joints, 0
    with _opened(path) as table:
        key = "image_id" if "image_id" in table.schema_arrow.names else "file_name"
        for batch in table.iter_batches(ROWS):
            images = batch[key].to_pylist()
            scores = batch["score"].to_pylist() if "score" in batch.schema.names else [None] * len(images)
            poses = []
            for row, (image, values, score) in enumerate(
                zip(images, batch["keypoints"].to_pylist(), scores, strict=True)
            ):
                if values is None or len(values) != count or not isinstance(image, int | str):
                    found = f"{len(values or ())} keypoint values of photograph {image!r:.30}"
                    raise PosefixError(f"{path}: row {first + row}: has {found}, expected {count} and an id or name")
                joints = np.array([np.nan if v is None else v for v in values], np.float64).reshape(-1, 3)
                poses.append(Pose(image, joints, (), None if score is None else float(score)))
            first += len(images)
            yield Element("", batch, poses)


def changed_table(batch, changes: Mapping, scores: Mapping):
    """The batch with other keypoints and scores, in its own types."""
    arrow = _arrow()
    for name, new in (
        ("keypoints", {i: _merged(batch, i, *change) for i, change in changes.items()}),
        ("score", scores),
    ):
        if new:
            if name not in batch.schema.names:
                raise PosefixError(f"the table has no column {name}")
            values = batch[name].to_pylist()
            for index, value in new.items():
                values[index] = value
            place = batch.schema.get_field_index(name)
            batch = batch.set_column(
                place, batch.schema.field(place), arrow.array(values, batch.schema.field(place).type)
            )
    return batch


def _merged(batch, row: int, joints: np.ndarray, changed: np.ndarray) -> list:
    values = batch["keypoints"][row].as_py()
    for joint in np.flatnonzero(changed).tolist():
        values[3 * joint : 3 * joint + 3] = [round(float(v), 4) for v in joints[joint]]
    return values


def packed(batch) -> bytes:
    """A batch as Arrow's stream format, as parts of a job keep it."""
    sink = io.BytesIO()
    with _arrow().ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


class TableWriter:
    """Writes `packed` batches, as they come, as one Parquet file."""

    def __init__(self, file):
        self._file, self._writer = file, None

    def write(self, data: bytes) -> None:
        arrow, source = _arrow(), io.BytesIO(data)
        while source.tell() < len(data):
            for batch in arrow.ipc.open_stream(source):
                if self._writer is None:
                    self._writer = arrow.parquet.ParquetWriter(self._file, batch.schema)
                self._writer.write_batch(batch)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def rows_table(rows: list[tuple[int | str, Pose]]):
    """A batch of rows of its own: image_id, keypoints, score."""
    arrow = _arrow()
    images = [image for image, _ in rows]
    number = all(isinstance(image, int) for image in images)
    return arrow.record_batch(
        {
            "image_id": arrow.array(images if number else [str(i) for i in images], arrow.int64() if number else None),
            "keypoints": arrow.array([pose.joints.reshape(-1).round(4).tolist() for _, pose in rows]),
            "score": arrow.array([1.0 if pose.score is None else pose.score for _, pose in rows], arrow.float64()),
        }
    )
