"""Several processes of one program, each with devices of its own."""

import os
import socket
import subprocess
import sys

from tests.conftest import ROOT, compiling


def start(*command, devices=4, processes=2, each=()):
    """Starts processes of one Python command. devices: per process; each: further arguments, by process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}{compiling()}",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "PYTHONPATH": str(ROOT),
    }
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command), *(each[number] if each else ())],
            env={**environment, "JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]


def tessy(command, file, *options, **settings):
    """Starts processes of one `tessy` command. settings: those of `start`."""
    return start("-m", "tessy_jax.cli", command, file, "--json", "--distributed", *options, **settings)


def ended(running, timeout=900):
    """Waits for the processes. Returns exit codes and pairs of standard output and standard error, by process."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in running]
    finally:
        for process in running:
            process.kill()
    return [process.returncode for process in running], outputs
