"""Runs a command as several processes of one training run on this machine, over loopback.

    python launch/local.py -n 2 --devices 4 -- posefix train configs/NAME.py [--field value ...]

`--processes.coordinator`, `.count` and `.index` are appended for each process. With `--devices` each process has that many
simulated CPU devices, to try a many-host run without many hosts; the tests use it. Without it each process sees this
machine's accelerators. Ctrl-C and SIGTERM ask all processes to save and stop; when one fails, the others are stopped. Exits
with the code of the process that failed first.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time

GRACE = 60.0
"""Seconds in which the other processes must stop once one has failed."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, required=True, help="processes")
    parser.add_argument("--devices", type=int, default=0, help="simulated CPU devices per process")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if options.n < 1 or not command:
        parser.error("need -n of 1 or more, and a command after --")
    environment = dict(os.environ)
    if options.devices:
        flags = environment.get("XLA_FLAGS", "")
        environment["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={options.devices}"
        environment["JAX_PLATFORMS"] = "cpu"
    coordinator = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [*command, "--processes.coordinator", coordinator, "--processes.count", str(options.n)]
            + ["--processes.index", str(index)],
            env=environment,
            start_new_session=True,  # Ctrl-C reaches them only through this process
        )
        for index in range(options.n)
    ]

    def ask_to_stop(*_):
        for process in processes:
            if process.poll() is None:
                process.terminate()

    signal.signal(signal.SIGINT, ask_to_stop)
    signal.signal(signal.SIGTERM, ask_to_stop)
    failed_at, first = None, 0
    while any(process.poll() is None for process in processes):
        time.sleep(0.1)
        failed = [process.poll() for process in processes if process.poll() not in (None, 0, 130)]
        if failed_at is None and failed:
            failed_at, first = time.monotonic(), failed[0]
            ask_to_stop()
        if failed_at is not None and time.monotonic() - failed_at > GRACE:
            for process in processes:
                process.kill()
    codes = [process.returncode for process in processes]
    for index, code in enumerate(codes):
        if code not in (0, 130):
            print(f"process {index} of {options.n} ended with {code}", file=sys.stderr)
    code = first or next((code for code in codes if code), 0)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
