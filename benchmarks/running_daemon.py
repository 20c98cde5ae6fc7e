"""A daemon for the time of a measurement, and its client. Needs only Python's standard library."""
import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace


@contextlib.contextmanager
def running_daemon(binaries, scratch, config=""):
    """A daemon of its own with its state in `scratch`: `socket`, `process`, `edgetune`, which runs the client in `scratch` and returns
    what it printed, and `reload`, which gives it another configuration."""
    binaries, socket = Path(binaries).resolve(), str(scratch / "s.sock")
    environment = os.environ | {"EDGETUNE_SOCKET": socket}
    file = scratch / "edgetuned.yaml"
    file.write_text(config)
    process = subprocess.Popen(
        [binaries / "edgetuned", "serve", "--state-dir", scratch / "state", "--socket", socket, "--config", file], stderr=subprocess.DEVNULL)

    def edgetune(*arguments):
        return subprocess.run(
            [binaries / "edgetune", *arguments], check=True, cwd=scratch, env=environment, stdout=subprocess.PIPE, text=True).stdout

    def reload(config):
        file.write_text(config)
        process.send_signal(signal.SIGHUP)

    try:
        while not Path(socket).exists():
            assert process.poll() is None, "the daemon did not start"
            time.sleep(0.05)
        yield SimpleNamespace(socket=socket, process=process, edgetune=edgetune, reload=reload)
    finally:
        process.terminate()
        process.wait()
