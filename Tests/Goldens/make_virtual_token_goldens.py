#!/usr/bin/env python3
"""Goldens for prefix and prompt tuning, from real torch + transformers + peft on the tiny model of make_training_goldens.py.

    python make_virtual_token_goldens.py

Writes virtual-token-goldens.safetensors, each case as make_method_goldens.py has them. Of a sample's logits those of its own tokens are
kept. PEFT's start by a text is there, too: what it makes of the first tokens of a sample.
"""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from make_method_goldens import LEARNING_RATE, SEED, samples
from make_training_goldens import adamw_steps, packed
from gguf_model import BaseFile
from safetensors.torch import save_file

HERE = Path(__file__).parent
VIRTUAL_TOKENS = 5


def cases():
    from peft import PrefixTuningConfig, PromptTuningConfig

    return {
        "prefix-tuning": PrefixTuningConfig(num_virtual_tokens=VIRTUAL_TOKENS, task_type="CAUSAL_LM"),
        "prompt-tuning": PromptTuningConfig(num_virtual_tokens=VIRTUAL_TOKENS, task_type="CAUSAL_LM"),
    }


def batch_loss(model, batch):
    """Mean nll over the loss tokens of all samples, each run by itself, and all samples' logits, one after the other."""
    losses, logits, count = [], [], 0
    for sample in batch:
        tokens = torch.tensor([sample.tokens])
        own = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, -len(sample.tokens):]
        logits.append(own)
        nll = torch.nn.functional.cross_entropy(own[:-1].double(), tokens[0, 1:], reduction="none")
        carries = torch.tensor(sample.carries_loss[1:], dtype=torch.float64)
        losses.append((nll * carries).sum())
        count += int(carries.sum())
    return sum(losses) / count, torch.cat(logits)


def make(name, config, base):
    from peft import get_peft_model, get_peft_model_state_dict

    torch.manual_seed(SEED)
    model = get_peft_model(base.model(), config)
    parameter = model.prompt_encoder["default"].embedding.weight
    noise = np.random.default_rng(SEED).standard_normal(tuple(parameter.shape)).astype(np.float32)
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(noise) * 0.5)
    initial = get_peft_model_state_dict(model)["prompt_embeddings"].detach().clone()
    batch = samples()
    loss, logits = batch_loss(model, batch)
    loss.backward()
    gradient = parameter.grad.detach().clone()
    losses, _ = adamw_steps({"prompt_embeddings": parameter}, lambda: batch_loss(model, batch)[0], LEARNING_RATE)
    print(f"{name:16s} loss {float(loss.detach()):.6f}  ten losses " + " ".join(f"{value:.4f}" for value in losses))
    tensors = {
        "loss": loss.detach().float().reshape(1), "logits": logits.detach(), "training_losses": torch.tensor(losses),
        "initial.prompt_embeddings": initial, "gradient.prompt_embeddings": gradient}
    return {f"{name}/{key}": value.contiguous().clone() for key, value in tensors.items()}, json.dumps(
        {key: sorted(value) if isinstance(value, set) else value for key, value in model.peft_config["default"].to_dict().items()}, sort_keys=True)


def starts(base):
    """What virtual tokens are by the first tokens of a sample: embeddings, and a cache's keys and values by PEFT's own function."""
    from peft import PrefixTuningConfig, get_peft_model, initialize_kv_prefix_from_past_key_values

    tokens = torch.tensor([samples()[0].tokens[:VIRTUAL_TOKENS]])
    plain = base.model()
    cache = plain(input_ids=tokens, use_cache=True).past_key_values
    model = get_peft_model(base.model(), PrefixTuningConfig(num_virtual_tokens=VIRTUAL_TOKENS, task_type="CAUSAL_LM"))
    initialize_kv_prefix_from_past_key_values(model, num_virtual_tokens=VIRTUAL_TOKENS, past_key_values=cache)
    return {
        "start/prefix": model.prompt_encoder["default"].embedding.weight.detach().clone(),
        "start/prompt": plain.get_input_embeddings()(tokens)[0].detach().clone()}


def main():
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    base = BaseFile(HERE / "tiny-llama.gguf")
    tensors, metadata = packed(samples()), {}
    for name, config in cases().items():
        made, metadata[name] = make(name, config, base)
        tensors |= made
    tensors |= starts(base)
    save_file(tensors, HERE / "virtual-token-goldens.safetensors", metadata)
    (HERE / "virtual-token-goldens.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
