#!/usr/bin/env python3
"""What ranks by sensitivity are worth: a LoRA of one rank everywhere against one of as many parameters whose ranks `edgetune ranks` gave.

    python3 benchmarks/ranks.py [--model GGUF] [--rank 8] [--seeds 1,2] [--variants uniform,allocated] [--lines table.jsonl]

A real daemon trains on benchmarks/tasks, the same samples and steps for both; `edgebench accuracy` then says how many of the test lines'
answers are exact and the loss on them. Prints one JSON line a run and a Markdown table of means over seeds (and the largest distance from
the mean).
"""
import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from running_daemon import running_daemon

ROOT = Path(__file__).resolve().parent.parent
TASKS = ("sms-spam", "banking-intents")


def accuracy(options, task, adapter):
    command = [options.bin / "edgebench", "accuracy", "--model", options.model, "--data", ROOT / f"benchmarks/tasks/{task}.test.jsonl",
               "--adapter", adapter]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def allocated(options, daemon):
    report = json.loads(daemon.edgetune("ranks", "job.yaml", "--samples", str(options.samples), "--json"))
    ranks = [row["rank"] for row in report["rows"]]
    return {key: report[key] for key in ("rank_pattern", "alpha_pattern")}, {
        "parameters": report["parameters"], "of": report["uniform_parameters"], "ranks": [min(ranks), statistics.median(ranks), max(ranks)],
        "planned_mib": report["planned_peak_bytes"] >> 20, "held_mib": report["peak_bytes"] >> 20}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--bin", type=Path, default=ROOT / ".build/release")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--variants", default="uniform,allocated")
    parser.add_argument("--lines", type=Path)
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        with running_daemon(options.bin, scratch) as daemon:
            daemon.edgetune("models", "add", options.model.resolve(), "--name", "base")
            for task in options.tasks.split(","):
                for variant in options.variants.split(","):
                    for seed in options.seeds.split(","):
                        name = f"{task}-{variant}-{seed}"
                        job = {
                            "name": name, "base_model": "base", "datasets": [{"path": str(ROOT / f"benchmarks/tasks/{task}.train.jsonl")}],
                            "lora_r": options.rank, "lora_alpha": 2 * options.rank, "val_set_size": 0, "micro_batch_size": 8,
                            "gradient_accumulation_steps": 1, "num_epochs": options.epochs, "learning_rate": options.learning_rate,
                            "warmup_ratio": 0.1, "seed": int(seed), "sequence_len": 512}
                        (scratch / "job.yaml").write_text(json.dumps(job))
                        line = {"task": task, "variant": variant, "seed": int(seed)}
                        start = time.monotonic()
                        if variant == "allocated":
                            patterns, about = allocated(options, daemon)
                            line |= about | {"ranks_seconds": round(time.monotonic() - start, 1)}
                            (scratch / "job.yaml").write_text(json.dumps(job | patterns))
                            start = time.monotonic()
                        daemon.edgetune("submit", "job.yaml", "--watch")
                        line["seconds"] = round(time.monotonic() - start, 1)
                        adapters = json.loads(daemon.edgetune("adapters", "list", "--json"))["adapters"]
                        line |= accuracy(options, task, next(each["path"] for each in adapters if each["name"] == name))
                        found.setdefault((task, variant), []).append(line)
                        print(json.dumps(line), flush=True)
                        if options.lines:
                            with options.lines.open("a") as file:
                                file.write(json.dumps(line) + "\n")
    print("\n| task | ranks | exact answers | loss |\n|---|---|---|---|")
    for (task, variant), lines in found.items():
        cells = []
        for key, scale, digits in (("accuracy", 100, 1), ("loss", 1, 3)):
            values = [scale * line[key] for line in lines]
            mean = statistics.mean(values)
            cells.append(f"{mean:.{digits}f}{' %' if key == 'accuracy' else ''} ± {max(abs(value - mean) for value in values):.{digits}f}")
        print(f"| {task} | {variant} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
