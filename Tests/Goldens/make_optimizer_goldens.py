#!/usr/bin/env python3
"""Twenty AdamW steps with moments in f32, bfloat16 and 8 bits: optimizer-goldens.safetensors.

    python make_optimizer_goldens.py          (requirements.txt; prints the file's size and SHA-256)

f32 is torch.optim.AdamW. bf16 is the same arithmetic written out in torch, with the moments rounded to bfloat16 after each
step. 8bit is bitsandbytes' AdamW8bit as it runs on a CPU. Its CPU library puts a value on one of 65,536 even steps before
it takes the nearest code; its default backend and its CUDA kernels take the nearest code at once. The last lines printed
say what that changes: without the steps a second moment below 1.6e-7 of its block's largest becomes 0, and an element whose
next gradient is 0 is then moved by moment1 / epsilon.

Gradient of element i of matrix k in step s (from 0): noise[(i + 257 s + 1000 k) % 5003] / 2^(s % 4).
Learning rate of step s: 2e-3 (20 - s) / 20. Betas 0.9, 0.999, eps 1e-8, weight decay 0.05.
"""
import hashlib
from pathlib import Path

import bitsandbytes as bnb
import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
SHAPES = {"small": (8, 100), "exact": (16, 256), "odd": (11, 401)}  # below 4096 elements; 16 blocks; 17 and a part
STEPS, STORED = 20, (1, 2, 5, 10, 20)
BETAS, EPSILON, WEIGHT_DECAY = (0.9, 0.999), 1e-8, 0.05


def default_quantise(values, code, absmax, codes, blocksize):
    operator = torch.ops.bitsandbytes.quantize_blockwise.default
    found, scales = operator._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, values, code, blocksize)
    codes.copy_(found)
    absmax.copy_(scales)


def learning_rate(step):
    return 2e-3 * (STEPS - step) / STEPS


def gradient(noise, step, matrix, count):
    index = (torch.arange(count) + 257 * step + 1000 * matrix) % len(noise)
    return noise[index] / 2 ** (step % 4)


def torch_adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY, foreach=False)


def bitsandbytes_adamw(parameters):
    return bnb.optim.AdamW8bit(parameters, lr=1, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY)


class BFloat16Moments:
    """torch's single-tensor AdamW on f32 copies of moments that are kept as bfloat16."""

    def __init__(self, parameters):
        self.param_groups = [{"lr": 1}]
        self.moments = [(p, torch.zeros_like(p, dtype=torch.bfloat16), torch.zeros_like(p, dtype=torch.bfloat16)) for p in parameters]
        self.steps = 0

    @torch.no_grad()
    def step(self):
        self.steps += 1
        rate = self.param_groups[0]["lr"]
        for parameter, moment1, moment2 in self.moments:
            m = moment1.float().lerp_(parameter.grad, 1 - BETAS[0])
            v = moment2.float().mul_(BETAS[1]).addcmul_(parameter.grad, parameter.grad, value=1 - BETAS[1])
            denominator = (v.sqrt() / (1 - BETAS[1] ** self.steps) ** 0.5).add_(EPSILON)
            parameter.mul_(1 - rate * WEIGHT_DECAY)
            parameter.addcdiv_(m, denominator, value=-rate / (1 - BETAS[0] ** self.steps))
            moment1.copy_(m)
            moment2.copy_(v)


def run(make_optimizer, initial, noise, after_step):
    parameters = [torch.nn.Parameter(value.clone()) for value in initial.values()]
    optimizer = make_optimizer(parameters)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = learning_rate(step)
        for index, parameter in enumerate(parameters):
            parameter.grad = gradient(noise, step, index, parameter.numel()).reshape(parameter.shape)
        optimizer.step()
        after_step(step + 1, dict(zip(initial, parameters)), optimizer)
    return parameters


def main():
    generator = torch.Generator().manual_seed(20_261_124)
    noise = torch.randn(5003, generator=generator) * 10 ** (-4 * torch.rand(5003, generator=generator))
    noise[::97] = 0
    initial = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in SHAPES.items()}
    tensors = {"noise": noise} | {f"initial.{name}": value for name, value in initial.items()}

    def store(kind, names):
        def after_step(step, parameters, optimizer):
            for name in names:
                if name != "small" and step not in STORED:
                    continue
                parameter = parameters[name]
                tensors[f"{kind}.{step}.{name}"] = parameter.detach().clone()
                state = optimizer.state[parameter] if kind == "8bit" else {}
                for key in ("absmax1", "absmax2") + (("state1", "state2") if name != "small" else ()):
                    if key in state:
                        tensors[f"{kind}.{step}.{name}.{key}"] = state[key].flatten().clone()
        return after_step

    run(torch_adamw, initial, noise, store("f32", ["small"]))
    run(BFloat16Moments, initial, noise, store("bf16", ["small"]))
    stepped = run(bitsandbytes_adamw, initial, noise, store("8bit", list(SHAPES)))
    path = HERE / "optimizer-goldens.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    print(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())

    bnb.backends.cpu.ops._quant_blockwise_fp32_direct = default_quantise
    nearest = run(bitsandbytes_adamw, initial, noise, lambda *_: None)
    exact = run(torch_adamw, initial, noise, lambda *_: None)
    for index, name in enumerate(SHAPES):
        moved = (exact[index] - initial[name]).norm()
        print(f"{name}: distance from f32 over the distance moved: CPU {(stepped[index] - exact[index]).norm() / moved:.2e}, "
              f"nearest code at once {(nearest[index] - exact[index]).norm() / moved:.2e}")


if __name__ == "__main__":
    main()
