#!/usr/bin/env python3
"""Adapters of every architecture, through the daemon and into their consumers: llama.cpp and PEFT.

    python3 benchmarks/check_family_adapters.py [--bin .build/release] [FAMILY …]

For each directory of Tests/Goldens/architectures the golden's adapter goes in as PEFT saves it (`edgetune adapters add`), comes out
as a GGUF adapter and as a PEFT directory (`edgetune export`), and both are loaded: llama.cpp's logits are held against the
reference's, and PEFT's tensors against the golden's, bit for bit. Prints a Markdown table. Needs llama-cpp-python, peft,
transformers, torch and safetensors; llama.cpp multiplies in F16, which is most of its distance.
"""
import argparse
import json
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np
import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

from running_daemon import running_daemon

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = ROOT / "Tests/Goldens/architectures"


def adapter_of(golden, directory):
    directory.mkdir()
    save_file({name.removeprefix("initial."): value.contiguous() for name, value in golden.items() if name.startswith("initial.")},
              directory / "adapter_model.safetensors", {"format": "pt"})
    (directory / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": "all-linear", "base_model_name_or_path": ""}))


def llama_cpp_distance(golden, model, adapter=None):
    """Largest distance of a logit from the adapted reference's, sample by sample, and how far the adapter moves them."""
    expected = golden.get("gguf.logits", golden["logits"]).numpy()
    base = golden.get("gguf.base.logits", golden["base.logits"]).numpy()
    model = llama_cpp.Llama(
        str(model), lora_path=adapter and str(adapter), n_ctx=64, logits_all=True, flash_attn=False, n_threads=1,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, verbose=False)
    start, worst = 0, []
    for length in golden["sample_lengths"].tolist():
        model.reset()
        model.eval(golden["tokens"][start:start + length].tolist())
        worst.append(float(np.abs(np.array(model.scores[:length]) - expected[start:start + length]).max()))
        start += length
    return worst, float(np.abs(expected - base).max())


def peft_distance(family, golden, directory):
    """Elements of the adapter that PEFT holds otherwise than the golden has them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(FAMILIES / family, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, directory)
    held = {name.replace(".default.", "."): value for name, value in model.named_parameters() if "lora_" in name}
    expected = {name.removeprefix("initial."): value for name, value in golden.items() if name.startswith("initial.")}
    assert held.keys() == expected.keys(), held.keys() ^ expected.keys()
    return sum(int((held[name] != value).sum()) for name, value in expected.items())


def command_line(description):
    """The families that are asked for, all if none is, and where the binaries are."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--bin", type=Path, default=ROOT / ".build/release")
    options = parser.parse_args()
    return options.families or sorted(path.name for path in FAMILIES.iterdir() if path.is_dir()), options.bin


def main():
    families, binaries = command_line(__doc__)
    print("| family | llama.cpp, largest distance by sample | the adapter moves logits by | elements that differ in PEFT |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        with running_daemon(binaries, scratch) as daemon:
            edgetune = daemon.edgetune
            for family in families:
                golden = load_file(FAMILIES / family / "golden.safetensors")
                adapter_of(golden, scratch / family)
                edgetune("models", "add", FAMILIES / family / "model.gguf", "--name", family)
                edgetune("adapters", "add", scratch / family, "--base-model", family, "--name", family)
                edgetune("export", family, "--format", "gguf", "--output", scratch / f"{family}.gguf")
                edgetune("export", family, "--format", "peft", "--output", scratch / f"{family}-peft")
                worst, moved = llama_cpp_distance(golden, FAMILIES / family / "model.gguf", scratch / f"{family}.gguf")
                differing = peft_distance(family, golden, scratch / f"{family}-peft")
                print(f"| {family} | {', '.join(f'{value:.3f}' for value in worst)} | {moved:.2f} | {differing} |", flush=True)


if __name__ == "__main__":
    main()
