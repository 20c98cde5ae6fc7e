#!/usr/bin/env python3
"""The same fine-tune here and in PEFT: from the same adapter, on the same texts, every step on all of them, in f32.

    python3 benchmarks/compare_finetune.py MODEL.gguf [--bin .build/release] [--steps 10] [--train 8] [--held-out 8]

The texts are paragraphs of the machine's licences. A real daemon trains; torch and PEFT train the model that transformers builds
from the dequantised weights (Llama or Gemma 3 in GGUF). Both adapters are then measured by torch on texts that neither has seen.
Prints one JSON line. Needs torch, transformers, peft and gguf.
"""
import argparse
import json
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np
import peft
import torch
import transformers

from compare_precision import licences
from running_daemon import running_daemon

LAYER_NAMES = {
    "llama": {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"},
    "gemma3": {
        "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
        "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"},
}
LINEARS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


def dequantised(path):
    """The model in f32, and its GGUF metadata."""
    reader = gguf.GGUFReader(path)
    metadata = {field.name: field.contents() for field in reader.fields.values() if not field.name.startswith("tokenizer.ggml.t")}
    architecture = metadata["general.architecture"]
    config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    state = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        parts = tensor.name.split(".")
        if parts[0] != "blk":
            name = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}[parts[0]]
        else:
            name = f"model.layers.{parts[1]}." + (LINEARS | LAYER_NAMES[architecture])[parts[2]]
        if architecture == "llama" and parts[-2] in ("attn_q", "attn_k"):
            heads = config.num_attention_heads if parts[-2] == "attn_q" else config.num_key_value_heads
            values = values.reshape(heads, values.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)
        if architecture == "gemma3" and parts[-2].endswith("norm"):
            values = values - 1
        state[name + ".weight"] = values
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    model.config.use_cache = False
    return model.eval(), metadata


def tokenised(tokenizer, metadata, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if metadata.get("tokenizer.ggml.add_bos_token", metadata["general.architecture"] == "gemma3"):
        ids = [metadata["tokenizer.ggml.bos_token_id"], *ids]
    return [*ids, metadata["tokenizer.ggml.eos_token_id"]]


def nll(model, ids):
    ids = torch.tensor([ids])
    logits = model(ids).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")


def held_out_loss(model, samples):
    with torch.no_grad():
        return sum(float(nll(model, ids)) for ids in samples) / sum(len(ids) - 1 for ids in samples)


def train_here(options, scratch, texts, initial):
    (scratch / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (scratch / "job.yaml").write_text(json.dumps({
        "name": "ours", "base_model": str(options.model.resolve()), "datasets": [{"path": "train.jsonl"}], "val_set_size": 0,
        "lora_r": options.rank, "lora_alpha": 2 * options.rank, "init_from_adapter": str(initial), "micro_batch_size": 1,
        "gradient_accumulation_steps": len(texts), "max_steps": options.steps, "learning_rate": options.learning_rate,
        "lr_scheduler": "constant", "warmup_steps": 0, "weight_decay": 0, "max_grad_norm": 1, "precision": options.precision,
        "sequence_len": 1024}))
    with running_daemon(options.bin, scratch) as daemon:
        start = time.monotonic()
        daemon.edgetune("submit", "job.yaml", "--watch")
        seconds = time.monotonic() - start
        daemon.edgetune("export", "ours", "--format", "peft", "--output", scratch / "ours")
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--bin", type=Path, default=Path(".build/release"))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--train", type=int, default=8)
    parser.add_argument("--held-out", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--precision", default="f32")
    options = parser.parse_args()
    texts = [line["text"] for line in licences()][:options.train + options.held_out]
    model, metadata = dequantised(options.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model.parent, gguf_file=options.model.name)
    samples = [tokenised(tokenizer, metadata, text) for text in texts]
    train, held_out = samples[:options.train], samples[options.train:]
    base = held_out_loss(model, held_out)
    torch.manual_seed(1)
    adapted = peft.get_peft_model(model, peft.LoraConfig(
        r=options.rank, lora_alpha=2 * options.rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    parameters = [(name, value) for name, value in adapted.named_parameters() if value.requires_grad]
    with torch.no_grad():
        for name, value in parameters:
            if "lora_B" in name:  # an adapter that has learned nothing is refused
                value.normal_(std=1e-4)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        adapted.save_pretrained(scratch / "initial")
        seconds_here = train_here(options, scratch, texts[:options.train], scratch / "initial")
        optimizer = torch.optim.AdamW([value for _, value in parameters], lr=options.learning_rate, weight_decay=0)
        count = sum(len(ids) - 1 for ids in train)
        losses = []
        start = time.monotonic()
        for _ in range(options.steps):
            optimizer.zero_grad()
            total = 0.0
            for ids in train:
                loss = nll(adapted, ids) / count
                loss.backward()
                total += float(loss.detach())
            torch.nn.utils.clip_grad_norm_([value for _, value in parameters], 1.0)
            optimizer.step()
            losses.append(total)
        seconds_there = time.monotonic() - start
        theirs = held_out_loss(adapted, held_out)
        peft.set_peft_model_state_dict(adapted, peft.load_peft_weights(str(scratch / "ours"), device="cpu"))
        ours = held_out_loss(adapted, held_out)
    print(json.dumps({
        "model": options.model.name, "steps": options.steps, "tokens_per_step": sum(map(len, train)), "precision": options.precision,
        "held_out_before": base, "held_out_here": ours, "held_out_peft": theirs, "ratio": ours / theirs,
        "first_and_last_training_loss_peft": [losses[0], losses[-1]], "seconds_here": round(seconds_here, 1),
        "seconds_peft": round(seconds_there, 1)}))


if __name__ == "__main__":
    main()
