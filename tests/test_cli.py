"""The command as a user types it: one clear line and exit code 2 for every mistake of theirs."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import detections_of

from posefix_jax.cli import ALIASES, JOBS, json_of, main


@pytest.fixture
def files(people, tmp_path):
    truth, images = people
    (tmp_path / "d.json").write_text(json.dumps(detections_of(truth)))
    return {"truth": str(truth), "images": str(images), "d": str(tmp_path / "d.json"), "out": str(tmp_path / "r.json")}


def run(capsys, *arguments):
    """Exit code and what was printed to standard error, which must be one line and no traceback."""
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as stopped:  # the option parser's own way out
        code = stopped.code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return code, error


def refused(capsys, *arguments) -> str:
    code, error = run(capsys, *arguments)
    assert code == 2
    lines = [line for line in error.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("posefix: "), error
    return lines[0]


def test_help_imports_nothing_heavy():
    script = (
        "import sys; from posefix_jax.cli import main; main(['--help']); "
        "assert not {'jax', 'numpy', 'tyro', 'cv2'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and "refine" in done.stdout, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
@pytest.mark.parametrize("given", [None, "glibc.malloc.perturb=0"])
@pytest.mark.slow
def test_a_job_that_runs_a_network_gets_huge_pages(given):
    """Started anew with the setting and the same arguments, once; not where the user has settings of their own."""
    printed, done = started(given, "refine", "nowhere.json", "--images", ".", "--out", "nowhere")
    assert printed == ([given] if given else ["None", "glibc.malloc.hugetlb=1"])
    assert done.returncode == 2 and "nowhere.json: No such file" in done.stderr


def test_other_jobs_start_once():
    printed, done = started(None, "evaluate", "nowhere.json", "--annotations", "nowhere.json")
    assert printed == ["None"] and done.returncode == 2 and "nowhere.json: No such file" in done.stderr


def started(given: str | None, *arguments: str):
    """The settings that each start of the command prints, and how it ends."""
    code = (
        "import os; print(os.environ.get('GLIBC_TUNABLES'), flush=True); "
        "from posefix_jax.cli import main; raise SystemExit(main())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment |= {"GLIBC_TUNABLES": given} if given else {}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.stdout.split(), done


def test_unknown_job(capsys):
    assert "did you mean 'refine'" in refused(capsys, "refin")


@pytest.mark.parametrize("job", [*JOBS, *ALIASES])
def test_every_job_has_help(job, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*job.split(), "--help"])
    assert not stopped.value.code
    assert "--" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name, job in JOBS.items() if job.example])
def test_help_shows_an_example_that_parses(name, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    job, words = JOBS[name], shlex.split(JOBS[name].example)
    monkeypatch.setattr(f"posefix_jax.{job.run.replace(':', '.')}", lambda options: {"options": options})
    monkeypatch.setattr(job, "show", lambda result, options: type(options).__name__)
    monkeypatch.setattr(job, "code", lambda result, options: 0)
    assert main([*name.split(), *words]) == 0
    assert capsys.readouterr().out.strip().endswith(("Options", "Config"))
    with pytest.raises(SystemExit):
        main([*name.split(), "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Example: posefix {name} {job.example}" in shown
    assert name == "import" or "--quiet" in shown and "--json" in shown


def test_results_as_json_and_quietly(files, capsys):
    arguments = ["evaluate", files["d"], "--annotations", files["truth"], "--out", files["out"]]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert main([*arguments, "--json", "--quiet"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report == json.loads(Path(files["out"]).read_text()) and not printed.err
    assert f"{report['after']['AP']:.4f}" in table
    assert main(["convert", files["d"], "--to", "mmpose", "--out", files["out"] + "2"]) == 0
    assert "convert: 6/6 poses" in capsys.readouterr().err
    assert main(["convert", files["d"], "--to", "mmpose", "--out", files["out"] + "3", "--quiet", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["rows"] == 6 and not printed.err
    assert json.loads(json_of({"a": [float("nan"), np.float32(0.5)], 1: Path("x")})) == {"a": [None, 0.5], "1": "x"}


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_jobs_and_options(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("refine", "inspect", "fit-trust", "--first-frame", "--optimizer.learning-rate"):
        assert word in script
    assert "usage: posefix completion bash|zsh" in refused(capsys, "completion", "csh")


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes(tmp_path, capsys):
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    asked = """
    source ./script
    ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _tyro_posefix; printf '%s,' "${COMPREPLY[@]}"; }
    ask posefix ins; ask posefix refine --first
    """
    done = subprocess.run(["bash", "-c", asked], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "inspect,--first-frame,", done.stderr


@pytest.mark.slow
def test_refine_mistakes(files, capsys, tmp_path):
    def refine(detections=files["d"], images=files["images"], *more):
        return refused(capsys, "refine", "--detections", detections, "--images", images, "--out", files["out"], *more)

    assert "none.json: No such file" in refine(tmp_path / "none.json")
    assert "no such image folder" in refine(files["d"], tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "none of the photographs" in refine(files["d"], tmp_path / "empty")
    assert "no such checkpoint folder" in refine(files["d"], files["images"], "--checkpoint", tmp_path / "none")
    assert "not a refiner checkpoint" in refine(files["d"], files["images"], "--checkpoint", tmp_path / "empty")
    assert "--batch-size, --threads, --iterations and --part-rows must be positive" in refine(
        files["d"], files["images"], "--batch-size", "0"
    )
    for content, message in (
        ("[", "broken JSON at byte 1"),
        ("[]", "no poses to work on"),
        (json.dumps([{"image_id": 1, "category_id": 1, "keypoints": [0] * 60, "score": 1}]), "expected 51"),
    ):
        (tmp_path / "bad.json").write_text(content)
        assert message in refine(tmp_path / "bad.json")
    rows = json.loads((tmp_path / "d.json").read_text())
    rows[0]["keypoints"][0] = float("inf")
    (tmp_path / "inf.json").write_text(json.dumps(rows))
    assert "row 0 cannot be refined: a value is not finite" in refine(
        tmp_path / "inf.json", files["images"], "--strict"
    )


@pytest.mark.slow
def test_checkpoint_of_another_skeleton(files, capsys, tmp_path, tiny_spec):
    """Its 14 joints and the file's 17 have 12 names in common: those are refined, the others stay as they were."""
    import jax

    from posefix_jax.core.joint_sets import CROWDPOSE
    from posefix_jax.core.models import RefinerSpec
    from posefix_jax.runtime.checkpoints import save_refiner

    spec = RefinerSpec(CROWDPOSE, tiny_spec.model, (True,) * 14)
    h, w = spec.model.crop_hw
    example = np.zeros((1, h, w, 3), np.float32), np.zeros((1, 14, 2), np.float32), np.ones((1, 14), bool)
    save_refiner(tmp_path / "crowd", jax.jit(spec.network().init)(jax.random.key(0), *example), spec)
    arguments = ["--images", files["images"], "--out", files["out"], "--checkpoint", tmp_path / "crowd"]
    arguments += ["--no-flip", "--batch-size", 8]
    assert run(capsys, "refine", files["d"], *arguments)[0] == 0
    for before, after in zip(*(json.loads(Path(files[key]).read_text()) for key in ("d", "out")), strict=True):
        assert (
            after["keypoints"][:15] == before["keypoints"][:15] and after["keypoints"][15:] != before["keypoints"][15:]
        )
    # Of a face alone it can move nothing.
    face = {
        "name": "face",
        "joints": ["nose", "left_eye", "right_eye"],
        "flip_pairs": [],
        "sigmas": [0.1] * 3,
        "limbs": [],
    }
    (tmp_path / "face.json").write_text(json.dumps(face))
    (tmp_path / "f.json").write_text(json.dumps([{"image_id": 1, "category_id": 1, "keypoints": [1] * 9, "score": 1}]))
    named = ["--skeleton", tmp_path / "face.json"]
    assert "share none with those that the refiner moves" in refused(
        capsys, "refine", tmp_path / "f.json", *arguments, *named
    )


def test_evaluate(files, capsys):
    code, _ = run(
        capsys, "evaluate", files["d"], "--annotations", files["truth"], "--against", files["d"], "--samples", 20
    )
    assert code == 0
    assert "as a results file is" in refused(capsys, "evaluate", files["d"], "--annotations", files["d"])


def test_prepare_and_train_mistakes(files, capsys, tmp_path):
    arguments = ["--annotations", files["truth"], "--out", tmp_path / "p"]
    assert "no such image folder" in refused(capsys, "prepare", *arguments, "--images", tmp_path / "none")
    assert "no such config file" in refused(capsys, "train", "configs/none.py")
    assert "train needs a config file" in refused(capsys, "train", "--epochs", "3")
    preset = Path(__file__).parents[1] / "configs" / "lspet_mnv2_128x96.py"
    assert "did you mean 'resnet18'" in refused(capsys, "train", preset, "--model.backbone", "resnet1")
    assert "posefix prepare" in refused(capsys, "train", preset, "--data.train", tmp_path, "--out", tmp_path / "run")
    code, error = run(capsys, "train", preset, "--model.backbon", "resnet18")
    assert code == 2 and "--model.backbone" in error


BY_SHELL = {
    "output that nobody reads": (
        "posefix convert d.json --to mmpose --out o.json | true; exit ${PIPESTATUS[0]}",
        0,
        "",
    ),
    "closed streams": ("posefix convert d.json --to mmpose --out o.json >&- 2>&-", 0, None),
    "closed errors": ("posefix convert d.json --to mmpose --out o.json 2>&-", 0, None),
    "a letter that the terminal lacks": (
        "PYTHONIOENCODING=ascii posefix inspect é.json",
        2,
        "posefix: \\xe9.json: No such",
    ),
    "an unknown platform": (
        "JAX_PLATFORMS=bogus posefix demo --out demo",
        2,
        "posefix: JAX_PLATFORMS=bogus: Unable to",
    ),
}


@pytest.mark.parametrize("name", BY_SHELL)
def test_odd_surroundings(name, people, tmp_path):
    """The whole output is there, or one line says why not."""
    command, code, said = BY_SHELL[name]
    (tmp_path / "d.json").write_text(json.dumps(detections_of(people[0])))
    command = command.replace("posefix ", f"{sys.executable} -m posefix_jax.cli ")
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    if code:
        assert done.stderr.startswith(said) and done.stderr.count("\n") == 1
    else:
        assert len(json.loads((tmp_path / "o.json").read_text())) == 3
    if name == "closed errors":
        assert done.stdout == "6 poses (coco to mmpose): o.json\n"


def test_a_config_that_ends_the_process_has_trained_nothing(tmp_path, capsys):
    (tmp_path / "c.py").write_text("import sys\n\nsys.exit(0)\n")
    assert main(["train", str(tmp_path / "c.py"), "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == f"posefix: {tmp_path / 'c.py'}: SystemExit: 0\n"
