#!/usr/bin/env python3
"""Trains the demo with PEFT (f32 on the dequantised base, job.yaml's own settings) and asks the held-out question.

    python check_demo.py [--model GGUF] [--demo DIRECTORY] [--seeds 1 2 3] [--ask FILE] [--save PEFT_DIRECTORY]

One JSON line per seed: seconds, tokens, losses, the answer before and after, and whether it holds expect.txt's string.
`--ask`: a JSONL of {"question", "expect"} to ask besides. `--save`: the last seed's adapter. Exit status 1 when a seed fails.
The shuffling is Python's, not edgetune's: this shows that the data and the settings teach, not that runs are equal.
"""
import argparse
import json
import math
import random
import sys
import time
from pathlib import Path

import torch
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "Tests/Goldens"))
from gguf_model import BaseFile, adapter_parameters, answer, chat_sample, lora_model, sample_nll


def learning_rate(job, step, total):
    warmup = job.get("warmup_steps", 0)
    if step < warmup:
        return job["learning_rate"] * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return job["learning_rate"] * {"constant": 1.0, "linear": 1 - progress,
                                   "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[job["lr_scheduler"]]


def padded_nll(model, samples):
    """Sum over a batch. Padding stands on the right, where causal attention never looks, and carries no loss."""
    length = max(len(sample.tokens) for sample in samples)
    ids = torch.tensor([sample.tokens + [0] * (length - len(sample.tokens)) for sample in samples])
    carries = torch.tensor([sample.carries_loss + [0] * (length - len(sample.tokens)) for sample in samples]).bool()[:, 1:]
    # Head on loss tokens only, as edgetune does.
    hidden = model.base_model.model.model(input_ids=ids).last_hidden_state[:, :-1][carries]
    logits = model.base_model.model.lm_head(hidden)
    return torch.nn.functional.cross_entropy(logits.double(), ids[:, 1:][carries], reduction="sum")


def mean_loss(model, samples):
    with torch.no_grad():
        parts = [sample_nll(model, sample)[1:] for sample in samples]
    return float(sum(nll for nll, _ in parts)) / sum(count for _, count in parts)


@torch.no_grad()
def restore(parameters, values):
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--demo", type=Path, default=ROOT / "configs/demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--ask", type=Path)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    job = yaml.safe_load((options.demo / "job.yaml").read_text())
    question = (options.demo / "question.txt").read_text().strip()
    expected = (options.demo / "expect.txt").read_text().strip()
    lines = [json.loads(line) for line in (options.demo / "train.jsonl").read_text().splitlines()]
    assert all(question != message["content"] for line in lines for message in line["messages"]), "not held out"
    others = [json.loads(line) for line in options.ask.read_text().splitlines()] if options.ask else []

    base = BaseFile(options.model)
    tokenizer = base.tokenizer()
    model = base.model(attention="sdpa")
    before = answer(model, base, tokenizer, question)
    samples = [chat_sample(base, tokenizer, line["messages"]) for line in lines]
    model = lora_model(model, job["lora_r"], job["lora_alpha"])
    parameters = adapter_parameters(model)
    failed = expected in before
    for seed in options.seeds:
        order = random.Random(seed)
        torch.manual_seed(seed)
        restore(parameters, {
            name: torch.zeros_like(p) if "lora_B" in name else (torch.rand_like(p) * 2 - 1) / p.shape[1] ** 0.5
            for name, p in parameters.items()})
        shuffled = samples[:]
        order.shuffle(shuffled)
        held_out, train = shuffled[:job["val_set_size"]], shuffled[job["val_set_size"]:]
        batch = job["micro_batch_size"] * job["gradient_accumulation_steps"]
        total = math.ceil(len(train) / batch) * job["num_epochs"]
        optimizer = torch.optim.AdamW(parameters.values(), lr=1.0, betas=(0.9, 0.999), eps=1e-8,
                                      weight_decay=job["weight_decay"])
        start, step, tokens, first, last = time.time(), 0, 0, [], []
        loss_before = mean_loss(model, held_out)
        for epoch in range(job["num_epochs"]):
            order.shuffle(train)
            for at in range(0, len(train), batch):
                chosen = train[at:at + batch]
                count = sum(sum(sample.carries_loss) for sample in chosen)
                optimizer.zero_grad()
                loss = padded_nll(model, chosen) / count
                loss.backward()
                losses = float(loss.detach())
                tokens += sum(len(sample.tokens) for sample in chosen)
                torch.nn.utils.clip_grad_norm_(parameters.values(), job["max_grad_norm"])
                optimizer.param_groups[0]["lr"] = learning_rate(job, step, total)
                optimizer.step()
                step += 1
                if epoch == 0 and len(first) < 5:
                    first.append(losses)
                if epoch == job["num_epochs"] - 1:
                    last.append(losses)
        seconds = time.time() - start
        after = answer(model, base, tokenizer, question)
        right = expected in after
        failed |= not right
        asked = [(other["question"], answer(model, base, tokenizer, other["question"]), other["expect"]) for other in others]
        print(json.dumps({
            "seed": seed, "steps": step, "tokens": tokens, "seconds": round(seconds, 1),
            "tokens_per_second": round(tokens / seconds), "first_loss": round(sum(first) / len(first), 3),
            "last_loss": round(sum(last) / len(last), 3), "held_out_loss_before": round(loss_before, 3),
            "held_out_loss_after": round(mean_loss(model, held_out), 3), "before": before, "after": after,
            "right": right, **({"others_right": sum(e in a for _, a, e in asked), "others": asked} if asked else {}),
        }), flush=True)
    if options.save:
        model.save_pretrained(options.save)
    sys.exit(failed)


if __name__ == "__main__":
    main()
