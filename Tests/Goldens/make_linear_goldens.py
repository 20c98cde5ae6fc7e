#!/usr/bin/env python3
"""Goldens for the methods that add something to what a linear gives (RLRR, SHiRA, BitFit), after make_method_goldens.py.

    python make_linear_goldens.py

Writes linear-goldens.safetensors, of the tiny llama and of the tiny Qwen2 of architectures/, whose q, k and v have biases. SHiRA is PEFT's.
RLRR, which PEFT does not have, is its authors' formula in torch (github.com/zstarN70/RLRR, models/networks.py: the weight is
W + W * scale_line * scale_col, the bias b + shift_bias). BitFit trains the biases themselves; that PEFT's BEFT of their changes computes
and learns the same is asserted here.
"""
from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
from gguf_model import PEFT_PREFIX, BaseFile, Sample, batch_loss
from make_training_goldens import TINY_LENGTHS, WEIGHT_DECAY, adamw_steps, packed

HERE = Path(__file__).parent
SEED = 20261125
LEARNING_RATE = 2e-3
# Of the smaller of both models.
VOCABULARY = 48
EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def samples():
    random = np.random.default_rng(SEED)
    return [
        Sample(random.integers(3, VOCABULARY, length).tolist(), [int(i >= length // 3 and i % 5 != 0) for i in range(length)])
        for length in TINY_LENGTHS]


def llama():
    return BaseFile(HERE / "tiny-llama.gguf").model()


def qwen2():
    model = transformers.AutoModelForCausalLM.from_pretrained(
        HERE / "architectures" / "qwen2", dtype=torch.float32, attn_implementation="eager")
    model.config.use_cache = False
    return model.eval()


class RLRRLinear(torch.nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base
        self.rlrr_left = torch.nn.Parameter(torch.zeros(base.out_features))
        self.rlrr_right = torch.nn.Parameter(torch.ones(base.in_features))
        if base.bias is not None:
            self.rlrr_bias = torch.nn.Parameter(torch.zeros(base.out_features))

    def forward(self, x):
        weight = self.base.weight * self.rlrr_right[None, :] * self.rlrr_left[:, None] + self.base.weight
        bias = self.base.bias if self.base.bias is None else self.base.bias + self.rlrr_bias
        return torch.nn.functional.linear(x, weight, bias)


def linears(model):
    """Of every layer, in order: the module that has it, its name there, and its path in PEFT's files."""
    for index, layer in enumerate(model.model.layers):
        for name in EVERY:
            group = "mlp" if name in EVERY[4:] else "self_attn"
            yield getattr(layer, group), name, f"{PEFT_PREFIX}.{index}.{group}.{name}"


def rlrr(model):
    parameters = {}
    model.requires_grad_(False)
    for owner, name, path in linears(model):
        setattr(owner, name, RLRRLinear(getattr(owner, name)))
        parameters |= {f"{path}.{key}": value for key, value in getattr(owner, name).named_parameters() if key.startswith("rlrr")}
    config = {"peft_type": "RLRR", "target_modules": sorted(EVERY), "task_type": "CAUSAL_LM", "fan_in_fan_out": False}
    return model, parameters, {}, config


def saved(config):
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}


def shira(model):
    from peft import ShiraConfig, get_peft_model, get_peft_model_state_dict

    config = ShiraConfig(r=2, random_seed=None, target_modules=EVERY, task_type="CAUSAL_LM")
    torch.manual_seed(SEED)
    model = get_peft_model(model, config)
    parameters = {key.replace(".default", ""): value for key, value in model.named_parameters() if value.requires_grad}
    places = {key: value for key, value in get_peft_model_state_dict(model).items() if key.endswith("shira_indices")}
    assert len(places) == len(parameters)
    return model, parameters, places, saved(config)


def beft(model):
    from peft import BeftConfig, get_peft_model

    config = BeftConfig(target_modules=EVERY[:3], task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    return model, {key.replace(".default", ""): value for key, value in model.named_parameters() if value.requires_grad}, {}, saved(config)


@torch.no_grad()
def randomise(parameters):
    random = np.random.default_rng(SEED)
    for name, parameter in parameters.items():
        noise = torch.from_numpy(random.standard_normal(tuple(parameter.shape)).astype(np.float32))
        parameter.add_((0.3 if name.endswith("right") else 0.2) * noise)


def make(name, adapted):
    model, parameters, fixed, config = adapted
    randomise(parameters)
    initial = {key: value.detach().clone() for key, value in (parameters | fixed).items()}
    batch = samples()
    loss, logits = batch_loss(model, batch)
    loss.backward()
    gradients = {key: value.grad.detach().clone() for key, value in parameters.items()}
    losses = train(model, parameters, batch)
    print(f"{name:12s} loss {float(loss.detach()):.6f}  ten losses " + " ".join(f"{value:.4f}" for value in losses))
    tensors = {"loss": loss.detach().float().reshape(1), "logits": logits.detach(), "training_losses": torch.tensor(losses)}
    tensors |= {f"initial.{key}": value for key, value in initial.items()} | {f"gradient.{key}": value for key, value in gradients.items()}
    return {f"{name}/{key}": value.contiguous().clone() for key, value in tensors.items()}, {name: config}


def train(model, parameters, batch, weight_decay=WEIGHT_DECAY):
    return adamw_steps(parameters, lambda: batch_loss(model, batch)[0], LEARNING_RATE, weight_decay=weight_decay)[0]


def assert_biases_learn_the_same(tensors):
    """BitFit as its paper has it, the model's own parameters by requires_grad, begins at the golden's biases. Weight decay, which would
    pull a bias to 0 and its change to the base, is left out of the steps."""
    model = qwen2().requires_grad_(False)
    biases = {path: getattr(owner, name).bias for owner, name, path in linears(model) if getattr(owner, name).bias is not None}
    with torch.no_grad():
        for path, bias in biases.items():
            bias.add_(tensors[f"bitfit/initial.{path}.beft_bias"].flatten())
    for bias in biases.values():
        bias.requires_grad_(True)
    batch = samples()
    loss, logits = batch_loss(model, batch)
    loss.backward()
    assert float((logits.detach() - tensors["bitfit/logits"]).abs().max()) < 1e-5
    for path, bias in biases.items():
        expected = tensors[f"bitfit/gradient.{path}.beft_bias"].flatten()
        assert float((bias.grad - expected).norm() / expected.norm()) < 1e-5, path
    own = train(model, biases, batch, weight_decay=0)
    model, parameters, _, _ = beft(qwen2())
    randomise(parameters)
    changes = train(model, parameters, batch, weight_decay=0)
    assert np.allclose(own, changes, rtol=1e-5), (own, changes)


def main():
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    tensors, metadata = packed(samples()), {}
    cases = {"rlrr": rlrr(llama()), "rlrr-bias": rlrr(qwen2()), "shira": shira(llama()), "bitfit": beft(qwen2())}
    for name, adapted in cases.items():
        made, saved_config = make(name, adapted)
        tensors |= made
        metadata |= {key: json.dumps(value, sort_keys=True) for key, value in saved_config.items()}
    assert_biases_learn_the_same(tensors)
    save_file(tensors, HERE / "linear-goldens.safetensors", metadata)
    (HERE / "linear-goldens.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
