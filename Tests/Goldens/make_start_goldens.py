#!/usr/bin/env python3
"""Goldens for a LoRA's starts from data and from weights, by real torch and peft on the tiny model of make_training_goldens.py.

    python make_start_goldens.py

Writes start-goldens.safetensors and tiny-original.gguf, which is what the tiny model was quantised from, in F16.

eva: for two sets of samples and every linear, the directions of its inputs at tokens that carry loss, by torch's SVD in f64 of all of them
less their mean (`exact.`, with `values.`), and by PEFT's own `get_eva_state_dict` on one batch of the same samples (`peft.`, rho 1; with
`whitened.` for the small set). PEFT sees a batch twice before it is done, and whitens what linears
share once for each of them. Linears that share an input are there once.
loftq: for every linear PEFT's `_low_rank_decomposition` of what the quantised weight lacks of the original (`loftq.`), and all singular
values of that.
"""
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
import make_training_goldens
from gguf_model import LINEARS, BaseFile, Sample
from make_training_goldens import TINY, Format, packed, write_tiny_model

HERE = Path(__file__).parent
SEED = 20261124
# The rank, and samples: as many tokens as spare directions hold, and many more.
SETS = {"few": (13, 3, 8), "many": (56, 20, 16)}
LOFTQ_RANK = 4


def samples(count, length, seed):
    random = np.random.default_rng(seed)
    return [
        Sample(random.integers(3, TINY["vocabulary"], length + i % 3).tolist(), [int(t >= length // 4) for t in range(length + i % 3)])
        for i in range(count)]


def batch(made):
    longest = max(len(sample.tokens) for sample in made)
    def rows(values, pad):
        return torch.tensor([list(v) + [pad] * (longest - len(v)) for v in values])
    return {
        "input_ids": rows([s.tokens for s in made], 0), "attention_mask": rows([[1] * len(s.tokens) for s in made], 0),
        "labels": rows([[t if c else -100 for t, c in zip(s.tokens, s.carries_loss)] for s in made], -100)}


def targets(model):
    return {f"{layer}.{name}": model.get_submodule(f"model.layers.{layer}.{name}")
            for layer in range(TINY["layers"]) for name, _ in LINEARS}


@torch.no_grad()
def inputs_of(model, made):
    """What every linear reads of the tokens that carry loss; each sample by itself."""
    seen = {name: [] for name in targets(model)}
    carries = []
    hooks = [module.register_forward_pre_hook(
        lambda _, args, name=name: seen[name].append(args[0][0][torch.tensor(carries[-1]).bool()]))
        for name, module in targets(model).items()]
    for sample in made:
        carries.append(sample.carries_loss)
        model(input_ids=torch.tensor([sample.tokens]))
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(rows).double() for name, rows in seen.items()}


def eva(base):
    from peft import EvaConfig, LoraConfig
    from peft.tuners.lora.eva import get_eva_state_dict

    tensors = {}
    for name, (rank, count, length) in SETS.items():
        made = samples(count, length, SEED + rank)
        tensors |= {f"{name}/{key}": value for key, value in packed(made).items()}
        model = base.model().eval()
        exact = {}
        for linear, rows in inputs_of(model, made).items():
            _, values, directions = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
            if linear.endswith(("k_proj", "v_proj", "up_proj")):
                continue  # their inputs are q_proj's and gate_proj's
            exact[linear] = directions[:rank]
            tensors[f"{name}/exact.{linear}"] = directions[:rank].float()
            tensors[f"{name}/values.{linear}"] = values.float()
        print(f"{name}: {len(rows)} tokens")
        for kind, whiten in [("peft", False)] + ([("whitened", True)] if name == "few" else []):
            config = LoraConfig(
                r=rank, target_modules=[short.split(".")[1] for short, _ in LINEARS], init_lora_weights="eva", task_type="CAUSAL_LM",
                eva_config=EvaConfig(rho=1.0, whiten=whiten))
            found = get_eva_state_dict(base.model(), [batch(made)], config, show_progress_bar=False)
            for linear in exact:
                own = found[f"model.layers.{linear}"]
                tensors[f"{name}/{kind}.{linear}"] = own.float()
                unit = (own / own.norm(dim=1, keepdim=True)).double()
                if not whiten:
                    cosines = torch.linalg.svdvals(exact[linear] @ unit.T)
                    print(f"  peft {linear}: smallest cosine between the spaces {float(cosines.min()):.6f}, "
                          f"between directions {float((exact[linear] * unit).sum(1).abs().min()):.6f}")
    return tensors


def loftq(base):
    from peft.utils.loftq_utils import _low_rank_decomposition

    path = HERE / "tiny-original.gguf"
    make_training_goldens.TINY_FORMATS = tuple((Format.F16,) * len(LINEARS) for _ in range(TINY["layers"]))
    write_tiny_model(path)
    path.chmod(0o644)
    quantised, original, tensors = base.model().state_dict(), BaseFile(path).model().state_dict(), {}
    for layer in range(TINY["layers"]):
        for name, _ in LINEARS:
            key = f"model.layers.{layer}.{name}.weight"
            residual = original[key] - quantised[key]
            made = _low_rank_decomposition(residual, LOFTQ_RANK)
            tensors[f"loftq.{layer}.{name}.left"] = made["L"]
            tensors[f"loftq.{layer}.{name}.right"] = made["R"]
            tensors[f"loftq.{layer}.{name}.values"] = made["S"]
            print(f"{layer}.{name}: residual {float(residual.norm()):.4f}, after {float((residual - made['L'] @ made['R']).norm()):.4f}")
    return tensors


def main():
    torch.set_num_threads(2)
    base = BaseFile(HERE / "tiny-llama.gguf")
    tensors = eva(base) | loftq(base)
    path = HERE / "start-goldens.safetensors"
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, path)
    path.chmod(0o644)


if __name__ == "__main__":
    main()
