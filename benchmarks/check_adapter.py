#!/usr/bin/env python3
"""Held-out loss and logits of an exported adapter in real PEFT, to hold edgetune's own figures against.

    python check_adapter.py BASE.gguf PEFT_DIRECTORY HELD_OUT [--logits OUT.safetensors] [--expect LOSS]

PEFT_DIRECTORY: adapter_config.json and adapter_model.safetensors (or the .lz4 of an artifact, which is unpacked to a
temporary directory first). Every tensor of the file must find its place and none may stay at PEFT's own
initialisation: PEFT itself ignores wrong names silently.

HELD_OUT: .json or .jsonl. Token samples, `{"tokens": […], "carries_loss": […]}` (a list of them, or one a line;
carries_loss[t] is about token t as target), or conversations, `{"messages": […]}`, or `{"text": …}` (loss on all but the
first token); these two go through the GGUF's own tokenizer and template.

Prints one JSON line: loss (mean nats per loss token) and perplexity without and with the adapter. --logits writes, per
sample, `logits.N` [tokens, vocabulary], f32, with the adapter. --expect: exit status 1 when the loss differs by more
than 1e-3.
"""
import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "Tests/Goldens"))
from gguf_model import BaseFile, Sample, chat_sample, sample_nll


def held_out_samples(path, base):
    text = path.read_text()
    rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line.strip()]
    if isinstance(rows, dict):
        rows = rows.get("samples", [rows])
    samples = []
    for row in rows:
        if "tokens" in row:
            flags = [int(bool(flag)) for flag in row["carries_loss"]]
            assert len(flags) == len(row["tokens"]), (len(flags), len(row["tokens"]))
            samples.append(Sample(row["tokens"], flags))
        elif "messages" in row:
            samples.append(chat_sample(base, base.tokenizer(), row["messages"]))
        else:
            # As edgetune trains plain text: the model's BOS where it wants one, and its EOS, which carries loss.
            ids = base.tokenizer().encode(row["text"], add_special_tokens=False).ids
            if base.value("tokenizer.ggml.add_bos_token", False):
                ids = [base.value("tokenizer.ggml.bos_token_id"), *ids]
            ids = [*ids, base.value("tokenizer.ggml.eos_token_id")]
            samples.append(Sample(ids, [0] + [1] * (len(ids) - 1)))
    return samples


def plain_directory(directory, scratch):
    if (directory / "adapter_model.safetensors").exists():
        return directory
    import lz4.frame
    (scratch / "adapter_config.json").write_bytes((directory / "adapter_config.json").read_bytes())
    (scratch / "adapter_model.safetensors").write_bytes(
        lz4.frame.decompress((directory / "adapter_model.safetensors.lz4").read_bytes()))
    return scratch


def check_loaded(model, directory):
    """Every tensor of the file is in the model, bit for bit, and the model has no other trainable tensor."""
    loaded = {name.replace(".default.", "."): value for name, value in model.state_dict().items() if ".lora_" in name}
    with safe_open(directory / "adapter_model.safetensors", "pt") as file:
        names, metadata = set(file.keys()), file.metadata()
        assert names == set(loaded), f"names differ: {sorted(names ^ set(loaded))[:4]}"
        for name in names:
            stored = file.get_tensor(name)
            assert torch.equal(stored.to(loaded[name].dtype), loaded[name]), name
            assert stored.isfinite().all() and stored.abs().max() > 0, f"{name} is zero or not finite"
    return len(names), metadata


@torch.no_grad()
def mean_loss(model, samples):
    parts = [sample_nll(model, sample) for sample in samples]
    count = sum(count for _, _, count in parts)
    return float(sum(nll for _, nll, _ in parts)) / count, count, [logits for logits, _, _ in parts]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--logits", type=Path)
    parser.add_argument("--expect", type=float)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from peft import PeftModel

    base = BaseFile(options.base)
    samples = held_out_samples(options.held_out, base)
    model = base.model()
    before, count, _ = mean_loss(model, samples)
    with tempfile.TemporaryDirectory() as scratch:
        directory = plain_directory(options.adapter, Path(scratch))
        model = PeftModel.from_pretrained(model, directory).eval()
        tensors, metadata = check_loaded(model, directory)
    after, _, logits = mean_loss(model, samples)
    if options.logits:
        save_file({f"logits.{index}": value.contiguous() for index, value in enumerate(logits)}, options.logits)
    result = {"samples": len(samples), "loss_tokens": count, "adapter_tensors": tensors, "metadata": metadata,
              "base_loss": before, "base_perplexity": math.exp(before), "loss": after, "perplexity": math.exp(after)}
    if options.expect is not None:
        result |= {"expected_loss": options.expect, "difference": after - options.expect}
    print(json.dumps(result))
    sys.exit(options.expect is not None and abs(after - options.expect) > 1e-3)


if __name__ == "__main__":
    main()
