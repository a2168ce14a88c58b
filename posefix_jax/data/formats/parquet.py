"""Parquet tables of poses: columns image_id (or file_name), keypoints (flat x, y, score), perhaps score. Needs pyarrow."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np

from posefix_jax.data.formats.base import Edit, Element, Format, Photograph, Pose, PoseFile
from posefix_jax.data.image_sources import open_binary
from posefix_jax.types import PosefixError

ROWS = 512
"""Rows per element."""


class Parquet(Format):
    """A table with a row per person."""

    name = "parquet"
    row_per_person = True
    writable = True
    groups_people = False
    missing_at = (0.0,)  # columns as those of COCO results
    is_binary = True
    head = between = tail = ""

    def first_people(self, file: PoseFile, most: int) -> list[np.ndarray]:
        """As `Format.first_people`. Raises PosefixError: a column is missing, or is of a type that cannot hold its values."""
        types = _arrow().types
        with _opened(file.path) as table:
            schema = table.schema_arrow
            names = schema.names
            if "keypoints" not in names or not {"image_id", "file_name"} & set(names) or len(set(names)) < len(names):
                raise PosefixError(
                    f"{file.path}: has columns {', '.join(names)}; expected image_id (or file_name) and keypoints"
                )
            keypoints = schema.field("keypoints").type
            lists = types.is_list(keypoints) or types.is_large_list(keypoints) or types.is_fixed_size_list(keypoints)
            if not lists or not types.is_floating(keypoints.value_type):
                raise PosefixError(f"{file.path}: keypoints are {keypoints}; expected a list of float or double")
            if "score" in names and not types.is_floating(schema.field("score").type):
                raise PosefixError(f"{file.path}: score is {schema.field('score').type}; expected float or double")
            for batch in table.iter_batches(most, columns=["keypoints"]):
                rows = [row or [] for row in batch["keypoints"].to_pylist()]
                return [self.marked(Pose("", _joints(row))).joints for row in rows if len(row) == len(rows[0])]
        return []

    def elements(self, file: PoseFile) -> Iterator[Element]:
        count, first = 3 * file.skeleton.num_joints, 0
        with _opened(file.path) as table:
            key = "image_id" if "image_id" in table.schema_arrow.names else "file_name"
            empty = _arrow().RecordBatch.from_pylist([], table.schema_arrow)  # is written too
            for batch in table.iter_batches(ROWS) if table.metadata.num_rows else [empty]:
                images = batch[key].to_pylist()
                scores = batch["score"].to_pylist() if "score" in batch.schema.names else [None] * len(images)
                keypoints = batch["keypoints"].to_pylist()
                poses = []
                for row, (image, values, score) in enumerate(zip(images, keypoints, scores, strict=True)):
                    if values is None or len(values) != count or not isinstance(image, int | str):
                        found = f"{len(values or ())} keypoint values of photograph {image!r:.30}"
                        raise PosefixError(
                            f"{file.path}: row {first + row}: has {found}, expected {count} and an id or name"
                        )
                    pose = Pose(image, _joints(values), (), None if score is None else float(score))
                    poses.append(self.marked(pose))
                first += len(images)
                yield Element("", batch, poses)

    def has_score(self, file: PoseFile) -> bool:
        with _opened(file.path) as table:
            return "score" in table.schema_arrow.names

    def write_back(self, file: PoseFile, edits: Sequence[Edit]) -> bytes:
        return b"".join(map(_edited, edits))

    def write_new(
        self, photographs: Sequence[Photograph], *, single: bool, integer_ids: bool
    ) -> list[tuple[str, bytes]]:
        rows = [(photograph.image, pose) for photograph in photographs for pose in photograph.people]
        return [("", _packed(_table_of(rows, integer_ids)))] if rows else []

    @contextmanager
    def writer(self, file: BinaryIO) -> Iterator[Callable[[bytes], object]]:
        arrow, table = _arrow(), None

        def write(data: bytes) -> None:
            nonlocal table
            source = io.BytesIO(data)
            while source.tell() < len(data):
                for batch in arrow.ipc.open_stream(source):
                    table = table or arrow.parquet.ParquetWriter(file, batch.schema)
                    table.write_batch(batch)

        yield write
        if table is not None:
            table.close()


def _joints(values: Sequence[float | None]) -> np.ndarray:
    """[K, 3]; a null is NaN, what is left over of a joint is dropped."""
    whole = values[: len(values) // 3 * 3]
    return np.array([np.nan if v is None else v for v in whole], np.float64).reshape(-1, 3)


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise PosefixError("Parquet needs the package pyarrow: pip install 'posefix-jax[parquet]'") from error
    return pyarrow


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """The table's file; its own errors become one line."""
    arrow = _arrow()
    with open_binary(path) as file:
        try:
            yield arrow.parquet.ParquetFile(file)
        except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError, arrow.ArrowTypeError) as error:
            raise PosefixError(f"{path}: {error}") from error


def _edited(change: Edit) -> bytes:
    """The element's table with other keypoints and scores, in its own types, packed."""
    arrow, batch = _arrow(), change.element.text
    keypoints = {i: _merged(batch, i, joints, changed) for i, joints, changed in change.changes()}
    for name, new in (("keypoints", keypoints), ("score", change.scores)):
        if new:
            if name not in batch.schema.names:
                raise PosefixError(f"the table has no column {name}")
            values = batch[name].to_pylist()
            for index, value in new.items():
                values[index] = value
            place = batch.schema.get_field_index(name)
            column = batch.schema.field(place)
            batch = batch.set_column(place, column, arrow.array(values, column.type))
    if change.dropped:
        batch = batch.take([i for i in range(len(change.element.poses)) if i not in change.dropped])
    return _packed(batch)


def _merged(batch: Any, row: int, joints: np.ndarray, changed: np.ndarray) -> list:
    values = batch["keypoints"][row].as_py()
    for joint in np.flatnonzero(changed).tolist():
        values[3 * joint : 3 * joint + 3] = [round(float(v), 4) for v in joints[joint]]
    return values


def _packed(batch: Any) -> bytes:
    """A batch in Arrow's stream format, as the parts of a job keep it."""
    sink = io.BytesIO()
    with _arrow().ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def _table_of(rows: list[tuple[int | str, Pose]], integer_ids: bool) -> Any:
    """A batch of new rows: image_id, keypoints, score. Raises PosefixError where an id does not fit."""
    arrow = _arrow()
    images = [image if integer_ids else str(image) for image, _ in rows]
    try:
        return arrow.record_batch(
            {
                "image_id": arrow.array(images, arrow.int64() if integer_ids else arrow.string()),
                "keypoints": arrow.array([pose.joints.reshape(-1).round(4).tolist() for _, pose in rows]),
                "score": arrow.array([1.0 if pose.score is None else pose.score for _, pose in rows], arrow.float64()),
            }
        )
    except (OverflowError, UnicodeEncodeError, arrow.ArrowInvalid) as error:
        raise PosefixError(f"an image_id does not fit a table ({error}); write another format") from error
