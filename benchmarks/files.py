"""What `posefix refine` promises about files: any damage, any kill, any size; and how fast they are read and written.

    python benchmarks/files.py fuzz [--cases 10000] [--formats csv deeplabcut ...] [--write]
    python benchmarks/files.py kills DETECTIONS IMAGES [--kills 50] [--write]
    python benchmarks/files.py memory DETECTIONS IMAGES [--rows 100000 1000000 10000000] [--write]
    python benchmarks/files.py rates DETECTIONS IMAGES [--write]
    python benchmarks/files.py reads [--write]
    python benchmarks/files.py converts [--rows 50000 150000] [--formats csv npz ...] [--write]

`kills`, `memory` and `converts` run the command itself. In `memory`, 40 rows of every 100,000 (more than a batch) name an existing
photograph: what is measured is the path of the rows through the job, which is the same for those that pass through.
"""

import argparse
import functools
import gzip
import io
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from measure import write_result

sys.path.append(str(Path(__file__).parents[1] / "tests"))

PEAK = (
    "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)
REFINE = [sys.executable, "-m", "posefix_jax.cli", "refine"]


def peak_MB(command: list[str]) -> int:
    """The peak resident memory of a command that must succeed. Its output is dropped."""
    # A small process of its own starts the command: a child's peak is at least its parent's size.
    done = subprocess.run([sys.executable, "-c", PEAK, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    return int(done.stdout.split()[-1]) >> 10


def quickest(run, runs: int = 3, clock=time.perf_counter) -> float:
    """Seconds of the quickest of some runs."""
    times = []
    for _ in range(runs):
        begun = clock()
        run()
        times.append(clock() - begun)
    return min(times)


def tiny_spec():
    """The spec of a small refiner, which compiles quickly."""
    from posefix_jax.core.joint_sets import COCO
    from posefix_jax.core.models import DecodeConfig, ModelConfig, RefinerSpec

    model = ModelConfig(backbone="resnet18", width=4, head_channels=4, crop_hw=(64, 64), pose_sigma=2.0)
    return RefinerSpec(COCO, model, (True,) * 17, DecodeConfig("soft-argmax"))


def fuzz(options) -> dict:
    import conftest
    import format_samples
    import fuzz as damage

    from posefix_jax.refining.refine_files import RefineOptions, refine_rows
    from posefix_jax.refining.refiner import Refiner

    spec = tiny_spec()
    refiner = Refiner(conftest.identity_network(spec), {}, spec, batch_size=8)
    ends, quiet = Counter(), io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        truth, _ = conftest.make_people(Path(folder, "people"))
        good = conftest.detections_of(truth)[:4]

        def run(detections, images, out):
            return refine_rows(refiner, RefineOptions((str(detections),), str(images), out, batch_size=8))

        others = format_samples.sample_files(options.formats)
        for seed in range(options.cases):
            if seed % 500 == 0:
                print(f"{seed}/{options.cases} {dict(ends)}", file=sys.stderr)
            with tempfile.TemporaryDirectory(dir=folder) as place:
                terminal, sys.stderr = sys.stderr, quiet
                try:
                    ends[damage.judge(run, Path(place), seed, good, others, bool(options.formats))] += 1
                except Exception as error:
                    ends["neither"] += 1
                    print(f"seed {seed}: {type(error).__name__}: {error}", file=terminal)
                finally:
                    sys.stderr = terminal
    return {"cases": options.cases, "formats": options.formats, "ends": dict(ends)}


def kills(options) -> dict:
    """Kills at random moments from start to end; compares the bytes with those of an undisturbed run."""
    moments, killed, parts = random.Random(0), 0, []
    with tempfile.TemporaryDirectory() as folder:
        rows = json.loads(options.detections.read_text())
        many = Path(folder, "d.json")
        many.write_text(json.dumps(sorted(rows * options.times, key=lambda row: row["image_id"])))
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(Path(folder, "compiled"))}
        arguments = [str(many), "--images", str(options.images), "--batch-size", "16", "--part-rows", "16"]

        def start(out: Path) -> subprocess.Popen:
            command = [*REFINE, *arguments, "--out", str(out)]
            return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

        calm, torn = Path(folder, "calm.json"), Path(folder, "torn.json")
        begun = time.monotonic()
        assert start(calm).wait() == 0
        seconds = time.monotonic() - begun
        process = None
        while killed < options.kills:
            process = start(torn)
            try:
                # from before the first part to several parts later
                process.wait(moments.uniform(2.0, 2.0 + 2.2 * max(seconds / options.kills, 4.0)))
                torn.unlink()  # it finished before all kills: start over
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                killed += 1
                parts.append(len(list(Path(folder, "torn.json.parts").glob("*.part"))))
        assert start(torn).wait() == 0
        same = calm.read_bytes() == torn.read_bytes()
        reports = [json.loads(Path(f"{path}.report.json").read_text()) for path in (calm, torn)]
        left = [path.name for path in Path(folder).glob("torn.json*")]
    return {
        "rows": reports[0]["rows"],
        "kills": killed,
        "parts_done_at_each_kill": parts,
        "same_bytes": same,
        "same_report": reports[0] == reports[1],
        "left_behind": sorted(set(left) - {"torn.json", "torn.json.report.json"}),
    }


def memory(options) -> dict:
    """The command's peak resident memory and rate, by the number of rows."""
    rows = json.loads(options.detections.read_text())
    figures = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for count in options.rows:
            many, out = Path(folder, "d.json"), Path(folder, "r.json")
            with open(many, "w") as file:
                file.write("[")
                for i in range(count):
                    row = rows[i % len(rows)] | ({} if i % 100000 < 40 else {"image_id": 10**9 + i})
                    file.write((",\n" if i else "") + json.dumps(row))
                file.write("]")
            command = [*REFINE, str(many), "--images", str(options.images), "--out", str(out)]
            begun = time.perf_counter()
            peak = peak_MB(command)
            seconds = time.perf_counter() - begun
            figures[count] = {
                "input_MB": many.stat().st_size >> 20,
                "peak_MB": peak,
                "seconds": round(seconds, 1),
                "rows_per_s": round(count / seconds),
            }
            print(count, figures[count], file=sys.stderr)
            with open(out) as file:
                assert sum(line.count('"image_id"') for line in file) == count
            for path in (many, out, Path(f"{out}.report.json")):
                path.unlink()
    return {"by_rows": figures}


def rates(options) -> dict:
    """Rows per second of the readers and writers relative to the json module; photographs decoded per second."""
    import cv2

    from posefix_jax.core.joint_sets import COCO
    from posefix_jax.data.formats import WRITABLE, Edit
    from posefix_jax.data.images import decode_image
    from posefix_jax.data.pose_files import find_files, open_pose_file
    from posefix_jax.refining.convert import ConvertOptions, convert

    rows = json.loads(options.detections.read_text())
    rows = sorted((rows * (20000 // len(rows) + 1))[:20000], key=lambda row: row["image_id"])
    figures: dict = {"rows": len(rows)}

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "r.json")
        source.write_text(json.dumps(rows))
        load = quickest(
            lambda: [np.array(r["keypoints"], np.float64).reshape(-1, 3) for r in json.loads(source.read_text())]
        )
        dump = quickest(lambda: json.dumps(rows))
        figures["json_module"] = {
            "read_rows_per_s": round(len(rows) / load),
            "write_rows_per_s": round(len(rows) / dump),
        }
        for name in WRITABLE:
            out = Path(folder, f"{name}.json" if not WRITABLE[name].suffix else name)
            begun = time.perf_counter()
            terminal, sys.stderr = sys.stderr, io.StringIO()
            try:
                convert(ConvertOptions((str(source),), out, name, images=str(options.images)))
            finally:
                sys.stderr = terminal
            whole = time.perf_counter() - begun

            def read(out=out):
                for path, _ in find_files([str(out)], Path(folder, "none")):
                    for element in open_pose_file(path, skeleton=None, preferred=COCO).elements():
                        assert element is not None

            seconds = quickest(read)
            figures[name] = {
                "read_over_json": round(load / seconds, 2),
                "read_rows_per_s": round(len(rows) / seconds),
                "convert_rows_per_s": round(len(rows) / whole),
            }
        document = open_pose_file(str(source), skeleton=None, preferred=COCO)
        elements = list(document.elements())[:4000]
        changed = (np.arange(17) < 12)[:, None] * 0.125

        def render():
            for element in elements:
                document.format.edited(document, Edit(element, {0: element.poses[0].joints + changed}))

        each = quickest(render) / len(elements)
        figures["coco_with_12_joints_changed"] = {
            "write_rows_per_s": round(1 / each),
            "over_json_module": round(dump / len(rows) / each, 2),
        }
    photographs = [path.read_bytes() for path in sorted(options.images.glob("*.jpg"))[:60]]
    cv2.setNumThreads(1)
    decoders = {"opencv": decode_image}
    try:
        from PIL import Image

        decoders["pillow"] = lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        import imageio.v3

        decoders["imageio"] = imageio.v3.imread
    except ImportError:
        pass
    figures["decode_per_s_and_core"] = {
        name: round(len(photographs) / quickest(lambda decode=decode: [decode(data) for data in photographs]), 1)
        for name, decode in decoders.items()
    }
    figures["gzip_rows_per_s"] = round(len(rows) / quickest(lambda: gzip.compress(json.dumps(rows).encode(), 6)))
    figures["this_process_peak_MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return figures


def reads(options) -> dict:
    """People read per second of CPU time in every format that is text, relative to the json module and numpy.

    The json module reads the same file, if that is JSON, else a list of rows with the same keypoints; numpy makes an array
    of each person's.
    """
    import format_samples

    from posefix_jax.core.joint_sets import COCO
    from posefix_jax.data.pose_files import open_pose_file

    best = functools.partial(quickest, runs=5, clock=time.process_time)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (files, _) in format_samples.samples().items():
            file, text = files[0]
            if file.endswith(".gz"):
                continue
            path = Path(folder, "many" + "".join(Path(file).suffixes))
            path.write_text(many_times(name, text, 1000))

            def people(path=path) -> list:
                opened = open_pose_file(str(path), skeleton=None, preferred=COCO)
                return [pose for element in opened.elements() for pose in element.poses]

            poses = people()
            rows = json.dumps([{"image_id": 1, "keypoints": pose.joints.reshape(-1).tolist()} for pose in poses])
            same = path.read_text() if path.suffix == ".json" else rows
            lists = [row["keypoints"] for row in json.loads(rows)]

            def module(same=same, lists=lists) -> tuple:
                return json.loads(same), [np.array(values, np.float64).reshape(-1, 3) for values in lists]

            seconds, json_seconds = best(people), best(module)
            figures[name] = {
                "people_per_s": round(len(poses) / seconds),
                "over_json": round(json_seconds / seconds, 2),
            }
    return {"by_format": figures}


def converts(options) -> dict:
    """Peak resident memory of `posefix convert --to coco`, by format and number of people."""
    import cv2
    import format_samples

    figures: dict = {}
    single = {name: files for name, (files, _) in format_samples.samples().items() if len(files) == 1}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        images = Path(folder, "images")
        images.mkdir()
        grey = np.zeros((format_samples.HEIGHT, format_samples.WIDTH), np.uint8)
        for number in (1, 2, 3):  # for the sizes that fractions need
            cv2.imwrite(str(images / f"{number:012d}.png"), grey)
        for name in [*single, "npz", "deeplabcut-h5", "sleap-h5"]:
            if options.formats and name not in options.formats:
                continue
            for count in options.rows:
                if name in single:
                    file, text = single[name][0]
                    data = many_times(name, text, count // 3).encode()
                else:
                    file, data = binary_many_times(name, count // 3)
                path, out = Path(folder, file), Path(folder, "out.json")
                path.write_bytes(gzip.compress(data, 1) if file.endswith(".gz") else data)
                command = [sys.executable, "-m", "posefix_jax.cli", "convert", str(path), "--images", str(images)]
                command += ["--to", "coco", "--out", str(out)]
                peak = peak_MB(command)
                people = sum(line.count('"image_id"') for line in open(out))
                found = figures.setdefault(name, {})
                found[people] = {"input_MB": round(len(data) / 2**20, 1), "peak_MB": peak}
                print(name, people, found[people], file=sys.stderr)
                for made in (path, out, Path(f"{out}.report.json")):
                    made.unlink()
    return {"by_format": figures}


def binary_many_times(name: str, times: int) -> tuple[str, bytes]:
    """The file of a sample in a binary format, with its people many times over."""
    import format_samples
    import h5py

    file = io.BytesIO()
    if name == "npz":
        arrays = dict(np.load(io.BytesIO(format_samples.npz_bytes())))
        people = ("keypoints", "image_id", "scores")
        np.savez(file, **{key: np.concatenate([arrays[key]] * times) for key in people})
        return "t.npz", file.getvalue()
    if name == "deeplabcut-h5":
        file = io.BytesIO(format_samples.recorded("deeplabcut_video.h5"))
        with h5py.File(file, "r+") as archive:
            table = archive["df_with_missing/table"]
            rows = table[()]
            table.resize((len(rows) * times,))
            table[...] = np.concatenate([rows] * times)
        return "d.h5", file.getvalue()
    file = io.BytesIO(format_samples.recorded("sleap_matlab.h5"))
    with h5py.File(file, "r+") as archive:
        for key in ("tracks", "point_scores", "instance_scores"):  # whose last axis is the frames
            values, dims = archive[key][()], archive[key].attrs["dims"]
            del archive[key]
            many = np.concatenate([values[..., 1:3]] * times, axis=-1)
            archive.create_dataset(key, data=many, compression="gzip").attrs["dims"] = dims
    return "s.h5", file.getvalue()


def many_times(name: str, text: str, times: int) -> str:
    """A sample with its people many times over."""
    if text[:1] not in "[{" or "}\n{" in text:
        lines = text.splitlines(keepends=True)
        head = {"yolo": 0, "deeplabcut": 4}.get(name, 0 if text[:1] == "{" else 1)
        body = "".join(line.rstrip("\n") + "\n" for line in lines[head:] if line.strip())
        # The people of a table of joints have names of their own.
        return "".join(lines[:head]) + "".join(body.replace("\tp", f"\t{i}p") for i in range(times))
    value = json.loads(text)
    if isinstance(value, list):
        return json.dumps(value * times)
    members = ("annotations", "annolist", "instance_info", "people", "bodies", "data")
    member = next((key for key in members if key in value), None)
    if member is None:  # keyed by photograph
        return json.dumps({f"{i}/{key}": people for i in range(times) for key, people in value.items()})
    return json.dumps({**value, member: value[member] * times})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("fuzz", "kills", "memory", "rates", "reads", "converts"))
    parser.add_argument("detections", type=Path, nargs="?")
    parser.add_argument("images", type=Path, nargs="?")
    parser.add_argument("--cases", type=int, default=10000)
    parser.add_argument(
        "--formats", nargs="+", default=[], help="fuzz, converts: only these of tests/format_samples.py"
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--times", type=int, default=8, help="kills: how many times to repeat the rows of the file")
    parser.add_argument("--rows", type=int, nargs="+", help="memory: 10^5, 10^6, 10^7; converts: 50000, 150000")
    parser.add_argument("--folder", type=Path, default=None, help="memory: a folder with 20 GB of free space")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    options.rows = options.rows or ([50000, 150000] if options.what == "converts" else [10**5, 10**6, 10**7])
    write_result("files", {"what": options.what} | globals()[options.what](options))


if __name__ == "__main__":
    main()
