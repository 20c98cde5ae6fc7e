#!/usr/bin/env python3
"""NF4 and FP4 as bitsandbytes makes and reads them: nf4-goldens.safetensors, four-bit-goldens.safetensors.

    python make_nf4_goldens.py          (requirements.txt; prints the files' sizes and SHA-256)

nf4: with double quantisation, and what it was made from; 384 blocks, so that there are two nested blocks, of which the second
is not whole; scales over three decades; one block of zeros and one with a single value.
four-bit: FP4 with double quantisation, 272 blocks of weights like those; both formats with plain absmax values, 24 blocks.
"""
import hashlib
from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent


def weights(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    weight *= 10 ** (torch.rand(rows, 1, generator=generator) * 3 - 3)
    weight[3, :64] = 0
    weight[5, :64] = 0
    weight[5, 17] = -0.25
    return weight


def quantised(weight, quant_type, compress_statistics):
    codes, state = bnb.quantize_4bit(
        weight, blocksize=64, compress_statistics=compress_statistics, quant_type=quant_type)
    tensors = {"codes": codes.flatten(), "values": bnb.dequantize_4bit(codes, state)}
    if compress_statistics:
        tensors |= {"absmax_codes": state.absmax, "nested_absmax": state.state2.absmax,
                    "nested_offset": state.offset.reshape(1)}
    else:
        tensors["absmax"] = state.absmax
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def save(tensors, name):
    path = HERE / name
    save_file(tensors, path)
    print(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest(), name)


def main():
    weight = weights(128, 192, 20_261_121)
    save({"source": weight.contiguous()} | quantised(weight, "nf4", True), "nf4-goldens.safetensors")
    parts = {"FP4.nested": quantised(weights(68, 256, 20_261_122), "fp4", True)}
    for kind in ("nf4", "fp4"):
        parts[f"{kind.upper()}.plain"] = quantised(weights(8, 192, 20_261_123), kind, False)
    save({f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()},
         "four-bit-goldens.safetensors")


if __name__ == "__main__":
    main()
