"""Forward pass and training step compared with PyTorch and with the limits of the machine.

    pip install torch
    python benchmarks/peer.py [--write] [--backbones resnet18 resnet50] [--crop 256 192] [--batch 8] [--rounds 5]

Both sides have the same network, inputs and precision: float32 on a CPU, bfloat16 on a GPU. PyTorch runs channels-last
with torch.compile (`--eager`: without). Ours runs with the compiler options of `posefix_jax.runtime.devices`
(`--xla-defaults`: without) and the huge pages of the `posefix` command (`--torch-huge-pages`: PyTorch too). Each side
is a process of its own; they work alternately. `ratio` is our rate over PyTorch's: above 1, ours is faster. The spread
is over the rounds. `operations` and `bytes` are shares of the machine's limits: the time that the program's operations
would take at the rate of a large matrix product, and its bytes at the rate of a large copy, over the measured time. XLA
counts bytes read from caches too, so that share may exceed 1.
"""

import argparse
import json
import subprocess
import sys
import time

import numpy as np

JOINTS = 17
UNITS = {
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet50": (True, (3, 4, 6, 3)),
    "resnet152": (True, (3, 8, 36, 3)),
}
"""backbone: whether it has bottlenecks, and the units per stage"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbones", nargs="+", default=["resnet18", "resnet50"], choices=UNITS)
    parser.add_argument("--crop", type=int, nargs=2, default=(256, 192))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--xla-defaults", action="store_true")
    parser.add_argument("--torch-huge-pages", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--side", choices=("ours", "torch"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        if options.side == "ours" or options.torch_huge_pages:
            from posefix_jax.cli import use_huge_pages

            use_huge_pages()
        serve(ours(options) if options.side == "ours" else torchs(options))
        return
    figures = {"crop": list(options.crop), "batch": options.batch}
    for backbone in options.backbones:
        figures[backbone] = compare(backbone, options)
    from measure import write_result  # only now: its jax would share the cores

    write_result("peer", figures)


def compare(backbone: str, options: argparse.Namespace) -> dict:
    """Figures of the forward pass and the training step of one backbone."""
    command = [sys.executable, __file__, "--backbones", backbone, "--batch", str(options.batch)]
    command += ["--crop", *map(str, options.crop), *(["--eager"] if options.eager else [])]
    command += ["--xla-defaults"] if options.xla_defaults else []
    command += ["--torch-huge-pages"] if options.torch_huge_pages else []
    sides = {
        side: subprocess.Popen([*command, "--side", side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for side in ("ours", "torch")
    }

    def ask(side: str, what: str) -> dict:
        process = sides[side]
        process.stdin.write(what + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{backbone}: the {side} side ended with {process.wait()}; see its output above")
        return json.loads(line)

    found = {}
    for what in ("forward", "train"):
        for side in sides:
            ask(side, what)  # compiles
        rounds = [{side: ask(side, what) for side in sides} for _ in range(options.rounds)]
        ratios = [one["torch"]["seconds"] / one["ours"]["seconds"] for one in rounds]
        seconds = {side: float(np.median([one[side]["seconds"] for one in rounds])) for side in sides}
        found[what] = {
            "crops_per_second": round(options.batch / seconds["ours"], 2),
            "torch_crops_per_second": round(options.batch / seconds["torch"], 2),
            "ratio": round(float(np.median(ratios)), 3),
            "ratio_spread": [round(min(ratios), 3), round(max(ratios), 3)],
        }
        for limit in ("operations", "bytes"):
            shares = [one["ours"][limit] / one["ours"]["seconds"] for one in rounds]
            found[what][limit] = round(float(np.median(shares)), 3)
        print(backbone, what, found[what], file=sys.stderr, flush=True)
    for process in sides.values():
        process.stdin.close()
        process.wait()
    return found


def serve(programs: dict) -> None:
    """For each line: runs the program of that name for two seconds or more; prints the seconds per run and its
    limits."""
    for line in sys.stdin:
        run, limits = programs[line.strip()]
        run()
        count, begun = 0, time.perf_counter()
        while count < 2 or time.perf_counter() - begun < 2:
            run()
            count += 1
        print(json.dumps({"seconds": (time.perf_counter() - begun) / count, **limits()}), flush=True)


def arrays(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Crops [B, H, W, 3] and joints [B, K, 2] in them."""
    rng = np.random.default_rng(0)
    height, width = options.crop
    crops = rng.integers(0, 255, (options.batch, height, width, 3)).astype(np.float32)
    xy = (rng.random((options.batch, JOINTS, 2)) * [width, height]).astype(np.float32)
    return crops, xy


def ours(options: argparse.Namespace) -> dict:
    import jax
    import jax.numpy as jnp
    from measure import peak_rates

    from posefix_jax.core.joint_sets import COCO
    from posefix_jax.core.models import ModelConfig, RefinerSpec
    from posefix_jax.core.synthesis import SyntheticPose
    from posefix_jax.core.train_step import TrainingPose, make_update_step
    from posefix_jax.runtime.devices import compiler_options, data_mesh
    from posefix_jax.training.config import Config
    from posefix_jax.training.initial_weights import initial_state
    from posefix_jax.training.optimizer import make_optimizer

    config = Config(model=ModelConfig(options.backbones[0], crop_hw=tuple(options.crop)))
    spec = RefinerSpec(COCO, config.model, (True,) * JOINTS)
    optimizer = make_optimizer(config.optimizer, 1000)
    state = initial_state(config, spec, optimizer, data_mesh())._replace(average=None)
    crops, xy = (jnp.asarray(array) for array in arrays(options))
    present = jnp.ones(xy.shape[:2], bool)
    given = SyntheticPose(xy, present, present.astype(jnp.int32))
    poses = TrainingPose(crop=crops, crop_xy=xy, valid=present, area=jnp.full(len(xy), 1e4), input=given)
    network = spec.network()
    variables = jax.tree.map(jnp.copy, {"params": state.params, "batch_stats": state.batch_stats})
    chosen = {} if options.xla_defaults else compiler_options()
    update = jax.jit(make_update_step(spec=spec, optimizer=optimizer), donate_argnums=0, compiler_options=chosen)
    update = update.lower(state, poses).compile()
    apply = jax.jit(network.apply, compiler_options=chosen).lower(variables, crops, xy, present).compile()

    def forward():
        jax.block_until_ready(apply(variables, crops, xy, present))

    def train():
        nonlocal state
        state, metrics = update(state, poses)
        jax.block_until_ready(metrics)

    def limits_of(compiled):
        cost = compiled.cost_analysis()

        def limits() -> dict[str, float]:
            operations, bytes_moved = peak_rates(config.model.dtype)
            return {"operations": cost["flops"] / operations, "bytes": cost["bytes accessed"] / bytes_moved}

        return limits

    return {"forward": (forward, limits_of(apply)), "train": (train, limits_of(update))}


def torchs(options: argparse.Namespace) -> dict:
    import torch
    import torch.nn.functional as functional
    from torch import nn

    bottleneck, stages = UNITS[options.backbones[0]]

    def convolution(before, channels, kernel=1, stride=1):
        layer = nn.Conv2d(before, channels, kernel, stride, kernel // 2, bias=False)
        return [layer, nn.BatchNorm2d(channels)]

    class Unit(nn.Module):
        def __init__(self, before, channels, stride):
            super().__init__()
            after = channels * (4 if bottleneck else 1)
            if bottleneck:
                plan = [(before, channels, 1, 1), (channels, channels, 3, stride), (channels, after, 1, 1)]
            else:
                plan = [(before, channels, 3, stride), (channels, channels, 3, 1)]
            layers = [layer for one in plan for layer in (*convolution(*one), nn.ReLU(inplace=True))]
            self.body = nn.Sequential(*layers[:-1])
            same = before == after and stride == 1
            self.shortcut = nn.Identity() if same else nn.Sequential(*convolution(before, after, 1, stride))

        def forward(self, x):
            return functional.relu(self.body(x) + self.shortcut(x))

    layers = [*convolution(3 + JOINTS, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, units in enumerate(stages):
        for unit in range(units):
            layers.append(Unit(channels, 64 * 2**stage, 2 if stage and not unit else 1))
            channels = 64 * 2**stage * (4 if bottleneck else 1)
    for _ in range(3):
        layers += [nn.ConvTranspose2d(channels, 256, 4, 2, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU(inplace=True)]
        channels = 256
    device = "cuda" if torch.cuda.is_available() else "cpu"
    body = nn.Sequential(*layers, nn.Conv2d(channels, JOINTS, 1)).to(device, memory_format=torch.channels_last)
    mean = torch.tensor((123.675, 116.28, 103.53), device=device)[:, None, None]
    std = torch.tensor((58.395, 57.12, 57.375), device=device)[:, None, None]
    rows, columns = (torch.arange(size, device=device) for size in options.crop)
    crops, xy = (torch.from_numpy(array).to(device) for array in arrays(options))
    optimizer = torch.optim.Adam(body.parameters(), 5e-4)

    def logits_of(crops, xy):
        y = torch.exp(-0.5 * ((rows - xy[..., 1:]) / 7) ** 2)
        x = torch.exp(-0.5 * ((columns - xy[..., :1]) / 7) ** 2)
        images = (crops.permute(0, 3, 1, 2) - mean) / std
        both = torch.cat([images, y[..., :, None] * x[..., None, :]], 1)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            return body(both.contiguous(memory_format=torch.channels_last)).float()

    def loss_of(crops, xy):
        logits = logits_of(crops, xy)
        b, k, h, w = logits.shape
        log_p = torch.log_softmax(logits.reshape(b, k, h * w), -1)
        target = (xy + 0.5) / 4 - 0.5
        low = target.floor()
        part = target - low
        heatmap = 0.0
        for i in range(2):
            for j in range(2):
                x, y = low[..., 0] + i, low[..., 1] + j
                inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
                cell = (y.clamp(0, h - 1) * w + x.clamp(0, w - 1)).long()
                share = (part[..., 0] if i else 1 - part[..., 0]) * (part[..., 1] if j else 1 - part[..., 1])
                heatmap = heatmap - (log_p.gather(-1, cell[..., None])[..., 0] * share * inside).mean()
        p = log_p.exp().reshape(b, k, h, w)
        x = (p.sum(2) * torch.arange(w, device=device)).sum(-1)
        y = (p.sum(3) * torch.arange(h, device=device)).sum(-1)
        return heatmap + (torch.stack([x, y], -1) - target).abs().mean()

    compiled = (lambda function: function) if options.eager else torch.compile
    run_forward, run_loss = compiled(logits_of), compiled(loss_of)

    def done():
        if device == "cuda":
            torch.cuda.synchronize()

    def forward():
        body.eval()
        with torch.inference_mode():
            run_forward(crops, xy)
        done()

    def train():
        body.train()
        optimizer.zero_grad(set_to_none=True)
        run_loss(crops, xy).backward()
        optimizer.step()
        done()

    return {"forward": (forward, dict), "train": (train, dict)}


if __name__ == "__main__":
    main()
