"""A daemon for the time of a measurement, and its client. Needs only Python's standard library."""
import contextlib
import os
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace


@contextlib.contextmanager
def running_daemon(binaries, scratch):
    """A daemon of its own with its state in `scratch`: `socket`, `process`, and `edgetune`, which runs the client in `scratch` and
    returns what it printed."""
    binaries, socket = Path(binaries).resolve(), str(scratch / "s.sock")
    environment = os.environ | {"EDGETUNE_SOCKET": socket}
    process = subprocess.Popen(
        [binaries / "edgetuned", "serve", "--state-dir", scratch / "state", "--socket", socket], stderr=subprocess.DEVNULL)

    def edgetune(*arguments):
        return subprocess.run(
            [binaries / "edgetune", *arguments], check=True, cwd=scratch, env=environment, stdout=subprocess.PIPE, text=True).stdout

    try:
        while not Path(socket).exists():
            assert process.poll() is None, "the daemon did not start"
            time.sleep(0.05)
        yield SimpleNamespace(socket=socket, process=process, edgetune=edgetune)
    finally:
        process.terminate()
        process.wait()
