#!/usr/bin/env python3
"""What users bring: Hugging Face directories as transformers and bitsandbytes save them, and a split GGUF: import/.

    python make_import_goldens.py          (requirements.txt; prints the size and SHA-256 of every file)

bf16/       a random one-layer llama in two shards, with a tokenizer and a chat template
nf4/        the same weights quantised on one thread by BitsAndBytesConfig: NF4, double quantisation
nf4-plain/  another, smaller one: NF4, absmax values in f32
fp4/        the same: FP4, double quantisation
split/      a GGUF in three files, and whole.gguf, the same in one
"""
import hashlib
import shutil
import tempfile
from pathlib import Path

import gguf
import numpy
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent / "import"
TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"


def tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=64, special_tokens=["<|end|>"], show_progress=False)
    tokenizer.train_from_iterator(["a small board trains a small model"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", chat_template=TEMPLATE)


def random_llama(intermediate_size, vocabulary_size):
    config = LlamaConfig(
        vocab_size=vocabulary_size, hidden_size=64, intermediate_size=intermediate_size, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=64, tie_word_embeddings=True, dtype="bfloat16")
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            scales = 10 ** (torch.rand(parameter.shape[0], *[1] * (parameter.ndim - 1)) * 3 - 3)
            parameter.copy_(torch.randn(parameter.shape) * scales)
    return model


def quantise(source, target, quant_type, is_double):
    quantisation = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=is_double,
                                      bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=quantisation, device_map="cpu")
    model.save_pretrained(target)


def main():
    torch.set_num_threads(1)  # the mean of absmax values depends on it
    torch.manual_seed(20_261_121)
    shutil.rmtree(HERE, ignore_errors=True)
    random_llama(320, 64).save_pretrained(HERE / "bf16", max_shard_size="100KB")
    tokenizer().save_pretrained(HERE / "bf16")
    quantise(HERE / "bf16", HERE / "nf4", "nf4", True)
    with tempfile.TemporaryDirectory() as small:
        random_llama(64, 16).save_pretrained(small)
        quantise(small, HERE / "nf4-plain", "nf4", False)
        quantise(small, HERE / "fp4", "fp4", True)

    (HERE / "split").mkdir()
    for path, arguments in ((HERE / "split/tiny.gguf", {"split_max_tensors": 2}), (HERE / "split/whole.gguf", {})):
        writer = gguf.GGUFWriter(path, "llama", **arguments)
        writer.add_block_count(1)
        writer.add_token_list(["a", "b", "é"])
        writer.add_float32("odd.value", 0.1)
        writer.add_array("odd.flags", [True, False])
        values = numpy.random.default_rng(1)
        for i in range(5):
            writer.add_tensor(f"t{i}", values.standard_normal((3 + i, 7), dtype=numpy.float32))
        blocks = gguf.quants.quantize(values.standard_normal((4, 64), dtype=numpy.float32), gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor("q", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    for path in HERE.rglob("generation_config.json"):
        path.unlink()
    for path in sorted(HERE.rglob("*")):
        if path.is_file():
            print(path.relative_to(HERE), path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


if __name__ == "__main__":
    main()
