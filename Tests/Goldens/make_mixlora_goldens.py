#!/usr/bin/env python3
"""Goldens for MixLoRA (arXiv 2404.15159) from real torch + transformers on the tiny model.

    python make_mixlora_goldens.py

Writes mixlora-goldens.safetensors. PEFT has no MixLoRA: this is the paper's formula, every expert an MLP of its own as it stands there, under
the keys of the files of TUDB-Labs/MixLoRA. The gradients are of the mean loss and the balance, the ten losses without it; the balance is
alpha · N · Σ F_e · P_e, with F_e counted over all chosen experts as in that program, of each layer and sample, and their mean.
"""
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
from gguf_model import BaseFile, batch_loss
from make_method_goldens import LEARNING_RATE, SEED, samples
from make_training_goldens import adamw_steps, packed

HERE = Path(__file__).parent
EXPERTS, CHOSEN, RANK, SCALING, BALANCE = 4, 2, 2, 2.0, 0.5
ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]


class Adapted(torch.nn.Module):
    def __init__(self, linear, a, b):
        super().__init__()
        self.linear, self.a, self.b = linear, a, b

    def forward(self, x):
        return self.linear(x) + SCALING * (x @ self.a.T @ self.b.T)


class Mixture(torch.nn.Module):
    def __init__(self, mlp, router, experts, routed):
        super().__init__()
        self.act, self.router, self.routed = mlp.act_fn, router, routed
        self.experts = [[Adapted(getattr(mlp, name), *expert[name]) for name in MLP] for expert in experts]

    def forward(self, x):
        logits = x @ self.router.T
        probabilities = torch.softmax(logits, -1)
        weights, chosen = torch.topk(probabilities, CHOSEN, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        self.routed.append((probabilities, chosen))
        y = 0
        for number, (gate, up, down) in enumerate(self.experts):
            weight = (weights * (chosen == number)).sum(-1, keepdim=True)
            y = y + weight * down(self.act(gate(x)) * up(x))
        return y


def balance(routed):
    """Of every layer and sample; the mean."""
    losses = []
    for probabilities, chosen in routed:
        share = torch.nn.functional.one_hot(chosen[0], EXPERTS).float().sum(1).mean(0)
        losses.append(EXPERTS * (share * probabilities[0].mean(0)).sum())
    return BALANCE * torch.stack(losses).mean()


def main():
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    model = BaseFile(HERE / "tiny-llama.gguf").model()
    for value in model.parameters():
        value.requires_grad_(False)
    random, parameters, routed = np.random.default_rng(SEED), {}, []

    def parameter(name, shape, scale):
        value = torch.nn.Parameter(torch.from_numpy((random.standard_normal(shape) * scale).astype(np.float32)))
        parameters["mixlora." + name] = value
        return value

    def pair(name, linear):
        out_features, in_features = linear.weight.shape
        return (parameter(name + ".lora_A.weight", (RANK, in_features), in_features**-0.5),
                parameter(name + ".lora_B.weight", (out_features, RANK), 0.1))

    for number, layer in enumerate(model.model.layers):
        for name in ATTENTION:
            linear = getattr(layer.self_attn, name)
            setattr(layer.self_attn, name, Adapted(linear, *pair(f"layers.{number}.self_attn.{name}", linear)))
        router = parameter(f"layers.{number}.mlp.moe_gate.weight", (EXPERTS, model.config.hidden_size), 0.2)
        experts = [{name: pair(f"layers.{number}.mlp.{name}.experts.{expert}", getattr(layer.mlp, name)) for name in MLP}
                   for expert in range(EXPERTS)]
        layer.mlp = Mixture(layer.mlp, router, experts, routed)

    batch = samples()
    tensors = packed(batch)
    tensors |= {f"initial.{name}": value.detach().clone() for name, value in parameters.items()}
    loss, logits = batch_loss(model, batch)
    print("tokens of each expert:", [torch.bincount(chosen.flatten(), minlength=EXPERTS).tolist() for _, chosen in routed])
    ordered = [probabilities.sort(-1, descending=True).values for probabilities, _ in routed]
    print("closest choice:", min(float((p[..., CHOSEN - 1] - p[..., CHOSEN]).min().detach()) for p in ordered))
    part = balance(routed)
    (loss + part).backward()
    tensors |= {"loss": loss.detach().float().reshape(1), "logits": logits.detach(), "balance": part.detach().reshape(1)}
    tensors |= {f"gradient.{name}": value.grad.detach().clone() for name, value in parameters.items()}

    def step_loss():
        routed.clear()
        return batch_loss(model, batch)[0]

    losses, _ = adamw_steps(parameters, step_loss, LEARNING_RATE, penalty=lambda: balance(routed))
    tensors["training_losses"] = torch.tensor(losses)
    print(f"loss {float(loss.detach()):.6f}  balance {float(part.detach()):.6f}  ten losses " + " ".join(f"{value:.4f}" for value in losses))
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, HERE / "mixlora-goldens.safetensors")
    (HERE / "mixlora-goldens.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
