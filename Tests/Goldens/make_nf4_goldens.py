#!/usr/bin/env python3
"""NF4 with double quantisation as bitsandbytes makes and reads it: nf4-goldens.safetensors.

    python make_nf4_goldens.py          (requirements.txt; prints the file's size and SHA-256)

384 blocks, so that there are two nested blocks, of which the second is not whole; scales over three decades; one block of
zeros and one with a single value.
"""
import hashlib
from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent


def main():
    generator = torch.Generator().manual_seed(20_261_121)
    weight = torch.randn(128, 192, generator=generator)
    weight *= 10 ** (torch.rand(128, 1, generator=generator) * 3 - 3)
    weight[3, :64] = 0
    weight[5, :64] = 0
    weight[5, 17] = -0.25
    codes, state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    values = bnb.dequantize_4bit(codes, state)
    path = HERE / "nf4-goldens.safetensors"
    save_file({"source": weight.contiguous(), "codes": codes.flatten().contiguous(), "absmax_codes": state.absmax.contiguous(),
               "nested_absmax": state.state2.absmax.contiguous(), "nested_offset": state.offset.reshape(1).contiguous(),
               "values": values.contiguous()}, path)
    print(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


if __name__ == "__main__":
    main()
