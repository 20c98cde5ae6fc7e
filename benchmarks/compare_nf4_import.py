#!/usr/bin/env python3
"""Imports a Hugging Face directory with `edgebench import` and compares every tensor, bit for bit, with what bitsandbytes makes of
the same weights (BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True), on a CPU).

    python compare_nf4_import.py DIRECTORY|MODEL.gguf [--edgebench .build/release/edgebench] [--threads 1] [--keep DIRECTORY]
    python compare_nf4_import.py --random tinyllama-1.1b …      # random weights in that shape, bf16, in shards

A GGUF of a llama is first made a bf16 Hugging Face directory. --threads: torch's; with more than one the mean of 32,768 and
more absmax values is another in its last bit. Prints one JSON line; exit status 1 when anything differs.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import bitsandbytes.functional as bnb
import gguf
import torch
from safetensors import safe_open
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "Tests/Goldens"))
from gguf_model import BaseFile

SHAPES = {"tinyllama-1.1b": (22, 2048, 5632, 256, 32_000)}  # layers, hidden, intermediate, key-value width, vocabulary


def random_directory(shape, directory):
    """A shard per layer and one for the rest; a norm in f32, so that the types of a file differ."""
    layers, hidden, intermediate, key_value, vocabulary = SHAPES[shape]
    directory.mkdir(parents=True)
    generator = torch.Generator().manual_seed(1)

    def matrix(rows, columns):
        scales = 10 ** (torch.rand(rows, 1, generator=generator) * 2 - 3)
        return (torch.randn(rows, columns, generator=generator) * scales).to(torch.bfloat16)

    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": hidden, "dtype": "bfloat16"}))
    weight_map = {}
    for shard in range(layers + 1):
        if shard == layers:
            tensors = {"model.embed_tokens.weight": matrix(vocabulary, hidden), "lm_head.weight": matrix(vocabulary, hidden),
                       "model.norm.weight": torch.ones(hidden)}
        else:
            prefix = f"model.layers.{shard}."
            tensors = {prefix + f"self_attn.{name}_proj.weight": matrix(rows, hidden)
                       for name, rows in (("q", hidden), ("k", key_value), ("v", key_value), ("o", hidden))}
            tensors |= {prefix + "mlp.gate_proj.weight": matrix(intermediate, hidden),
                        prefix + "mlp.up_proj.weight": matrix(intermediate, hidden),
                        prefix + "mlp.down_proj.weight": matrix(hidden, intermediate),
                        prefix + "input_layernorm.weight": torch.ones(hidden, dtype=torch.bfloat16),
                        prefix + "post_attention_layernorm.weight": torch.ones(hidden, dtype=torch.bfloat16)}
        name = f"model-{shard + 1:05}-of-{layers + 1:05}.safetensors"
        save_file(tensors, directory / name, metadata={"format": "pt"})
        weight_map |= {tensor: name for tensor in tensors}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def dequantised_directory(model, directory):
    base = BaseFile(model)
    base.model(dtype=torch.bfloat16).to(torch.bfloat16).save_pretrained(directory, max_shard_size="100MB")
    base.tokenizer().save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(base.value("tokenizer.chat_template"))


def source_tensors(directory):
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                yield name, file.get_tensor(name)


def is_linear(name, tensor):
    parts = name.split(".")
    inside = any(part == "layers" and following.isdigit() for part, following in zip(parts, parts[1:]))
    return inside and parts[-1] == "weight" and tensor.ndim == 2 and tensor.shape[1] % 64 == 0


def expected_tensors(name, tensor):
    """Names and bytes in the container."""
    if is_linear(name, tensor):
        codes, state = bnb.quantize_4bit(tensor, blocksize=64, compress_statistics=True, quant_type="nf4")
        nested = torch.cat([state.state2.absmax, state.offset.reshape(1)])
        return {name + ".nf4": codes.reshape(tensor.shape[0], -1), name + ".absmax": state.absmax, name + ".nested": nested}
    if tensor.ndim < 2:
        return {name: tensor.float()}
    return {name: tensor if tensor.dtype == torch.float16 else tensor.to(torch.bfloat16)}


def raw(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def compare(directory, container):
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(container).tensors}
    counts = {"linears": 0, "tensors": 0, "bytes": 0, "different_tensors": 0, "different_bytes": 0}
    for name, tensor in source_tensors(directory):
        counts["linears"] += is_linear(name, tensor)
        for expected_name, expected in expected_tensors(name, tensor).items():
            ours, theirs = found.pop(expected_name).data.tobytes(), raw(expected)
            assert len(ours) == len(theirs), (expected_name, len(ours), len(theirs))
            different = 0 if ours == theirs else sum(a != b for a, b in zip(ours, theirs))
            counts["tensors"] += 1
            counts["bytes"] += len(ours)
            counts["different_bytes"] += different
            if different:
                counts["different_tensors"] += 1
                print(expected_name, different, "of", len(ours), "bytes differ", file=sys.stderr)
    assert not found, f"not in the source: {sorted(found)[:5]}"
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--random", choices=SHAPES)
    parser.add_argument("--edgebench", type=Path, default=ROOT / ".build/release/edgebench")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="where directory and container stay")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.keep or Path(scratch)
        directory = work / "source"
        if arguments.random:
            if not directory.exists():
                random_directory(arguments.random, directory)
        elif arguments.model.suffix == ".gguf":
            if not directory.exists():
                dequantised_directory(arguments.model, directory)
        else:
            directory = arguments.model
        container = work / "container.gguf"
        run = subprocess.run([arguments.edgebench, "import", directory, container], check=True, stdout=subprocess.PIPE)
        counts = compare(directory, container)
    print(json.dumps(counts | {"import": json.loads(run.stdout)}))
    sys.exit(counts["different_bytes"] > 0)


if __name__ == "__main__":
    main()
