#!/usr/bin/env python3
"""Perplexity of real text: `edgebench perplexity` against transformers on the same dequantised weights and the same tokens.

    python3 benchmarks/compare_perplexity.py MODEL.gguf TEXT [--tokens 20000] [--window 512] [--edgebench .build/release/edgebench]

Prints one JSON line: both perplexities, their ratio, and whether transformers' own tokenizer gives the same tokens. Needs torch,
transformers and gguf.
"""
import argparse
import json
import math
import pathlib
import subprocess
import tempfile

import torch
import transformers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--tokens", type=int, default=20000)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--edgebench", default=".build/release/edgebench")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        windows = pathlib.Path(directory) / "windows.jsonl"
        ours = json.loads(subprocess.run(
            [options.edgebench, "perplexity", "--model", options.model, "--text", options.text, "--tokens", str(options.tokens),
             "--window", str(options.window), "--windows", windows], check=True, capture_output=True, text=True).stdout)
        parts = [json.loads(line) for line in windows.read_text().splitlines()]

    source = dict(pretrained_model_name_or_path=options.model.parent, gguf_file=options.model.name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    expected = tokenizer(options.text.read_text(), add_special_tokens=False)["input_ids"][:options.tokens]
    # Every window begins with the same token where the model wants one, which is not the text's.
    lead = 1 if expected[0] != parts[0][0] else 0
    found = [token for part in parts for token in part[lead:]]

    model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, attn_implementation="eager").eval()
    loss, count = 0.0, 0
    with torch.no_grad():
        for part in parts:
            if len(part) < 2:
                continue
            ids = torch.tensor([part])
            logits = model(ids).logits[0, :-1].double()
            loss += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            count += len(part) - 1
    theirs = math.exp(loss / count)
    print(json.dumps({
        "model": options.model.name, "tokens": options.tokens, "window": options.window, "same_tokens": found == expected,
        "perplexity": ours["perplexity"], "transformers": theirs, "ratio": ours["perplexity"] / theirs,
        "loss_tokens": [ours["loss_tokens"], count], "ms_per_token": ours["seconds_per_token"] * 1000}))


if __name__ == "__main__":
    main()
