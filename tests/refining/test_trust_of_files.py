"""How far a job trusts its poses: said, or measured on the file; the same for all its processes, and in the report."""

import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import detections_of, identity_network

from posefix_jax.core.models import DecodeConfig
from posefix_jax.core.synthesis import PAPER
from posefix_jax.refining.fit_trust import FitTrustOptions, fit_trust, table_of
from posefix_jax.refining.refine_files import RefineOptions, refine_rows
from posefix_jax.refining.refiner import Refiner
from posefix_jax.refining.resumable_output import merge
from posefix_jax.types import PosefixError

TELLS = DecodeConfig("ks", withhold_mirror=True, trust=0.4, trust_weights=(0.0, 0.0, 4.0, 0.0, 0.0, 0.0, -2.0))
"""Trust near 0.88 for poses on the maps made without them, 0.12 for those far away."""


@pytest.fixture
def job(people, tmp_path):
    truth, images = people
    (tmp_path / "d.json").write_text(json.dumps(detections_of(truth) * 4))
    return RefineOptions((str(tmp_path / "d.json"),), str(images), tmp_path / "r.json", batch_size=8, part_rows=6)


def refiner_of(tiny_spec, *, sees: bool = True, decode: DecodeConfig = TELLS, **options) -> Refiner:
    """A refiner whose maps are at the input; if it does not see, those without the pose are in a corner of the crop."""
    spec = replace(tiny_spec, decode=decode)
    network = identity_network(spec)

    def blind(variables, image, crop_xy, present):
        return network(variables, image, jnp.where(present[..., None], crop_xy, 2.0), present)

    return Refiner(network if sees else blind, {}, spec, batch_size=8, identity="tiny", **options)


def trust_in(out: Path) -> dict:
    return json.loads(out.with_name(out.name + ".report.json").read_text())["trust"]


def test_trust_is_measured_said_and_reported(tiny_spec, job, capsys):
    report = refine_rows(refiner_of(tiny_spec), job)
    entry = trust_in(job.out)
    assert entry == report["trust"] and entry["from"] == "the poses" and entry["poses_measured"] == 24
    assert entry["value"] == pytest.approx(0.88, abs=0.03) and entry["fit"] > 0.95
    assert "24 poses were measured and look accurate: trust 0.8" in capsys.readouterr().err


def test_poses_on_other_photographs_are_said_or_refused(tiny_spec, job, capsys):
    """Nothing is written with --strict; the line says what to look at."""
    refiner = refiner_of(tiny_spec, sees=False)
    with pytest.raises(PosefixError, match=r"d.json: most poses do not fit their photographs \(fit 0.*--strict"):
        refine_rows(refiner, replace(job, strict=True))
    assert sorted(path.name for path in job.out.parent.glob("r.json*")) == []
    refine_rows(refiner, job)
    assert "check that names or ids match the photographs" in capsys.readouterr().err
    assert trust_in(job.out)["value"] < 0.2
    # Also if the trust is said.
    refine_rows(refiner, replace(job, trust=1.0))
    assert "most poses do not fit" in capsys.readouterr().err


def test_trust_that_is_said_comes_first(tiny_spec, job, tmp_path, capsys):
    refine_rows(refiner_of(tiny_spec), replace(job, trust=0.25))
    assert trust_in(job.out) | {"fit": 0} == {"value": 0.25, "from": "--trust", "poses_measured": 24, "fit": 0}
    refine_rows(refiner_of(tiny_spec, trust=0.75), job)
    assert trust_in(job.out)["from"] == "the refiner" and "trust 0.75 in the poses" in capsys.readouterr().err
    (tmp_path / "mine.json").write_text(PAPER.to_json())
    refine_rows(refiner_of(tiny_spec), replace(job, input_errors=tmp_path / "mine.json"))
    assert trust_in(job.out)["from"] == str(tmp_path / "mine.json") and 0 < trust_in(job.out)["value"] < 1
    with pytest.raises(PosefixError, match="give one of them"):
        replace(job, trust=0.5, input_errors=tmp_path / "mine.json")
    with pytest.raises(PosefixError, match="--trust must lie in 0..1, found 2"):
        replace(job, trust=2.0)
    with pytest.raises(PosefixError, match="nowhere.json"):
        refine_rows(refiner_of(tiny_spec), replace(job, input_errors=tmp_path / "nowhere.json"))


def test_a_refiner_that_cannot_tell_uses_its_default(tiny_spec, job, capsys):
    refine_rows(refiner_of(tiny_spec, decode=DecodeConfig("ks", trust=0.4)), job)
    assert trust_in(job.out) == {"value": 0.4, "from": "the refiner's default"}
    assert "trust 0.40 in the poses (the refiner's default)" in capsys.readouterr().err
    with pytest.raises(PosefixError, match="trust cannot be measured"):
        refiner_of(tiny_spec, decode=DecodeConfig()).measure_trust(np.zeros((9, 9, 3), np.uint8), np.ones((1, 17, 2)))


def test_shards_and_resumed_jobs_have_the_first_one_s_trust(tiny_spec, job):
    """Even on a machine whose arithmetic would tell another: the second shard's network does not see."""
    refine_rows(refiner_of(tiny_spec), replace(job, shard="0/2"))
    refine_rows(refiner_of(tiny_spec, sees=False), replace(job, shard="1/2"))
    assert merge(job.out)["trust"]["value"] == pytest.approx(0.88, abs=0.03)


def test_trust_needs_the_mirror_s_map_only_for_the_sample(tiny_spec, job):
    """Without the flip it is measured all the same."""
    refine_rows(refiner_of(tiny_spec, flip=False), job)
    assert trust_in(job.out)["from"] == "the poses" and trust_in(job.out)["value"] > 0.8


def test_measured_in_python(tiny_spec, people):
    """The same number as for the file, and what a refiner takes as its trust."""
    truth, images = people
    rows = detections_of(truth)
    names = {image["id"]: image["file_name"] for image in json.loads(truth.read_text())["images"]}
    photographs = [str(images / names[row["image_id"]]) for row in rows]
    poses = [np.reshape(row["keypoints"], (1, 17, 3)) for row in rows]
    refiner = refiner_of(tiny_spec)
    refiner.trust = refiner.measure_trust(photographs, poses)
    assert refiner.trust.weight[0] == pytest.approx(0.88, abs=0.03)
    refined = refiner.refine(photographs, poses)
    assert refined[0].confidence.shape == (1, 17) and (refined[0].confidence > 0).any()
    assert refined[0].quality[0] == pytest.approx(refined[0].confidence[0].mean(), abs=1e-6)


def test_fit_trust_chooses_by_ap(tiny_spec, people, tmp_path, monkeypatch, capsys):
    """A network that ruins every pose: full trust is best, and the table says so."""
    truth, images = people
    (tmp_path / "d.json").write_text(json.dumps(detections_of(truth)))
    spec = replace(tiny_spec, decode=DecodeConfig())
    network = identity_network(spec)

    def wrong(variables, image, crop_xy, present):
        return jnp.logaddexp(network(variables, image, crop_xy + 12.0, present), jnp.log(1e-3))

    monkeypatch.setattr(Refiner, "load", lambda *_, **__: Refiner(wrong, {}, spec, flip=False, batch_size=8))
    report = fit_trust(FitTrustOptions(tmp_path / "d.json", str(images), truth, samples=50))
    assert report["trust"] == 1.0 and report["by_trust"][1.0]["AP"] > report["by_trust"][0.0]["AP"]
    low, high = report["by_trust"][0.0]["interval"]
    assert low <= report["by_trust"][0.0]["difference"] <= high
    assert "refine with --trust 1.0" in table_of(report)
