#!/usr/bin/env python3
"""Whether low-precision products train as well as f32: the same jobs with each `precision`, by their held-out loss in f32.

    python3 benchmarks/compare_precision.py [--bin .build/release] [--model GGUF] [--precisions f32 int8 bf16]
                                            [--seeds 1 2 3] [--sets licences docstrings] [--kernels SET]

Two data sets that every Debian machine has: paragraphs of its licences (plain text), and questions and answers made of the
Python library's docstrings (chat). A real daemon runs the jobs one after the other; a seed decides the split, the order and
the start. One JSON line per job, then a table: the held-out loss of the adapter and its distance from the f32 job's.
Needs only Python's standard library.
"""
import argparse
import importlib
import inspect
import json
import os
import pkgutil
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def licences():
    lines = []
    for path in sorted(Path("/usr/share/common-licenses").iterdir()):
        if path.is_symlink():
            continue
        for paragraph in re.split(r"\n\s*\n", path.read_text(errors="replace")):
            text = " ".join(paragraph.split())
            if 200 <= len(text) <= 900:
                lines.append({"text": text})
    return lines[:: max(1, len(lines) // 150)][:150]


def docstrings():
    lines, seen = [], set()
    for module in sorted(info.name for info in pkgutil.iter_modules() if not info.name.startswith("_")):
        if module in {"antigravity", "this", "idlelib", "turtledemo", "test"} or module not in sys.stdlib_module_names:
            continue
        try:
            loaded = importlib.import_module(module)
        except Exception:  # a module that this machine lacks the libraries for
            continue
        for name, function in sorted(inspect.getmembers(loaded, inspect.isfunction)):
            text = " ".join((inspect.getdoc(function) or "").split())
            if name.startswith("_") or not 80 <= len(text) <= 500 or text in seen:
                continue
            seen.add(text)
            lines.append({"messages": [
                {"role": "user", "content": f"What does Python's {module}.{name}{inspect.signature(function)} do?"[:200]},
                {"role": "assistant", "content": text}]})
    return lines[:: max(1, len(lines) // 200)][:200]


SETS = {"licences": licences, "docstrings": docstrings}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=ROOT / ".build/release")
    parser.add_argument("--model", type=Path, default=ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--precisions", nargs="+", default=["f32", "int8"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--sets", nargs="+", choices=sorted(SETS), default=sorted(SETS))
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--kernels", help="EDGETUNE_KERNELS for the daemon")
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as directory:
        environment = dict(os.environ, EDGETUNE_SOCKET=directory + "/s")
        if options.kernels:
            environment["EDGETUNE_KERNELS"] = options.kernels

        def edgetune(*arguments):
            done = subprocess.run([options.bin / "edgetune", *arguments], env=environment, capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(f"edgetune {' '.join(map(str, arguments))}: {done.stderr}")
            return done.stdout

        daemon = subprocess.Popen([options.bin / "edgetuned", "serve", "--socket", environment["EDGETUNE_SOCKET"],
                                   "--state-dir", directory + "/state"], env=environment, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 20
            while not Path(environment["EDGETUNE_SOCKET"]).exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            edgetune("models", "add", options.model, "--name", "base")
            for name in options.sets:
                path = Path(directory) / f"{name}.jsonl"
                path.write_text("".join(json.dumps(line) + "\n" for line in SETS[name]()))
                for seed in options.seeds:
                    for precision in options.precisions:
                        job = f"{name}-{seed}-{precision}"
                        edgetune("submit", "--name", job, "--base-model", "base", "--dataset", path, "--val-set-size", "0.2",
                                 "--seed", str(seed), "--precision", precision, "--num-epochs", str(options.epochs),
                                 "--micro-batch-size", "4", "--gradient-accumulation-steps", "2", "--learning-rate", "5e-4",
                                 "--warmup-steps", "5", "--watch")
                        jobs = json.loads(edgetune("jobs", "--json"))["jobs"]
                        progress = next(found["progress"] for found in jobs if found["name"] == job)
                        line = {"data": name, "seed": seed, "precision": precision, "steps": progress["step"],
                                "held_out_loss": progress["best_eval_loss"],
                                "tokens_per_second": round(progress["tokens_per_second"])}
                        results[name, seed, precision] = line["held_out_loss"]
                        print(json.dumps(line), flush=True)
        finally:
            daemon.terminate()
            daemon.wait()
    print("\n| data | precision | held-out loss, by seed | difference from f32, by seed | mean |\n|---|---|---|---|---|")
    for name in options.sets:
        for precision in options.precisions:
            losses = [results[name, seed, precision] for seed in options.seeds]
            row = f"| {name} | {precision} | " + ", ".join(f"{loss:.4f}" for loss in losses)
            if precision != "f32" and "f32" in options.precisions:
                off = [100 * (results[name, seed, precision] / results[name, seed, "f32"] - 1) for seed in options.seeds]
                row += " | " + ", ".join(f"{value:+.2f} %" for value in off) + f" | {statistics.mean(off):+.2f} % |"
            else:
                row += " | | |"
            print(row)


if __name__ == "__main__":
    main()
