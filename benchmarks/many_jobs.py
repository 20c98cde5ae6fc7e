#!/usr/bin/env python3
"""A store of 10,000 jobs: how long the daemon takes to start and to list them.

    python3 benchmarks/many_jobs.py [--jobs 10000] [--edgetuned .build/release/edgetuned]

One real job is run on the tiny golden model; its rows (request, plan, progress, events, key) are then copied under other
names and times, over 200 data sets. Limits (exit code 1 when one is passed): list 50 ms, start 1 s.
"""
import argparse
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST_LIMIT, START_LIMIT = 0.050, 1.0
# Of every ten jobs. Paused ones are all that is not finished: nothing trains while this measures.
STATES = ["succeeded"] * 6 + ["failed", "cancelled", "succeeded", "cancelled"]
PAUSED = 500
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


class Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


class Daemon:
    def __init__(self, binary, directory, options=()):
        self.socket = f"{directory}/s.sock"
        self.log = open(f"{directory}/log", "a")
        started = time.perf_counter()
        self.process = subprocess.Popen(
            [binary, "serve", "--socket", self.socket, "--state-dir", f"{directory}/state", *options],
            stdout=self.log, stderr=self.log, env={"PATH": "/usr/bin:/bin", "HOME": directory})
        while True:
            try:
                if self.call("GET", "/v1/health")[0] == 200:
                    break
            except OSError:
                if self.process.poll() is not None:
                    sys.exit(Path(f"{directory}/log").read_text())
                time.sleep(0.001)
        self.start_seconds = time.perf_counter() - started

    def call(self, method, path, body=None, headers={}):
        connection = Connection(self.socket)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, data

    def post(self, path, value):
        status, data = self.call("POST", path, json.dumps(value))
        assert status < 300, data
        return json.loads(data)

    def upload(self, data):
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        status, answer = self.call(
            "PATCH", f"/v1/blobs/{digest}", data, {"Upload-Offset": "0", "Upload-Length": str(len(data))})
        assert status == 200, answer
        return digest

    def resident_kilobytes(self):
        for line in open(f"/proc/{self.process.pid}/status"):
            if line.startswith("VmRSS"):
                return int(line.split()[1])

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait()


def prepare(daemon):
    """One finished job, and 200 data sets."""
    model = (ROOT / "Tests/Goldens/tiny-llama.gguf").read_bytes()
    daemon.post("/v1/models", {"name": "tiny", "blob": daemon.upload(model)})
    blobs = []
    for number in range(200):
        lines = "".join(json.dumps({"text": f"sample {n} of set {number} says ab ab"}) + "\n" for n in range(24))
        blobs.append(daemon.upload(lines.encode()))
        daemon.post("/v1/datasets", {"name": f"set{number}", "blob": blobs[-1]})
    job = daemon.post("/v1/jobs", {
        "base_model": "tiny", "datasets": [{"path": "set0"}], "name": "first", "lora_r": 4, "sequence_len": 64,
        "micro_batch_size": 2, "max_steps": 40, "eval_steps": 10, "memory_budget": "500MiB"})["id"]
    while True:
        status = json.loads(daemon.call("GET", f"/v1/jobs/{job}")[1])
        if status["state"] in ("succeeded", "failed"):
            assert status["state"] == "succeeded", status
            return job, blobs
        time.sleep(0.05)


def multiply(path, job, blobs, count):
    db = sqlite3.connect(path)
    db.row_factory = sqlite3.Row
    row = dict(db.execute("SELECT * FROM jobs WHERE id = ?", (job,)).fetchone())
    events = db.execute("SELECT seq, line FROM events WHERE job = ?", (job,)).fetchall()
    columns = list(row)
    with db:
        for number in range(1, count):
            id = "j-" + "".join(ALPHABET[(number >> shift) & 31] for shift in range(55, -5, -5))
            state = "paused" if number > count - PAUSED else STATES[number % len(STATES)]
            new = row | {
                "id": id, "place": number + 1, "name": f"job{number}", "state": state, "reason": f"copy {number}",
                "created_at": row["created_at"] + number, "dataset_blobs": json.dumps([blobs[number % len(blobs)]]),
                "request": row["request"].replace('"first"', f'"job{number}"').replace('"set0"', f'"set{number % 200}"'),
                "adapter": f"job{number}" if state == "succeeded" else None,
                "finished_at": None if state == "paused" else row["finished_at"] + number,
            }
            db.execute(f"INSERT INTO jobs VALUES ({','.join('?' * len(columns))})", [new[column] for column in columns])
            db.executemany("INSERT INTO events VALUES (?, ?, ?)", [(id, event["seq"], event["line"]) for event in events])
            db.execute("INSERT INTO idempotency_keys VALUES (0, ?, ?, ?)", (f"key{number}", "0" * 64, id))
            if state == "succeeded":
                db.execute(
                    "INSERT INTO adapters SELECT ?, ?, base_model, model_blob, owner_uid, created_at FROM adapters "
                    "WHERE job = ?", (f"job{number}", id, job))
    db.close()
    return len(events)


def measure(daemon, path, runs):
    seconds, size = [], 0
    for _ in range(runs):
        started = time.perf_counter()
        status, data = daemon.call("GET", path)
        seconds.append(time.perf_counter() - started)
        assert status == 200, data[:500]
        size = len(data)
    return {"path": path, "bytes": size, "median_ms": round(statistics.median(seconds) * 1000, 2),
            "worst_ms": round(max(seconds) * 1000, 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--edgetuned", default=str(ROOT / ".build/release/edgetuned"))
    parser.add_argument("--keep", action="store_true", help="leave the state there, and say where")
    parser.add_argument(
        "--keep-logs", type=int, default=1_000_000,
        help="finished jobs that keep their events: by default all, and nothing is tidied away while this measures")
    arguments = parser.parse_args()
    directory = tempfile.mkdtemp(prefix="edge-")
    store = f"{directory}/state/jobs.db"
    try:
        config = Path(directory, "config.yaml")
        config.write_text(f"keep_jobs: 1000000\nkeep_logs: {arguments.keep_logs}\n")
        start = partial(Daemon, arguments.edgetuned, directory, ["--config", str(config)])
        daemon = start()
        job, blobs = prepare(daemon)
        daemon.stop()
        events = multiply(store, job, blobs, arguments.jobs)
        starts = {"after a stop": [], "after a kill": []}
        for _ in range(5):
            daemon = start()
            starts["after a stop"].append(daemon.start_seconds)
            # Something that is not in the store's file yet, only in its log.
            paused = json.loads(daemon.call("GET", "/v1/jobs?state=paused&limit=1")[1])["jobs"][0]["id"]
            assert daemon.call("POST", f"/v1/jobs/{paused}/cancel")[0] == 200
            daemon.stop(signal.SIGKILL)
            daemon = start()
            starts["after a kill"].append(daemon.start_seconds)
            daemon.stop()
        daemon = start()
        before = daemon.resident_kilobytes()
        lists = [
            measure(daemon, path, arguments.runs)
            for path in ["/v1/jobs", "/v1/jobs?limit=100", "/v1/jobs?state=paused", f"/v1/jobs/{job}", "/v1/status"]]
        report = {
            "jobs": arguments.jobs, "events": events * arguments.jobs, "store_bytes": os.path.getsize(store),
            "start_seconds": {how: round(statistics.median(times), 3) for how, times in starts.items()},
            "worst_start_seconds": {how: round(max(times), 3) for how, times in starts.items()},
            "requests": lists, "resident_kilobytes": {"at start": before, "after": daemon.resident_kilobytes()},
        }
        daemon.stop()
        started = time.perf_counter()
        checked = subprocess.run(
            [arguments.edgetuned, "check", "--json", "--state-dir", f"{directory}/state"], capture_output=True)
        report["check_seconds"] = round(time.perf_counter() - started, 2)
        # The copies have no adapters on disk; that is all that a check may find.
        found = json.loads(checked.stdout)["findings"]
        report["check_finds_besides_adapters"] = [one for one in found if not one["subject"].startswith("adapter ")][:5]
        print(json.dumps(report, indent=2))
        slow = [one for one in lists if one["median_ms"] > LIST_LIMIT * 1000]
        late = [how for how, seconds in report["worst_start_seconds"].items() if seconds > START_LIMIT]
        if slow or late:
            sys.exit(f"over the limit: {slow} {late}")
    finally:
        if arguments.keep:
            print(directory)
        else:
            shutil.rmtree(directory)


main()
