#!/usr/bin/env python3
"""Goldens for how much linears matter, by real torch and peft in f64 on the tiny model of make_training_goldens.py.

    python make_sensitivity_goldens.py

Writes sensitivity-goldens.safetensors, for some samples and the linears in the order of Tests/Goldens/README.md:

exact: the root mean square over the samples of ‖dL/dW‖_F, L being a sample's mean nll, by autograd of the base itself.
estimated: the same of √(rank · variance)⁻¹ · ‖dL/dB‖_F, by autograd of peft's LoRA with B = 0. Every sample has an A of its own, which
the program's generator of random numbers gives (Sources/EdgeTensor/RandomSource.swift).
"""
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
from gguf_model import LINEARS, BaseFile, Sample, lora_model, sample_nll
from make_training_goldens import TINY, packed, splitmix64

HERE = Path(__file__).parent
SEED = 20261125
RANK = 8
LENGTHS = (9, 21, 14, 30, 17)
# Of RandomSource.Purpose.
ADAPTER_INIT, SENSITIVITY = 1, 10


def samples():
    random = np.random.default_rng(SEED)
    return [Sample(random.integers(3, TINY["vocabulary"], length).tolist(), [int(t > length // 3) for t in range(length)]) for length in LENGTHS]


def stream(seed, purpose, *parts):
    key = splitmix64(splitmix64(seed) ^ purpose)
    for part in parts:
        key = splitmix64(key ^ splitmix64(part))
    return key


def a_matrix(sample, layer, module, columns):
    """The program's A of this linear for this sample, in its f32."""
    key = stream(stream(SEED, SENSITIVITY, sample), ADAPTER_INIT, layer, module)
    uniform = np.array([splitmix64(key ^ i) >> 40 for i in range(RANK * columns)], np.float32) * np.float32(2.0 ** -24)
    bound = np.float32(1) / np.sqrt(np.float32(columns))
    return torch.from_numpy((np.float32(2) * uniform - np.float32(1)) * bound).reshape(RANK, columns).double()


def mean_nll(model, sample):
    _, nll, count = sample_nll(model, sample)
    return nll / count


def linears():
    return [(layer, module, f"model.layers.{layer}.{name}") for layer in range(TINY["layers"]) for module, (name, _) in enumerate(LINEARS)]


def exact(base, made):
    model, squares = base.model(dtype=torch.float64).eval(), []
    weights = [model.get_submodule(path).weight.requires_grad_() for _, _, path in linears()]
    for sample in made:
        squares.append([float((gradient ** 2).sum()) for gradient in torch.autograd.grad(mean_nll(model, sample), weights)])
    return np.sqrt(np.mean(squares, axis=0))


def estimated(base, made):
    model, squares = lora_model(base.model(dtype=torch.float64), RANK, RANK).eval().double(), []
    found = [model.get_submodule(f"base_model.model.{path}") for _, _, path in linears()]
    for number, sample in enumerate(made):
        for (layer, module, _), linear in zip(linears(), found):
            a, b = linear.lora_A["default"].weight, linear.lora_B["default"].weight
            a.data.copy_(a_matrix(number, layer, module, a.shape[1]))
            assert not b.any() and linear.scaling["default"] == 1
        gradients = torch.autograd.grad(mean_nll(model, sample), [linear.lora_B["default"].weight for linear in found])
        # Of a uniform number in ±1/√columns the variance is 1/(3 · columns).
        squares.append([float((gradient ** 2).sum()) * 3 * linear.lora_A["default"].weight.shape[1] / RANK
                        for gradient, linear in zip(gradients, found)])
    return np.sqrt(np.mean(squares, axis=0))


def main():
    torch.set_num_threads(2)
    base, made = BaseFile(HERE / "tiny-llama.gguf"), samples()
    dense, sketch = exact(base, made), estimated(base, made)
    for (_, _, path), value, estimate in zip(linears(), dense, sketch):
        print(f"{path:40s} {value:.6f}, estimated {estimate:.6f}")
    path = HERE / "sensitivity-goldens.safetensors"
    save_file(packed(made) | {
        "exact": torch.from_numpy(dense).float(), "estimated": torch.from_numpy(sketch).float(),
        "seed": torch.tensor([SEED], dtype=torch.int32)}, path)
    path.chmod(0o644)


if __name__ == "__main__":
    main()
