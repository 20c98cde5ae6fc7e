"""A GGUF llama model as a transformers model: the one way in which every Python script of this project opens a base.

Weights are dequantised by the `gguf` package and held in f32. The llama architecture's q and k rows are stored for
interleaved rotary embedding; they are put back into Hugging Face's half-split order here and nowhere else.
The tokenizer and the chat template come from the file's metadata too, so nothing is downloaded.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch

# PEFT's module names in the project's order, and llama.cpp's names for the same weights.
LINEARS = (
    ("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"), ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"), ("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
)
PEFT_PREFIX = "base_model.model.model.layers"


def permute_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Hugging Face -> llama.cpp: new row h*hd + 2j + t = old row h*hd + t*(hd/2) + j."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def unpermute_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp -> Hugging Face, the inverse of `permute_rows`."""
    return weight.reshape(heads, -1, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def dequantised(tensor: gguf.ReaderTensor) -> np.ndarray:
    """A tensor's values in f32, rows first (`[out, in]`)."""
    shape = tuple(int(n) for n in reversed(tensor.shape))
    return np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(shape)


class BaseFile:
    """Metadata, tokenizer and tensors of one GGUF file."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.reader = gguf.GGUFReader(str(path))
        self.tensors = {tensor.name: tensor for tensor in self.reader.tensors}
        architecture = self.value("general.architecture")
        if architecture != "llama":
            raise SystemExit(f"{path}: architecture {architecture!r}; these scripts know llama only")

    def value(self, key: str, default=None):
        field = self.reader.get_field(key)
        return default if field is None else field.contents()

    def config(self):
        from transformers import LlamaConfig

        heads = self.value("llama.attention.head_count")
        hidden = self.value("llama.embedding_length")
        theta = float(self.value("llama.rope.freq_base", 10000.0))
        config = LlamaConfig(
            vocab_size=int(self.tensors["token_embd.weight"].shape[1]),
            hidden_size=hidden,
            intermediate_size=self.value("llama.feed_forward_length"),
            num_hidden_layers=self.value("llama.block_count"),
            num_attention_heads=heads,
            num_key_value_heads=self.value("llama.attention.head_count_kv", heads),
            head_dim=self.value("llama.attention.key_length", hidden // heads),
            max_position_embeddings=self.value("llama.context_length"),
            rms_norm_eps=float(self.value("llama.attention.layer_norm_rms_epsilon")),
            rope_parameters={"rope_type": "default", "rope_theta": theta},
            tie_word_embeddings="output.weight" not in self.tensors,
            bos_token_id=self.value("tokenizer.ggml.bos_token_id"),
            eos_token_id=self.value("tokenizer.ggml.eos_token_id"),
            attention_bias=False, mlp_bias=False, hidden_act="silu",
        )
        return config

    def state(self) -> dict[str, torch.Tensor]:
        """Every weight under its Hugging Face name, f32."""
        heads = self.value("llama.attention.head_count")
        key_value_heads = self.value("llama.attention.head_count_kv", heads)
        names = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
                 "output.weight": "lm_head.weight"}
        for layer in range(self.value("llama.block_count")):
            for module, short in LINEARS:
                names[f"blk.{layer}.{short}.weight"] = f"model.layers.{layer}.{module}.weight"
            names[f"blk.{layer}.attn_norm.weight"] = f"model.layers.{layer}.input_layernorm.weight"
            names[f"blk.{layer}.ffn_norm.weight"] = f"model.layers.{layer}.post_attention_layernorm.weight"
        state = {}
        for name, tensor in self.tensors.items():
            if name not in names:
                raise SystemExit(f"{self.path}: tensor {name!r} has no place in a Hugging Face Llama")
            values = dequantised(tensor)
            if name.endswith(".attn_q.weight"):
                values = unpermute_rows(values, heads)
            elif name.endswith(".attn_k.weight"):
                values = unpermute_rows(values, key_value_heads)
            state[names[name]] = torch.from_numpy(np.ascontiguousarray(values))
        return state

    def model(self, attention: str = "eager", dtype: torch.dtype = torch.float32):
        """LlamaForCausalLM with this file's weights, in evaluation mode."""
        from transformers import LlamaForCausalLM

        config = self.config()
        config._attn_implementation = attention
        model = LlamaForCausalLM(config)
        missing, unexpected = model.load_state_dict(self.state(), strict=False)
        if config.tie_word_embeddings:
            model.tie_weights()
            missing = [name for name in missing if name != "lm_head.weight"]
        assert not missing and not unexpected, (missing, unexpected)
        head_dim, theta = config.head_dim, config.rope_parameters["rope_theta"]
        expected = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
        assert torch.equal(model.model.rotary_emb.inv_freq, expected), "rope theta was not taken"
        model.config.use_cache = False
        return model.to(dtype).eval()

    def tokenizer(self):
        """`tokenizers.Tokenizer`: byte-level BPE with the smollm pre-tokenizer (single digits, GPT-2's pattern)."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        assert self.value("tokenizer.ggml.model") == "gpt2" and self.value("tokenizer.ggml.pre") == "smollm"
        tokens = self.value("tokenizer.ggml.tokens")
        merges = [tuple(merge.split(" ", 1)) for merge in self.value("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
        tokenizer.decoder = decoders.ByteLevel()
        kinds = self.value("tokenizer.ggml.token_type")
        tokenizer.add_special_tokens([
            AddedToken(token, special=True, normalized=False) for token, kind in zip(tokens, kinds) if kind == 3])
        return tokenizer

    def render(self, messages: list[dict], add_generation_prompt: bool = False) -> str:
        import jinja2

        template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(
            self.value("tokenizer.chat_template"))
        return template.render(messages=messages, add_generation_prompt=add_generation_prompt)


@dataclass
class Sample:
    """Token ids, and for each whether its negative log-likelihood counts.

    `carries_loss[t]` is about token t as a target, predicted from t-1; so the first is always 0.
    """
    tokens: list[int]
    carries_loss: list[int]


def chat_sample(base: BaseFile, tokenizer, messages: list[dict]) -> Sample:
    """A conversation through the chat template; loss on the assistant's content and its `<|im_end|>`."""
    text = base.render(messages)
    spans, position = [], 0
    for message in messages:
        header = f"<|im_start|>{message['role']}\n"
        start = text.index(header + message["content"], position) + len(header)
        end = start + len(message["content"])
        position = end
        if message["role"] == "assistant":
            spans.append((start, end + len("<|im_end|>")))
    encoding = tokenizer.encode(text, add_special_tokens=False)
    carries = [int(any(start <= first and last <= end for start, end in spans)) for first, last in encoding.offsets]
    carries[0] = 0
    return Sample(encoding.ids, carries)


def sample_nll(model, sample: Sample) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Logits `[tokens, vocabulary]` of one sample, the sum of its negative log-likelihoods, and their count.

    Cross-entropy is f64 over the model's logits: torch's f32 sum of 49,152 exponentials is off by 6e-6, always in the
    same direction, and that alone puts 1e-4 into the gradients of some adapters (2e-5 in half of them).
    """
    logits = model(input_ids=torch.tensor([sample.tokens])).logits[0]
    carries = torch.tensor(sample.carries_loss[1:], dtype=torch.bool)
    targets = torch.tensor(sample.tokens[1:])[carries]
    nll = torch.nn.functional.cross_entropy(logits[:-1][carries].double(), targets, reduction="sum")
    return logits, nll, int(carries.sum())


def batch_loss(model, samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss over all loss tokens of a micro-batch, and the logits of all positions one sample after another.

    Each sample is a forward pass of its own: that is what packing without seeing each other must equal.
    """
    parts = [sample_nll(model, sample) for sample in samples]
    total = sum(nll for _, nll, _ in parts)
    return total / sum(count for _, _, count in parts), torch.cat([logits for logits, _, _ in parts])


def lora_model(model, rank: int, alpha: float, seed: int | None = None):
    """PEFT's LoRA on all seven linears. A seed makes PEFT's own initialisation repeatable."""
    from peft import LoraConfig, get_peft_model

    if seed is not None:
        torch.manual_seed(seed)
    return get_peft_model(model, LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"))


def adapter_parameters(peft_model) -> dict[str, torch.nn.Parameter]:
    """Trainable parameters under the names of `adapter_model.safetensors`, in the project's order:
    layer by layer; q, k, v, o, gate, up, down; A before B."""
    own = {name.replace(".default.", "."): parameter for name, parameter in peft_model.named_parameters()
           if parameter.requires_grad}
    names = [f"{PEFT_PREFIX}.{layer}.{module}.{side}.weight"
             for layer in range(peft_model.config.num_hidden_layers)
             for module, _ in LINEARS for side in ("lora_A", "lora_B")]
    assert set(names) == set(own), set(names) ^ set(own)
    return {name: own[name] for name in names}


@torch.no_grad()
def greedy(model, prompt: list[int], limit: int, end: int) -> list[int]:
    """Most likely continuation, without the end token."""
    produced, cache, inputs = [], None, torch.tensor([prompt])
    while len(produced) < limit:
        answer = model(input_ids=inputs, past_key_values=cache, use_cache=True)
        cache = answer.past_key_values
        token = int(answer.logits[0, -1].argmax())
        if token == end:
            break
        produced.append(token)
        inputs = torch.tensor([[token]])
    return produced


def answer(model, base: BaseFile, tokenizer, question: str, limit: int = 48) -> str:
    prompt = base.render([{"role": "user", "content": question}], add_generation_prompt=True)
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    return tokenizer.decode(greedy(model, ids, limit, base.value("tokenizer.ggml.eos_token_id")))
