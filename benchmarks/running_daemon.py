"""A daemon for the time of a measurement, and its client. Needs only Python's standard library."""
import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace


@contextlib.contextmanager
def running_daemon(binaries, scratch, config=""):
    """A daemon of its own with its state in `scratch`: `socket`, `process`, `edgetune`, which runs the client in `scratch` and returns
    what it printed, and `run_queued`, which submits jobs while the hours are closed, so that all are queued when the first may start,
    opens them, and returns the seconds to the last one's end and the jobs by their names."""
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

    def run_queued(jobs):
        closed = time.localtime(time.time() + 6 * 3600).tm_hour
        reload(config + f"run_between: {closed:02}:00-{closed:02}:01\n")
        time.sleep(0.5)  # until it has read that
        for job in jobs:
            (scratch / "job.yaml").write_text(json.dumps(job))
            edgetune("submit", "job.yaml")
        names = {job["name"] for job in jobs}
        start = time.monotonic()
        reload(config)
        while True:
            found = {job["name"]: job for job in json.loads(edgetune("jobs", "--json"))["jobs"] if job["name"] in names}
            states = {job["state"] for job in found.values()}
            assert not states & {"failed", "paused", "cancelled"}, found
            if states == {"succeeded"}:
                return time.monotonic() - start, found
            time.sleep(0.2)

    try:
        while not Path(socket).exists():
            assert process.poll() is None, "the daemon did not start"
            time.sleep(0.05)
        yield SimpleNamespace(socket=socket, process=process, edgetune=edgetune, run_queued=run_queued)
    finally:
        process.terminate()
        process.wait()
