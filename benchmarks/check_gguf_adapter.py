#!/usr/bin/env python3
"""The greedy answer of llama.cpp with an exported GGUF adapter, to hold `edgetune generate` against.

    python check_gguf_adapter.py BASE.gguf [ADAPTER.gguf] --prompt QUESTION [--dense DENSE.gguf] [--expect TEXT]
                                 [--limit 48] [--logits OUT.json]

The prompt goes through the base's own chat template and llama.cpp's own tokenizer. Prints one JSON line with the token
ids of prompt and answer. --logits writes the last prompt position's 64 largest logits, with ids.

With quantised weights llama.cpp rounds activations to 8 bits: its logits are 1 or so away from f32's, and a near tie may
fall the other way (SmolLM2 on "What is the capital of France?": 25.33 against 25.24). --dense makes it compute what
edgetune and torch compute: the base's weights as F32 in DENSE.gguf (written if absent, 540 MB for SmolLM2-135M) and an
f32 cache; logits then agree to 1e-4. Compare answers with it, and without it see what users of llama.cpp see.
"""
import argparse
import json
import sys
from pathlib import Path

import gguf
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "Tests/Goldens"))
from gguf_model import BaseFile, dequantised


def write_dense(base, path):
    """The same file with every tensor as F32; metadata as it was."""
    writer = gguf.GGUFWriter(str(path), base.value("general.architecture"))
    for key, field in base.reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        writer.add_key_value(key, field.contents(), kind,
                             sub_type=field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name, tensor in base.tensors.items():
        writer.add_tensor(name, dequantised(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("adapter", type=Path, nargs="?")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--expect", help="exit status 1 unless the answer holds this")
    parser.add_argument("--limit", type=int, default=48)
    parser.add_argument("--dense", type=Path)
    parser.add_argument("--logits", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    from llama_cpp import Llama

    base = BaseFile(options.base)
    cache = {}
    if options.dense:
        cache = {"type_k": 0, "type_v": 0}  # GGML_TYPE_F32
        if not options.dense.exists():
            write_dense(base, options.dense)
    llama = Llama(str(options.dense or options.base), lora_path=str(options.adapter) if options.adapter else None, n_ctx=1024,
                  n_threads=options.threads, n_threads_batch=options.threads, logits_all=True, verbose=False, **cache)
    text = base.render([{"role": "user", "content": options.prompt}], add_generation_prompt=True)
    prompt = llama.tokenize(text.encode(), add_bos=False, special=True)
    ends = {base.value("tokenizer.ggml.eos_token_id"), llama.token_eos()}
    llama.eval(prompt)
    last = np.array(llama.scores[len(prompt) - 1])
    if options.logits:
        top = np.argsort(-last, kind="stable")[:64]
        options.logits.write_text(json.dumps([[int(index), float(last[index])] for index in top]) + "\n")
    produced = []
    while len(produced) < options.limit:
        token = int(np.argmax(llama.scores[llama.n_tokens - 1]))
        if token in ends:
            break
        produced.append(token)
        llama.eval([token])
    answer = llama.detokenize(produced).decode(errors="replace")
    right = None if options.expect is None else options.expect in answer
    print(json.dumps({"adapter": str(options.adapter) if options.adapter else None, "prompt": options.prompt,
                      "answer": answer, "right": right, "prompt_ids": prompt, "answer_ids": produced},
                     ensure_ascii=False))
    sys.exit(right is False)


if __name__ == "__main__":
    main()
