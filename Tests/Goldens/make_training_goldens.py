#!/usr/bin/env python3
"""Goldens for training, from real torch + transformers + peft + gguf. README.md beside this lists what it writes.

    python make_training_goldens.py --model ../../models/SmolLM2-135M-Instruct.Q4_1.gguf [--only tiny|quant|smollm2]

Everything follows from the constants below: same packages and machine, same bytes (manifest.json has their hashes).
Prints the ten losses, the gradient table, and how far f32 itself is from f64, which is what tolerances stand on.

The SmolLM2 adapter is not stored: it is made from a counter, exactly, in any language (u64 arithmetic wraps):

    splitmix64(x):  z = x + 0x9E3779B97F4A7C15
                    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
                    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
                    z ^ (z >> 31)
    unit(t, e)   =  f32(splitmix64(seed ^ (t << 32) ^ e) >> 40) * 2^-24 * 2 - 1     exact in f32, in [-1, 1)
    value(t, e)  =  unit(t, e) * bound                                              one f32 rounding

t: tensor index, 2*i for lora_A and 2*i + 1 for lora_B of module i = 7*layer + (q 0, k 1, v 2, o 3, gate 4, up 5,
down 6). e: element index in row-major order, in PEFT's orientation and row order (not llama.cpp's permuted rows).
bound: f32(1 / sqrt(f64(inFeatures))) for lora_A, f32(0.01) for lora_B.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.constants import GGMLQuantizationType as Format
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
from gguf_model import (LINEARS, BaseFile, Sample, adapter_parameters, answer, batch_loss, chat_sample, lora_model,
                        permute_rows)

HERE = Path(__file__).parent
U64 = (1 << 64) - 1

TINY_SEED = 20261121
TINY = dict(layers=2, hidden=64, heads=4, key_value_heads=2, head_dim=16, ffn=160, vocabulary=128, context=64,
            rope_theta=10000.0, epsilon=1e-5)
# Format of each linear, in the order of LINEARS; most are Q4_1, and every decoder is in the path.
TINY_FORMATS = (
    (Format.Q4_1, Format.Q4_1, Format.Q4_0, Format.Q8_0, Format.Q4_1, Format.F16, Format.Q4_1),
    (Format.Q4_0, Format.BF16, Format.Q4_1, Format.F32, Format.Q4_1, Format.Q4_1, Format.Q8_0),
)
TINY_LORA = dict(rank=4, alpha=8)
TINY_LENGTHS = (13, 7)
# At 1e-2 the last losses differ by 2 % between f32 and f64: Adam divides noise by noise once the batch is learnt.
TINY_LEARNING_RATE = 2e-3

SMOLLM2_SEED = 42
SMOLLM2_LORA = dict(rank=8, alpha=16)
SMOLLM2_LEARNING_RATE = 2e-4
SMOLLM2_CHATS = (
    [{"role": "user", "content": "Why does the sky look blue during the day?"},
     {"role": "assistant", "content": "Air scatters short wavelengths of sunlight more than long ones, so blue light "
      "reaches us from every direction."},
     {"role": "user", "content": "And at sunset?"},
     {"role": "assistant", "content": "The light crosses more air; most of the blue is gone, and red is left."}],
    [{"role": "system", "content": "Answer with one word."},
     {"role": "user", "content": "What is 12 + 30?"},
     {"role": "assistant", "content": "Forty-two."}],
)
SAMPLED_SEED = 7
SAMPLED_ENTRIES = 16
TOP_LOGITS = 64

STEPS = 10
WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0


# --- The optimisation that both models go through ------------------------------------------------------------------

def adamw_steps(parameters, loss, learning_rate, *, count=STEPS, weight_decay=WEIGHT_DECAY, factors=None, penalty=None, after=None):
    """Losses and gradient norms of AdamW steps, each from before its update, norms from before clipping.

    parameters: by name. loss(): of the batch. factors: by name, what the learning rate is multiplied by. penalty(): called after loss(),
    has a part in gradients alone. after(step): called when a step is done.
    """
    optimizer = torch.optim.AdamW(
        [dict(params=[value], lr=learning_rate * (factors or {}).get(name, 1)) for name, value in parameters.items()],
        betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay)
    losses, norms = [], []
    for step in range(count):
        optimizer.zero_grad()
        found = loss()
        (found + penalty() if penalty else found).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP_NORM)))
        losses.append(float(found.detach()))
        optimizer.step()
        if after:
            after(step)
    return losses, norms


def ten_steps(model, samples, parameters, learning_rate):
    losses, norms = adamw_steps(parameters, lambda: batch_loss(model, samples)[0], learning_rate)
    return torch.tensor(losses, dtype=torch.float64), torch.tensor(norms, dtype=torch.float64)


def gradients(model, samples, parameters):
    for parameter in parameters.values():
        parameter.grad = None
    loss, logits = batch_loss(model, samples)
    loss.backward()
    return loss.detach(), logits.detach(), {name: p.grad.detach().clone() for name, p in parameters.items()}


class ExactNorm(torch.nn.Module):
    """RMSNorm without transformers' cast to f32."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.epsilon = norm.weight, norm.variance_epsilon

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon))


def distance_from_f64(base, lora, values, samples, learning_rate, loss32, logits32, gradients32, losses32):
    """The same in f64 (with the f32 rotary table that transformers uses): what f32 rounding alone costs."""
    model = base.model(attention="sdpa")
    for layer in model.model.layers:
        layer.input_layernorm = ExactNorm(layer.input_layernorm)
        layer.post_attention_layernorm = ExactNorm(layer.post_attention_layernorm)
    model.model.norm = ExactNorm(model.model.norm)
    adapted = lora_model(model, **lora).double()
    parameters = adapter_parameters(adapted)
    install(parameters, values)
    loss, logits, exact = gradients(adapted, samples, parameters)
    losses, _ = ten_steps(adapted, samples, parameters, learning_rate)
    return {
        "loss": abs(float(loss) - float(loss32)) / float(loss),
        "logits_max_abs": float((logits - logits32).abs().max()),
        "worst_gradient_relative_l2": max(
            float((exact[name] - gradients32[name]).norm() / exact[name].norm()) for name in exact),
        "worst_training_loss_relative": float(((losses - losses32) / losses).abs().max()),
    }


@torch.no_grad()
def install(parameters, values):
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def packed(samples):
    def i32(values):
        return torch.tensor(values, dtype=torch.int32)
    return {
        "tokens": i32([token for sample in samples for token in sample.tokens]),
        "sample_lengths": i32([len(sample.tokens) for sample in samples]),
        "carries_loss": i32([flag for sample in samples for flag in sample.carries_loss]),
    }


def print_losses(title, losses, norms):
    print(f"\n{title}: {STEPS} AdamW steps on one batch")
    print("  step  " + "  ".join(f"{step:8d}" for step in range(STEPS)))
    print("  loss  " + "  ".join(f"{value:8.5f}" for value in losses.tolist()))
    print("  norm  " + "  ".join(f"{value:8.4f}" for value in norms.tolist()))


# --- Tiny model ----------------------------------------------------------------------------------------------------

def tiny_vocabulary():
    """128 byte-level tokens: 3 control, 97 bytes (newline, tab, space as byte-level BPE writes them; printable
    ASCII), and 28 merges."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens += ["\u010a", "\u0109", "\u0120"] + [chr(code) for code in range(ord("!"), ord("~") + 1)]
    merges = ("Ġ t|Ġ a|i n|h e|r e|o n|e r|Ġt he|a t|Ġ s|e n|Ġ c|Ġ w|n d|i t|o r|i s|a l|in g|Ġ f|e d|Ġ b|o u|Ġ in|"
              "Ġ o|Ġ m|Ġa nd|u s").split("|")
    tokens += [merge.replace(" ", "") for merge in merges]
    assert len(tokens) == len(set(tokens)) == TINY["vocabulary"]
    return tokens, merges


def write_tiny_model(path: Path) -> None:
    random = np.random.default_rng(TINY_SEED)

    def normal(*shape, scale):
        return (random.standard_normal(shape) * scale).astype(np.float32)

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("Tiny random llama")
    writer.add_block_count(TINY["layers"])
    writer.add_context_length(TINY["context"])
    writer.add_embedding_length(TINY["hidden"])
    writer.add_feed_forward_length(TINY["ffn"])
    writer.add_head_count(TINY["heads"])
    writer.add_head_count_kv(TINY["key_value_heads"])
    writer.add_rope_freq_base(TINY["rope_theta"])
    writer.add_rope_dimension_count(TINY["head_dim"])
    writer.add_layer_norm_rms_eps(TINY["epsilon"])
    writer.add_vocab_size(TINY["vocabulary"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_1)
    tokens, merges = tiny_vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
        "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)

    def add(name, values, kind):
        if kind == Format.F32:
            writer.add_tensor(name, values)
        elif kind == Format.F16:
            writer.add_tensor(name, values.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    hidden, ffn, head_dim = TINY["hidden"], TINY["ffn"], TINY["head_dim"]
    query, key = TINY["heads"] * head_dim, TINY["key_value_heads"] * head_dim
    shapes = ((query, hidden), (key, hidden), (key, hidden), (hidden, query), (ffn, hidden), (ffn, hidden),
              (hidden, ffn))
    add("token_embd.weight", normal(TINY["vocabulary"], hidden, scale=0.25), Format.Q8_0)
    for layer in range(TINY["layers"]):
        add(f"blk.{layer}.attn_norm.weight", 1 + normal(hidden, scale=0.1), Format.F32)
        add(f"blk.{layer}.ffn_norm.weight", 1 + normal(hidden, scale=0.1), Format.F32)
        for (_, short), shape, kind in zip(LINEARS, shapes, TINY_FORMATS[layer]):
            values = normal(*shape, scale=1.5 / shape[1] ** 0.5)
            if short == "attn_q":
                values = permute_rows(values, TINY["heads"])
            elif short == "attn_k":
                values = permute_rows(values, TINY["key_value_heads"])
            add(f"blk.{layer}.{short}.weight", np.ascontiguousarray(values), kind)
    add("output_norm.weight", 1 + normal(hidden, scale=0.1), Format.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gguf_adapter(path: Path, base: BaseFile, values: dict, alpha: float) -> None:
    """PEFT's tensors as a llama.cpp adapter: B of q and k in llama.cpp's row order, everything else byte for byte."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    heads = {"attn_q": base.value("llama.attention.head_count"), "attn_k": base.value("llama.attention.head_count_kv")}
    for layer in range(base.value("llama.block_count")):
        for module, short in LINEARS:
            for side in ("lora_A", "lora_B"):
                tensor = values[f"base_model.model.model.layers.{layer}.{module}.{side}.weight"].numpy()
                if side == "lora_B" and short in heads:
                    tensor = np.ascontiguousarray(permute_rows(tensor, heads[short]))
                writer.add_tensor(f"blk.{layer}.{short}.weight.{side.lower()}", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_tiny() -> dict:
    model_path = HERE / "tiny-llama.gguf"
    write_tiny_model(model_path)
    base = BaseFile(model_path)
    random = np.random.default_rng(TINY_SEED + 1)
    samples = []
    for length in TINY_LENGTHS:
        carries = [int(position >= length // 3 and position % 5 != 0) for position in range(length)]
        samples.append(Sample(random.integers(3, TINY["vocabulary"], length).tolist(), carries))
    model = lora_model(base.model(), **TINY_LORA)
    parameters = adapter_parameters(model)
    values = {}
    for name, parameter in parameters.items():
        scale = 0.1 if "lora_B" in name else 1 / parameter.shape[1] ** 0.5
        values[name] = torch.from_numpy((random.standard_normal(tuple(parameter.shape)) * scale).astype(np.float32))
    install(parameters, values)
    write_gguf_adapter(HERE / "tiny-adapter.gguf", base, values, TINY_LORA["alpha"])

    loss, logits, grads = gradients(model, samples, parameters)
    losses, norms = ten_steps(model, samples, parameters, TINY_LEARNING_RATE)
    noise = distance_from_f64(base, TINY_LORA, values, samples, TINY_LEARNING_RATE, loss, logits, grads, losses)
    print_losses("tiny", losses, norms)
    print(f"\n{'gradient of (tiny)':56s} {'L2 norm':>12s}")
    for name, gradient in grads.items():
        print(f"{name.removeprefix('base_model.model.model.'):56s} {float(gradient.norm()):12.6g}")
    print("f32 against f64:", json.dumps(noise))

    tensors = packed(samples) | {
        "logits": logits, "loss": loss.float().reshape(1), "training_losses": losses.float(), "training_grad_norms": norms.float()}
    for name in parameters:
        tensors["initial." + name] = values[name]
        tensors["gradient." + name] = grads[name]
        tensors["trained." + name] = parameters[name].detach()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, HERE / "tiny-goldens.safetensors")
    return {"seed": TINY_SEED, "model": TINY, "lora": TINY_LORA, "learning_rate": TINY_LEARNING_RATE,
            "f32_against_f64": noise, "training_losses": losses.tolist(), "training_grad_norms": norms.tolist()}


# --- Quantisation formats ------------------------------------------------------------------------------------------

def make_quant() -> dict:
    random = np.random.default_rng(TINY_SEED + 2)
    # As fp16 bits: 0, -0, 1, -1, smallest and largest subnormal and their negatives, smallest normal, largest, -largest.
    edges = np.array([0x0000, 0x8000, 0x3C00, 0xBC00, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x7BFF, 0xFBFF], np.uint16)
    tensors = {}

    def scales(count):
        drawn = (random.standard_normal(count) * 10.0 ** random.uniform(-4, 1, count)).astype(np.float16)
        drawn.view(np.uint16)[:len(edges)] = edges
        return drawn.view(np.uint8).reshape(count, 2)

    def blocks(kind, count):
        size = gguf.GGML_QUANT_SIZES[kind][1]
        data = random.integers(0, 256, (count, size), dtype=np.uint8)
        data[:, :2] = scales(count)
        if kind == Format.Q4_1:
            # Every pair of edge scale and edge minimum, then random ones.
            minima = scales(count).view(np.uint16)
            pairs = np.array([(scale, minimum) for scale in edges for minimum in edges], np.uint16)
            data[:len(pairs), 0:2] = pairs[:, :1].view(np.uint8)
            data[:len(pairs), 2:4] = np.ascontiguousarray(pairs[:, 1:]).view(np.uint8)
            data[len(pairs):, 2:4] = minima[len(pairs):].view(np.uint8)
        # Extreme codes: all zero and all ones.
        data[-2, size - (32 if kind == Format.Q8_0 else 16):] = 0x00
        data[-1, size - (32 if kind == Format.Q8_0 else 16):] = 0xFF
        if kind == Format.Q8_0:
            data[-3, 2:] = 0x80
        return data

    for kind, count in ((Format.Q8_0, 64), (Format.Q4_0, 64), (Format.Q4_1, 192)):
        data = blocks(kind, count)
        tensors[f"{kind.name}.blocks"] = data
        tensors[f"{kind.name}.values"] = gguf.quants.dequantize(data, kind)
    halves = np.concatenate([edges, np.array([0x7C00, 0xFC00], np.uint16),
                             random.integers(0, 1 << 16, 499, dtype=np.uint16)])
    halves[(halves & 0x7C00 == 0x7C00) & (halves & 0x03FF != 0)] = 0x3555  # no NaN
    tensors["F16.blocks"] = halves.view(np.uint8)
    tensors["F16.values"] = gguf.quants.dequantize(halves.view(np.uint8), Format.F16)
    brains = np.concatenate([np.array([0x0000, 0x8000, 0x3F80, 0xBF80, 0x0001, 0x8001, 0x007F, 0x0080, 0x7F7F, 0xFF7F,
                                       0x7F80, 0xFF80], np.uint16), random.integers(0, 1 << 16, 500, dtype=np.uint16)])
    brains[(brains & 0x7F80 == 0x7F80) & (brains & 0x007F != 0)] = 0x3EAB  # no NaN
    tensors["BF16.blocks"] = brains.view(np.uint8)
    tensors["BF16.values"] = gguf.quants.dequantize(brains.view(np.uint8), Format.BF16)
    floats = np.concatenate([
        np.array([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1.17549435e-38, 3.4028235e38, -3.4028235e38], np.float32),
        random.standard_normal(119).astype(np.float32)])
    tensors["F32.blocks"] = floats.view(np.uint8)
    tensors["F32.values"] = floats
    # The other direction: gguf's own encoders.
    source = (random.standard_normal((48, 32)) * 10.0 ** random.uniform(-3, 1, (48, 1))).astype(np.float32)
    source[0] = 0
    source[1] = 0.25
    source[2] = -np.abs(source[2])
    tensors["encode.source"] = source
    for kind in (Format.Q8_0, Format.Q4_0, Format.Q4_1, Format.F16, Format.BF16):
        tensors[f"encode.{kind.name}"] = np.ascontiguousarray(gguf.quants.quantize(source, kind)).view(np.uint8)
    # Formats that are only read, and where their blocks have binary16 scales.
    few_edges = np.array([0x8000, 0x0001, 0x83FF, 0x7BFF, 0xFBFF], np.uint16)
    for kind, offsets in (
            (Format.Q5_0, (0,)), (Format.Q5_1, (0, 2)), (Format.Q2_K, (80, 82)), (Format.Q3_K, (108,)), (Format.Q4_K, (0, 2)),
            (Format.Q5_K, (0, 2)), (Format.Q6_K, (208,)), (Format.IQ4_NL, (0,)), (Format.IQ4_XS, (0,)), (Format.MXFP4, ())):
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        count = 12 if elements == 256 else 40
        data = random.integers(0, 256, (count, size), dtype=np.uint8)
        data[-2], data[-1] = 0x00, 0xFF
        for offset in offsets:
            drawn = (random.standard_normal(count) * 10.0 ** random.uniform(-4, 1, count)).astype(np.float16)
            drawn.view(np.uint16)[:len(few_edges)] = random.permutation(few_edges)
            data[:, offset:offset + 2] = drawn.view(np.uint8).reshape(count, 2)
        if kind == Format.MXFP4:
            data[:7, 0] = 0, 1, 2, 3, 127, 254, 255  # denormal scales, 1, and what overflows
        tensors[f"{kind.name}.blocks"] = data
        tensors[f"{kind.name}.values"] = gguf.quants.dequantize(data, kind)
    save_file({name: torch.from_numpy(np.array(array)) for name, array in tensors.items()},
              HERE / "quant-goldens.safetensors")
    return {"seed": TINY_SEED + 2}


# --- SmolLM2-135M-Instruct -----------------------------------------------------------------------------------------

def splitmix64(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        z = x + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def counter_bits(seed: int, tensor_index: int, count: int) -> np.ndarray:
    return splitmix64(np.arange(count, dtype=np.uint64) ^ np.uint64((seed ^ (tensor_index << 32)) & U64))


def counter_values(seed: int, tensor_index: int, shape: tuple[int, ...], bound: float) -> torch.Tensor:
    top = (counter_bits(seed, tensor_index, int(np.prod(shape))) >> np.uint64(40)).astype(np.float32)
    unit = top * np.float32(2.0 ** -24) * np.float32(2) - np.float32(1)
    return torch.from_numpy((unit * np.float32(bound)).reshape(shape))


def make_smollm2(model_path: Path) -> dict:
    base = BaseFile(model_path)
    tokenizer = base.tokenizer()
    model = base.model()
    greeting = answer(model, base, tokenizer, "What is the capital of France?")
    print(f"\nSmolLM2, greedy: What is the capital of France? -> {greeting}")
    assert "Paris" in greeting
    samples = [chat_sample(base, tokenizer, chat) for chat in SMOLLM2_CHATS]
    model = lora_model(model, **SMOLLM2_LORA)
    parameters = adapter_parameters(model)
    values = {}
    for index, (name, parameter) in enumerate(parameters.items()):
        bound = 0.01 if "lora_B" in name else 1 / float(parameter.shape[1]) ** 0.5
        values[name] = counter_values(SMOLLM2_SEED, index, tuple(parameter.shape), bound)
    install(parameters, values)
    adapter_hash = hashlib.sha256(b"".join(value.numpy().tobytes() for value in values.values())).hexdigest()

    loss, logits, grads = gradients(model, samples, parameters)
    losses, norms = ten_steps(model, samples, parameters, SMOLLM2_LEARNING_RATE)
    noise = distance_from_f64(base, SMOLLM2_LORA, values, samples, SMOLLM2_LEARNING_RATE, loss, logits, grads, losses)
    print_losses("SmolLM2", losses, norms)
    print(f"\n{'gradient L2 (SmolLM2), layer:':30s}" + "".join(f"{layer:>12d}" for layer in (0, 9, 19, 29)))
    for module, _ in LINEARS:
        for side in ("lora_A", "lora_B"):
            print(f"{module + '.' + side:30s}" + "".join(
                f"{float(grads[f'base_model.model.model.layers.{layer}.{module}.{side}.weight'].norm()):12.5g}"
                for layer in (0, 9, 19, 29)))
    print("f32 against f64:", json.dumps(noise))

    # Rows of the packed logits: the last of each sample in full; three more as their largest values.
    first, total = len(samples[0].tokens), sum(len(sample.tokens) for sample in samples)
    full_rows, top_rows = [first - 1, total - 1], [0, first // 2, first]
    top = [logits[row].topk(TOP_LOGITS) for row in top_rows]
    names = list(parameters)
    picked = torch.stack([
        torch.from_numpy((counter_bits(SAMPLED_SEED, index, SAMPLED_ENTRIES)
                          % np.uint64(parameters[name].numel())).astype(np.int32))
        for index, name in enumerate(names)])
    tensors = packed(samples) | {
        "logits_full_rows": torch.tensor(full_rows, dtype=torch.int32),
        "logits_full": logits[full_rows],
        "logits_top_rows": torch.tensor(top_rows, dtype=torch.int32),
        "logits_top_index": torch.stack([t.indices for t in top]).int(),
        "logits_top_value": torch.stack([t.values for t in top]),
        "loss": loss.float().reshape(1),
        "training_losses": losses.float(), "training_grad_norms": norms.float(),
        "gradient_l2": torch.tensor([float(grads[name].double().norm()) for name in names]),
        "gradient_sum": torch.tensor([float(grads[name].double().sum()) for name in names]),
        "gradient_sample_index": picked,
        "gradient_sample_value": torch.stack([grads[name].flatten()[picked[index].long()]
                                              for index, name in enumerate(names)]),
        "initial_sample_value": torch.stack([values[name].flatten()[picked[index].long()]
                                             for index, name in enumerate(names)]),
        "trained_sample_value": torch.stack([parameters[name].detach().flatten()[picked[index].long()]
                                             for index, name in enumerate(names)]),
    }
    for name in names:
        if any(f".layers.{layer}.{module}." in name for layer in (0, 29) for module in ("self_attn.q_proj", "mlp.down_proj")):
            tensors["gradient." + name] = grads[name]
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, HERE / "smollm2-goldens.safetensors")
    return {"seed": SMOLLM2_SEED, "sampled_seed": SAMPLED_SEED, "lora": SMOLLM2_LORA,
            "learning_rate": SMOLLM2_LEARNING_RATE, "model_sha256": digest(model_path),
            "initial_adapter_sha256": adapter_hash, "chats": SMOLLM2_CHATS, "capital_of_france": greeting,
            "f32_against_f64": noise, "loss": float(loss),
            "training_losses": losses.tolist(), "training_grad_norms": norms.tolist()}


# --- Manifest ------------------------------------------------------------------------------------------------------

def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--model", type=Path, default=HERE / "../../models/SmolLM2-135M-Instruct.Q4_1.gguf")
    arguments.add_argument("--only", choices=("tiny", "quant", "smollm2"))
    chosen = arguments.parse_args()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)

    path = HERE / "manifest.json"
    manifest = json.loads(path.read_text()) if path.exists() else {}
    makers = {"tiny": make_tiny, "quant": make_quant, "smollm2": lambda: make_smollm2(chosen.model)}
    for name, make in makers.items():
        if chosen.only in (None, name):
            manifest[name] = make()
    manifest["optimizer"] = {"name": "torch.optim.AdamW", "betas": [0.9, 0.999], "eps": 1e-8,
                             "weight_decay": WEIGHT_DECAY, "clip_grad_norm": CLIP_NORM, "steps": STEPS}
    manifest["versions"] = {name: version(name) for name in (
        "torch", "transformers", "peft", "gguf", "tokenizers", "safetensors", "numpy")} | {
            "python": platform.python_version(), "machine": platform.machine()}
    files = ("tiny-llama.gguf", "tiny-adapter.gguf", "tiny-goldens.safetensors", "quant-goldens.safetensors",
             "smollm2-goldens.safetensors")
    manifest["files"] = {name: {"bytes": (HERE / name).stat().st_size, "sha256": digest(HERE / name)}
                         for name in files if (HERE / name).exists()}
    path.write_text(json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    print()
    for name, entry in manifest["files"].items():
        (HERE / name).chmod(0o644)
        print(f"{entry['bytes']:>9d}  {entry['sha256'][:16]}  {name}")


if __name__ == "__main__":
    main()
