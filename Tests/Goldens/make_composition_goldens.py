#!/usr/bin/env python3
"""Goldens of composed adapters, from real torch + transformers + peft on the tiny model of make_training_goldens.py.

    python make_composition_goldens.py

Writes composition-goldens.safetensors: two adapters as PEFT saves them (`first.`, `second.`), and for some pairs of weights (`weights`,
[pairs, 2]) the loss (`losses`) of the samples with the adapter whose state is the weighted sum of both states: LoRAHub's own code
(sail-sg/lorahub, `get_final_weights`) does just that, and gives the sum to `set_peft_model_state_dict`.
"""
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
from gguf_model import BaseFile, batch_loss
from make_method_goldens import randomise, samples
from make_training_goldens import packed

HERE = Path(__file__).parent
SEED = 20261124
WEIGHTS = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.7, -0.4], [-1.5, 0.25], [1.5, 1.5]]


def main():
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    targets = ["q_proj", "k_proj", "v_proj", "down_proj"]
    model = get_peft_model(
        BaseFile(HERE / "tiny-llama.gguf").model(),
        LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")).eval()
    parameters = {key: value for key, value in model.named_parameters() if value.requires_grad}
    states = []
    for index in range(2):
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.zero_()
        randomise(parameters, np.random.default_rng(SEED + index))
        states.append({key: value.detach().clone() for key, value in get_peft_model_state_dict(model).items()})
    losses = []
    for weights in WEIGHTS:
        mixed = {key: sum(weight * state[key] for weight, state in zip(weights, states)) for key in states[0]}
        set_peft_model_state_dict(model, mixed)
        with torch.no_grad():
            losses.append(float(batch_loss(model, samples())[0]))
    print("\n".join(f"{weights}: {loss:.7f}" for weights, loss in zip(WEIGHTS, losses)))
    tensors = packed(samples()) | {
        "weights": torch.tensor(WEIGHTS, dtype=torch.float32), "losses": torch.tensor(losses, dtype=torch.float32)}
    for name, state in zip(["first", "second"], states):
        tensors |= {f"{name}.{key}": value.contiguous() for key, value in state.items()}
    save_file(tensors, HERE / "composition-goldens.safetensors")
    (HERE / "composition-goldens.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
