#!/usr/bin/env python3
"""Goldens for every architecture, from real torch + transformers + peft, and llama.cpp's own converter.

    python make_architecture_goldens.py --llama-cpp DIRECTORY [--check] [FAMILY …]

DIRECTORY is a llama.cpp source tree (its `conversion/` and `gguf-py/` are used). For each family it writes, into
`architectures/FAMILY/`, what README.md lists: a tiny random model as `save_pretrained` gives it, its configuration in
the older spelling, the same model as llama.cpp's converter writes it, and the numbers. Weights are rounded to F16
before anything is computed, so both model files hold exactly the values that the f32 reference used.
`--check` also runs every GGUF through llama-cpp-python and puts the distance into `architectures/manifest.json`.
"""
from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

HERE = Path(__file__).parent
OUTPUT = HERE / "architectures"
sys.path.insert(0, str(HERE))

SEED = 20261124
VOCABULARY = 48
LENGTHS = (20, 13)
WINDOW = 6
LORA = dict(rank=4, alpha=8)
STEPS = 5
LEARNING_RATE = 5e-3
WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0

COMMON = dict(
    vocab_size=VOCABULARY, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=None)
NARROW_HEADS = dict(num_attention_heads=8, num_key_value_heads=2, head_dim=16)   # head_dim is not hidden / heads
LONG_ROPE = dict(rope_type="longrope", rope_theta=1000.0)


@dataclass(frozen=True)
class Family:
    """One directory. `gguf_loses` are the configuration keys whose value a GGUF cannot say, with what llama.cpp takes
    instead; then the golden also has `gguf.logits` and `gguf.loss`. `gguf_pattern` is a key that its converter does
    not write but llama.cpp reads."""
    kind: str
    config: dict
    gguf_loses: dict = field(default_factory=dict)
    gguf_pattern: int | None = None


FAMILIES = {
    "qwen2": Family("Qwen2", dict(
        tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1000.0))),
    "qwen3": Family("Qwen3", dict(
        NARROW_HEADS, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1000.0))),
    # Local layer first, then global, as sliding_window_pattern 2 would give; the two bases and the factor differ.
    "gemma3": Family("Gemma3", dict(
        NARROW_HEADS, query_pre_attn_scalar=24, sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters=dict(
            sliding_attention=dict(rope_type="default", rope_theta=100.0),
            full_attention=dict(rope_type="linear", rope_theta=5000.0, factor=4.0))),
        gguf_loses=dict(query_pre_attn_scalar=16), gguf_pattern=2),
    # Wavelengths 6.3 (kept), 13.7 and 29.7 (between), 65 and more (divided).
    "llama3": Family("Llama", dict(
        tie_word_embeddings=True, rope_parameters=dict(
            rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=32))),
    "llama": Family("Llama", dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0))),
    "falcon3": Family("Llama", dict(
        NARROW_HEADS, rope_parameters=dict(rope_type="default", rope_theta=1000042.0))),
    "mistral": Family("Mistral", dict(
        sliding_window=WINDOW, rope_parameters=dict(rope_type="default", rope_theta=1000.0)),
        gguf_loses=dict(sliding_window=None)),
    "smollm3": Family("SmolLM3", dict(
        no_rope_layers=[0, 1], tie_word_embeddings=True,
        rope_parameters=dict(rope_type="default", rope_theta=1000.0)),
        gguf_loses=dict(no_rope_layers=[1, 1])),
    "gemma2": Family("Gemma2", dict(
        NARROW_HEADS, query_pre_attn_scalar=16, sliding_window=WINDOW, final_logit_softcapping=5.0,
        attn_logit_softcapping=4.0, rope_parameters=dict(rope_type="default", rope_theta=10000.0))),
    "phi3": Family("Phi3", dict(
        sliding_window=WINDOW, rope_parameters=dict(rope_type="default", rope_theta=1000.0)),
        gguf_loses=dict(sliding_window=None)),
    # The first sample is longer than the original length and takes the long factors; the second takes the short ones.
    "phi3_longrope": Family("Phi3", dict(
        num_key_value_heads=4, max_position_embeddings=64, original_max_position_embeddings=16, sliding_window=2047,
        rope_parameters=dict(
            LONG_ROPE, short_factor=[1.0, 1.05, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5],
            long_factor=[1.1, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0]))),
    "phi4_mini": Family("Phi3", dict(
        max_position_embeddings=64, original_max_position_embeddings=16, tie_word_embeddings=True,
        partial_rotary_factor=0.75, rope_parameters=dict(
            LONG_ROPE, partial_rotary_factor=0.75, short_factor=[1.0, 1.125, 1.25, 1.5, 1.75, 2.0],
            long_factor=[1.125, 1.5, 2.5, 4.0, 8.0, 16.0]))),
    "olmo2": Family("Olmo2", dict(rope_parameters=dict(rope_type="default", rope_theta=1000.0))),
    "granite": Family("Granite", dict(
        tie_word_embeddings=True, embedding_multiplier=3.0, attention_multiplier=0.4, residual_multiplier=0.5,
        logits_scaling=2.0, rope_parameters=dict(rope_type="default", rope_theta=1000.0))),
    "stablelm2": Family("StableLm", dict(
        use_qkv_bias=True, rope_parameters=dict(
            rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.25))),
}


# --- The model -----------------------------------------------------------------------------------------------------

def configuration_class(kind: str):
    return getattr(transformers, "Gemma3TextConfig" if kind == "Gemma3" else kind + "Config")


def model_class(kind: str):
    return getattr(transformers, kind + "ForCausalLM")


@torch.no_grad()
def randomise(model, seed: int) -> None:
    """Weights large enough that every part of the architecture shows in the logits. Norm weights are multiples of
    1/256, so that `1 + w`, which the converter computes in F16 for Gemma, is exact."""
    random = np.random.default_rng(seed)
    centre = 0.0 if type(model).__name__.startswith("Gemma") else 1.0
    for name, parameter in model.named_parameters():
        drawn = random.standard_normal(tuple(parameter.shape))
        if "norm" in name and name.endswith("weight"):
            values = centre + np.round(np.clip(drawn * 0.25, -0.75, 0.75) * 256) / 256
        elif name.endswith("bias"):
            values = drawn * 0.3
        elif "embed_tokens" in name or "lm_head" in name:
            values = drawn * 0.3
        elif any(part in name for part in ("q_proj", "k_proj", "qkv_proj")):
            values = drawn * 1.6 / parameter.shape[1] ** 0.5
        else:
            values = drawn * 1.2 / parameter.shape[1] ** 0.5
        parameter.copy_(torch.from_numpy(values.astype(np.float16).astype(np.float32)))


def write_model(family: Family, directory: Path, seed: int) -> None:
    """`config.json` and `model.safetensors` by `save_pretrained`, F16."""
    config = configuration_class(family.kind)(**(COMMON | family.config))
    model = model_class(family.kind)(config)
    randomise(model, seed)
    model.half().save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)


def load_model(family: Family, directory: Path, **changes):
    """The written model in f32, through `from_pretrained`; `changes` are configuration keys to replace."""
    config = transformers.AutoConfig.from_pretrained(directory)
    for key, value in changes.items():
        assert hasattr(config, key), key
        setattr(config, key, value)
    model = model_class(family.kind).from_pretrained(
        directory, config=config, dtype=torch.float32, attn_implementation="eager")
    model.config.use_cache = False
    return model.eval()


def write_older_configuration(family: Family, directory: Path) -> None:
    """`config.v4.json`: the same configuration as transformers 4 wrote it and most files on the hub have it.

    rope_theta, rope_scaling and partial_rotary_factor stand at the root, values that equal the class's defaults are
    left out, and layer patterns are numbers. Loading it must give the same configuration.
    """
    written = json.loads((directory / "config.json").read_text())
    defaults = configuration_class(family.kind)().to_dict()
    kept = {"model_type", "architectures", "vocab_size", "hidden_size", "tie_word_embeddings"}
    older = {key: value for key, value in written.items() if key in kept or defaults.get(key, "absent") != value}
    for key in ("rope_parameters", "layer_types", "dtype", "transformers_version"):
        older.pop(key, None)
    if older.get("head_dim") == written["hidden_size"] // written["num_attention_heads"]:
        del older["head_dim"]
    rope = dict(written["rope_parameters"])
    if family.kind == "Gemma3":
        older["sliding_window_pattern"] = 2
        older["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = dict(rope["full_attention"])
    older["rope_theta"] = rope.pop("rope_theta")
    if (factor := rope.pop("partial_rotary_factor", 1.0)) != 1.0 or family.kind == "StableLm":
        older["partial_rotary_factor"] = factor
    if family.kind == "Phi3":
        rope.pop("original_max_position_embeddings", None)
    older["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    if rope["rope_type"] == "longrope":
        rope["type"] = rope.pop("rope_type")
    older |= {"torch_dtype": "float16", "transformers_version": "4.46.0"}
    (directory / "config.v4.json").write_text(json.dumps(older, indent=2, sort_keys=True) + "\n")

    with tempfile.TemporaryDirectory() as temporary:
        shutil.copyfile(directory / "config.v4.json", Path(temporary) / "config.json")
        again = transformers.AutoConfig.from_pretrained(temporary).to_dict()
    expected = transformers.AutoConfig.from_pretrained(directory).to_dict()
    ignored = {"transformers_version", "partial_rotary_factor", "sliding_window_pattern"}
    for key in sorted(set(again) | set(expected)):
        if key in ignored or key.startswith("_"):
            continue
        left, right = again.get(key), expected.get(key)
        if key == "rope_parameters":
            left, right = ({name: value for name, value in rope.items() if name != "type"} for rope in (left, right))
        assert left == right, (key, left, right)


# --- llama.cpp's converter ------------------------------------------------------------------------------------------

def convert(llama_cpp: Path, family: str, directory: Path) -> None:
    """Runs this script's `--convert` in a process of its own: the converter brings its own `gguf` package."""
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary) / family
        model.mkdir()
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(directory / name, model / name)
        # Gemma 3's class reads only the number of tokens from it.
        vocabulary = {token: index for index, token in enumerate(tokens())}
        (model / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))
        subprocess.run([sys.executable, __file__, "--llama-cpp", str(llama_cpp), "--convert", str(model),
                        str(directory / "model.gguf"), family], check=True)


def tokens() -> list[str]:
    """A byte-level vocabulary: three control tokens, some characters, and a merge (llama.cpp wants one)."""
    return ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "\u010a", "\u0120"] + [
        chr(code) for code in range(ord("a"), ord("z") + 1)] + list("ABCDEFGHIJKL.,?!") + ["th"]


def run_converter(llama_cpp: Path, model: Path, file: Path, family: str) -> None:
    sys.path.insert(0, str(llama_cpp / "gguf-py"))
    sys.path.insert(0, str(llama_cpp))
    import gguf
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    def write_vocabulary(self):
        writer = self.gguf_writer
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(tokens())
        writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (VOCABULARY - 3))
        writer.add_token_merges(["t h"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        writer.add_pad_token_id(2)
        writer.add_add_bos_token(False)
        if (pattern := FAMILIES[family].gguf_pattern) is not None:
            writer.add_sliding_window_pattern(pattern)

    assert len(tokens()) == len(set(tokens())) == VOCABULARY
    with torch.inference_mode():
        architecture = get_model_architecture(ModelBase.load_hparams(model, False), ModelType.TEXT)
        converter = get_model_class(architecture)
        converter.set_vocab = write_vocabulary
        # llama.cpp looks for tokens of Phi-3's own where the name says phi3, so none says its family.
        converter(model, gguf.LlamaFileType.MOSTLY_F16, file, model_name="Tiny random model").write()


# --- The numbers ---------------------------------------------------------------------------------------------------

def adapted(model, values: dict | None, dtype: torch.dtype = torch.float32):
    """PEFT's LoRA on all linear modules, and its parameters by the names of `adapter_model.safetensors`."""
    from gguf_model import lora_model

    model = lora_model(model, **LORA).to(dtype)
    parameters = {name.replace(".default.", "."): parameter for name, parameter in model.named_parameters()
                  if parameter.requires_grad}
    if values is not None:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(values[name])
    return model, parameters


def random_adapter(parameters: dict, random) -> dict:
    """Both matrices non-zero."""
    values = {}
    for name, parameter in parameters.items():
        scale = 0.1 if "lora_B" in name else 1 / parameter.shape[1] ** 0.5
        values[name] = torch.from_numpy((random.standard_normal(tuple(parameter.shape)) * scale).astype(np.float32))
    return values


def training(model, samples, parameters) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and gradient norms of five AdamW steps on one batch, each from before its update and before clipping."""
    from gguf_model import batch_loss
    from make_training_goldens import adamw_steps

    losses, norms = adamw_steps(
        parameters, lambda: batch_loss(model, samples)[0], LEARNING_RATE, count=STEPS, weight_decay=WEIGHT_DECAY)
    return torch.tensor(losses, dtype=torch.float64), torch.tensor(norms, dtype=torch.float64)


@contextmanager
def without_casts(model):
    """transformers casts to f32 in norms and softmax; in here it does not, so that f64 stays f64."""
    def norm_forward(module):
        plus = 1.0 if type(module).__name__.startswith("Gemma") else 0.0
        epsilon = module.eps if hasattr(module, "eps") else module.variance_epsilon
        return lambda x: (plus + module.weight) * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon))

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = norm_forward(module)
    softmax = torch.nn.functional.softmax
    with mock.patch("torch.nn.functional.softmax", lambda x, dim=None, dtype=None: softmax(x, dim=dim)):
        yield


def distance_from_f64(family, directory, values, samples, loss32, logits32, gradients32, losses32) -> dict:
    """The same in f64 (with the f32 rotary table that transformers uses): what f32 rounding alone costs."""
    from make_training_goldens import gradients

    model, parameters = adapted(load_model(family, directory), values, torch.float64)
    with without_casts(model):
        loss, logits, exact = gradients(model, samples, parameters)
        losses, _ = training(model, samples, parameters)
    return {
        "loss": abs(float(loss) - float(loss32)) / float(loss),
        "logits_max_abs": float((logits - logits32).abs().max()),
        "worst_gradient_relative_l2": max(
            float((exact[name] - gradients32[name]).norm() / exact[name].norm()) for name in exact),
        "worst_training_loss_relative": float(((losses - losses32) / losses).abs().max()),
    }


def draw_samples(random) -> list:
    from gguf_model import Sample

    return [Sample(random.integers(3, VOCABULARY, length).tolist(),
                   [int(position >= length // 3 and position % 5 != 0) for position in range(length)])
            for length in LENGTHS]


def make(name: str, llama_cpp: Path) -> dict:
    from gguf_model import batch_loss
    from make_training_goldens import digest, gradients, packed

    family, directory = FAMILIES[name], OUTPUT / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    seed = SEED + 16 * sorted(FAMILIES).index(name)
    write_model(family, directory, seed)
    write_older_configuration(family, directory)
    convert(llama_cpp, name, directory)

    random = np.random.default_rng(seed + 1)
    samples = draw_samples(random)
    with torch.no_grad():
        base_loss, base_logits = batch_loss(load_model(family, directory), samples)
    model, parameters = adapted(load_model(family, directory), None)
    values = random_adapter(parameters, random)
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(values[key])
    loss, logits, grads = gradients(model, samples, parameters)
    losses, norms = training(model, samples, parameters)
    noise = distance_from_f64(family, directory, values, samples, loss, logits, grads, losses)

    tensors = packed(samples) | {
        "base.logits": base_logits, "base.loss": base_loss.float().reshape(1), "logits": logits,
        "loss": loss.float().reshape(1), "training_losses": losses.float(), "training_grad_norms": norms.float()}
    if family.gguf_loses:
        other, _ = adapted(load_model(family, directory, **family.gguf_loses), values)
        with torch.no_grad():
            gguf_loss, gguf_logits = batch_loss(other, samples)
            gguf_base_logits = batch_loss(load_model(family, directory, **family.gguf_loses), samples)[1]
        assert (gguf_logits - logits).abs().max() > 1e-2, "what the GGUF loses does not show"
        tensors |= {"gguf.logits": gguf_logits, "gguf.loss": gguf_loss.float().reshape(1),
                    "gguf.base.logits": gguf_base_logits}
    for key in parameters:
        assert float(grads[key].norm()) > 1e-4, key
        tensors["initial." + key] = values[key]
        tensors["gradient." + key] = grads[key]
    about = {"family": name, "learning_rate": LEARNING_RATE, "lora_alpha": LORA["alpha"],
             "gguf_loses": family.gguf_loses, "torch": version("torch"), "transformers": version("transformers"),
             "peft": version("peft")}
    # One entry: the order of several is not the same from run to run.
    save_file({key: tensor.detach().contiguous() for key, tensor in tensors.items()},
              directory / "golden.safetensors", {"about": json.dumps(about)})

    files = sorted(path for path in directory.iterdir())
    for path in files:
        path.chmod(0o644)
    print(f"{name:14s} {sum(path.stat().st_size for path in files) / 1000:6.0f} KB  losses "
          + " ".join(f"{value:.4f}" for value in losses.tolist()) + f"  f64 {json.dumps(noise)}", flush=True)
    return {"seed": seed, "f32_against_f64": noise, "gguf_loses": family.gguf_loses, "base_loss": float(base_loss),
            "training_losses": losses.tolist(), "training_grad_norms": norms.tolist(),
            "files": {path.name: {"bytes": path.stat().st_size, "sha256": digest(path)} for path in files}}


# --- llama.cpp itself ----------------------------------------------------------------------------------------------

def llama_cpp_distance(name: str) -> dict:
    """How far llama.cpp's logits of `model.gguf` are from the reference, per sample: it multiplies in F16."""
    from llama_cpp import GGML_TYPE_F32, Llama
    from safetensors.torch import load_file

    golden = load_file(OUTPUT / name / "golden.safetensors")
    expected = golden.get("gguf.base.logits", golden["base.logits"]).numpy()
    llama = Llama(str(OUTPUT / name / "model.gguf"), n_ctx=64, logits_all=True, flash_attn=False, n_threads=1,
                  type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32, verbose=False)
    distances, start = [], 0
    for length in golden["sample_lengths"].tolist():
        llama.reset()
        llama.eval(golden["tokens"][start:start + length].tolist())
        got = np.array(llama.scores[:length])
        distances.append(float(np.abs(got - expected[start:start + length]).max()))
        start += length
    return {"max_abs": distances, "largest_logit": float(np.abs(expected).max())}


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--llama-cpp", type=Path, required=True)
    arguments.add_argument("--check", action="store_true")
    arguments.add_argument("--convert", type=Path, nargs=2, metavar=("MODEL", "FILE"), help=argparse.SUPPRESS)
    arguments.add_argument("families", nargs="*", metavar="FAMILY")
    chosen = arguments.parse_args()
    if unknown := set(chosen.families) - set(FAMILIES):
        arguments.error(f"no family {', '.join(sorted(unknown))}; there are {', '.join(FAMILIES)}")
    if chosen.convert:
        run_converter(chosen.llama_cpp.resolve(), *chosen.convert, chosen.families[0])
        return

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    path = OUTPUT / "manifest.json"
    manifest = json.loads(path.read_text()) if path.exists() else {"families": {}}
    for name in chosen.families or FAMILIES:
        manifest["families"][name] = make(name, chosen.llama_cpp)
        if chosen.check:
            manifest["families"][name]["llama_cpp"] = llama_cpp_distance(name)
            print(f"{'':14s} llama.cpp: {json.dumps(manifest['families'][name]['llama_cpp'])}", flush=True)
        path.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    manifest["lora"] = LORA
    manifest["optimizer"] = {"name": "torch.optim.AdamW", "betas": [0.9, 0.999], "eps": 1e-8, "steps": STEPS,
                             "weight_decay": WEIGHT_DECAY, "clip_grad_norm": CLIP_NORM, "learning_rate": LEARNING_RATE}
    manifest["versions"] = {package: version(package) for package in (
        "torch", "transformers", "peft", "safetensors", "numpy")} | {
            "llama.cpp": llama_cpp_version(chosen.llama_cpp), "python": platform.python_version(),
            "machine": platform.machine()}
    path.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def llama_cpp_version(directory: Path) -> str:
    """A tree from the llama_cpp_python source archive says which; any other by its newest commit."""
    for parent in directory.resolve().parents:
        if parent.name.startswith("llama_cpp_python-"):
            return f"as in {parent.name}"
    return subprocess.run(["git", "-C", str(directory), "rev-parse", "HEAD"], check=True, capture_output=True,
                          text=True).stdout.strip()


if __name__ == "__main__":
    main()
