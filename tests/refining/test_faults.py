"""What a fault does to a job over files: kills, damage, a full disk, changed input, two jobs on one output."""

import hashlib
import shutil

import pytest
from conftest import change, tree

from posefix_jax.files import held
from posefix_jax.refining.refine_files import MergeOptions, merge_shards, refine_rows
from posefix_jax.refining.resumable_output import merge
from posefix_jax.types import PosefixError


def test_a_foreign_part_writes_nothing_outside(identity, job, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.json", "b.json"):
        (tmp_path / "in" / name).write_bytes((tmp_path / "d.json").read_bytes())
    divided = change(job, detections=(str(tmp_path / "in"),), out=tmp_path / "x" / "out")
    for shard in ("0/2", "1/2"):
        refine_rows(identity, change(divided, shard=shard))
    part = min((tmp_path / "x" / "out.parts").glob("*.part"))
    content = part.read_bytes().split(b"\n", 1)[1].replace(b'[["a.json"', b'[["../../../ESC.json"')
    part.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    with pytest.raises(PosefixError, match="ESC.json' does not lie inside"):
        merge(divided.out)
    assert not list(tmp_path.rglob("ESC*")) and not divided.out.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-20],  # cut short
        lambda data: data + b"more",
        lambda data: b"[]\n" + data,
        lambda data: data[:-30] + b"\0\0\0" + data[-27:],  # in the middle of its rows
        lambda data: data.replace(b'"rows": ', b'"rows": -', 1),
        lambda data: b"",
    ],
)
def test_a_damaged_part_is_named_and_done_again(damage, identity, job, tmp_path, capfd):
    refine_rows(identity, change(job, shard="0/2"))
    refine_rows(identity, change(job, shard="1/2"))
    part = min((tmp_path / "r.json.parts").glob("*.part"))
    whole = part.read_bytes()
    part.write_bytes(damage(whole))
    with pytest.raises(PosefixError, match=f"{part.name}: damaged, its checksum does not fit"):
        merge(job.out)
    assert not job.out.exists()
    refine_rows(identity, change(job, shard="0/2"))
    assert part.read_bytes() == whole and "the part is done again" in capfd.readouterr().err


def test_a_part_whose_photographs_changed_is_done_again(identity, job, people, tmp_path, capfd):
    """Between an interruption and the same command: no output is made of both."""
    shutil.copytree(people[1], tmp_path / "photographs")
    job = change(job, images=str(tmp_path / "photographs"))
    refine_rows(identity, change(job, shard="0/2"))
    changed = tmp_path / "photographs" / f"{1:012d}.png"
    times = {part: part.stat().st_mtime_ns for part in (tmp_path / "r.json.parts").glob("*.part")}
    changed.write_bytes(changed.read_bytes() + b"\0")
    refine_rows(identity, change(job, shard="0/2"))
    again = [part for part, time in times.items() if part.stat().st_mtime_ns != time]
    assert [part.name[:7] for part in again] == ["0000000"] and len(times) > 1
    assert "its photographs have changed since; the part is done again" in capfd.readouterr().err


def test_two_jobs_do_not_write_one_output(identity, job, tmp_path):
    """The second is refused at its start, whether it is the same or another; the first one's parts stay."""
    refine_rows(identity, change(job, shard="0/2"))
    parts = tmp_path / "r.json.parts"
    before = tree(tmp_path)
    with held(parts, shared=True):
        refine_rows(identity, change(job, shard="0/2"))  # shards of one job share it
        for other in (change(job, min_score=0.3), job):
            with pytest.raises(PosefixError, match="r.json.parts: another process is at work there"):
                refine_rows(identity, other)
        with pytest.raises(PosefixError, match="another process is at work there"):
            merge_shards(MergeOptions(job.out))
    assert tree(tmp_path) == before
    refine_rows(identity, change(job, shard="1/2"))
    assert merge_shards(MergeOptions(job.out))["rows"] == 6
