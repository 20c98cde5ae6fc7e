#!/usr/bin/env python3
"""Merged models of every architecture in their consumers: GGUF in llama.cpp, Hugging Face's files in transformers.

    python3 benchmarks/check_merged_models.py [--bin .build/release] [FAMILY …]

For each directory of Tests/Goldens/architectures the golden's adapter is brought in and merged (`edgetune merge`): into model.gguf as F16
and Q8_0, whose logits llama.cpp computes and which are held against transformers' with the adapter beside the base; and into an NF4
import of the directory, whose result transformers loads, held against transformers with the linears that bitsandbytes dequantises
and PEFT's adapter: its logits beside the base, and element by element PEFT's own merge, rounded to BF16. Prints a Markdown table of
the largest distances of a logit, how far the adapter moves them, and the elements that differ. Needs what check_family_adapters.py
needs, and bitsandbytes.
"""
import shutil
import tempfile
from pathlib import Path

import bitsandbytes.functional
import peft
import tokenizers
import tokenizers.decoders
import tokenizers.models
import tokenizers.pre_tokenizers
import torch
import transformers
from safetensors.torch import load_file

from check_family_adapters import FAMILIES, adapter_of, command_line, llama_cpp_distance
from running_daemon import running_daemon


def logits(model, golden):
    parts, start = [], 0
    for length in golden["sample_lengths"].tolist():
        tokens = golden["tokens"][start:start + length].long().unsqueeze(0)
        with torch.no_grad():
            parts.append(model(tokens).logits[0])
        start += length
    return torch.cat(parts)


def nf4_reference(family, adapter):
    """transformers' model with its linears as bitsandbytes' NF4 with double quantisation keeps them, and PEFT's adapter."""
    model = transformers.AutoModelForCausalLM.from_pretrained(FAMILIES / family, dtype=torch.float32)
    for name, module in model.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear) and module.in_features % 64 == 0:
            codes, state = bitsandbytes.functional.quantize_4bit(module.weight.data, quant_type="nf4", compress_statistics=True)
            module.weight.data = bitsandbytes.functional.dequantize_4bit(codes, state)
    return peft.PeftModel.from_pretrained(model, adapter)


def differing_elements(merged, reference):
    """Of the layers' linears, against PEFT's own merge rounded to BF16."""
    expected, differing, count = dict(reference.model.layers.named_modules()), 0, 0
    for name, module in merged.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            differing += int((module.weight != expected[name].weight.bfloat16().float()).sum())
            count += module.weight.numel()
    return differing, count


def with_tokenizer(family, directory):
    """The family's directory with a tokenizer.json, which the goldens do not have and a model is not accepted without."""
    shutil.copytree(FAMILIES / family, directory, ignore=shutil.ignore_patterns("*.gguf", "golden*", "config.v4.json"))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({"<unk>": 0, "a": 1, "b": 2}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def main():
    families, binaries = command_line(__doc__)
    torch.set_num_threads(1)  # bitsandbytes rounds its means in another order with more
    print("| family | the adapter moves logits by | F16, llama.cpp | Q8_0, llama.cpp | NF4 to BF16, transformers | elements, PEFT |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        with running_daemon(binaries, scratch) as daemon:
            edgetune = daemon.edgetune
            for family in families:
                golden = load_file(FAMILIES / family / "golden.safetensors")
                adapter = scratch / family
                adapter_of(golden, adapter)
                cells = []
                edgetune("models", "add", FAMILIES / family / "model.gguf", "--name", f"{family}-gguf")
                edgetune("adapters", "add", adapter, "--base-model", f"{family}-gguf", "--name", f"{family}-gguf")
                for format in ("f16", "q8_0"):
                    path = scratch / f"{family}-{format}.gguf"
                    edgetune("merge", f"{family}-gguf", "--format", format, "--output", path)
                    worst, moved = llama_cpp_distance(golden, path)
                    cells.append(", ".join(f"{value:.3f}" for value in worst))
                edgetune("models", "add", with_tokenizer(family, scratch / f"{family}-hf"), "--name", f"{family}-hf")
                edgetune("adapters", "add", adapter, "--base-model", f"{family}-hf", "--name", f"{family}-hf")
                edgetune("merge", f"{family}-hf", "--output", scratch / f"{family}-merged")
                merged = transformers.AutoModelForCausalLM.from_pretrained(scratch / f"{family}-merged", dtype=torch.float32)
                reference = nf4_reference(family, adapter)
                distance = (logits(merged, golden) - logits(reference, golden)).abs().max()
                differing, count = differing_elements(merged, reference.merge_and_unload())
                print(f"| {family} | {moved:.2f} | {' | '.join(cells)} | {distance:.3f} | {differing} of {count} |", flush=True)


if __name__ == "__main__":
    main()
