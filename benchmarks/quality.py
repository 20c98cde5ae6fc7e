#!/usr/bin/env python3
"""What each PEFT method learns: two tasks, three seeds, the same samples and steps for all.

    python3 benchmarks/quality.py [--model GGUF] [--methods "lora;vera;…"] [--seeds 1,2,3] [--steps 24] [--lines table.jsonl]

A real daemon trains on benchmarks/tasks, some runs together, which changes none of them; `edgebench accuracy` then says how many of the
test lines' answers are exact and the loss on them. Of one seed, every method gets the same samples in the same order. Prints one JSON
line a run and a Markdown table. Runs that --lines has are not run again.

Learning rates are each method's, in METHODS below. --choose 1,4 tries them times these factors, and measures on lines of the training
files that those runs do not see; the test lines have no part in it.
"""
import argparse
import json
import math
import statistics
import subprocess
import tempfile
from pathlib import Path

from running_daemon import running_daemon

ROOT = Path(__file__).resolve().parent.parent
TASKS = ("sms-spam", "banking-intents")
METHODS = {
    "lora": {"learning_rate": 2e-3}, "lora, q and v": {"learning_rate": 4e-3, "lora_target_modules": ["q_proj", "v_proj"]},
    "lora, eva": {"learning_rate": 2e-3, "init_lora_weights": "eva"}, "rslora": {"use_rslora": True, "learning_rate": 8e-4},
    "loraplus": {"loraplus_lr_ratio": 16, "learning_rate": 4e-4}, "lora-fa": {"learning_rate": 4e-3}, "dylora": {"learning_rate": 2e-3},
    "dora": {"learning_rate": 2e-3}, "vera": {"learning_rate": 0.16}, "miss": {"learning_rate": 8e-4}, "loha": {"learning_rate": 3.2e-2},
    "lokr": {"learning_rate": 3.2e-2}, "adalora": {"learning_rate": 8e-3, "tinit": 6, "tfinal": 10, "delta_t": 2},
    "oft": {"learning_rate": 2e-3}, "ia3": {"learning_rate": 4e-2}, "rlrr": {"learning_rate": 4e-2}, "shira": {"learning_rate": 1e-2},
    "mixlora": {"learning_rate": 4e-3}, "prefix-tuning": {"learning_rate": 0.16}, "prompt-tuning": {"learning_rate": 0.16},
    "ln-tuning": {"learning_rate": 1e-2}, "seq_bn": {"learning_rate": 5e-3}, "double_seq_bn": {"learning_rate": 5e-3},
    "par_bn": {"learning_rate": 2e-4}, "mam": {"learning_rate": 2e-4}, "unipelt": {"learning_rate": 4e-3}, "lst": {"learning_rate": 4e-3},
}
BASE = "the model itself"
ADAPTERS = {"rslora": "lora", "loraplus": "lora", "lora, q and v": "lora", "lora, eva": "lora"}
# Of a training file, what --choose trains on and what it measures.
CHOOSING_LINES, CHOOSING_TEST_LINES = slice(0, 300), slice(300, 396)


def accuracy(options, data, adapter=None):
    command = [options.bin / "edgebench", "accuracy", "--model", options.model, "--data", data]
    if adapter:
        command += ["--adapter", adapter]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def task_lines(task, part):
    return (ROOT / f"benchmarks/tasks/{task}.{part}.jsonl").read_text().splitlines(keepends=True)


class Runs:
    def __init__(self, options, scratch, daemon):
        self.options, self.scratch, self.daemon, self.lines, self.count = options, scratch, daemon, [], 0
        if options.lines and options.lines.exists():
            self.lines = [json.loads(line) for line in options.lines.read_text().splitlines()]
        self.data = {}
        for task in options.tasks.split(","):
            train, test = task_lines(task, "train"), task_lines(task, "test")[:options.test_lines]
            if options.choose:
                train, test = train[CHOOSING_LINES], train[CHOOSING_TEST_LINES]
            self.data[task] = self.written(f"{task}.train.jsonl", train), self.written(f"{task}.test.jsonl", test)

    def written(self, name, lines):
        path = self.scratch / name
        path.write_text("".join(lines))
        return path

    def has(self, run):
        return any(line | run == line for line in self.lines)

    def record(self, line):
        self.lines.append(line)
        print(json.dumps(line), flush=True)
        if self.options.lines:
            with self.options.lines.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def base(self, task):
        run = {"task": task, "method": BASE}
        if not self.has(run):
            self.record(run | accuracy(self.options, self.data[task][1]))

    def job(self, run):
        method = run["method"]
        self.count += 1
        return {
            "name": f"run-{self.count}", "base_model": "base", "datasets": [{"path": str(self.data[run["task"]][0])}], "val_set_size": 0,
            "adapter": ADAPTERS.get(method, method), "micro_batch_size": 4, "gradient_accumulation_steps": 1, "warmup_ratio": 0.1,
            "sequence_len": 512} | METHODS[method] | {key: run[key] for key in ("max_steps", "seed", "learning_rate")}

    def train(self, runs):
        jobs = [self.job(run) for run in runs]
        seconds, _ = self.daemon.run_queued(jobs)
        adapters = {each["name"]: each["path"] for each in json.loads(self.daemon.edgetune("adapters", "list", "--json"))["adapters"]}
        for run, job in zip(runs, jobs):
            self.record(
                run | {"seconds_of_all": round(seconds, 1)} | accuracy(self.options, self.data[run["task"]][1], adapters[job["name"]]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--bin", type=Path, default=ROOT / ".build/release")
    parser.add_argument("--methods", default=";".join(METHODS), help="with semicolons")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--steps", type=int, default=24, help="of four samples")
    parser.add_argument("--test-lines", type=int, default=72)
    parser.add_argument("--together", type=int, default=6, help="runs, one to eight")
    parser.add_argument("--choose", help="factors of learning rates to choose from")
    parser.add_argument("--lines", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        with running_daemon(options.bin, scratch, f"jobs_together: {options.together}\n") as daemon:
            daemon.edgetune("models", "add", options.model.resolve(), "--name", "base")
            runs = Runs(options, scratch, daemon)
            tasks, seeds = options.tasks.split(","), [int(seed) for seed in options.seeds.split(",")]
            factors = [float(factor) for factor in options.choose.split(",")] if options.choose else [1]
            if not options.choose:
                for task in tasks:
                    runs.base(task)
            missing = [
                run for method in options.methods.split(";") for task in tasks for seed in seeds
                for factor in factors
                if not runs.has(run := {
                    "task": task, "method": method, "seed": seed, "learning_rate": factor * METHODS[method]["learning_rate"],
                    "max_steps": options.steps})]
            for first in range(0, len(missing), options.together):
                runs.train(missing[first:first + options.together])
    if not options.choose:
        print_table(runs.lines)


def print_table(lines):
    """Of each method means over seeds, and the largest distance from them."""
    found = {}
    for line in lines:
        found.setdefault((line["method"], line.get("learning_rate")), {}).setdefault(line["task"], []).append(line)
    tasks = list(dict.fromkeys(line["task"] for line in lines))
    print("\n| method | learning rate |" + "".join(f" {task}: exact answers, % | loss |" for task in tasks) + "\n|" + "---|" * (2 + 2 * len(tasks)))
    order = [BASE, *METHODS]
    for (method, rate), by_task in sorted(found.items(), key=lambda row: order.index(row[0][0])):
        cells = []
        for task in tasks:
            for key, scale, digits in (("accuracy", 100, 0), ("loss", 1, 2)):
                values = [scale * line[key] for line in by_task.get(task, [])]
                mean = statistics.mean(values) if values else math.nan
                spread = f" ± {max(abs(value - mean) for value in values):.{digits}f}" if len(values) > 1 else ""
                cells.append(f"{mean:.{digits}f}{spread}")
        print(f"| {method} | {rate or ''} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
