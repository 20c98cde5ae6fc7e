#!/usr/bin/env python3
"""Jobs on one base together, against one after another: time and memory.

    python3 benchmarks/together.py MODEL.gguf [--jobs 2,4] [--tokens 64] [--batch 4] [--steps 30] [--budget 4GiB]

A real daemon gets the jobs while its hours are closed, so that all are queued when it may start. The time is from there to the last
job's end, of the second pass (the first brings the model into the page cache); memory is the largest that a worker's log says.
"""
import argparse
import hashlib
import json
import re
import statistics
import tempfile
from pathlib import Path

from running_daemon import running_daemon

ROOT = Path(__file__).resolve().parent.parent


def measure(options, together, count):
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        scratch = Path(scratch)
        with running_daemon(options.bin, scratch, f"jobs_together: {together}\n") as daemon:
            daemon.edgetune("models", "add", Path(options.model).resolve(), "--name", "base")
            samples = scratch / "samples.jsonl"
            words = "one two three four five six seven eight nine ten".split()
            samples.write_text("".join(
                json.dumps({"text": " ".join(words[(line * 7 + word) % 10] for word in range(options.tokens))}) + "\n"
                for line in range(64)))
            seconds, jobs = daemon.run_queued([
                {"name": f"job-{number}", "base_model": "base", "datasets": [{"path": str(samples)}], "val_set_size": 0,
                 "micro_batch_size": options.batch, "gradient_accumulation_steps": 1, "max_steps": options.steps, "seed": number + 1,
                 "sequence_len": max(512, 2 * options.tokens + 16), "precision": options.precision, "memory_budget": options.budget,
                 "lora_dropout": 0}
                for number in range(count)])
            logs = [daemon.edgetune("logs", job["id"]) for job in jobs.values()]
            alike = sum("trains together" in log for log in logs)
            assert alike == (count if together > 1 else 0), f"{alike} of {count} jobs trained together"
            figures = [tuple(map(int, found)) for log in logs for found in re.findall(r"peak memory (\d+) MiB, planned (\d+) MiB", log)]
            adapters = json.loads(daemon.edgetune("adapters", "list", "--json"))["adapters"]
            digests = sorted(
                (each["name"], hashlib.sha256(next(Path(each["path"]).glob("*.lz4")).read_bytes()).hexdigest()) for each in adapters)
            return seconds, max(figures), digests


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--bin", default=ROOT / ".build/release")
    parser.add_argument("--directory", default="/tmp")
    parser.add_argument("--jobs", default="2,4")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--budget", default="4GiB")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    print("| jobs | one after another, s | together, s | ratio | held (planned) one by one, MiB | together |\n|---|---|---|---|---|---|")
    for count in map(int, options.jobs.split(",")):
        pairs = [(measure(options, 1, count), measure(options, count, count)) for _ in range(options.pairs)]
        for apart, together in pairs:
            assert apart[2] == together[2], "adapters differ"
        apart, together = (statistics.median(pair[side][0] for pair in pairs) for side in (0, 1))
        ratio = statistics.median(pair[1][0] / pair[0][0] for pair in pairs)
        memory = [max(pair[side][1] for pair in pairs) for side in (0, 1)]
        print(f"| {count} | {apart:.1f} | {together:.1f} | {ratio:.2f} | {memory[0][0]} ({memory[0][1]}) | {memory[1][0]} ({memory[1][1]}) |", flush=True)


if __name__ == "__main__":
    main()
