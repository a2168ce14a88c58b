"""Every command that README and docs name, as it stands there, with the packaged refiner."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import detections_of, make_people

from posefix_jax.cli import JOBS, main
from posefix_jax.data.prepare import PrepareOptions, prepare
from posefix_jax.runtime.checkpoints import packaged_path

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/errors.md", "docs/evaluation.md", "docs/formats.md")
LONG = {
    "train": "training.train.train",
    "study": "training.study.study",
    "import": "weights.import_weights.import_weights",
}
"""Jobs that take hours or other people's weights: here only their options are read; they have tests of their own."""


def commands_of(page: str) -> list[list[str]]:
    """The commands of a page's code blocks."""
    text = (ROOT / page).read_text()
    found = [shlex.split(line) for line in re.findall(r"^    posefix (.*)$", text, re.M)]
    return [
        ["train", "configs/posefix_r50_256x192.py", *words[2:]] if "CONFIG.py" in words else words for words in found
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with what the pages' commands name: photographs of noise, people in them, and the packaged refiner."""
    folder = tmp_path_factory.mktemp("place")
    truth, images = make_people(folder / "made")
    for name in ("photographs", "train2017"):
        shutil.copytree(images, folder / name)
    for name in ("gt.json", "person_keypoints_train2017.json"):
        shutil.copy(truth, folder / name)
    shutil.copy(truth, folder / "boxes.json")
    (folder / "d.json").write_text(json.dumps(detections_of(truth)))
    (folder / "tracks.csv").write_text("clip,snout.x,snout.y,tail_x,tail_y\n1,10,12,30,40\n")
    (folder / "configs").symlink_to(ROOT / "configs")
    for name in ("coco", "coco-val", "mine"):
        options = {"detections": (folder / "d.json",), "patch": 96}
        prepare(PrepareOptions(annotations=truth, images=images, out=folder / "prepared" / name, **options))
    for name in ("runs/mine", "runs/estimator_mnv2_96x64", "released"):
        shutil.copytree(packaged_path(), folder / name)
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_documented_commands_run(page, place, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "here"
    shutil.copytree(place, folder, symlinks=True)
    monkeypatch.chdir(folder)
    read = []
    for job, function in LONG.items():
        returned = {"train": (None, True), "study": True, "import": ""}[job]
        monkeypatch.setattr(
            f"posefix_jax.{function}", lambda options, returned=returned: read.append(options) or returned
        )
    commands = commands_of(page)
    assert commands
    for words in commands:
        if words[1] == "r.json" and not Path("r.json").exists():  # that README's first command writes
            shutil.copy("d.json", "r.json")
        assert main(words) == 0, (words, capsys.readouterr().err[-500:])
        out = next((Path(words[i + 1]) for i, word in enumerate(words) if word in ("--out", "--preview")), None)
        assert words[0] in LONG or out is None or out.exists(), words
    assert len(read) == sum(words[0] in LONG for words in commands)


def test_every_job_is_documented_and_run():
    """What no page shows with its options runs in the tests below, in test_demo or test_cli."""
    shown = {words[0] for page in PAGES for words in commands_of(page)}
    assert shown | {"merge", "convert", "export", "demo", "completion"} == {name.split()[0] for name in JOBS}


@pytest.mark.parametrize("name", [name for name, job in JOBS.items() if job.example])
def test_examples_of_help_are_documented_ones(name):
    """So they run: those above, `merge` and `convert` below, `export` and `demo` in tests of their own."""
    pages = " ".join(" ".join((ROOT / page).read_text() for page in (*PAGES, "Makefile")).split())
    assert f"posefix {name} {JOBS[name].example}" in pages


def test_shards_of_the_packaged_refiner_and_other_formats(place, monkeypatch, tmp_path):
    """`--shard` and `merge`, `convert`, as README has them in its text; one file in the end, the same as undivided."""
    monkeypatch.chdir(place)
    arguments = ["refine", "d.json", "--images", "photographs", "--part-rows", "2", "--batch-size", "8"]
    for shard in ("0/2", "1/2"):
        assert main([*arguments, "--out", str(tmp_path / "r.json"), "--shard", shard]) == 0
    assert main(["merge", str(tmp_path / "r.json")]) == 0
    assert main([*arguments, "--out", str(tmp_path / "whole.json")]) == 0
    assert (tmp_path / "r.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert (tmp_path / "r.json").read_bytes() != Path("d.json").read_bytes()
    assert main(["convert", "d.json", "--to", "mmpose", "--out", str(tmp_path / "m.json")]) == 0
