#!/usr/bin/env python3
"""What each PEFT method learns: two tasks, three seeds, the same samples and steps for all.

    python3 benchmarks/quality.py [--model GGUF] [--methods lora,vera,…] [--seeds 1,2,3] [--epochs 2] [--lines table.jsonl]

A real daemon trains on benchmarks/tasks; `edgebench accuracy` then says how many of the test lines' answers are exact and the loss on them.
Learning rates are each method's, in METHODS below. Prints one JSON line a run and a Markdown table of means over seeds (and the
largest distance from the mean).
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
METHODS = {
    "lora": {"learning_rate": 5e-4}, "lora, q and v": {"learning_rate": 1e-3, "lora_target_modules": ["q_proj", "v_proj"]},
    "rslora": {"use_rslora": True, "learning_rate": 2e-4}, "loraplus": {"loraplus_lr_ratio": 16, "learning_rate": 1e-4},
    "lora-fa": {"learning_rate": 1e-3}, "dylora": {"learning_rate": 5e-4}, "dora": {"learning_rate": 5e-4},
    "vera": {"learning_rate": 1e-2}, "miss": {"learning_rate": 2e-4}, "loha": {"learning_rate": 2e-3}, "ia3": {"learning_rate": 1e-2},
    "lokr": {"learning_rate": 2e-3}, "adalora": {"learning_rate": 2e-3, "tinit": 20, "tfinal": 40, "delta_t": 5},
    "oft": {"learning_rate": 2e-3}, "prefix-tuning": {"learning_rate": 1e-2}, "prompt-tuning": {"learning_rate": 1e-2},
    "lora, eva": {"learning_rate": 5e-4, "init_lora_weights": "eva"}, "rlrr": {"learning_rate": 1e-2}, "shira": {"learning_rate": 2e-3},
    "ln-tuning": {"learning_rate": 1e-2}, "seq_bn": {"learning_rate": 1e-3}, "double_seq_bn": {"learning_rate": 1e-3},
    "par_bn": {"learning_rate": 5e-5}, "mam": {"learning_rate": 5e-5}, "mixlora": {"learning_rate": 5e-4},
    "lst": {"learning_rate": 1e-3},
}
ADAPTERS = {"rslora": "lora", "loraplus": "lora", "lora, q and v": "lora", "lora, eva": "lora"}


def accuracy(options, task, adapter=None):
    command = [options.bin / "edgebench", "accuracy", "--model", options.model, "--data", ROOT / f"benchmarks/tasks/{task}.test.jsonl"]
    if adapter:
        command += ["--adapter", adapter]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--bin", type=Path, default=ROOT / ".build/release")
    parser.add_argument("--methods", default=";".join(METHODS), help="with semicolons")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning-rate", type=float, help="of all, to choose one")
    parser.add_argument("--lines", type=Path)
    options = parser.parse_args()
    found = {}

    def record(line):
        found.setdefault((line["task"], line["method"]), []).append(line)
        print(json.dumps(line), flush=True)
        if options.lines:
            with options.lines.open("a") as file:
                file.write(json.dumps(line) + "\n")

    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        with running_daemon(options.bin, scratch) as daemon:
            daemon.edgetune("models", "add", options.model.resolve(), "--name", "base")
            for task in options.tasks.split(","):
                record({"task": task, "method": "the model itself"} | accuracy(options, task))
                for method in options.methods.split(";"):
                    for seed in options.seeds.split(","):
                        name = f"{task}-{method}-{seed}".replace(" ", "-").replace(",", "")
                        job = {
                            "name": name, "base_model": "base", "datasets": [{"path": str(ROOT / f"benchmarks/tasks/{task}.train.jsonl")}],
                            "adapter": ADAPTERS.get(method, method), "val_set_size": 0, "micro_batch_size": 8, "gradient_accumulation_steps": 1,
                            "num_epochs": options.epochs, "warmup_ratio": 0.1, "seed": int(seed), "sequence_len": 512} | METHODS[method]
                        if options.learning_rate:
                            job["learning_rate"] = options.learning_rate
                        (scratch / "job.yaml").write_text(json.dumps(job))
                        start = time.monotonic()
                        daemon.edgetune("submit", "job.yaml", "--watch")
                        seconds = time.monotonic() - start
                        adapters = json.loads(daemon.edgetune("adapters", "list", "--json"))["adapters"]
                        path = next(each["path"] for each in adapters if each["name"] == name)
                        record({
                            "task": task, "method": method, "seed": int(seed), "learning_rate": job["learning_rate"],
                            "seconds": round(seconds, 1)} | accuracy(options, task, path))
    print("\n| task | method | exact answers | loss |\n|---|---|---|---|")
    for (task, method), lines in found.items():
        cells = []
        for key, scale, digits in (("accuracy", 100, 1), ("loss", 1, 3)):
            values = [scale * line[key] for line in lines]
            mean = statistics.mean(values)
            spread = f" ± {max(abs(value - mean) for value in values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{mean:.{digits}f}{' %' if key == 'accuracy' else ''}{spread}")
        print(f"| {task} | {method} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
