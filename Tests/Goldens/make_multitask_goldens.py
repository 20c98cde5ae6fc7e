#!/usr/bin/env python3
"""Goldens for LoRA of several tasks (MTLoRA, arXiv 2403.20320), from real torch + transformers + peft on the tiny model.

    python make_multitask_goldens.py

Writes multitask-goldens.safetensors. PEFT has no such method, but it is two of its LoRAs active together: the one that all tasks share,
and the task's own, chosen for each sample. Names are those of the paper's program. Three samples of two tasks: what the adapter begins
as, the logits, the loss, the gradient of everything that is trained, and the losses of ten AdamW steps.
"""
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
from gguf_model import BaseFile, Sample, sample_nll
from make_method_goldens import LEARNING_RATE, SEED
from make_training_goldens import TINY, TINY_SEED, adamw_steps, packed

HERE = Path(__file__).parent
TASKS = ["chat", "code"]
RANK, TASK_RANK, SCALING = 3, 2, 2
LENGTHS = {9: "chat", 7: "code", 8: "chat"}
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def samples():
    random = np.random.default_rng(TINY_SEED + 2)
    return [
        (task, Sample(
            random.integers(3, TINY["vocabulary"], length).tolist(), [int(token >= length // 3 and token % 5 != 0) for token in range(length)]))
        for length, task in LENGTHS.items()]


def choose(model, task):
    """The adapters of a sample of this task. PEFT's own way would freeze the others."""
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer._active_adapter = ["shared", task]


def batch_loss(model, batch):
    total, count, all_logits = 0, 0, []
    for task, sample in batch:
        choose(model, task)
        logits, nll, tokens = sample_nll(model, sample)
        total, count = total + nll, count + tokens
        all_logits.append(logits)
    return total / count, torch.cat(all_logits)


def file_name(name):
    name = name.removesuffix(".weight")
    for side in "AB":
        name = name.replace(f".lora_{side}.shared", f".lora_shared_{side}")
        for task in TASKS:
            name = name.replace(f".lora_{side}.{task}", f".lora_tasks_{side}.{task}")
    return name


def main():
    from peft import LoraConfig, get_peft_model

    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)

    def config(rank):
        return LoraConfig(r=rank, lora_alpha=SCALING * rank, target_modules=LINEARS, task_type="CAUSAL_LM")

    model = get_peft_model(BaseFile(HERE / "tiny-llama.gguf").model(), config(RANK), adapter_name="shared")
    for task in TASKS:
        model.add_adapter(task, config(TASK_RANK))
    parameters = {file_name(name): value for name, value in model.named_parameters() if ".lora_" in name}
    for value in parameters.values():
        value.requires_grad_(True)
    random = np.random.default_rng(SEED)
    with torch.no_grad():
        for name, value in parameters.items():
            noise = torch.from_numpy(random.standard_normal(tuple(value.shape)).astype(np.float32))
            value.copy_(noise / value.shape[1] ** 0.5 if "_A" in name.split("lora_")[1] else 0.1 * noise)
    batch = samples()
    tensors = packed([sample for _, sample in batch])
    tensors["tasks"] = torch.tensor([TASKS.index(task) for task, _ in batch], dtype=torch.int32)
    tensors |= {f"initial.{name}": value.detach().clone() for name, value in parameters.items()}
    loss, logits = batch_loss(model, batch)
    loss.backward()
    tensors |= {"loss": loss.detach().float().reshape(1), "logits": logits.detach()}
    tensors |= {f"gradient.{name}": value.grad.detach().clone() for name, value in parameters.items()}
    losses, _ = adamw_steps(parameters, lambda: batch_loss(model, batch)[0], LEARNING_RATE)
    tensors["training_losses"] = torch.tensor(losses)
    print(f"loss {float(loss.detach()):.6f}  ten losses " + " ".join(f"{value:.4f}" for value in losses))
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, HERE / "multitask-goldens.safetensors")
    (HERE / "multitask-goldens.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
