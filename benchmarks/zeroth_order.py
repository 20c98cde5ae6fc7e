#!/usr/bin/env python3
"""What training without a backward learns, beside AdamW: one task, the same samples a step, many more steps.

    python3 benchmarks/zeroth_order.py [--model GGUF] [--task sms-spam] [--steps 1000] [--rows "adamw 2e-4,mezo 1e-4 1e-3,…"] [--lines table.jsonl]

A row is `adamw LEARNING_RATE [STEPS]` or `mezo LEARNING_RATE EPSILON [STEPS]`. A real daemon trains on benchmarks/tasks; `edgebench accuracy`
then says how many of the test lines' answers are exact. Prints one JSON line a run: held-out losses by step, seconds, and the planned and held
memory of the smallest plan (`--budget`, with `zeroth_order: always` for MeZO).
"""
import argparse
import json
import re
import tempfile
import time
from pathlib import Path

from quality import ROOT, accuracy
from running_daemon import running_daemon

ROWS = "adamw 5e-4 100,mezo 1e-4 1e-3,mezo 1e-3 1e-3"


def job_of(row, options):
    kind, rate, *rest = row.split()
    job = {
        "base_model": "base", "datasets": [{"path": str(ROOT / f"benchmarks/tasks/{options.task}.train.jsonl")}], "val_set_size": 64,
        "lora_r": options.rank, "lora_target_modules": options.targets.split("+") if "_" in options.targets else options.targets,
        "micro_batch_size": options.samples, "gradient_accumulation_steps": 1, "learning_rate": float(rate), "lr_scheduler": options.scheduler,
        "sequence_len": 512, "seed": options.seed, "precision": options.precision}
    if kind == "mezo":
        job |= {"zeroth_order": "always", "mezo_eps": float(rest.pop(0)), "max_grad_norm": 0}
    job["max_steps"] = int(rest[0]) if rest else options.steps
    job["eval_steps"] = max(1, job["max_steps"] // 10)
    if options.budget:
        job["memory_budget"] = options.budget
    return job


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--bin", type=Path, default=ROOT / ".build/release")
    parser.add_argument("--task", default="sms-spam")
    parser.add_argument("--rows", default=ROWS, help="with commas")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=8, help="of a step")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", default="all-linear", help="or names with +")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--scheduler", default="constant", help="of the learning rate")
    parser.add_argument("--budget")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lines", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        with running_daemon(options.bin, scratch) as daemon:
            daemon.edgetune("models", "add", options.model.resolve(), "--name", "base")
            for number, row in enumerate(options.rows.split(",")):
                job = job_of(row, options) | {"name": f"run-{number}"}
                (scratch / "job.yaml").write_text(json.dumps(job))
                start = time.monotonic()
                daemon.edgetune("submit", "job.yaml", "--watch")
                seconds = time.monotonic() - start
                adapters = json.loads(daemon.edgetune("adapters", "list", "--json"))["adapters"]
                path = next(each["path"] for each in adapters if each["name"] == job["name"])
                record = json.loads((Path(path) / "training.json").read_text())
                jobs = json.loads(daemon.edgetune("jobs", "--json"))["jobs"]
                log = daemon.edgetune("logs", next(each["id"] for each in jobs if each["name"] == job["name"]))
                held = re.search(r"peak memory (\d+) MiB, planned (\d+) MiB", log)
                line = {
                    "row": row, "task": options.task, "rank": options.rank, "targets": options.targets, "precision": record["precision"],
                    "seed": options.seed, "seconds": round(seconds, 1),
                    "held_out": {each["step"]: round(each["loss"], 4) for each in record["evaluations"]},
                    "kept_step": record["kept_step"], "held_mib": int(held[1]), "planned_mib": int(held[2]),
                    } | accuracy(options, ROOT / f"benchmarks/tasks/{options.task}.test.jsonl", path)
                print(json.dumps(line), flush=True)
                if options.lines:
                    with options.lines.open("a") as file:
                        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
