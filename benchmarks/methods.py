#!/usr/bin/env python3
"""What each PEFT method costs: planned and held memory, predicted and measured time, bytes of the adapter.

    python3 benchmarks/methods.py MODEL.gguf… [--tokens 512] [--samples 4] [--least]

Runs `edgebench plan`, which runs the real worker, for every method with its own rank on every linear; with --least also with no more
memory than the method needs. Prints a Markdown table.
"""

import argparse
import json
import pathlib
import subprocess

MIB = 1 << 20
METHODS = (
    "lora", "lora-fa", "dora", "dylora", "vera", "miss", "loha", "lokr", "adalora", "ia3", "oft", "rlrr", "shira", "ln-tuning",
    "prefix-tuning", "prompt-tuning", "seq_bn", "double_seq_bn", "par_bn", "mam", "unipelt", "mixlora", "lst")


def plan(options, model, method, budget):
    command = [options.edgebench, "plan", "--model", model, "--tokens", options.tokens, "--samples", options.samples, "--adapter", method,
               "--steps", options.steps, "--budget", budget, "--json", "--directory", options.directory]
    return json.loads(subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--edgebench", default=".build/release/edgebench")
    parser.add_argument("--directory", default="/tmp")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--most", default="20GiB")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--least", action="store_true")
    options = parser.parse_args()
    print("| model | method | planned MiB | held MiB | tokens/s, predicted | measured |")
    print("|---|---|---|---|---|---|")
    for model in options.models:
        for method in options.methods.split(","):
            budgets = [options.most]
            if options.least:
                budgets.append(plan(options, model, method, MIB)["required_bytes"] + MIB)
            for budget in budgets:
                line = plan(options, model, method, budget)
                assert line["verdict"] == "kept", line
                print(f"| {pathlib.Path(model).stem} | {method} | {line['planned_peak_bytes'] / MIB:.0f} | {line['peak_rss_bytes'] / MIB:.0f} "
                      f"| {line['planned_tokens_per_second']:.0f} | {line['tokens_per_second']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
