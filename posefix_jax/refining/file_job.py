"""A job over files of poses: rows are read in parts, something is done to them, and each part is written."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from posefix_jax.core.joint_sets import load_skeleton
from posefix_jax.core.skeleton import Skeleton, describe_joints
from posefix_jax.data.formats import Element, Pose
from posefix_jax.data.formats.cells import columns_of
from posefix_jax.data.image_sources import Images
from posefix_jax.data.pose_files import PoseFiles, find_files
from posefix_jax.data.pose_writer import Part, PoseWriter
from posefix_jax.files import check_apart
from posefix_jax.refining.resumable_output import JobManifest, Parts, check_output, outputs_of
from posefix_jax.report.progress import Progress
from posefix_jax.types import PosefixError, tell


def open_files(
    patterns: tuple[str, ...],
    out: Path,
    *,
    images: str | None,
    annotations: Path | None,
    skeleton: str | None,
    preferred: Skeleton,
    columns: Sequence[str] = (),
) -> PoseFiles:
    """The files that a command names, none of which lies where its output goes.

    Args:
      patterns: what `find_files` takes. More than one file, a folder or a pattern is written to a folder.
      out: the file or folder that the command writes.
      images: the place of the photographs.
      annotations: COCO file whose `images` give file names.
      skeleton: the files' joints where they do not say them themselves; what `load_skeleton` takes.
      preferred: the joints of a file that says only their number, if it has that many.
      columns: OURS=THEIRS for each column of a table that has a name of its own.

    Raises:
      PosefixError: no such file, not one of poses, files of several kinds, or an output would replace an input.
    """
    outputs = list(outputs_of(out).values())
    files = find_files(patterns, out, outputs)
    more = [place for place in (images, annotations, skeleton) if place is not None]
    check_apart(outputs, [path for path, _ in files] + more)
    given = None if skeleton is None else load_skeleton(skeleton)
    named = columns_of(columns)
    return PoseFiles.open(files, skeleton=given, preferred=preferred, annotations=annotations, columns=named)


class FileJob:
    """Splits the rows of some files into parts, and writes the parts that are done.

    Args:
      source: the files.
      out: the file or folder to write.
      to: the format to write; None: each file's own, edited in place.
      images: the place of the photographs, see `Images`; None where they are not needed.
      rows_per_part: a part ends with the photograph of this row.
      first_frame: as for `Images`.

    Raises:
      PosefixError: no such format or place, or something else is where the output goes.
    """

    def __init__(
        self,
        source: PoseFiles,
        out: Path,
        *,
        to: str | None = None,
        images: str | None = None,
        rows_per_part: int,
        first_frame: int | None = None,
    ):
        self.source, self.out, self.rows_per_part = source, out, rows_per_part
        self.images = None if images is None else Images(images, source.names, first_frame=first_frame)
        self.content = ""
        """the digest of the files, from `start` on"""
        self.writer = PoseWriter(source, out, to=to, images=self.images)
        if not outputs_of(out)["parts"].exists():  # else the job may be resumed
            check_output(out, single=self.writer.single)

    def parts(self) -> Iterator[Part]:
        """All rows, in order."""
        elements: list[tuple[int, Element]] = []
        poses: list[Pose] = []
        number = first = 0
        whole_photographs = self.writer.format is not None and self.writer.format.groups_people
        for index, element in self.source.elements():
            # A part ends with a photograph, unless that has very many rows.
            full = len(poses) >= self.rows_per_part and element.poses
            continues = full and element.poses[0].image == poses[-1].image
            long = len(poses) >= 2 * self.rows_per_part and not whole_photographs
            if (full and (not continues or long)) or len(elements) >= 16 * self.rows_per_part:
                yield Part(number, first, elements, poses)
                number, first, elements, poses = number + 1, first + len(poses), [], []
            elements.append((index, element))
            poses += element.poses
        yield Part(number, first, elements, poses)

    def start(
        self,
        *,
        settings: dict,
        check: Callable[[Part], None] | None = None,
        checked: Callable[[dict | None], dict] = lambda earlier: {},
        shards: int = 1,
    ) -> tuple[Parts, int]:
        """Reads everything once, so that whatever can be known to be wrong is known before hours are spent.

        Args:
          settings: what else the output depends on.
          check: called with every part.
          checked: called after the last one, with the report's entries if another process has begun this job, else None;
            returns more entries of the report. All processes of a job get the first one's.
          shards: how many processes share the job.

        Returns:
          The parts that are done, and the number of rows.

        Raises:
          PosefixError: a row does not fit, or there is none.
        """
        source, writer = self.source, self.writer
        to = None if writer.format is None else writer.format.name
        self.content = source.digest()
        fixed = {**settings, "files": [file.name for file in source.files], "to": to}
        fixed |= {"joints": source.skeleton.to_dict(), "columns": source.files[0].columns, "content": self.content}
        digest = hashlib.sha256(json.dumps(fixed, sort_keys=True, default=str).encode())
        rows = count = 0
        with Progress("check", None, unit="poses") as progress:
            for part in self.parts():
                if check is not None:
                    check(part)
                writer.check(part)
                rows += len(part.poses)
                count = part.number + 1
                progress.update(rows)
        if not rows:
            raise PosefixError(f"{source.path}: no poses to work on")
        entries = checked(Parts.report_of(self.out, digest.hexdigest()))
        more = len(source.files) - 1
        named = source.path + (f" and {more} more" if more else "")
        form = writer.format
        if left_out := writer.left_out:
            entries["joints_left_out"] = left_out
            listed = ", ".join(left_out[:6]) + (f" and {len(left_out) - 6} more" if len(left_out) > 6 else "")
            tell(f"joints that {to} has no place for are left out: {listed}")
        tell(f"{named}: {rows} poses ({source.format.name}), with {describe_joints(source.skeleton)}")
        manifest = JobManifest(
            job=digest.hexdigest(),
            rows=rows,
            parts=count,
            shards=shards,
            single=writer.single,
            apart=bool(form and form.suffix),
            format=writer.written.name,
            head=form.head_of(writer.joints) if form else "",
            between=form.between if form else "",
            tail=form.tail if form else "",
            lists_images=bool(form and form.lists_images),
            joints=list(writer.joints),
            report={"detections": named, "format": source.format.name + (f" to {to}" if to else ""), **entries},
        )
        return Parts(self.out, manifest), rows

    def has(self, part: Part, store: Parts) -> bool:
        """Whether a part is done. One whose photographs have changed since, by their sizes and times, is not."""
        part.more["seen"] = self._seen(part)
        return store.has(part.number, part.more["seen"])

    def _seen(self, part: Part) -> str:
        """Identifies the photographs of a part as they are now."""
        if self.images is None:
            return ""
        stamps = [self.images.stamp(image) for image in part.by_image()]
        return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()

    def finish(self, part: Part, store: Parts) -> None:
        """Writes a part whose rows are done; `has` was asked before.

        Raises:
          PosefixError: it cannot be written, or a file that its rows are from was replaced since `start`.
        """
        self.source.check_unchanged({index for index, _ in part.elements})
        moved = sum(int((joints != part.poses[row].joints).any(axis=1).sum()) for row, joints in part.joints.items())
        segments = self.writer.segments(part)

        def entries(rows) -> list[dict]:
            return [
                {"row": part.first_row + row, "image_id": part.poses[row].image, "reason": part.reasons[row]}
                for row in sorted(rows)
            ]

        header: dict = {"first_row": part.first_row, "rows": len(part.poses)}
        header |= {"refined": len(part.joints), "joints_moved": moved}
        header |= {"passed_through": entries(set(part.reasons) - part.dropped), "left_out": entries(part.dropped)}
        store.write(part.number, header | part.more, segments)
