#!/usr/bin/env python3
"""One training micro-step in PEFT, and beside it in edgetune: tokens per second and peak memory, as JSON lines.

    python compare_peft.py [--model GGUF] [--threads 2] [--isa native|avx2] [--repeats 5]
                           [--backends nf4-f32 nf4-bf16 f32] [--shapes 1x512 2x512] [--checkpointing on off]
                           [--edgebench PATH] [--kernels avx2:f32 avx2+avx_vnni:int8 ...]

A micro-step is forward and backward of SAMPLESxTOKENS random tokens, every token carrying loss, LoRA r 16 on all seven
linears; AdamW is timed apart. Backends: bitsandbytes NF4 with f32 or bf16 arithmetic (the linears of the same base, made
NF4), and plain f32; attention is torch's sdpa. `--checkpointing on` recomputes every layer.

Each backend is a process of its own. Its peak is VmHWM after a reset (/proc/self/clear_refs) when the model is loaded and
one step is done, so loading does not count; `loaded_rss_bytes` is what it held before the steps, python and torch
included. With --edgebench one PEFT step and one `edgebench step` of each kernel set and precision take turns, `repeats`
times, so all see the same machine; the ratio is the median over turns, and a table of them comes last. A turn counts when other processes had at most --other-load of the CPU time
during each half; pairs are repeated, up to three times as many, and a result with fewer than `repeats` quiet pairs
is made from all of them and says `"noisy": true`. --isa avx2 caps ATen, oneDNN and MKL; edgetune's kernels are what
--kernels says.
"""
import argparse
import ctypes
import gc
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RANK, ALPHA, SEED = 16, 32, 7


# --- The measured process ------------------------------------------------------------------------------------------

def memory(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024


def convert(model, directory):
    sys.path.insert(0, str(ROOT / "Tests/Goldens"))
    from gguf_model import BaseFile

    BaseFile(model).model().save_pretrained(directory)


def serve_steps(job):
    """Loads, warms up, then does one step per line of standard input."""
    sys.path.insert(0, str(ROOT / "Tests/Goldens"))
    import torch
    from gguf_model import lora_model

    torch.set_num_threads(job["threads"])
    torch.manual_seed(SEED)
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    backend, options = job["backend"], {"attn_implementation": "sdpa", "device_map": {"": "cpu"}}
    kind = torch.bfloat16 if backend.endswith("bf16") else torch.float32
    if backend.startswith("nf4"):
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=kind)
    model = AutoModelForCausalLM.from_pretrained(job["directory"], dtype=kind, **options)
    model.config.use_cache = False
    model = lora_model(model, RANK, ALPHA, seed=SEED)
    if job["checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=2e-4)
    ids = torch.randint(0, model.config.vocab_size, (job["samples"], job["tokens"]))

    def step():
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        middle = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        return {"seconds": middle - start, "optimizer_seconds": time.perf_counter() - middle,
                "loss": float(loss.detach())}

    step()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    loaded = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    print(json.dumps({
        "loaded_rss_bytes": loaded, "trainable_parameters": sum(p.numel() for p in trainable),
        "quantised_linears": sum(
            name.endswith(".base_layer") and type(module).__name__ == "Linear4bit" for name, module in model.named_modules()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability()}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(step() | {"peak_rss_bytes": memory("VmHWM")}), flush=True)


# --- The comparison ------------------------------------------------------------------------------------------------

def environment(options):
    values = dict(os.environ, OMP_NUM_THREADS=str(options.threads), MKL_NUM_THREADS=str(options.threads),
                  OPENBLAS_NUM_THREADS=str(options.threads), TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1",
                  TRANSFORMERS_VERBOSITY="error")
    if options.isa == "avx2":
        values |= {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
    return values


class Contention:
    """Share of the machine's CPU time that went to other processes between two points."""

    def __init__(self, pid=None):
        self.pid, self.start = pid, self.read(pid)

    @staticmethod
    def read(pid):
        """Ticks of the machine, busy ticks, and ticks of the measured process (or of finished children)."""
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        if pid:
            own = sum(int(field) for field in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13])
        else:
            children = os.times()
            own = (children.children_user + children.children_system) * os.sysconf("SC_CLK_TCK")
        return sum(fields), sum(fields) - fields[3] - fields[4], own

    def share(self):
        total, busy, own = (after - before for after, before in zip(self.read(self.pid), self.start))
        return max(0.0, (busy - own) / total) if total else 0.0


def edgebench_step(options, kernels, samples, tokens, checkpointing):
    """One `edgebench step`; its last JSON line must have tokens_per_second and peak_rss_bytes."""
    arguments = shlex.split(options.edgebench_arguments.format(
        model=options.model, samples=samples, tokens=tokens, rank=RANK, threads=options.threads,
        keep="0" if checkpointing else "all"))
    kernel_set, precision = kernels.split(":")
    arguments += ["--set", kernel_set, "--precision", precision]
    run = subprocess.run([options.edgebench, "step", *arguments, "--json"], env=environment(options), text=True,
                         stdout=subprocess.PIPE)
    if run.returncode:
        raise SystemExit(f"{options.edgebench} step {shlex.join(arguments)}: exit status {run.returncode}")
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1] if lines else run.stdout)


def compare(options, directory, backend, samples, tokens, checkpointing):
    job = {"directory": directory, "backend": backend, "samples": samples, "tokens": tokens,
           "checkpointing": checkpointing, "threads": options.threads}
    with open(os.devnull if not options.verbose else "/dev/stderr", "w") as errors:
        worker = subprocess.Popen([sys.executable, __file__, "--worker", json.dumps(job)], env=environment(options),
                                  text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
    shape = {"backend": backend, "samples": samples, "tokens_per_sample": tokens, "checkpointing": checkpointing,
             "rank": RANK, "threads": options.threads, "isa": options.isa}
    loaded = worker.stdout.readline()
    if not loaded:
        print(json.dumps(shape | {"failed": f"exit status {worker.wait()}; --verbose says more"}), flush=True)
        return
    pairs = []
    while len(pairs) < 3 * options.repeats and sum(pair["other"] <= options.other_load for pair in pairs) < options.repeats:
        contention = Contention(worker.pid)
        worker.stdin.write("step\n")
        worker.stdin.flush()
        answer = worker.stdout.readline()
        if not answer:
            print(json.dumps(shape | {"failed": f"exit status {worker.wait()} in a step"}), flush=True)
            return
        pair = {"step": json.loads(answer), "other": contention.share()}
        if options.edgebench:
            time.sleep(0.3)  # torch's OpenMP threads spin for a while after a step
            contention = Contention()
            pair["ours"] = {kernels: edgebench_step(options, kernels, samples, tokens, checkpointing)
                            for kernels in options.kernels}
            pair["other"] = max(pair["other"], contention.share())
        pairs.append(pair)
    quiet = [pair for pair in pairs if pair["other"] <= options.other_load]
    noisy = len(quiet) < options.repeats
    used = pairs if noisy else quiet
    steps, ours = [pair["step"] for pair in used], [pair["ours"] for pair in used if "ours" in pair]
    worker.stdin.close()
    worker.wait()
    rates = [samples * tokens / step["seconds"] for step in steps]
    result = shape | json.loads(loaded) | {
        "tokens_per_second": round(statistics.median(rates), 1),
        "tokens_per_second_all": [round(rate, 1) for rate in rates],
        "optimizer_seconds": round(statistics.median(step["optimizer_seconds"] for step in steps), 4),
        "peak_rss_bytes": max(step["peak_rss_bytes"] for step in steps), "loss": steps[0]["loss"],
        "noisy": noisy, "other_load": [round(pair["other"], 3) for pair in used]}
    result["edgetune"] = []
    for kernels in options.kernels if ours else []:
        mine = [float(turn[kernels]["tokens_per_second"]) for turn in ours]
        resident = max(int(turn[kernels]["peak_rss_bytes"]) for turn in ours)
        result["edgetune"].append({
            "kernels": kernels, "tokens_per_second": round(statistics.median(mine), 1),
            "tokens_per_second_all": [round(rate, 1) for rate in mine], "peak_rss_bytes": resident,
            "speed_ratio": round(statistics.median(a / b for a, b in zip(mine, rates)), 3),
            "memory_ratio": round(resident / result["peak_rss_bytes"], 3)})
    print(json.dumps(result), flush=True)
    return result


def print_table(results):
    print("\n| shape | recomputation | PEFT | tokens/s | MB | edgetune | tokens/s | times PEFT | MB |\n" + "|---" * 9 + "|")
    for result in results:
        left = (f"| {result['samples']} x {result['tokens_per_sample']} | {'yes' if result['checkpointing'] else 'no'} | "
                f"{result['backend']} ({result['isa']}) | {result['tokens_per_second']:.0f} | {result['peak_rss_bytes'] / 1e6:.0f} | ")
        for ours in result["edgetune"]:
            print(left + f"{ours['kernels'].replace(':', ' ')} | {ours['tokens_per_second']:.0f} | {ours['speed_ratio']:.2f} | "
                  f"{ours['peak_rss_bytes'] / 1e6:.0f} |{' noisy' if result['noisy'] else ''}")


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--worker":
        return serve_steps(json.loads(sys.argv[2]))
    if len(sys.argv) == 4 and sys.argv[1] == "--convert":
        return convert(sys.argv[2], sys.argv[3])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--isa", choices=("native", "avx2"), default="native")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backends", nargs="+", default=["nf4-f32", "nf4-bf16", "f32"],
                        choices=("nf4-f32", "nf4-bf16", "f32"))
    parser.add_argument("--shapes", nargs="+", default=["1x512", "2x512"], help="SAMPLESxTOKENS")
    parser.add_argument("--checkpointing", nargs="+", choices=("on", "off"), default=["on", "off"])
    parser.add_argument("--other-load", type=float, default=0.05, help="share of all CPU time; above it a pair is repeated")
    parser.add_argument("--edgebench", help="path of the edgebench executable")
    parser.add_argument("--edgebench-arguments", default="--model {model} --samples {samples} --tokens {tokens} "
                        "--rank {rank} --threads {threads} --keep {keep} --runs 3")
    parser.add_argument("--kernels", nargs="+", default=["avx2:f32"], metavar="SET:PRECISION")
    parser.add_argument("--verbose", action="store_true", help="show the worker's standard error")
    options = parser.parse_args()
    options.model = options.model.resolve()
    with tempfile.TemporaryDirectory() as directory:
        # In a process of its own: ru_maxrss survives exec, so a child of a big process reports its parent's peak.
        subprocess.run([sys.executable, __file__, "--convert", str(options.model), directory], check=True,
                       env=environment(options), stderr=None if options.verbose else subprocess.DEVNULL)
        results = []
        for backend in options.backends:
            for shape in options.shapes:
                samples, tokens = (int(part) for part in shape.split("x"))
                for checkpointing in options.checkpointing:
                    results.append(compare(options, directory, backend, samples, tokens, checkpointing == "on"))
        print_table([result for result in results if result])


if __name__ == "__main__":
    main()
