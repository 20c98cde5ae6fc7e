#!/usr/bin/env python3
"""What a composition of adapters is worth: adapters of parts of benchmarks/tasks, mixed by 16 examples of another part.

    python3 benchmarks/compose.py [--model GGUF] [--steps 40] [--seeds 1,2,3] [--lines table.jsonl]

A real daemon trains an adapter of spam, one of four intents of bank customers' questions and one of four others, and composes them on 16
examples: of both fours, and of four intents that none of the adapters has seen. `edgebench accuracy` then measures the base, each adapter, each
composition and, for what the examples are worth by themselves, an adapter trained on them alone, on the test lines of those intents. Prints
one JSON line a measurement and a Markdown table of means over seeds, which choose the examples and the search.
"""
import argparse
import json
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from running_daemon import running_daemon

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = 16
# As long as the search: forty evaluations, where a step is a forward and a backward of about two.
TRAINING_STEPS = 13


def lines(file, intents=None):
    found = [line for line in (ROOT / f"benchmarks/tasks/{file}.jsonl").read_text().splitlines()]
    return [line for line in found if intents is None or json.loads(line)["messages"][-1]["content"] in intents]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--bin", type=Path, default=ROOT / ".build/release")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--lines", type=Path)
    options = parser.parse_args()
    intents = sorted({json.loads(line)["messages"][-1]["content"] for line in lines("banking-intents.train")})
    parts = {"spam": None, "first": intents[:4], "second": intents[4:8]}
    targets = {"both fours": intents[:8], "unseen": intents[8:]}
    found = {}

    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        with running_daemon(options.bin, scratch) as daemon:
            def record(line):
                found.setdefault((line["target"], line["adapter"]), []).append(line)
                print(json.dumps(line), flush=True)
                if options.lines:
                    with options.lines.open("a") as file:
                        file.write(json.dumps(line) + "\n")

            def measure(target, label, name=None, **more):
                (scratch / "test.jsonl").write_text("\n".join(lines("banking-intents.test", targets[target])) + "\n")
                command = [options.bin / "edgebench", "accuracy", "--model", options.model, "--data", scratch / "test.jsonl"]
                if name:
                    adapters = json.loads(daemon.edgetune("adapters", "list", "--json"))["adapters"]
                    command += ["--adapter", next(each["path"] for each in adapters if each["name"] == name)]
                measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                record({"target": target, "adapter": label} | more | measured)

            def train(name, samples, **keys):
                (scratch / "train.jsonl").write_text("\n".join(samples) + "\n")
                job = {
                    "name": name, "base_model": "base", "datasets": [{"path": "train.jsonl"}], "adapter": "lora", "lora_r": 8, "lora_alpha": 16,
                    "val_set_size": 0, "micro_batch_size": 8, "gradient_accumulation_steps": 1, "num_epochs": 2, "warmup_ratio": 0.1,
                    "learning_rate": 5e-4, "seed": 1, "sequence_len": 512} | keys
                (scratch / "job.yaml").write_text(json.dumps(job))
                daemon.edgetune("submit", "job.yaml", "--watch")

            daemon.edgetune("models", "add", options.model.resolve(), "--name", "base")
            for name, chosen in parts.items():
                train(name, lines("sms-spam.train")[:144] if chosen is None else lines("banking-intents.train", chosen))
            for target, chosen in targets.items():
                measure(target, "the model itself")
                for name in parts:
                    measure(target, name, name)
                for seed in map(int, options.seeds.split(",")):
                    few = random.Random(seed).sample(lines("banking-intents.train", chosen), EXAMPLES)
                    (scratch / "few.jsonl").write_text("\n".join(few) + "\n")
                    name = f"{target}-{seed}".replace(" ", "-")
                    start = time.monotonic()
                    report = json.loads(daemon.edgetune(
                        "adapters", "compose", name, "--adapters", *parts, "--data", "few.jsonl", "--steps", str(options.steps), "--seed",
                        str(seed), "--json"))["composed"]
                    seconds = round(time.monotonic() - start, 1)
                    keys = ("weights", "loss", "base_loss", "alone_losses", "planned_peak_bytes", "peak_bytes")
                    measure(target, "composed", name, seed=seed, seconds=seconds, composed={key: report[key] for key in keys})
                    start = time.monotonic()
                    train(name + "-trained", few, micro_batch_size=EXAMPLES, max_steps=TRAINING_STEPS)
                    measure(target, "trained on the examples", name + "-trained", seed=seed, seconds=round(time.monotonic() - start, 1))
    print("\n| test lines | adapter | loss | exact answers |\n|---|---|---|---|")
    for (target, label), measured in found.items():
        cells = []
        for key, scale, digits in (("loss", 1, 3), ("accuracy", 100, 1)):
            values = [scale * line[key] for line in measured]
            mean = statistics.mean(values)
            spread = f" ± {max(abs(value - mean) for value in values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{mean:.{digits}f}{' %' if key == 'accuracy' else ''}{spread}")
        print(f"| {target} | {label} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
