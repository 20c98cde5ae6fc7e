#!/usr/bin/env python3
"""Adapters of the adapters library's methods in that library.

    python3 benchmarks/check_adapters.py MODEL.gguf [--bin .build/release] [--steps 4] [--methods seq_bn,mam,…]

A real daemon trains each method in f32 on one text and measures it; the adapters library loads the exported directory on top of the same
base, and measures the same text. Prints one JSON line a method. Needs torch, adapters with its transformers, and gguf.
"""
import argparse
import json
import math
import tempfile
from pathlib import Path

import adapters
import torch
import transformers

from compare_finetune import dequantised, tokenised
from compare_precision import licences
from running_daemon import running_daemon

METHODS = {
    "seq_bn": {"adapter": "seq_bn"}, "double_seq_bn": {"adapter": "double_seq_bn"}, "par_bn": {"adapter": "par_bn"},
    "par_bn-both": {"adapter": "par_bn", "mh_adapter": True, "reduction_factor": 8, "non_linearity": "gelu", "adapter_scaling": 2},
    "mam": {"adapter": "mam", "reduction_factor": 8, "num_virtual_tokens": 10}, "unipelt": {"adapter": "unipelt"},
}


@torch.no_grad()
def loss(model, ids):
    tokens = torch.tensor([ids])
    logits = model(input_ids=tokens).logits[0]
    return float(torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--bin", type=Path, default=Path(".build/release"))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--methods", default=",".join(METHODS))
    options = parser.parse_args()
    text = next(line["text"] for line in licences() if 300 < len(line["text"]) < 900)
    model, metadata = dequantised(options.model)
    ids = tokenised(transformers.AutoTokenizer.from_pretrained(options.model.parent, gguf_file=options.model.name), metadata, text)
    base = loss(model, ids)
    adapters.init(model)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        (scratch / "data.jsonl").write_text((json.dumps({"text": text}) + "\n") * 8)
        with running_daemon(options.bin, scratch) as daemon:
            daemon.edgetune("models", "add", options.model.resolve(), "--name", "base")
            for name in options.methods.split(","):
                (scratch / "job.yaml").write_text(json.dumps({
                    "name": name, "base_model": "base", "datasets": [{"path": "data.jsonl"}], "val_set_size": 2, "micro_batch_size": 1,
                    "gradient_accumulation_steps": 2, "max_steps": options.steps, "learning_rate": options.learning_rate,
                    "lr_scheduler": "constant", "warmup_steps": 0, "precision": "f32", "sequence_len": 1024} | METHODS[name]))
                daemon.edgetune("submit", "job.yaml", "--watch")
                listed = json.loads(daemon.edgetune("jobs", "--json"))["jobs"]
                status = json.loads(daemon.edgetune("show", next(each["id"] for each in listed if each["name"] == name), "--json"))
                ours = status["progress"]["best_eval_loss"]
                daemon.edgetune("export", name, "--format", "adapters", "--output", scratch / name)
                loaded = model.load_adapter(str(scratch / name), use_safetensors=True)
                model.set_active_adapters(loaded)
                theirs = loss(model.eval(), ids)
                model.delete_adapter(loaded)
                line = {
                    "method": name, "base": base, "here": ours, "adapters": theirs, "off_by": ours / theirs - 1,
                    "trainable": status["plan"]["trainable_parameters"]}
                print(json.dumps(line), flush=True)
                assert math.isfinite(ours) and abs(line["off_by"]) < 1e-4, line


if __name__ == "__main__":
    main()
