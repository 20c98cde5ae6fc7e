#!/usr/bin/env python3
"""Goldens for the PEFT methods, from real torch + transformers + peft on the tiny model of make_training_goldens.py.

    python make_method_goldens.py

Writes method-goldens.safetensors. For each case: what PEFT would save of an adapter with random values (`initial.`), the loss and the
logits of two samples, the gradient of everything that is trained, and the losses of ten AdamW steps. A method that PEFT has as an
optimizer (LoRA+, LoRA-FA) is what its paper says of LoRA's parameters: another learning rate for B, no update of A. AdaLoRA's steps
have its regulariser and its allocations; what PEFT saves after them, without the ranks that were taken away, is a case of its own.
"""
from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
from gguf_model import BaseFile, Sample, batch_loss
from make_training_goldens import STEPS, TINY, TINY_LENGTHS, TINY_SEED, adamw_steps, packed

HERE = Path(__file__).parent
SEED = 20261122
LEARNING_RATE = 2e-3
LEARNING_RATE_RATIO = 16.0
DRAWN_RANK = 3


def cases():
    from peft import AdaLoraConfig, IA3Config, LoHaConfig, LoKrConfig, LoraConfig, MissConfig, OFTConfig, VeraConfig

    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    task = dict(task_type="CAUSAL_LM")
    return {
        "rslora": LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=every, **task),
        "loraplus": LoraConfig(r=2, lora_alpha=8, target_modules=every, **task),
        "lora-fa": LoraConfig(r=4, lora_alpha=8, target_modules=every, **task),
        "vera": VeraConfig(r=8, target_modules=every, projection_prng_key=3, **task),
        "miss": MissConfig(r=6, target_modules=every, **task),
        "patterns": LoraConfig(
            r=4, lora_alpha=8, rank_pattern={"layers.1.mlp.down_proj": 6, "q_proj": 2}, alpha_pattern={"k_proj": 3, "q_proj": 5},
            target_modules=every, **task),
        "dylora": LoraConfig(r=4, lora_alpha=8, target_modules=every, **task),
        "dora": LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=every, **task),
        "loha": LoHaConfig(r=3, alpha=6, target_modules=every, **task),
        # Sizes whose second matrix is whole and ones whose is a product; both matrices products; a factor that divides all sizes.
        "lokr": LoKrConfig(r=4, alpha=8, target_modules=every, **task),
        "lokr-both": LoKrConfig(r=2, alpha=4, decompose_both=True, target_modules=every, **task),
        "lokr-factor": LoKrConfig(r=3, alpha=6, decompose_factor=4, target_modules=every, **task),
        "adalora": AdaLoraConfig(
            init_r=4, target_r=2, lora_alpha=8, tinit=2, tfinal=3, deltaT=2, total_step=STEPS, target_modules=every, **task),
        "oft": OFTConfig(oft_block_size=8, target_modules=every, **task),
        "oft-exact": OFTConfig(oft_block_size=16, use_cayley_neumann=False, target_modules=every, **task),
        # No divisor of the inputs: PEFT takes the nearest.
        "oft-blocks": OFTConfig(r=12, oft_block_size=0, num_cayley_neumann_terms=7, target_modules=every, **task),
        "ia3": IA3Config(target_modules=every, feedforward_modules=["down_proj"], **task),
        "ia3-recommended": IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], **task),
    }


def samples():
    random = np.random.default_rng(TINY_SEED + 1)
    made = []
    for length in TINY_LENGTHS:
        carries = [int(position >= length // 3 and position % 5 != 0) for position in range(length)]
        made.append(Sample(random.integers(3, TINY["vocabulary"], length).tolist(), carries))
    return made


@torch.no_grad()
def randomise(parameters, random):
    """Away from the start, where half of the gradients are zero."""
    for name, parameter in parameters.items():
        noise = torch.from_numpy(random.standard_normal(tuple(parameter.shape)).astype(np.float32))
        if "magnitude" in name:
            parameter.mul_(1 + 0.1 * noise)
        elif "lora_A" in name:
            parameter.copy_(noise / parameter.shape[1] ** 0.5)
        elif "ia3" in name:
            parameter.add_(0.1 * noise)
        elif "hada" in name:
            parameter.copy_(noise * (0.3 if "_a" in name else 1 / parameter.shape[1] ** 0.5))
        elif "lora_E" in name:
            parameter.copy_(noise)
        elif "lokr" in name:
            parameter.copy_(noise * (0.3 if "_a" in name or name.endswith("w1") else 1 / parameter.shape[1] ** 0.5))
        else:
            parameter.add_(0.1 * noise)


def draw_rank(model, rank=DRAWN_RANK):
    """DyLoRA's step of this rank, by its paper: the first ranks of A and B, and alpha over as many."""
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            a, b, alpha = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.lora_alpha["default"]
            layer.forward = lambda x, layer=layer, a=a, b=b, alpha=alpha: (
                layer.base_layer(x) + alpha / rank * (x @ a[:rank].T @ b[:, :rank].T))


def orthogonality(model):
    """AdaLoRA's regulariser, as PEFT adds it to a loss: here to one of zero."""
    inner = model.base_model.model
    inner.forward = lambda: SimpleNamespace(loss=torch.zeros(()))
    try:
        return model.base_model().loss
    finally:
        del inner.forward


def pruned(model, base, batch):
    """What PEFT saves of an AdaLoRA whose ranks have been allocated, and what it computes when that is loaded."""
    from peft import PeftModel
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        tensors = {f"initial.{key}": value for key, value in load_file(f"{directory}/adapter_model.safetensors").items()}
        saved = json.loads((Path(directory) / "adapter_config.json").read_text())
        _, logits = batch_loss(PeftModel.from_pretrained(base.model(), directory), batch)
    _, whole = batch_loss(model, batch)
    assert float((logits - whole).abs().max()) < 1e-5
    return {f"adalora-pruned/{key}": value for key, value in (tensors | {"logits": logits.detach()}).items()}, saved


def make(name, config, base):
    from peft import get_peft_model, get_peft_model_state_dict

    torch.manual_seed(SEED)
    model = get_peft_model(base.model(), config)
    parameters = {key.replace(".default", "").replace("_vector.weight", "_vector"): value
                  for key, value in model.named_parameters() if value.requires_grad}
    randomise(parameters, np.random.default_rng(SEED))
    initial = {key: value.detach().clone() for key, value in get_peft_model_state_dict(model).items()}
    missing = set(parameters) - set(initial)
    assert not missing, missing
    batch = samples()
    loss, logits = batch_loss(model, batch)
    if name == "dylora":
        draw_rank(model)
        loss, _ = batch_loss(model, batch)
    loss.backward()
    gradients = {key: value.grad.detach().clone() for key, value in parameters.items()}
    if name == "lora-fa":
        gradients = {key: value for key, value in gradients.items() if "lora_B" in key}
        parameters = {key: value for key, value in parameters.items() if key in gradients}
    extra, saved = {}, {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    if name == "adalora":
        model.zero_grad()
        orthogonality(model).backward()
        allocator = model.base_model.rankallocator
        last = config.total_step - config.tfinal
        budgets = [allocator.budget_schedule(step) for step in range(STEPS)]
        budgets = [budget if step == last or masks and step < last else -1 for step, (budget, masks) in enumerate(budgets)]
        extra = {"budgets": torch.tensor(budgets, dtype=torch.int32)} | {
            f"orthogonality.{key}": value.grad.detach().clone() for key, value in parameters.items() if "lora_E" not in key}
    factors = {key: LEARNING_RATE_RATIO for key in parameters if name == "loraplus" and "lora_B" in key}
    allocation = dict(penalty=lambda: orthogonality(model), after=model.base_model.update_and_allocate) if name == "adalora" else {}
    model.zero_grad()
    losses, _ = adamw_steps(parameters, lambda: batch_loss(model, batch)[0], LEARNING_RATE, factors=factors, **allocation)
    print(f"{name:16s} loss {float(loss.detach()):.6f}  ten losses " + " ".join(f"{value:.4f}" for value in losses))
    tensors = {"loss": loss.detach().float().reshape(1), "logits": logits.detach(), "training_losses": torch.tensor(losses)}
    tensors |= {f"initial.{key}": value for key, value in initial.items()}
    tensors |= {f"gradient.{key}": value for key, value in gradients.items()}
    tensors |= {f"trained.{key}": value.detach() for key, value in parameters.items()}
    tensors = {f"{name}/{key}": value for key, value in (tensors | extra).items()}
    metadata = {name: saved}
    if name == "adalora":
        more, metadata["adalora-pruned"] = pruned(model, base, batch)
        tensors |= more
    return {key: value.contiguous().clone() for key, value in tensors.items()}, metadata


COMBINATIONS = {
    "linear": dict(combination_type="linear"), "cat": dict(combination_type="cat"), "svd": dict(combination_type="svd", svd_rank=3),
    "ties": dict(combination_type="ties", density=0.6), "magnitude_prune": dict(combination_type="magnitude_prune", density=0.5),
}
COMBINATION_WEIGHTS = [0.7, -0.4]


def make_combinations(base):
    """Two adapters of different scalings and targets, and what PEFT makes of them."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    torch.manual_seed(SEED)
    configs = {
        "first": LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
        "second": LoraConfig(r=4, lora_alpha=2, target_modules=["q_proj"], task_type="CAUSAL_LM")}
    model = get_peft_model(base.model(), configs["first"], adapter_name="first")
    model.add_adapter("second", configs["second"])
    random, tensors = np.random.default_rng(SEED + 1), {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.from_numpy(random.standard_normal(tuple(parameter.shape)).astype(np.float32)))
    for name in configs:
        tensors |= {f"combine/{name}.{key}": value for key, value in get_peft_model_state_dict(model, adapter_name=name).items()}
    for name, options in COMBINATIONS.items():
        model.base_model.add_weighted_adapter(["first", "second"], COMBINATION_WEIGHTS, name, **options)
        # Where one adapter has no such module PEFT leaves the rank of the others and zeros.
        tensors |= {f"combine/{name}.{key}": value for key, value in get_peft_model_state_dict(model, adapter_name=name).items()}
    return {key: value.detach().contiguous().clone() for key, value in tensors.items()}


def main():
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    base = BaseFile(HERE / "tiny-llama.gguf")
    tensors, metadata = packed(samples()), {}
    for name, config in cases().items():
        made, saved = make(name, config, base)
        tensors |= made
        metadata |= {key: json.dumps(value, sort_keys=True) for key, value in saved.items()}
    tensors |= make_combinations(base)
    save_file(tensors, HERE / "method-goldens.safetensors", metadata)
    (HERE / "method-goldens.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
