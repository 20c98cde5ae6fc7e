#!/usr/bin/env python3
"""The README's ladder: for each model and context, what is planned and what is held, from all the memory there is down to the
least that fits. Runs `edgebench plan`, which runs the real worker, and prints a Markdown table.

    edgebench model tinyllama-1.1b /tmp/models/tinyllama-1.1b.gguf        # random weights in the real shape
    python3 benchmarks/memory_ladder.py models/SmolLM2-135M-Instruct.Q4_1.gguf:512 /tmp/models/tinyllama-1.1b.gguf:512

A case is FILE:CONTEXT[:RANK:TARGETS]; a step is one sample of that many tokens. `--most` bounds the memory of the first rung.
"""

import argparse
import json
import pathlib
import subprocess

MIB = 1 << 20


def plan(options, model, context, rank, targets, budgets):
    command = [options.edgebench, "plan", "--model", model, "--tokens", context, "--rank", rank, "--targets", targets,
               "--steps", str(options.steps), "--json", "--directory", options.directory]
    for budget in budgets:
        command += ["--budget", str(budget)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def trades(choices):
    """The plan's own words, without the figures."""
    return "; ".join(choice.split(" (")[0].split(":")[0] for choice in choices) or "nothing"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--edgebench", default=".build/release/edgebench")
    parser.add_argument("--directory", default="/tmp")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--most", type=int, default=16384, help="MiB")
    parser.add_argument("--rungs", type=int, default=3, help="budgets between the least and the most")
    options = parser.parse_args()
    print("| model | tokens | LoRA | planned MiB | held MiB | ms/token, predicted | measured | traded |")
    print("|---|---|---|---|---|---|---|---|")
    for case in options.cases:
        model, context, rank, targets = (case.split(":") + ["16", "all-linear"])[:4] if case.count(":") < 3 else case.split(":")
        least = plan(options, model, context, rank, targets, [MIB])[0]["required_bytes"]
        budgets = [options.most * MIB]
        if options.rungs > 2:
            largest = plan(argparse.Namespace(**{**vars(options), "steps": 1}), model, context, rank, targets,
                           budgets)[0]["planned_peak_bytes"]
            # Evenly in the logarithm: the ladder's steps are factors.
            ratio = (least / largest) ** (1 / (options.rungs - 1))
            budgets += [int(largest * ratio ** rung) for rung in range(1, options.rungs - 1)]
        budgets.append(least + MIB)  # the worker measures itself anew
        for line in plan(options, model, context, rank, targets, budgets):
            assert line["verdict"] == "kept", line
            print(f"| {pathlib.Path(model).stem} | {context} | r {rank} {targets} | {line['planned_peak_bytes'] / MIB:.0f} "
                  f"| {line['peak_rss_bytes'] / MIB:.0f} | {1000 / line['planned_tokens_per_second']:.3g} "
                  f"| {1000 / line['tokens_per_second']:.3g} | {trades(line['choices'])} |", flush=True)


if __name__ == "__main__":
    main()
