#!/usr/bin/env python3
"""Goldens for methods that train numbers of the model itself, from real torch + transformers + peft: norm tuning, trainable tokens, and LoRA
with norms and tokens beside its factors.

    python make_selective_goldens.py

Writes selective-goldens.safetensors, each case as make_method_goldens.py has them: on the tiny model of make_training_goldens.py, and, in
the cases whose name ends in a family's, on Hugging Face's files of make_architecture_goldens.py with the samples of its golden.
"""
from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from gguf_model import BaseFile, Sample, batch_loss
from make_method_goldens import LEARNING_RATE, SEED, samples
from make_training_goldens import adamw_steps, packed
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
# Beside plain RMS norms: weights kept as differences from 1, before and after; norms of heads; of all heads together; with biases.
NORM_FAMILIES = ["gemma2", "gemma3", "olmo2", "qwen3", "stablelm2"]
# A head of its own; embeddings that are scaled, and a head that is capped; a head that is scaled.
TOKEN_FAMILIES = ["llama", "gemma2", "granite"]
# The first two are in both samples, the third only in the second, the last in none: a tied head has it.
TOKENS_IN_NONE = 1


def family_model(family):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        HERE / "architectures" / family, dtype=torch.float32, attn_implementation="eager").eval()


def family_samples(family):
    golden, made, first = load_file(HERE / "architectures" / family / "golden.safetensors"), [], 0
    for length in golden["sample_lengths"].tolist():
        part = slice(first, first + length)
        made.append(Sample(golden["tokens"][part].tolist(), golden["carries_loss"][part].tolist()))
        first += length
    return made


def norm_names(model):
    return sorted({name.split(".")[-1] for name, module in model.named_modules() if type(module).__name__.endswith("Norm")})


def some_tokens(batch):
    first, second = ([token for token in sample.tokens[1:]] for sample in batch)
    chosen = [first[3], first[-1], second[2], TOKENS_IN_NONE]
    return list(dict.fromkeys(chosen))


def cases():
    from peft import LNTuningConfig, LoraConfig, TrainableTokensConfig

    task = dict(task_type="CAUSAL_LM")
    tiny, batch = BaseFile(HERE / "tiny-llama.gguf"), samples()
    yield "ln-tuning", tiny.model(), tiny.model(), batch, LNTuningConfig(target_modules=norm_names(tiny.model()), **task)
    yield "ln-tuning-some", tiny.model(), tiny.model(), batch, LNTuningConfig(
        target_modules=["model.layers.1.post_attention_layernorm", "norm"], **task)
    for family in NORM_FAMILIES:
        model = family_model(family)
        yield f"ln-tuning-{family}", model, family_model(family), family_samples(family), LNTuningConfig(target_modules=norm_names(model), **task)
    yield "trainable-tokens", tiny.model(), tiny.model(), batch, TrainableTokensConfig(token_indices=some_tokens(batch), **task)
    for family in TOKEN_FAMILIES:
        batch = family_samples(family)
        yield f"trainable-tokens-{family}", family_model(family), family_model(family), batch, TrainableTokensConfig(token_indices=some_tokens(batch), **task)
    batch = samples()
    lora = dict(r=4, lora_alpha=8, lora_dropout=0.0)
    yield "lora-saved", tiny.model(), tiny.model(), batch, LoraConfig(
        target_modules=["q_proj", "v_proj", "down_proj"], modules_to_save=["post_attention_layernorm", "model.norm"],
        trainable_token_indices=some_tokens(batch), **lora, **task)
    # A norm below the lowest linear; and, of PEFT's matching, every name that ends so.
    yield "lora-saved-norms", tiny.model(), tiny.model(), batch, LoraConfig(
        target_modules=["down_proj"], layers_to_transform=[1], modules_to_save=["norm"], use_rslora=True, **lora, **task)
    batch = family_samples("llama")
    yield "lora-saved-llama", family_model("llama"), family_model("llama"), batch, LoraConfig(
        target_modules=["q_proj", "up_proj"], modules_to_save=["input_layernorm"],
        trainable_token_indices={"embed_tokens": some_tokens(batch)}, use_dora=True, **lora, **task)


def loaded(base, config, tensors):
    """What PEFT makes of a directory with these tensors."""
    from peft import PeftModel

    with tempfile.TemporaryDirectory() as directory:
        save_file(tensors, f"{directory}/adapter_model.safetensors", {"format": "pt"})
        config.save_pretrained(directory)
        return PeftModel.from_pretrained(base, directory)


def file_name(parameter):
    return parameter.replace(".modules_to_save", "").replace(".default", "").replace("magnitude_vector.weight", "magnitude_vector")


def make(name, base, again, batch, config):
    from peft import get_peft_model, get_peft_model_state_dict

    torch.manual_seed(SEED)
    model = get_peft_model(base, config)
    parameters = {file_name(key): value for key, value in model.named_parameters() if value.requires_grad}
    random = np.random.default_rng(SEED)
    with torch.no_grad():
        for key, parameter in parameters.items():
            noise = torch.from_numpy(random.standard_normal(tuple(parameter.shape)).astype(np.float32))
            # As large as the values are: embeddings are small.
            parameter.add_(0.2 * noise * (parameter.pow(2).mean().sqrt() if "trainable_tokens" in key else 1))
    initial = {key: value.detach().clone() for key, value in get_peft_model_state_dict(model).items()}
    # PEFT writes the rows of a tied head, too; they are those of the embedding.
    for key in set(initial) - set(parameters):
        assert key.endswith("lm_head.trainable_tokens_delta") and torch.equal(initial[key], next(iter(parameters.values())))
        del initial[key]
    loss, logits = batch_loss(model, batch)
    with torch.no_grad():
        assert torch.equal(batch_loss(loaded(again, config, initial), batch)[1], logits)
    loss.backward()
    gradients = {key: value.grad.detach().clone() for key, value in parameters.items()}
    losses, _ = adamw_steps(parameters, lambda: batch_loss(model, batch)[0], LEARNING_RATE)
    print(f"{name:26s} loss {float(loss.detach()):.6f}  ten losses " + " ".join(f"{value:.4f}" for value in losses))
    tensors = {"loss": loss.detach().float().reshape(1), "logits": logits.detach(), "training_losses": torch.tensor(losses)}
    tensors |= {f"initial.{key}": value for key, value in initial.items()}
    tensors |= {f"gradient.{key}": value for key, value in gradients.items()}
    saved = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    saved["base_model_name_or_path"] = None
    return {f"{name}/{key}": value.contiguous().clone() for key, value in tensors.items()}, json.dumps(saved, sort_keys=True)


def main():
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    tensors, metadata = packed(samples()), {}
    for name, base, again, batch, config in cases():
        made, metadata[name] = make(name, base, again, batch, config)
        tensors |= made
    save_file(tensors, HERE / "selective-goldens.safetensors", metadata)
    (HERE / "selective-goldens.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
