#!/usr/bin/env python3
"""Goldens for ladder side-tuning (arXiv 2206.06522) of a decoder from real torch + transformers on the tiny model.

    python make_lst_goldens.py

Writes lst-goldens.safetensors. PEFT has no such method: this is the formula of Sources/EdgeModel/Adapters/LadderSideTuning.swift, under the names of
its files. Of each case (`narrow`: a factor of 8, one head; `wide`: 2, two heads) the loss and the logits of two samples, every gradient, and the
losses of ten AdamW steps; nothing is as it begins, where half of the gradients are zero. A gate's gradient is one number, a sum over tokens that
may cancel: `terms.` has the length of what is added, which it is to be held to.
"""
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

sys.path.insert(0, str(Path(__file__).parent))
from gguf_model import BaseFile, batch_loss
from make_method_goldens import LEARNING_RATE, SEED, samples
from make_training_goldens import CLIP_NORM, STEPS, WEIGHT_DECAY, packed

HERE = Path(__file__).parent
CASES = {"narrow": 8, "wide": 2}
TEMPERATURE = 0.1


class Ladder(torch.nn.Module):
    """Stands where the model's last norm does, and reads what the layers have left."""

    def __init__(self, model, factor, random):
        super().__init__()
        config = model.config
        self.norm, self.rotary, self.epsilon = model.model.norm, model.model.rotary_emb, config.rms_norm_eps
        self.count, self.head_dim = config.num_hidden_layers, config.head_dim
        self.heads = max(1, config.num_attention_heads // factor)
        width, hidden, intermediate = config.hidden_size // factor, config.hidden_size, config.intermediate_size // factor
        query = self.heads * self.head_dim
        self.parts, self.seen, self.mixed = {}, [None] * (self.count + 1), []
        for layer in range(self.count):
            path = f"layers.{layer}."
            for name, shape, start, scale in [
                ("gate", (1,), 0.0, 0.05), ("downsample.weight", (width, hidden), 0.0, hidden**-0.5),
                ("input_layernorm.weight", (width,), 1.0, 0.1), ("self_attn.q_proj.weight", (query, width), 0.0, 2 * width**-0.5),
                ("self_attn.k_proj.weight", (query, width), 0.0, 2 * width**-0.5), ("self_attn.v_proj.weight", (query, width), 0.0, width**-0.5),
                ("self_attn.o_proj.weight", (width, query), 0.0, query**-0.5), ("post_attention_layernorm.weight", (width,), 1.0, 0.1),
                ("mlp.gate_proj.weight", (intermediate, width), 0.0, width**-0.5), ("mlp.up_proj.weight", (intermediate, width), 0.0, width**-0.5),
                ("mlp.down_proj.weight", (width, intermediate), 0.0, intermediate**-0.5),
            ]:
                self.add(path + name, shape, start, scale, random)
        self.add("downsample.weight", (width, hidden), 0.0, hidden**-0.5, random)
        self.add("upsample.weight", (hidden, width), 0.0, 0.3 * width**-0.5, random)

        def keep(index):
            def hook(_, inputs, output):
                if index == 0:
                    self.seen[0] = inputs[0].detach()
                self.seen[index + 1] = (output[0] if isinstance(output, tuple) else output).detach()
            return hook

        for index, layer in enumerate(model.model.layers):
            layer.register_forward_hook(keep(index))

    def add(self, name, shape, start, scale, random):
        self.parts["lst." + name] = torch.nn.Parameter(torch.from_numpy((start + scale * random.standard_normal(shape)).astype(np.float32)))

    def rms(self, x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon) * weight

    def block(self, path, x, rotation):
        get = lambda name: self.parts[f"lst.{path}.{name}.weight"]
        batch, tokens, _ = x.shape
        split = lambda y: y.view(batch, tokens, self.heads, self.head_dim).transpose(1, 2)
        n = self.rms(x, get("input_layernorm"))
        q, k, v = (split(n @ get(f"self_attn.{name}_proj").T) for name in "qkv")
        q, k = apply_rotary_pos_emb(q, k, *rotation)
        scores = q @ k.transpose(2, 3) / self.head_dim**0.5
        scores = scores.masked_fill(torch.ones(tokens, tokens, dtype=torch.bool).triu(1), float("-inf"))
        attended = (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(batch, tokens, -1)
        middle = x + attended @ get("self_attn.o_proj").T
        n = self.rms(middle, get("post_attention_layernorm"))
        activated = torch.nn.functional.silu(n @ get("mlp.gate_proj").T) * (n @ get("mlp.up_proj").T)
        return middle + activated @ get("mlp.down_proj").T

    def forward(self, hidden):
        assert torch.equal(hidden, self.seen[-1])
        rotation = self.rotary(hidden, torch.arange(hidden.shape[1])[None])
        state = self.seen[0] @ self.parts["lst.downsample.weight"].T
        for layer in range(self.count):
            path = f"layers.{layer}"
            mix = torch.sigmoid(self.parts[f"lst.{path}.gate"] / TEMPERATURE)
            read = self.seen[layer + 1] @ self.parts[f"lst.{path}.downsample.weight"].T
            x = mix * state + (1 - mix) * read
            x.retain_grad()
            self.mixed.append((layer, x, ((state - read) * mix * (1 - mix) / TEMPERATURE).detach()))
            state = self.block(path, x, rotation)
        return self.norm(self.seen[-1] + state @ self.parts["lst.upsample.weight"].T)


def case(factor, batch):
    model = BaseFile(HERE / "tiny-llama.gguf").model()
    for value in model.parameters():
        value.requires_grad_(False)
    ladder = Ladder(model, factor, np.random.default_rng(SEED + factor))
    model.model.norm = ladder
    parameters = ladder.parts
    tensors = {f"initial.{name}": value.detach().clone() for name, value in parameters.items()}
    loss, logits = batch_loss(model, batch)
    loss.backward()
    tensors |= {"loss": loss.detach().float().reshape(1), "logits": logits.detach()}
    tensors |= {f"gradient.{name}": value.grad.detach().clone() for name, value in parameters.items()}
    for layer in range(ladder.count):
        terms = torch.cat([(x.grad * change).sum(-1).flatten() for own, x, change in ladder.mixed if own == layer])
        gradient = parameters[f"lst.layers.{layer}.gate"].grad
        assert torch.allclose(terms.sum(), gradient, rtol=1e-3)
        tensors[f"terms.lst.layers.{layer}.gate"] = terms.norm().reshape(1)
        print(f"gate {layer}: {float(gradient):.3e}, of terms as long as {float(terms.norm()):.3e}")
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=WEIGHT_DECAY)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        ladder.mixed.clear()
        step_loss, _ = batch_loss(model, batch)
        step_loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP_NORM)
        losses.append(float(step_loss.detach()))
        optimizer.step()
    tensors["training_losses"] = torch.tensor(losses)
    print(f"factor {factor}: loss {float(loss.detach()):.6f}  ten losses " + " ".join(f"{value:.4f}" for value in losses))
    return tensors


def main():
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    batch = samples()
    tensors = packed(batch)
    for name, factor in CASES.items():
        tensors |= {f"{name}/{key}": value for key, value in case(factor, batch).items()}
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, HERE / "lst-goldens.safetensors")
    (HERE / "lst-goldens.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
