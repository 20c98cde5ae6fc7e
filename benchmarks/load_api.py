#!/usr/bin/env python3
"""The daemon under load: many clients submit, list, follow and cancel jobs while one job trains.

    python3 benchmarks/load_api.py [--bin .build/release] [--clients 200] [--seconds 600] [--pause 20] [--model GGUF]

A real daemon trains a real model; its tokens per second are taken first alone, then under the load, then alone again. Each client has
its own connections and repeats, at random, with a pause of twice `--pause` at most: status, list, show, submit (of a job that waits),
events (read for a second), cancel. A submit costs most: a worker reads the model's vocabulary and the data set, and plans. One more
client asks for the status ten times a second: its times are the table's. Prints one JSON line: requests, errors (any answer that is none
of the API's own for that request), percentiles of the status in milliseconds, the daemon's resident set at the beginning, after each
tenth of the time and at most, how much slower the job trained, and the processor time of the clients (this program), of the daemon and
of its planning workers as a share of the machine: clients on the same machine slow the job, too. Needs only Python's standard library.
"""
import argparse
import asyncio
import collections
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

from running_daemon import running_daemon

ROOT = Path(__file__).resolve().parent.parent


class Client:
    def __init__(self, socket):
        self.socket = socket
        self.requests = 0
        self.errors = collections.Counter()

    async def call(self, method, path, body=None, seconds=None):
        """Status and body; at most `seconds` of a body that does not end."""
        reader, writer = await asyncio.open_unix_connection(self.socket)
        try:
            data = b"" if body is None else json.dumps(body).encode()
            head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
            writer.write((head + f"Content-Length: {len(data)}\r\n\r\n").encode() + data)
            await writer.drain()
            status = int((await asyncio.wait_for(reader.readline(), 60)).split()[1])
            text = b""
            try:
                async with asyncio.timeout(seconds or 60):
                    text = await reader.read()
            except TimeoutError:
                if seconds is None:
                    raise
            return status, text.partition(b"\r\n\r\n")[2]
        finally:
            writer.close()

    async def expect(self, what, allowed, method, path, body=None, seconds=None):
        self.requests += 1
        try:
            status, text = await self.call(method, path, body, seconds)
        except (OSError, TimeoutError, IndexError, ValueError) as error:
            self.errors[f"{what}: {type(error).__name__}"] += 1
            return None
        if status not in allowed:
            self.errors[f"{what}: {status} {text[:80]!r}"] += 1
        return text


async def behave(client, request, until, seed, pause):
    choice = random.Random(seed)
    jobs = []
    # They do not all begin at once.
    await asyncio.sleep(choice.uniform(0, 2 * pause))
    while time.monotonic() < until:
        match choice.randrange(6):
            case 0: await client.expect("status", {200}, "GET", "/v1/status")
            case 1: await client.expect("list", {200}, "GET", "/v1/jobs?limit=20")
            case 2:
                # 429: the queue is full, which is an answer.
                text = await client.expect("submit", {201, 429}, "POST", "/v1/jobs", request | {"name": f"load-{seed}-{choice.random()}"})
                try:
                    jobs.append(json.loads(text)["id"])
                except (TypeError, KeyError, ValueError):
                    pass
            case 3 if jobs: await client.expect("show", {200, 404}, "GET", f"/v1/jobs/{choice.choice(jobs)}")
            case 4 if jobs: await client.expect("events", {200}, "GET", f"/v1/jobs/{choice.choice(jobs)}/events", seconds=1)
            case 5 if jobs:
                # 409: it is over already.
                await client.expect("cancel", {200, 202, 204, 409}, "POST", f"/v1/jobs/{jobs.pop(choice.randrange(len(jobs)))}/cancel", {})
        await asyncio.sleep(choice.uniform(0, 2 * pause))


async def probe(client, until):
    times = []
    while time.monotonic() < until:
        begin = time.monotonic()
        await client.expect("status", {200}, "GET", "/v1/status")
        times.append(1000 * (time.monotonic() - begin))
        await asyncio.sleep(0.1)
    return times


async def speed(client, job, seconds):
    """Median tokens per second over some seconds of steps."""
    values, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        progress = json.loads((await client.call("GET", f"/v1/jobs/{job}"))[1]).get("progress") or {}
        if progress:
            values.append((progress["step"], progress["tokens_per_second"]))
        await asyncio.sleep(0.5)
    return statistics.median(value for _, value in sorted(set(values)))


def resident(process):
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024


def processor_seconds(process):
    """Of the daemon, and of its workers that have ended."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    own, children = [(int(fields[place]) + int(fields[place + 1])) / os.sysconf("SC_CLK_TCK") for place in (11, 13)]
    return own, children


async def measure(options, daemon, scratch):
    lines = [{"text": f"paragraph {i}: " + "the quick brown fox jumps over the lazy dog. " * 12} for i in range(64)]
    (scratch / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (scratch / "job.yaml").write_text(json.dumps({
        "name": "trained", "base_model": "base", "datasets": [{"path": "data.jsonl"}], "sequence_len": 256, "max_steps": 100_000,
        "eval_steps": 100_000, "save_steps": 1000, "memory_budget": "600MiB", "val_set_size": 0}))
    daemon.edgetune("models", "add", options.model.resolve(), "--name", "base")
    daemon.edgetune("submit", "job.yaml")
    client = Client(daemon.socket)
    trained = json.loads((await client.call("GET", "/v1/jobs"))[1])["jobs"][0]
    job, request = trained["id"], trained["request"] | {"max_steps": 100}
    while (json.loads((await client.call("GET", f"/v1/jobs/{job}"))[1]).get("progress") or {}).get("step", 0) < 3:
        await asyncio.sleep(1)
    before = await speed(client, job, options.alone)
    sizes = [resident(daemon.process)]
    largest = sizes[0]
    begin, until = time.monotonic(), time.monotonic() + options.seconds
    spent = (*processor_seconds(daemon.process), time.process_time())
    clients = [Client(daemon.socket) for _ in range(options.clients)]
    prober = Client(daemon.socket)
    work = asyncio.gather(probe(prober, until), speed(client, job, options.seconds),
                          *(behave(each, request, until, seed, options.pause) for seed, each in enumerate(clients)))
    while not work.done():
        largest = max(largest, resident(daemon.process))
        if time.monotonic() >= begin + len(sizes) * options.seconds / 10:
            sizes.append(resident(daemon.process))
        await asyncio.sleep(1)
    times, during, *_ = await work
    spent = [after - before for before, after in zip(spent, (*processor_seconds(daemon.process), time.process_time()))]
    await asyncio.sleep(5)
    after = await speed(client, job, options.alone)
    errors = sum((each.errors for each in clients + [prober]), collections.Counter())
    percentile = statistics.quantiles(times, n=1000)
    print(json.dumps({
        "clients": options.clients, "pause": options.pause, "seconds": options.seconds, "requests": sum(each.requests for each in clients) + prober.requests,
        "errors": sum(errors.values()), "kinds_of_errors": dict(errors.most_common(5)),
        "status_ms": {"p50": round(percentile[499], 1), "p99": round(percentile[989], 1), "most": round(max(times), 1), "count": len(times)},
        "daemon_rss_mb": {"over_time": [round(size / 1e6, 1) for size in sizes], "most": round(largest / 1e6, 1)},
        "percent_of_the_machine": {
            who: round(100 * seconds / options.seconds / os.cpu_count(), 1)
            for who, seconds in zip(("daemon", "planning", "clients"), spent)},
        "tokens_per_second": {"before": before, "during": during, "after": after},
        "slowed_by_percent": round(100 * (1 - during / statistics.mean([before, after])), 1)}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=ROOT / ".build/release")
    parser.add_argument("--model", type=Path, default=ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--pause", type=float, default=20, help="mean seconds between two requests of a client")
    parser.add_argument("--alone", type=float, default=60, help="seconds of training alone, before and after")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        with running_daemon(options.bin, scratch) as daemon:
            asyncio.run(measure(options, daemon, scratch))


if __name__ == "__main__":
    main()
