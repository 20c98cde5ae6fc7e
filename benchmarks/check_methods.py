#!/usr/bin/env python3
"""Adapters of every PEFT method in the programs that load them.

    python3 benchmarks/check_methods.py MODEL.gguf [--bin .build/release] [--steps 4] [--methods lora,vera,…] [--dense DENSE.gguf]

A real daemon trains each method in f32 on one text and measures it; PEFT loads the exported directory, and llama.cpp the exported GGUF
(with --dense, the base in f32, made by check_gguf_adapter.py), each on top of the same base, and they measure the same text. Prints one
JSON line a method: the losses and how far they are apart, or what the export was refused with. Needs torch, transformers, peft and gguf,
and llama-cpp-python for --dense.
"""
import argparse
import json
import math
import subprocess
import tempfile
from pathlib import Path

import peft
import torch
import transformers

from compare_finetune import dequantised, tokenised
from compare_precision import licences
from running_daemon import running_daemon


def job(options, name, method):
    keys = {"adapter": method["adapter"]} | {key: value for key, value in method.items() if key != "adapter"}
    return {
        "name": name, "base_model": "base", "datasets": [{"path": "data.jsonl"}], "val_set_size": 2, "micro_batch_size": 1,
        "gradient_accumulation_steps": 2, "max_steps": options.steps, "learning_rate": options.learning_rate, "lr_scheduler": "constant",
        "warmup_steps": 0, "precision": "f32", "sequence_len": 1024} | keys


METHODS = {
    "lora": {"adapter": "lora", "lora_r": 8}, "rslora": {"adapter": "lora", "lora_r": 8, "use_rslora": True},
    "loraplus": {"adapter": "lora", "lora_r": 8, "loraplus_lr_ratio": 16}, "lora-fa": {"adapter": "lora-fa", "lora_r": 8},
    "dora": {"adapter": "dora", "lora_r": 8}, "vera": {"adapter": "vera", "lora_r": 64}, "miss": {"adapter": "miss", "lora_r": 16},
    "loha": {"adapter": "loha", "lora_r": 4}, "lokr": {"adapter": "lokr"}, "lokr-both": {"adapter": "lokr", "lora_r": 2, "decompose_both": True},
    "adalora": {"adapter": "adalora", "lora_r": 6, "target_r": 3, "tfinal": 1},
    "lokr-peft": {"adapter": "lokr", "decompose_factor": -1}, "ia3": {"adapter": "ia3"},
    "prefix-tuning": {"adapter": "prefix-tuning"}, "prompt-tuning": {"adapter": "prompt-tuning"},
    "oft": {"adapter": "oft"}, "oft-exact": {"adapter": "oft", "oft_block_size": 16, "use_cayley_neumann": False},
    "shira": {"adapter": "shira", "lora_r": 4}, "bitfit": {"adapter": "bitfit"},
    "mtlora": {"adapter": "mtlora", "lora_r": 8, "task_r": 4, "tasks": ["licences"]},
    "ia3-recommended": {"adapter": "ia3", "lora_target_modules": ["k_proj", "v_proj", "down_proj"]},
    "ln-tuning": {"adapter": "ln-tuning"}, "trainable-tokens": {"adapter": "trainable-tokens", "token_indices": [28, 198, 253, 260, 282]},
    "lora-saved": {"adapter": "lora", "lora_r": 8, "modules_to_save": ["norm"], "token_indices": [28, 198, 253, 260, 282]},
}


def in_llama_cpp(dense, adapter, ids):
    from llama_cpp import Llama

    model = Llama(str(dense), lora_path=str(adapter), n_ctx=len(ids) + 8, n_threads=2, logits_all=True, verbose=False)
    model.eval(ids)
    logits = torch.tensor(model.scores[:len(ids) - 1])
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])))


@torch.no_grad()
def loss(model, ids):
    """Of the text's own tokens: before them there may be virtual ones."""
    tokens = torch.tensor([ids])
    logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, -len(ids):]
    return float(torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--bin", type=Path, default=Path(".build/release"))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    # A model without biases has none to train: bitfit is to be asked for.
    parser.add_argument("--methods", default=",".join(method for method in METHODS if method != "bitfit"))
    parser.add_argument("--dense", type=Path)
    options = parser.parse_args()
    text = next(line["text"] for line in licences() if 300 < len(line["text"]) < 900)
    model, metadata = dequantised(options.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model.parent, gguf_file=options.model.name)
    ids = tokenised(tokenizer, metadata, text)
    base = loss(model, ids)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        (scratch / "data.jsonl").write_text((json.dumps({"text": text, "task": "licences"}) + "\n") * 8)
        with running_daemon(options.bin, scratch) as daemon:
            daemon.edgetune("models", "add", options.model.resolve(), "--name", "base")
            for label in options.methods.split(","):
                name = label.replace(" ", "-")
                (scratch / "job.yaml").write_text(json.dumps(job(options, name, METHODS[label])))
                daemon.edgetune("submit", "job.yaml", "--watch")
                listed = json.loads(daemon.edgetune("jobs", "--json"))["jobs"]
                status = json.loads(daemon.edgetune("show", next(each["id"] for each in listed if each["name"] == name), "--json"))
                ours = status["progress"]["best_eval_loss"]
                task = [argument for each in METHODS[label].get("tasks", [])[:1] for argument in ("--task", each)]
                daemon.edgetune("export", name, *task, "--format", "peft", "--output", scratch / name)
                adapted = peft.PeftModel.from_pretrained(model, scratch / name).eval()
                theirs = loss(adapted, ids)
                model = adapted.get_base_model() if adapted.active_peft_config.is_prompt_learning else adapted.unload()
                line = {
                    "method": label, "base": base, "here": ours, "peft": theirs, "peft_off_by": ours / theirs - 1,
                    "trainable": status["plan"]["trainable_parameters"]}
                try:
                    daemon.edgetune("export", name, *task, "--format", "gguf", "--output", scratch / f"{name}.gguf")
                    if options.dense:
                        line["llama_cpp"] = in_llama_cpp(options.dense, scratch / f"{name}.gguf", ids)
                        line["llama_cpp_off_by"] = ours / line["llama_cpp"] - 1
                except subprocess.CalledProcessError:
                    line["gguf"] = "refused"
                assert math.isfinite(ours) and abs(line["peft_off_by"]) < 1e-4, line
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
