#!/usr/bin/env python3
"""Goldens for the methods of the adapters library, from real torch + transformers + adapters on the tiny model of
make_training_goldens.py.

    python make_additive_goldens.py

Writes additive-goldens.safetensors, each case as make_method_goldens.py has them; its metadata has the library's adapter_config.json.
The library needs transformers 4.57: an environment of its own. Samples run one by one, without padding. Prefixes are flat: without the
network that makes them of fewer numbers.
"""
from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from gguf_model import BaseFile
from make_method_goldens import LEARNING_RATE, SEED, samples
from make_training_goldens import adamw_steps, packed
from safetensors.torch import save_file

HERE = Path(__file__).parent
NAME = "edgetune"
# Every layer refers to what all share.
SHARED = ".prefix_tuning.pool."


def cases():
    from adapters import DoubleSeqBnConfig, LoRAConfig, MAMConfig, ParBnConfig, PrefixTuningConfig, SeqBnConfig, UniPELTConfig

    return {
        "seq_bn": SeqBnConfig(),
        "seq_bn-tanh": SeqBnConfig(mh_adapter=True, reduction_factor=9, non_linearity="tanh", scaling=0.5),
        "double_seq_bn": DoubleSeqBnConfig(),
        "double_seq_bn-gelu": DoubleSeqBnConfig(output_adapter=False, reduction_factor=8, non_linearity="gelu"),
        "par_bn": ParBnConfig(reduction_factor=8),
        "par_bn-both": ParBnConfig(mh_adapter=True, reduction_factor=16, non_linearity="gelu_new", scaling=2.5),
        "mam": MAMConfig(PrefixTuningConfig(flat=True, prefix_length=5), ParBnConfig(reduction_factor=8)),
        "unipelt": UniPELTConfig(
            PrefixTuningConfig(flat=True, prefix_length=5), SeqBnConfig(reduction_factor=8, scaling=1.5), LoRAConfig(r=4, alpha=2)),
    }


@torch.no_grad()
def randomise(parameters):
    random = np.random.default_rng(SEED)
    for name, parameter in sorted(parameters.items()):
        noise = torch.from_numpy(random.standard_normal(tuple(parameter.shape)).astype(np.float32))
        if "control_trans" in name:
            parameter.copy_(0.5 * noise)
        elif "adapter_down.0.weight" in name:
            parameter.copy_(noise / parameter.shape[1] ** 0.5)
        else:
            parameter.copy_(0.1 * noise)


def batch_loss(model, batch):
    """Mean nll over the loss tokens of all samples, each run by itself, and all samples' logits, one after the other."""
    losses, logits, count = [], [], 0
    for sample in batch:
        tokens = torch.tensor([sample.tokens])
        own = model(input_ids=tokens).logits[0]
        logits.append(own)
        nll = torch.nn.functional.cross_entropy(own[:-1].double(), tokens[0, 1:], reduction="none")
        carries = torch.tensor(sample.carries_loss[1:], dtype=torch.float64)
        losses.append((nll * carries).sum())
        count += int(carries.sum())
    return sum(losses) / count, torch.cat(logits)


def make(name, config, base):
    import adapters

    torch.manual_seed(SEED)
    model = base.model()
    adapters.init(model)
    model.add_adapter(NAME, config=config)
    model.train_adapter(NAME)
    model.eval()
    parameters = {key: value for key, value in model.named_parameters(remove_duplicate=False) if value.requires_grad and SHARED not in key}
    randomise(parameters)
    initial = {key: value.detach().clone() for key, value in parameters.items()}
    batch = samples()
    loss, logits = batch_loss(model, batch)
    loss.backward()
    gradients = {key: value.grad.detach().clone() for key, value in parameters.items()}
    losses, _ = adamw_steps(parameters, lambda: batch_loss(model, batch)[0], LEARNING_RATE)
    print(f"{name:20s} loss {float(loss.detach()):.6f}  ten losses " + " ".join(f"{value:.4f}" for value in losses))
    tensors = {"loss": loss.detach().float().reshape(1), "logits": logits.detach(), "training_losses": torch.tensor(losses)}
    tensors |= {f"initial.{key}": value for key, value in initial.items()}
    tensors |= {f"gradient.{key}": value for key, value in gradients.items()}
    with tempfile.TemporaryDirectory() as directory:
        model.save_adapter(directory, NAME, with_head=False)
        saved = json.loads((Path(directory) / "adapter_config.json").read_text())
    return {f"{name}/{key}": value.contiguous().clone() for key, value in tensors.items()}, json.dumps(saved, sort_keys=True)


def main():
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    base = BaseFile(HERE / "tiny-llama.gguf")
    tensors, metadata = packed(samples()), {}
    for name, config in cases().items():
        made, metadata[name] = make(name, config, base)
        tensors |= made
    save_file(tensors, HERE / "additive-goldens.safetensors", metadata)
    (HERE / "additive-goldens.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
