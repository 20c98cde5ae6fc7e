"""Tokenizer goldens from huggingface/tokenizers, for the vocabulary in SmolLM2's GGUF.

Writes tokenizer_smollm.jsonl next to this script. The first line is a manifest; every other line is
    ["text", "16 hex digits"]            FNV-1a 64 over the ids as little-endian int32, or
    ["text", "16 hex digits", [ids]]     for every 20th line.
Deterministic: one seed, no input but the model.

usage: make_tokenizer_goldens.py MODEL.gguf
"""

import hashlib
import json
import pathlib
import random
import struct
import sys
import unicodedata

import gguf
import tokenizers
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SEED = 20240611
LINES = 10_400
MAXIMUM_BYTES = 1_500_000


def reference_tokenizer(reader):
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in reader.fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, kinds) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    return tokenizer, control


def fnv1a(ids):
    return fnv1a_bytes(struct.pack(f"<{len(ids)}i", *ids))


def fnv1a_bytes(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


WORDS = """the of and to a in that it is was I'm don't we've you'll he'd they're it's can't let's rock'n'roll
O'Neil naïve café Straße Ångström façade coöperate jalapeño Zürich Łódź İstanbul ﬁnance Ελληνικά Здравствуйте
мир עברית שלום العربية مرحبا हिन्दी नमस्ते বাংলা ไทย สวัสดี 日本語 こんにちは 世界 カタカナ 中文 你好 한국어 안녕하세요
ქართული Հայերեն አማርኛ training gradient tensor quantised LoRA adapter GPT-2 4-bit x86_64 aarch64 e.g. i.e. etc.""".split()

CODE = [
    "def f(x, *, y=None):\n    return {k: v for k, v in x.items() if v is not None}",
    "for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; }",
    "\tif err != nil {\n\t\treturn fmt.Errorf(\"open %s: %w\", path, err)\n\t}",
    "let x: Result<Vec<u8>, Box<dyn Error>> = std::fs::read(&path)?;",
    "SELECT id, COUNT(*) FROM jobs WHERE state != 'done' GROUP BY 1 HAVING COUNT(*) >= 10;",
    "<div class=\"row\"><a href='#'>&nbsp;&lt;tag&gt;</a></div><!-- x -->",
    "#include <stdint.h>\r\n#define MAX(a,b) ((a)>(b)?(a):(b))\r\n",
    "guard let value = dictionary[key] else { throw Failure.missing(key) } // 0xFF_u8",
    "{\"a\": [1, 2.5e-3, null, true], \"b\\n\": \"\\u00e9\"}",
    "curl -sS --unix-socket /run/edgetuned.sock http://x/v1/jobs?after=12&limit=100 | jq '.[]'",
    "    " * 3 + "return self.__dict__['_x'] ** 2  # ÷ by zero?",
]
EMOJI = ["😀", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇯🇵", "❤️", "👩🏿‍🚒", "🧑‍💻", "☺", "1️⃣", "©", "™", "🫠", "⌨️"]
COMBINING = ["e\u0301", "n\u0303", "a\u0300\u0301\u0302\u0303", "Z\u0351\u036b\u0343", "ก็", "ि", "\u0301", "क्ष", "ஸ்ரீ", "한"]
DIGITS = ["0123456789", "٠١٢٣٤٥٦٧٨٩", "۰۱۲۳", "०१२३४", "๑๒๓", "１２３", "Ⅷ", "½", "²³", "①②", "〇一二三", "৪৫", "𝟘𝟙𝟚", "㊿", "፩፪"]
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u2003", "\u2028", "\u200b", "\ufeff", "\x0b", "\x0c", "\x85", "\u1680", "\u202f"]
PUNCTUATION = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + ["…", "—", "“", "”", "«", "»", "。", "、", "！", "؟", "।", "''", "'S", "'ll", "'LL"]
# Unassigned scalars differ between Unicode versions; this is every one that Python's tables know.
ASSIGNED = [c for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]


def line(rng, control):
    def word():
        return rng.choice(WORDS)

    def digits():
        script = rng.choice(DIGITS)
        return "".join(rng.choice(script) for _ in range(rng.randint(1, 6)))

    def scalars():
        return "".join(chr(rng.choice(ASSIGNED)) for _ in range(rng.randint(1, 8)))

    def ascii_noise():
        return "".join(chr(rng.randint(0, 127)) for _ in range(rng.randint(1, 20)))

    def latin_noise():
        return "".join(chr(rng.randint(0x80, 0x6FF)) for _ in range(rng.randint(1, 10)))

    def special():
        token = rng.choice(control)
        return rng.choice([token, token, token + token, token[:-1], " " + token + " ", token.upper(), "<" + token])

    parts = [
        (word, 30), (digits, 6), (scalars, 3), (ascii_noise, 2), (latin_noise, 2), (special, 3),
        (lambda: rng.choice(EMOJI), 4), (lambda: rng.choice(COMBINING), 3), (lambda: rng.choice(PUNCTUATION), 10),
        (lambda: rng.choice(SPACES) * rng.choice([1, 1, 1, 2, 3, 7]), 8), (lambda: rng.choice([" ", "\t", "\n"]) * rng.randint(4, 60), 1),
        (lambda: rng.choice(CODE)[: rng.randint(5, 80)], 3), (lambda: rng.choice("aAé漢1 '\n") * rng.randint(2, 30), 1),
    ]
    functions, weights = zip(*parts)
    text = ""
    for part in rng.choices(functions, weights, k=rng.choice([1, 1, 2, 3, 4, 6, 9, 14])):
        text += part() + (" " if rng.random() < 0.5 else "")
    return text


def main():
    model = sys.argv[1]
    tokenizer, control = reference_tokenizer(gguf.GGUFReader(model))
    rng = random.Random(SEED)
    texts = CODE + EMOJI + COMBINING + DIGITS + SPACES + PUNCTUATION + ["", " " * 1000, "\t" * 500, "a" * 1000, "ab" * 400, "1" * 300]
    while len(texts) < LINES:
        texts.append(line(rng, control))

    with open(model, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    manifest = {
        "tokenizers": tokenizers.__version__, "transformers": transformers.__version__, "gguf_sha256": digest,
        "unicode": unicodedata.unidata_version, "seed": SEED, "lines": len(texts),
    }
    rows = [json.dumps(manifest)]
    for number, text in enumerate(texts):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        row = [text, fnv1a(ids)] + ([ids] if number % 20 == 0 else [])
        rows.append(json.dumps(row, ensure_ascii=False, separators=(",", ":")))
    output = "\n".join(rows) + "\n"
    size = len(output.encode())
    assert size <= MAXIMUM_BYTES, size
    pathlib.Path(__file__).with_name("tokenizer_smollm.jsonl").write_text(output, encoding="utf-8", newline="\n")
    print(f"{len(texts)} lines, {size} bytes")

    # transformers reads the same file but has no pre-tokenizer for its "smollm" entry: GPT-2's, without the digits.
    # The two agree wherever no white space stands before a number.
    other = transformers.AutoTokenizer.from_pretrained(str(pathlib.Path(model).parent), gguf_file=pathlib.Path(model).name)
    same = sum(other(t, add_special_tokens=False).input_ids == tokenizer.encode(t, add_special_tokens=False).ids for t in texts)
    numberless = [t for t in texts if not any(unicodedata.category(c)[0] == "N" for c in t)]
    same_numberless = sum(other(t, add_special_tokens=False).input_ids == tokenizer.encode(t, add_special_tokens=False).ids for t in numberless)
    print(f"transformers agrees on {same} of {len(texts)}, and on {same_numberless} of {len(numberless)} without numbers")


if __name__ == "__main__":
    main()
