#!/usr/bin/env python3
"""Seeds of the fuzz targets, a few KB each: small files of every kind that a target reads, made from the goldens and the configs.

Standard library and the lz4 command. Anew: `python3 Tests/Fuzz/make_seeds.py` (same files, same bytes). Files in corpus/ whose names
begin with "found-" are inputs that once broke a claim; they are not made here and stay.
"""
import hashlib
import json
import math
import pathlib
import random
import struct
import subprocess

here = pathlib.Path(__file__).parent
root = here.parent.parent
goldens = root / "Tests/Goldens"
UINT32, FLOAT32, BOOL, STRING, ARRAY, INT32, UINT64 = 4, 6, 7, 8, 9, 5, 10


def save(target, name, data):
    folder = here / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def text(string):
    data = string if isinstance(string, bytes) else string.encode()
    return struct.pack("<Q", len(data)) + data


def value(kind, v):
    if kind == STRING:
        return text(v)
    return struct.pack("<" + {UINT32: "I", INT32: "i", FLOAT32: "f", BOOL: "?", UINT64: "Q"}[kind], v)


def gguf(pairs, tensors=(), alignment=32):
    """pairs: key -> (kind, value) or (ARRAY, kind, values); tensors: (name, shape outermost first, type, bytes)."""
    out = struct.pack("<IIQQ", 0x46554747, 3, len(tensors), len(pairs))
    for key, v in pairs.items():
        out += text(key) + struct.pack("<I", v[0])
        if v[0] == ARRAY:
            out += struct.pack("<IQ", v[1], len(v[2])) + b"".join(value(v[1], each) for each in v[2])
        else:
            out += value(*v)
    data = b""
    for name, shape, kind, body in tensors:
        out += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in reversed(shape))
        out += struct.pack("<IQ", kind, len(data))
        data += body + bytes(-len(body) % alignment)
    return out + bytes(-len(out) % alignment) + data


def safetensors(tensors, metadata=None):
    header, data = ({"__metadata__": metadata} if metadata else {}), b""
    for name, (dtype, shape, body) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(body)]}
        data += body
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + data


def floats(count, value=0.5):
    return struct.pack("<f", value) * count


def golden_tensor(path, name):
    data = path.read_bytes()
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    first, end = json.loads(data[8:begin])[name]["data_offsets"]
    return data[begin + first : begin + end]


def parts(*each):
    return b"".join(struct.pack("<H", len(p)) + p for p in (e if isinstance(e, bytes) else e.encode() for e in each))


def gguf_files():
    kinds = gguf({
        "general.architecture": (STRING, "llama"), "general.alignment": (UINT32, 64), "a.u64": (UINT64, 7), "a.f": (FLOAT32, 0.5),
        "a.b": (BOOL, True), "a.s": (ARRAY, STRING, ["x", "", "é"]), "a.i": (ARRAY, INT32, [-1, 2]), "a.bs": (ARRAY, BOOL, [1, 0]),
    }, [("f32", [2, 4], 0, floats(8)), ("q8_0", [32], 8, bytes(34)), ("q4_k", [1, 256], 12, bytes(144))], 64)
    save("gguf", "kinds", kinds)
    save("gguf", "empty", gguf({}))
    for part in sorted((goldens / "import/split").glob("tiny-*.gguf")):
        save("gguf", part.stem, part.read_bytes())


def models():
    shapes = {
        "token_embd.weight": [3, 8], "output_norm.weight": [8], "blk.0.attn_norm.weight": [8], "blk.0.attn_q.weight": [8, 8],
        "blk.0.attn_k.weight": [4, 8], "blk.0.attn_v.weight": [4, 8], "blk.0.attn_output.weight": [8, 8],
        "blk.0.ffn_norm.weight": [8], "blk.0.ffn_gate.weight": [16, 8], "blk.0.ffn_up.weight": [16, 8], "blk.0.ffn_down.weight": [8, 16],
    }
    count = lambda shape: shape[0] * (shape[1] if len(shape) > 1 else 1)
    tensors = [(name, shape, 0, floats(count(shape))) for name, shape in shapes.items()]
    pairs = {
        "general.architecture": (STRING, "llama"), "llama.block_count": (UINT32, 1), "llama.embedding_length": (UINT32, 8),
        "llama.feed_forward_length": (UINT32, 16), "llama.attention.head_count": (UINT32, 2),
        "llama.attention.head_count_kv": (UINT32, 1), "llama.context_length": (UINT32, 64),
        "llama.attention.layer_norm_rms_epsilon": (FLOAT32, 1e-5), "llama.rope.freq_base": (FLOAT32, 10000.0),
    }
    save("model", "llama", gguf(pairs, tensors))
    qwen = {key.replace("llama", "qwen3"): v for key, v in pairs.items()} | {
        "general.architecture": (STRING, "qwen3"), "qwen3.attention.key_length": (UINT32, 4)}
    norms = [(f"blk.0.attn_{each}_norm.weight", [4], 0, floats(4)) for each in "qk"]
    save("model", "qwen3", gguf(qwen, tensors + norms))
    # As an import leaves it: the last linear in NF4.
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
    layer = "model.layers.0."
    tensors = [("model.embed_tokens.weight", [3, 8], 30, bytes(48))]
    for name in ("model.norm", layer + "input_layernorm", layer + "post_attention_layernorm"):
        tensors.append((name + ".weight", [8], 0, floats(8)))
    for name, rows in (("self_attn.q", 8), ("self_attn.k", 4), ("self_attn.v", 4), ("self_attn.o", 8), ("mlp.gate", 64), ("mlp.up", 64)):
        tensors.append((f"{layer}{name}_proj.weight", [rows, 8], 1, bytes(rows * 16)))
    down = layer + "mlp.down_proj.weight"
    tensors += [(down + ".nf4", [8, 32], 24, bytes(256)), (down + ".absmax", [8], 24, bytes(8)), (down + ".nested", [2], 0, floats(2))]
    save("model", "imported", gguf(
        {"general.architecture": (STRING, "huggingface"), "edgetune.config.json": (STRING, json.dumps(config))}, tensors))


def safetensors_files():
    save("safetensors", "mixed", safetensors({
        "a": ("F32", [2, 2], floats(4)), "b": ("BF16", [3], bytes(6)), "c": ("F16", [1], bytes(2)), "scalar": ("I64", [], bytes(8)),
        "none": ("U8", [0, 4], b"")}, {"format": "pt"}))
    save("safetensors", "empty", safetensors({}))


def trimmed(tokenizer, most):
    """The same tokenizer with a smaller vocabulary, ids from 0 on."""
    model = tokenizer["model"]
    added = {each["content"] for each in tokenizer.get("added_tokens", [])}
    if model["type"] == "Unigram":
        keep = [entry for i, entry in enumerate(model["vocab"]) if i < most or entry[0] in added]
        ids = {entry[0]: i for i, entry in enumerate(keep)}
        model["vocab"] = keep
    else:
        letters = [t for t in model["vocab"] if t in added or t in ("a", "b", "aa", "ab", "aab", "▁", "Ġ", "<0x0A>", "<unk>")]
        merged = [m if isinstance(m, list) else m.split(" ") for m in model["merges"]]
        for left, right in merged[: most // 2]:
            letters += [left, right, left + right]
        letters += [t for t in model["vocab"] if len(t) == 1][: most // 2]
        ids = {}
        for t in letters:
            if t in model["vocab"]:
                ids.setdefault(t, len(ids))
        model["vocab"] = ids
        model["merges"] = [m for m, (l, r) in zip(model["merges"], merged) if l in ids and r in ids and l + r in ids][:most]
    for each in tokenizer.get("added_tokens", []):
        each["id"] = ids.setdefault(each["content"], len(ids)) if model["type"] == "Unigram" else ids.get(each["content"], len(ids))
        ids[each["content"]] = each["id"]
    return tokenizer


def tokenizers():
    for line in (goldens / "tokenizer_families.jsonl").read_text().strip().split("\n")[2:]:
        family = json.loads(line)
        name = family["name"].replace(" ", "-").replace(".", "-")
        if "tokenizer_json" in family:
            source = family["tokenizer_json"]
            small = trimmed(json.loads(source) if isinstance(source, str) else source, 24)
            config = json.dumps({"bos_token": small["added_tokens"][0]["content"]}) if small.get("added_tokens") else "{}"
            encoded = json.dumps(small, ensure_ascii=False, separators=(",", ":"))
            save("tokenizer-json", name, f"{encoded}\0{config}\0aab a  é")
            continue
        found = family["gguf"]
        count = 40
        pairs = {"tokenizer.ggml.model": (STRING, found["model"])}
        for key, kind in (("tokens", STRING), ("scores", FLOAT32), ("token_type", INT32)):
            pairs["tokenizer.ggml." + key] = (ARRAY, kind, found[key][:count])
        pairs["tokenizer.ggml.unknown_token_id"] = (UINT32, found["unknown_token_id"])
        pairs["tokenizer.chat_template"] = (STRING, "{% for m in messages %}{{ m.content }}{% endfor %}")
        save("tokenizer-gguf", name, gguf(pairs))
    tokens = ["<s>", "a", "b", "Ġ", "ab", "aab", "<|x|>"]
    save("tokenizer-gguf", "gpt-2", gguf({
        "tokenizer.ggml.model": (STRING, "gpt2"), "tokenizer.ggml.pre": (STRING, "smollm"),
        "tokenizer.ggml.tokens": (ARRAY, STRING, tokens), "tokenizer.ggml.token_type": (ARRAY, INT32, [3, 1, 1, 1, 1, 1, 4]),
        "tokenizer.ggml.merges": (ARRAY, STRING, ["a b", "a ab"]), "tokenizer.ggml.bos_token_id": (UINT32, 0),
        "tokenizer.ggml.add_space_prefix": (BOOL, True)}))


def templates():
    chat = json.loads((goldens / "chat_templates.json").read_text())
    line = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "thinking": "t"}]})
    for each in chat["templates"]:
        if len(each["template"]) < 2000:
            save("chat-template", each["name"].replace(" ", "-"), each["template"] + "\0" + line)
    snippets = json.loads((goldens / "template_snippets.json").read_text())["snippets"]
    for index in range(0, len(snippets), 20):
        save("chat-template", f"snippet-{index:03}", snippets[index]["source"])


def datasets():
    save("dataset", "shapes", "\n".join(json.dumps(each) for each in [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": [{"type": "text", "text": "é"}]}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1, -2.5e3]}}}]}],
         "tools": [{"type": "function"}]},
        {"prompt": "p", "completion": "c"}, {"instruction": "i", "input": None, "output": "o"}, {"text": "t\ud83d\ude00\u0000", "other": 1},
    ]))
    save("dataset", "marks", b"\xef\xbb\xbf{\"text\": \"x\"}\r\n\n \t\n{\"text\": \"y\"}")


def adapters():
    base = "base_model.model.model.layers."
    tensors, ggufs = {}, []
    for layer in range(2):
        for module, rows, short in (("q_proj", 8, "attn_q"), ("v_proj", 4, "attn_v")):
            tensors[f"{base}{layer}.self_attn.{module}.lora_A.weight"] = ("F32", [2, 8], floats(16))
            tensors[f"{base}{layer}.self_attn.{module}.lora_B.weight"] = ("F32", [rows, 2], floats(2 * rows))
            ggufs.append((f"blk.{layer}.{short}.weight.lora_a", [2, 8], 0, floats(16)))
            ggufs.append((f"blk.{layer}.{short}.weight.lora_b", [rows, 2], 0, floats(2 * rows)))
    config = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "bias": "none"}).encode()
    file = safetensors(tensors)
    save("adapter", "peft", config + b"\0" + file)
    save("adapter", "framed", config + b"\0" + lz4(file))
    # The other methods' files, for the same linears and down_proj (16 inputs, 8 outputs).
    matrices = {
        "dora": ("LORA", {"lora_A.weight": lambda i, o: [2, i], "lora_B.weight": lambda i, o: [o, 2], "lora_magnitude_vector": lambda i, o: [o]}, {}),
        "vera": ("VERA", {"vera_lambda_b": lambda i, o: [o], "vera_lambda_d": lambda i, o: [2]},
                 {"base_model.vera_A": [2, 16], "base_model.vera_B": [8, 2]}),
        "miss": ("MISS", {"miss_block": lambda i, o: [2, o]}, {}),
        "loha": ("LOHA", {"hada_w1_a": lambda i, o: [o, 2], "hada_w1_b": lambda i, o: [2, i], "hada_w2_a": lambda i, o: [o, 2],
                          "hada_w2_b": lambda i, o: [2, i]}, {}),
        "lokr": ("LOKR", {"lokr_w1": lambda i, o: [2 if o < 16 else 4, 2 if i < 16 else 4],
                          "lokr_w2": lambda i, o: [o // 2, i // (2 if i < 16 else 4)]}, {}),
        "adalora": ("ADALORA", {"lora_A": lambda i, o: [2, i], "lora_E": lambda i, o: [2, 1], "lora_B": lambda i, o: [o, 2]}, {}),
        "ia3": ("IA3", {"ia3_l": lambda i, o: [1, i] if i == 16 else [o, 1]}, {}),
        "oft": ("OFT", {"oft_R.weight": lambda i, o: [i // 4, 6]}, {}),
        "rlrr": ("RLRR", {"rlrr_left": lambda i, o: [o], "rlrr_right": lambda i, o: [i]}, {}),
        "shira": ("SHIRA", {"shira_weight": lambda i, o: [i + o], "shira_indices": lambda i, o: [2, i + o]}, {}),
        "bitfit": ("BEFT", {"beft_bias": lambda i, o: [1, o]}, {}),
    }
    for name, (kind, stored, shared) in matrices.items():
        file = {f"{base}{layer}.{module}.{matrix}": ("F32", shape(*sizes), floats(math.prod(shape(*sizes))))
                for layer in range(2) for module, sizes in (("self_attn.v_proj", (8, 4)), ("mlp.down_proj", (16, 8)))
                for matrix, shape in stored.items()}
        file |= {key: ("F32", shape, floats(math.prod(shape))) for key, shape in shared.items()}
        settings = {"peft_type": kind, "r": 2, "target_modules": ["v_proj", "down_proj"]}
        settings |= {"use_dora": True} if name == "dora" else {"feedforward_modules": ["down_proj"]} if name == "ia3" else {}
        settings |= {"init_r": 2, "total_step": 9, "rank_pattern": {"model.layers.0.mlp.down_proj.lora_E": [True, True]}} if name == "adalora" else {}
        if name == "shira":
            settings["r"] = 1
            file |= {key: ("I32", shape, struct.pack(f"<{math.prod(shape)}i", *(place % 4 for place in range(math.prod(shape)))))
                     for key, (_, shape, _) in file.items() if key.endswith("indices")}
        settings |= {"r": 0, "oft_block_size": 4, "peft_version": "0.18.0"} if name == "oft" else {}
        save("adapter", name, json.dumps(settings).encode() + b"\0" + safetensors(file))
    save("adapter", "llama-cpp", b"\0" + gguf({
        "general.type": (STRING, "adapter"), "general.architecture": (STRING, "llama"), "adapter.type": (STRING, "lora"),
        "adapter.lora.alpha": (FLOAT32, 4.0)}, ggufs))


def lz4(content, *options):
    return subprocess.run(["lz4", "-c", "-q", "--content-size", *options], input=content, stdout=subprocess.PIPE, check=True).stdout


def frames():
    save("lz4", "text", lz4(b"edgetune " * 40))
    save("lz4", "linked", lz4(b"abc" * 300, "-BD"))
    save("lz4", "blocks", lz4(bytes(range(256)) * 3, "-B4", "-BX"))
    save("lz4", "nothing", lz4(b""))


def checkpoints():
    # SmallModel's adapter: 4 slots, A [2, 8] and B [8 or 4, 2], each padded to a cache line.
    parameters, state = 4 * 16 + 2 * 16 + 2 * 16, 2 * (4 * 16 + 2 * 16 + 2 * 16) * 4
    u64 = lambda *numbers: b"".join(struct.pack("<Q", n) for n in numbers)
    def header(step, best):
        return (u64(step, 2 if best else 0) + struct.pack("<d", 1.5) + u64(best) + struct.pack("<d", 1.25) + u64(9, 0, 0, state, parameters, 1)
                + u64(1) + struct.pack("<d", 1.25) + u64(9))
    body = floats(parameters) + bytes(state)
    best = u64(1, parameters) + floats(parameters)
    save("checkpoint", "whole", b"\7" + parts(header(1, 0) + body, header(2, 1) + body, best))
    save("checkpoint", "no-best", b"\3" + parts(header(1, 0) + body, header(2, 1) + body))
    save("checkpoint", "damaged", b"\1" + parts(header(1, 0) + body, b"EDGECKPT"))


def configs():
    for path in sorted((goldens / "architectures").glob("*/config.json")):
        save("config", path.parent.name, json.dumps(json.loads(path.read_text()), separators=(",", ":")))


def imports():
    config = json.dumps({"architectures": ["LlamaForCausalLM"], "hidden_size": 64})
    weights = safetensors({
        "model.embed_tokens.weight": ("BF16", [2, 64], bytes(256)), "model.norm.weight": ("F16", [4], bytes(8)),
        "model.layers.0.mlp.up_proj.weight": ("F32", [2, 64], floats(128)), "lm_head.weight": ("F32", [1, 64], floats(64))})
    save("import", "whole", parts(
        "config.json", config, "model.safetensors", weights, "tokenizer.json", "{}", "tokenizer_config.json",
        '{"chat_template": "x"}', "README.md", "#"))
    one = safetensors({"a": ("F16", [4], bytes(8))})
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    save("import", "shards", parts(
        "config.json", config, "model.safetensors.index.json", index, "model-1.safetensors", one,
        "model-2.safetensors", safetensors({"b": ("F32", [4], floats(4))})))
    name = "model.layers.0.mlp.up_proj.weight"
    quantised = json.dumps({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}})
    nf4 = goldens / "import/nf4/model.safetensors"
    golden = next(k for k in json.loads(nf4.read_bytes()[8 : 8 + struct.unpack("<Q", nf4.read_bytes()[:8])[0]]) if k.endswith(".nested_quant_map"))
    stem = golden[: -len(".nested_quant_map")]
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [1, 64]}
    plain = {name: ("U8", [32, 1], bytes(32)), name + ".absmax": ("F32", [1], floats(1)),
             name + ".quant_map": ("F32", [16], golden_tensor(nf4, stem + ".quant_map"))}
    def state_tensor(fields):
        encoded = json.dumps(fields).encode()
        return {name + ".quant_state.bitsandbytes__nf4": ("U8", [len(encoded)], encoded)}
    save("import", "nf4", parts("config.json", quantised, "model.safetensors", safetensors(plain | state_tensor(state))))
    nested = plain | {
        name + ".absmax": ("U8", [1], b"\x80"), name + ".nested_absmax": ("F32", [1], floats(1)),
        name + ".nested_quant_map": ("F32", [256], golden_tensor(nf4, golden))}
    save("import", "nf4-nested", parts("config.json", quantised, "model.safetensors", safetensors(
        nested | state_tensor(state | {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5}))))
    files = sorted((goldens / "import/split").glob("tiny-*.gguf"))
    save("import", "split", parts(*[each for f in files for each in (f.name, f.read_bytes())]))


def blocks():
    rng = random.Random(20261121)
    sizes = [4, 2, 18, 20, 22, 24, 34, 84, 110, 144, 176, 210, 18, 136, 2, 17, 32, 32]
    for index, size in enumerate(sizes):
        save("blocks", f"format-{index:02}", bytes([index, 0, 255]) + rng.randbytes(max(size, 2 * size if size < 40 else size)))


def job_files():
    for path in ("configs/lora.yaml", "configs/small-board.yaml", "configs/demo/job.yaml"):
        lines = [line for line in (root / path).read_text().splitlines() if not line.lstrip().startswith("#")]
        save("job-file", pathlib.Path(path).parts[-2] + "-" + pathlib.Path(path).stem, "\n".join(lines) + "\n")
    save("job-file", "flow", '{base_model: m, datasets: [{path: d}], lora_target_modules: "all-linear", learning_rate: 2e-4, seed: 1_0}\n')


def bodies():
    digest = "sha256:" + "0a" * 32
    for index, (name, body) in enumerate([
        ("job", {"base_model": "m", "datasets": [{"path": "d"}], "lora_r": 8, "learning_rate": 2e-4, "name": "n"}),
        ("model", {"name": "m", "files": [{"name": "config.json", "blob": digest}], "source": "hub"}),
        ("importing", {"name": "d", "blob": digest}),
        ("adapter", {"name": "a", "base_model": "m", "tensors": digest, "config": digest}),
        ("generate", {"model": "m", "messages": [{"role": "user", "content": "é"}], "max_tokens": 5, "temperature": 0.5, "seed": 1}),
    ]):
        save("http-body", name, bytes([index]) + json.dumps(body).encode())
    save("http-body", "digest", b"\5" + digest.encode())


def connections():
    """Two bytes (who, and where the bytes are cut in two), then what is sent."""
    user, admin, stranger, stays = 0, 1, 2, 4
    finished, others = "j-0000000000aa", "j-0000000000cc"
    upload = hashlib.sha256(b"hello").hexdigest()

    def request(line, body=b"", *fields):
        if body:
            fields += (f"Content-Length: {len(body)}",)
        return "\r\n".join([line + " HTTP/1.1", "Host: localhost", *fields, "", ""]).encode() + body

    def chunked(line, *chunks):
        return request(line, b"", "Transfer-Encoding: chunked") + b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in (*chunks, b""))

    def lines(*each):
        return b"".join(request(line) for line in each)

    job = {"base_model": "m", "datasets": [{"path": "d"}], "name": "n"}
    key = "Idempotency-Key: " + finished
    for name, who, sent in [
        ("health", stranger, lines("GET /v1/health", "GET /v1/status")),
        ("lists", user, lines("GET /v1/status", "GET /v1/jobs?limit=2&state=queued", "GET /v1/models", "GET /v1/datasets",
                              "GET /v1/adapters")),
        ("job", user, lines(f"GET /v1/jobs/{finished}", f"GET /v1/jobs/{finished}/events?after=1&follow=1",
                            f"GET /v1/jobs/{finished}/log")),
        ("follow", user, lines("GET /v1/jobs/j-0000000000bb/events?follow=1")),
        ("others", user, lines(f"GET /v1/jobs/{others}", f"GET /v1/jobs/{others}/log")),
        ("another", user, lines("GET /v1/adapters/b/files/adapter_config.json")),
        ("actions", user, lines("POST /v1/jobs/j-0000000000bb/pause", "POST /v1/jobs/j-0000000000bb/resume",
                                "POST /v1/jobs/j-0000000000bb/cancel", "DELETE /v1/jobs/j-0000000000bb")),
        ("adapter", user, lines("GET /v1/adapters/own", "GET /v1/adapters/own/files/adapter%5Fconfig.json",
                                "GET /v1/adapters/own/files/adapter.gguf", "DELETE /v1/adapters/own/merged", "DELETE /v1/adapters/own")),
        ("merged", user, lines("GET /v1/adapters/own/merged/..%2F..%2Fbeside") + request("POST /v1/adapters/own/merged", b'{"format":"q8_0"}')),
        ("paths", admin | stays, lines("GET //v1/./jobs/%2e%2e%2f", "OPTIONS *", "GET http://host/v1/health?a=b#c")),
        ("removed", admin, lines("DELETE /v1/jobs/j-0000000000aa", "GET /v1/datasets/d", "DELETE /v1/datasets/d", "GET /v1/models/m",
                                 "GET /v1/imports/i", "DELETE /v1/models/i", "DELETE /v1/models/m")),
        ("imports", user, lines("GET /v1/imports/m", "DELETE /v1/models/i", "DELETE /v1/models/m")),
        ("submit", user, request("POST /v1/jobs", json.dumps(job).encode(), "Idempotency-Key: k")),
        ("again", user, request("POST /v1/jobs", json.dumps({"base_model": "m", "datasets": [{"path": "d"}]}).encode(), key)),
        ("plan", admin | stays, chunked("POST /v1/plan", b'{"base_model":"m",', b'"datasets":[{"path":"sha256:%s"}]}' % (b"f" * 64))),
        ("upload", user, request(f"PATCH /v1/blobs/sha256:{upload}", b"hello", "Upload-Offset: 0", "Upload-Length: 5")
         + lines(f"GET /v1/blobs/sha256:{upload}")),
        ("held", user, request("PATCH /v1/blobs/sha256:" + "f" * 64, b"", "Upload-Offset: 0", "Upload-Length: 6")),
        ("large", user, request(f"PATCH /v1/blobs/sha256:{upload}", b"hello", "Upload-Offset: 0", "Upload-Length: 68719476736")),
        ("part", user, request(f"PATCH /v1/blobs/sha256:{upload}", b"hell", "Upload-Offset: 0", "Upload-Length: 5", "Expect: 100-continue")),
        ("model", user, request("POST /v1/models", json.dumps({"name": "n", "blob": "sha256:" + "f" * 64}).encode())),
        ("dataset", user, request("POST /v1/datasets", json.dumps({"name": "n", "blob": "sha256:" + "f" * 64}).encode())),
        ("import", user, request("POST /v1/adapters", json.dumps(
            {"name": "n", "base_model": "m", "tensors": "sha256:" + "f" * 64}).encode())),
        ("generate", user | stays, request("POST /v1/generate", json.dumps(
            {"model": "m", "adapter": "own", "messages": [{"role": "user", "content": "\u00e9"}]}).encode())),
        ("browser", user, request("GET /v1/jobs", b"", "Origin: http://a", "Connection: close")),
        ("most", user, lines(f"GET /v1/jobs/{finished}/events?after={2**63 - 1}&follow=0", "GET /v1/jobs?limit=1000&state=cancelled",
                             f"GET /v1/jobs?limit={2**63}")),
        ("offset", user, request(f"PATCH /v1/blobs/sha256:{upload}", b"hello", f"Upload-Offset: {2**64 - 1}", "Upload-Length: 5")),
        ("length", user, request(f"PATCH /v1/blobs/sha256:{upload}", b"hello", "Upload-Offset: 0", f"Upload-Length: {2**64 - 1}")),
        ("beside", user, lines("GET /v1/adapters/own/files/..%2Fbeside")),
        ("unreadable", admin | stays, b"GET /v1/health HTTP/1.1\r\nHost : a\r\n\r\n"),
        ("old", admin | stays, b"GET /v1/health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
    ]:
        save("http-head", name, bytes([who, len(name) * 8 if who & stays else 0]) + sent)


def databases():
    save("database", "whole", b"")
    save("database", "header", struct.pack("<BHB", 0, 18, 9))
    save("database", "page", struct.pack("<BHB", 1, 0, 13) + struct.pack("<BHB", 3, 4000, 255))


for make in (gguf_files, models, safetensors_files, tokenizers, templates, datasets, adapters, frames, checkpoints, configs, imports,
             blocks, job_files, bodies, connections, databases):
    make()
