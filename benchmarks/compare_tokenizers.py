"""Holds `edgebench tokenize` against huggingface/tokenizers: ids and decoded texts of many lines, a table of differences.

    compare_tokenizers.py --edgebench .build/release/edgebench --lines 100000 NAME=FILE…

FILE is one of
    tokenizer.json      read by both sides;
    .gguf               read by edgebench; the other side is built from the same vocabulary, with the normalizer, the
                        pre-tokenizer and the decoder of the family's own tokenizer.json (FAMILIES, by tokenizer.ggml.pre);
    .tiktoken, .model   ranks as OpenAI, Qwen and Meta publish them, or a SentencePiece model: NAME's family (the part
                        before a "/") says what the family's tokenizer.json puts around them. The file that results is
                        written to --work and read by both sides.

Lines are of one seed: words of many scripts, code, emoji, digits, white space and control characters, special tokens and
pieces of them, noise of every assigned scalar, bytes that are no UTF-8, and long runs. Exit status 1 on any difference.
"""

import argparse
import base64
import json
import pathlib
import random
import subprocess
import sys
import time
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "Tests/Goldens"))
import make_tokenizer_goldens as goldens  # noqa: E402
from tokenizer_families import (  # noqa: E402
    MARK, byte_fallback_decoder, byte_level_tokenizer, mark_spaces, sequence)

# `tokenizer.ggml.pre` to a row of `PRE_TOKENIZERS`.
GGUF_PRE = {"refact": "smollm", "starcoder": "smollm", "smollm": "smollm", "gpt-2": "gpt-2", "mpt": "gpt-2",
            "default": "gpt-2", "falcon": "falcon", "llama-bpe": "llama-3", "qwen2": "qwen-2", "gpt-4o": "gpt-4o"}


def from_gguf(path):
    import gguf

    fields = {k: v.contents() for k, v in gguf.GGUFReader(path).fields.items() if k.startswith("tokenizer.")}
    get = lambda key, default=None: fields.get("tokenizer.ggml." + key, default)
    tokens, kinds = get("tokens"), get("token_type")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if get("model") == "gpt2":
        family = GGUF_PRE[get("pre", "default")]
        tokenizer = byte_level_tokenizer(family, vocabulary, [tuple(m.split(" ")) for m in get("merges")])
        if family == "qwen-2":
            tokenizer.normalizer = None  # a GGUF does not say that its text was composed
    else:
        from transformers.tokenization_utils_base import generate_merges

        unknown = get("unknown_token_id")
        tokenizer = Tokenizer(models.BPE(
            vocabulary, generate_merges(vocabulary, dict(zip(tokens, get("scores")))), byte_fallback=True,
            fuse_unk=True, unk_token=None if unknown is None else tokens[unknown]))
        prefix = get("add_space_prefix", True)
        tokenizer.normalizer = mark_spaces(prefix)
        tokenizer.decoder = byte_fallback_decoder(prefix)
    for special, wanted in ((True, (2, 3)), (False, (4,))):
        added = [AddedToken(t, normalized=False, special=special) for t, kind in zip(tokens, kinds) if kind in wanted]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    return tokenizer


def from_ranks(family, path):
    """Merges as transformers' TikTokenConverter recovers them: every split of a token into two, by rank."""
    spelling = {byte: chr(code) for byte, code in goldens_alphabet().items()}
    spelled = lambda token: "".join(spelling[byte] for byte in token)
    ranks = {base64.b64decode(t): int(r) for t, r in (line.split() for line in open(path, "rb") if line.strip())}
    merges = []
    for token, rank in ranks.items():
        local = [(token[:i], token[i:], rank) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        merges += sorted(local, key=lambda x: (ranks[x[0]], ranks[x[1]]))
    merges.sort(key=lambda merge: merge[2])
    tokenizer = byte_level_tokenizer(
        family, {spelled(t): r for t, r in ranks.items()}, [(spelled(a), spelled(b)) for a, b, _ in merges])
    names = {"llama-3": ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
             "llama-4": ["<|begin_of_text|>", "<|eot|>", "<|header_start|>", "<|header_end|>"]}
    tokenizer.add_special_tokens(names.get(family, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]))
    if family == "llama-3":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", len(ranks))])
    else:
        tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


def goldens_alphabet():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: byte for byte in printable} | {byte: 0x100 + index for index, byte in enumerate(rest)}


def from_sentencepiece(family, path):
    """As transformers' converters: Llama's (legacy and not), Gemma's, and a unigram model's."""
    import sentencepiece
    from transformers.tokenization_utils_base import generate_merges

    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ids = range(model.get_piece_size())
    tokens, scores = [model.id_to_piece(i) for i in ids], [model.get_score(i) for i in ids]
    special = [t for i, t in enumerate(tokens) if model.is_control(i) or model.is_unknown(i)]
    if family == "unigram":
        fallback = any(model.is_byte(i) for i in ids)
        tokenizer = Tokenizer(models.Unigram(list(zip(tokens, scores)), model.unk_id(), fallback))
        from sentencepiece import sentencepiece_model_pb2

        proto = sentencepiece_model_pb2.ModelProto.FromString(pathlib.Path(path).read_bytes())
        steps = [normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)]
        tokenizer.normalizer = normalizers.Sequence(steps + [normalizers.Replace(Regex(" {2,}"), " ")])
        tokenizer.pre_tokenizer = sequence(
            pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(MARK, prepend_scheme="always"))
        tokenizer.decoder = (
            decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(MARK, prepend_scheme="always")])
            if fallback else decoders.Metaspace(MARK, prepend_scheme="always"))
    else:
        vocabulary = {token: index for index, token in enumerate(tokens)}
        merges = generate_merges(vocabulary, dict(zip(tokens, scores)))
        tokenizer = Tokenizer(models.BPE(
            vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token=tokens[model.unk_id()]))
        if family == "gemma":
            tokenizer.normalizer = mark_spaces(False)
            tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
            tokenizer.decoder = byte_fallback_decoder(False)
        elif family == "mistral":
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(MARK, prepend_scheme="first", split=False)
            tokenizer.decoder = byte_fallback_decoder()
        else:
            tokenizer.normalizer = mark_spaces()
            tokenizer.decoder = byte_fallback_decoder()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    user = [t for i, t in enumerate(tokens) if model.piece_to_id(t) == i and is_user_defined(path, i)]
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in user])
    return tokenizer


def is_user_defined(path, index, cache={}):
    from sentencepiece import sentencepiece_model_pb2

    if path not in cache:
        proto = sentencepiece_model_pb2.ModelProto.FromString(pathlib.Path(path).read_bytes())
        cache[path] = [piece.type == 4 for piece in proto.pieces]
    return cache[path][index]


def reference(name, path, work):
    """The other side's tokenizer, and the file that edgebench reads."""
    if path.suffix == ".json":
        return Tokenizer.from_file(str(path)), path
    if path.suffix == ".gguf":
        return from_gguf(path), path
    family = name.split("/")[0]
    is_ranks = path.suffix == ".tiktoken" or family in ("llama-3", "llama-4")
    tokenizer = (from_ranks if is_ranks else from_sentencepiece)(family, path)
    file = work / (name.replace("/", "-") + ".json")
    tokenizer.save(str(file))
    return Tokenizer.from_file(str(file)), file


RUNS = [" ", "\n", "\t", "a", "1", "é", "漢", "😀", "\u0301", "'", "ab", " a", "\r\n", "\u3000", ".", "aA", "'s", "\u200d", "▁", "ﬁ"]


SPECIAL = "\ue000\ue001\ue002"


def lines(count, seed):
    """Texts in which SPECIAL stands for a special token, and SPECIAL[:-1] for one that lacks its end."""
    rng = random.Random(seed)
    for unit in RUNS:
        for length in (1, 2, 3, 7, 64, 1000, 4099):
            yield unit * length
            yield "x" + unit * length + "y"
            yield unit * length + " 12 " + unit * length
    for _ in range(count - len(RUNS) * 21):
        yield goldens.line(rng, [SPECIAL])


def scalars():
    """Every scalar of the planes in use where the expressions look at it: after an apostrophe, a space, a letter…"""
    codes = [c for c in range(0x33480) if unicodedata.category(chr(c)) not in ("Cs", "Co")]
    for start in range(0, len(codes), 16):
        characters = [chr(code) for code in codes[start:start + 16]]
        for pattern in ("'{0}x", " {0}", "a{0}b", "1{0}2", "A{0}{0}", "\n{0} ", "e{0}\u0301"):
            yield "|".join(pattern.format(c) for c in characters)


def with_tokens(texts, added, seed):
    """Bytes, most of them UTF-8, with the tokenizer's own special tokens."""
    rng = random.Random(seed)
    for text in texts:
        if "\ue000" in text:
            token = rng.choice(added)
            text = text.replace(SPECIAL, token).replace(SPECIAL[:-1], token[:-1])
        data = text.encode("utf-8", "surrogatepass")
        if rng.random() < 0.05:
            at = rng.randint(0, len(data))
            data = data[:at] + bytes(rng.randrange(256) for _ in range(rng.randint(1, 9))) + data[at:]
        yield data


def edgebench_output(program, file, data):
    start = time.monotonic()
    run = subprocess.run([*program, str(file)], input=b"".join(d.hex().encode() + b"\n" for d in data),
                         stdout=subprocess.PIPE, check=True)
    rows = run.stdout.decode().split("\n")[:-1]
    assert len(rows) == len(data), (len(rows), len(data))
    return [row.split("\t") for row in rows], time.monotonic() - start


def compare(name, path, texts, arguments):
    tokenizer, file = reference(name, path, arguments.work)
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()][:40] or ["<s>"]
    data = list(with_tokens(texts, added, arguments.seed))
    rows, seconds = edgebench_output(arguments.program, file, data)
    ids_differ, texts_differ, shown = 0, 0, 0
    for start in range(0, len(data), 2000):
        strings = [d.decode("utf-8", "replace") for d in data[start:start + 2000]]
        encodings = tokenizer.encode_batch(strings, add_special_tokens=False)
        decoded = tokenizer.decode_batch([e.ids for e in encodings], skip_special_tokens=False)
        for text, encoding, back, (ids, hexadecimal) in zip(strings, encodings, decoded, rows[start:start + 2000]):
            ours = [int(i) for i in ids.split()]
            wrong_ids, wrong_text = ours != encoding.ids, bytes.fromhex(hexadecimal).decode() != back
            ids_differ += wrong_ids
            texts_differ += wrong_text
            if (wrong_ids or wrong_text) and shown < arguments.show:
                shown += 1
                print(f"  {text[:100]!r}\n    HF   {encoding.ids[:60]}\n    edge {ours[:60]}\n    HF   {back[:80]!r}\n"
                      f"    edge {bytes.fromhex(hexadecimal).decode()[:80]!r}", file=sys.stderr)
    kib = sum(map(len, data)) / 1024
    print(f"| {name} | {tokenizer.get_vocab_size()} | {len(data)} | {kib:.0f} | {ids_differ} | {texts_differ} |"
          f" {seconds:.1f} |", flush=True)
    return ids_differ + texts_differ


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edgebench", default=".build/release/edgebench tokenize",
                        help="the program and its arguments before the file")
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument("--scalars", action="store_true", help="also every scalar in seven places")
    parser.add_argument("--show", type=int, default=3, help="differences to print")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/tmp"))
    parser.add_argument("sources", nargs="+", metavar="NAME=FILE")
    arguments = parser.parse_args()
    arguments.program = arguments.edgebench.split()
    print("| tokenizer | vocabulary | lines | KiB | ids differ | texts differ | edgebench s |\n|---|---|---|---|---|---|---|")
    texts = list(lines(arguments.lines, arguments.seed)) + (list(scalars()) if arguments.scalars else [])
    differences = 0
    for source in arguments.sources:
        name, path = source.split("=", 1)
        differences += compare(name, pathlib.Path(path), texts, arguments)
    sys.exit(differences > 0)


if __name__ == "__main__":
    main()
