#!/usr/bin/env python3
"""Goldens for training without a backward: MeZO (arXiv 2305.17333, algorithm 1) on the LoRA of tiny-goldens, by torch + transformers + peft.

    python make_zeroth_order_goldens.py

Writes zeroth-order-goldens.safetensors: of ten steps the losses at both ends, the gradient along z and autograd's, in f64 and in f32, and
the adapter that they end at. A step's z is not stored: it is EdgeTensor's `RandomSource`, by an element's place in the adapter's block
(each module's A, then its B with rows in the file's order, each matrix at a cache line). Weight decay is as in the paper's program
(princeton-nlp/MeZO, large_models/trainer.py): theta -= lr * (g * z + weight_decay * theta).
Prints how far f32 is from f64, which is what the tests' tolerances stand on.
"""
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from gguf_model import LINEARS, PEFT_PREFIX, BaseFile, adapter_parameters, batch_loss, lora_model, unpermute_rows
from make_method_goldens import samples
from make_training_goldens import STEPS, TINY, TINY_LORA, WEIGHT_DECAY, ExactNorm, install, packed

HERE = Path(__file__).parent
SEED = 20261122
LEARNING_RATE = 1e-4
# As large as the curvature allows: the difference of the losses is 2 * EPSILON * g, and f32 has each to some 1e-7.
EPSILON = 2e-3
DIRECTION = 11
LINE = 16
MASK = (1 << 64) - 1


def mix(value):
    """`mix64` of u64, wrapping."""
    with np.errstate(over="ignore"):
        z = np.asarray(value, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def stream(seed, purpose, *parts):
    key = mix(mix(seed) ^ np.uint64(purpose))
    for part in parts:
        key = mix(key ^ mix(part))
    return key


def normals(key, count):
    """Two of a pair from one point, 32 bits for its distance and 32 for its angle."""
    bits = mix(key ^ np.arange((count + 1) // 2, dtype=np.uint64))
    far, low = bits >> np.uint64(32), bits & np.uint64(0xFFFFFFFF)
    radius = np.sqrt(np.float32(-2) * np.log(((far + np.uint64(1)).astype(np.float64) * 2.0**-32).astype(np.float32)))
    angle = (2 * np.pi * (low.astype(np.float64) * 2.0**-32)).astype(np.float32)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1)[:count]


def direction(step, parameters, base):
    """z of every parameter, in PEFT's orientation and row order."""
    heads = {"attn_q": base.value("llama.attention.head_count"), "attn_k": base.value("llama.attention.head_count_kv")}
    places, offset = {}, 0
    for layer in range(TINY["layers"]):
        for module, short in LINEARS:
            for side in ("lora_A", "lora_B"):
                name = f"{PEFT_PREFIX}.{layer}.{module}.{side}.weight"
                places[name] = (offset, heads.get(short) if side == "lora_B" else None)
                offset += -(-parameters[name].numel() // LINE) * LINE
    drawn = normals(stream(SEED, DIRECTION, step), offset)
    z = {}
    for name, (first, permuted) in places.items():
        shape = tuple(parameters[name].shape)
        values = drawn[first:first + parameters[name].numel()].reshape(shape)
        z[name] = torch.from_numpy(np.ascontiguousarray(unpermute_rows(values, permuted) if permuted else values))
    return z


@torch.no_grad()
def loss_at(model, parameters, theta, z, distance, batch):
    for name, parameter in parameters.items():
        parameter.copy_(theta[name] + distance * z[name].to(parameter.dtype))
    return float(batch_loss(model, batch)[0])


def slope_by_autograd(model, parameters, theta, z, batch):
    install(parameters, theta)
    model.zero_grad()
    batch_loss(model, batch)[0].backward()
    return sum(float((p.grad.double() * z[name].double()).sum()) for name, p in parameters.items())


def ten_steps(model, parameters, theta, batch, base):
    found = {"ahead": [], "behind": [], "slope": [], "autograd": []}
    for step in range(STEPS):
        z = direction(step, parameters, base)
        found["autograd"].append(slope_by_autograd(model, parameters, theta, z, batch))
        ahead = loss_at(model, parameters, theta, z, EPSILON, batch)
        behind = loss_at(model, parameters, theta, z, -EPSILON, batch)
        slope = (ahead - behind) / (2 * EPSILON)
        for key, value in (("ahead", ahead), ("behind", behind), ("slope", slope)):
            found[key].append(value)
        theta = {name: value - LEARNING_RATE * (slope * z[name].to(value.dtype) + WEIGHT_DECAY * value)
                 for name, value in theta.items()}
    return {key: torch.tensor(values, dtype=torch.float64) for key, values in found.items()}, theta


def exact_model(base):
    """As `make_training_goldens.distance_from_f64` has it."""
    model = base.model(attention="sdpa")
    for layer in model.model.layers:
        layer.input_layernorm = ExactNorm(layer.input_layernorm)
        layer.post_attention_layernorm = ExactNorm(layer.post_attention_layernorm)
    model.model.norm = ExactNorm(model.model.norm)
    return lora_model(model, **TINY_LORA).double()


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    base, batch = BaseFile(HERE / "tiny-llama.gguf"), samples()
    initial = {name.removeprefix("initial."): value for name, value in load_file(HERE / "tiny-goldens.safetensors").items()
               if name.startswith("initial.")}
    model32, model64 = lora_model(base.model(), **TINY_LORA), exact_model(base)
    f32, _ = ten_steps(model32, adapter_parameters(model32), dict(initial), batch, base)
    f64, trained = ten_steps(
        model64, adapter_parameters(model64), {name: value.double() for name, value in initial.items()}, batch, base)
    for step in range(STEPS):
        print(f"{step:2d}  losses {f64['ahead'][step]:.6f} {f64['behind'][step]:.6f}  slope {f64['slope'][step]:9.5f}  autograd "
              f"{f64['autograd'][step]:9.5f}  f32 {f32['slope'][step]:9.5f}  of autograd {f32['autograd'][step]:9.5f}")
    scale = f64["slope"].pow(2).mean().sqrt()
    for name, other in (("f32", f32["slope"]), ("autograd", f64["autograd"])):
        print(f"{name}: slopes differ by {float((other - f64['slope']).abs().max() / scale):.2e} of their size")
    print(f"f32: losses differ by {float((f32['ahead'] / f64['ahead'] - 1).abs().max()):.2e}")
    # f64 as two f32: a loss and what rounding has left of it.
    tensors = packed(batch) | {"settings": torch.tensor([EPSILON, LEARNING_RATE, WEIGHT_DECAY], dtype=torch.float32)}
    for key, values in f64.items():
        tensors[key] = values.float()
        tensors[key + ".rest"] = (values - values.float().double()).float()
    tensors |= {"trained." + name: value.float().contiguous() for name, value in trained.items()}
    save_file(tensors, HERE / "zeroth-order-goldens.safetensors", {"seed": str(SEED)})
    (HERE / "zeroth-order-goldens.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
