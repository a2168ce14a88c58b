"""Parquet tables of poses: columns image_id (or file_name), keypoints (flat x, y, score), perhaps score. Needs pyarrow."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from posefix_jax.core.skeleton import Skeleton
from posefix_jax.data.image_sources import open_binary
from posefix_jax.data.layouts import Element, Pose
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


def joints_of_table(path: str) -> int | None:
    """How many joints the table's first row has; None of a table without rows.

    Raises:
      PosefixError: a column is lacking, or is of a type that cannot hold its values.
    """
    types = _arrow().types
    with _opened(path) as table:
        schema = table.schema_arrow
        names = schema.names
        if "keypoints" not in names or not {"image_id", "file_name"} & set(names) or len(set(names)) < len(names):
            raise PosefixError(
                f"{path}: has columns {', '.join(names)}; expected image_id (or file_name) and keypoints"
            )
        keypoints = schema.field("keypoints").type
        lists = types.is_list(keypoints) or types.is_large_list(keypoints) or types.is_fixed_size_list(keypoints)
        if not lists or not types.is_floating(keypoints.value_type):
            raise PosefixError(f"{path}: keypoints are {keypoints}; expected a list of float or double")
        if "score" in names and not types.is_floating(schema.field("score").type):
            raise PosefixError(f"{path}: score is {schema.field('score').type}; expected float or double")
        for batch in table.iter_batches(1, columns=["keypoints"]):
            return len(batch["keypoints"][0].as_py() or ()) // 3
    return None


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


def rows_table(rows: list[tuple[int | str, Pose]], numbers: bool):
    """A batch of rows of its own: image_id, keypoints, score.

    Raises:
      PosefixError: an id does not fit; `numbers` says whether all the job's ids are integers.
    """
    arrow = _arrow()
    images = [image if numbers else str(image) for image, _ in rows]
    try:
        return arrow.record_batch(
            {
                "image_id": arrow.array(images, arrow.int64() if numbers else arrow.string()),
                "keypoints": arrow.array([pose.joints.reshape(-1).round(4).tolist() for _, pose in rows]),
                "score": arrow.array([1.0 if pose.score is None else pose.score for _, pose in rows], arrow.float64()),
            }
        )
    except (OverflowError, UnicodeEncodeError, arrow.ArrowInvalid) as error:
        raise PosefixError(f"an image_id does not fit a table ({error}); write another format") from error


def has_scores(path: str) -> bool:
    """Whether the table has a column of scores."""
    with _opened(path) as table:
        return "score" in table.schema_arrow.names
