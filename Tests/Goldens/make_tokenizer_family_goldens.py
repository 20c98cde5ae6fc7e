"""Goldens of every tokenizer family, from huggingface/tokenizers with small vocabularies trained here.

Writes tokenizer_families.jsonl next to this script. Line 1 is a manifest, line 2 the texts; then one line a family:
    {"name", "tokenizer_json", "ids", "texts", "first_ids": [[ids]…]}
or, where the source is a GGUF's keys, {"name", "gguf": {model, tokens, scores, token_type, …}, …}. `ids` and `texts` are
fingerprints end to end, 16 hex digits a text: FNV-1a 64 of the ids as little-endian int32, and of the decoded text's UTF-8.
`first_ids` are those of the first 12 texts. Deterministic: one seed; the trainers have none.

usage: make_tokenizer_family_goldens.py
"""

import io
import json
import pathlib
import random

import sentencepiece
import tokenizers
import transformers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.tokenization_utils_base import generate_merges

import make_tokenizer_goldens as goldens
from tokenizer_families import IGNORES_MERGES, MARK, PRE_TOKENIZERS, byte_fallback_decoder, byte_level_tokenizer, mark_spaces, sequence

SEED = 20261121
TEXTS = 150
MAXIMUM_BYTES = 290_000
SPECIAL = ["<|begin|>", "<|end|>", "<|user|>"]


def corpus():
    rng = random.Random(SEED)
    return goldens.CODE + [" ".join(rng.choice(goldens.WORDS[:60]) for _ in range(12)) for _ in range(400)]


def byte_level(family):
    untrained = byte_level_tokenizer(family, {}, [])
    trainer = trainers.BpeTrainer(vocab_size=256 + 90, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    untrained.train_from_iterator(corpus(), trainer)
    model = json.loads(untrained.to_str())["model"]
    tokenizer = byte_level_tokenizer(family, model["vocab"], [tuple(m) for m in model["merges"]])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    if family in IGNORES_MERGES:
        # A token that its merges do not lead to.
        model["vocab"]["\u0120gradientx"] = len(model["vocab"])
        tokenizer = byte_level_tokenizer(family, model["vocab"], [tuple(m) for m in model["merges"]])
        tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
        tokenizer.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))])])
    return tokenizer


def added_token_semantics():
    """GPT-NeoX's normalized runs of spaces, and every flag that an added token has."""
    tokenizer = byte_level("gpt-2")
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in (2, 4, 8)])
    tokenizer.add_tokens([
        AddedToken("<left>", lstrip=True, normalized=False), AddedToken("<right>", rstrip=True, normalized=False),
        AddedToken("<both>", lstrip=True, rstrip=True, normalized=True), AddedToken("word", single_word=True, normalized=False),
        AddedToken("caf\u0065\u0301", normalized=True), AddedToken("<|user|>x", normalized=False)])
    return tokenizer


def prefix_space():
    tokenizer = byte_level("gpt-2")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def sentencepiece_model(model_type, **options):
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=buffer, model_type=model_type, minloglevel=2, num_threads=1,
        character_coverage=0.99, hard_vocab_limit=False, **options)
    return sentencepiece_model_pb2.ModelProto.FromString(buffer.getvalue())


def pair_merges(kind):
    proto = sentencepiece_model("bpe", vocab_size=480, byte_fallback=True, user_defined_symbols=[MARK * 2, "<unused>"])
    tokens, scores = [p.piece for p in proto.pieces], [p.score for p in proto.pieces]
    kinds = [p.type for p in proto.pieces]
    vocabulary = {t: i for i, t in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(
        vocabulary, generate_merges(vocabulary, dict(zip(tokens, scores))), byte_fallback=True, fuse_unk=True,
        unk_token="<unk>"))
    if kind == "gemma":
        tokenizer.normalizer = mark_spaces(False)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        tokenizer.decoder = byte_fallback_decoder(False)
    elif kind == "mistral":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(MARK, prepend_scheme="first", split=False)
        tokenizer.decoder = byte_fallback_decoder()
    else:
        tokenizer.normalizer = mark_spaces()
        tokenizer.decoder = byte_fallback_decoder()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in (MARK * 2, "<unused>")])
    if kind == "phi-3":
        tokenizer.add_tokens([AddedToken("<|end|>", rstrip=True, normalized=False), AddedToken("<|user|>", normalized=True)])
    if kind == "llama-gguf":
        # SentencePiece's kinds of piece are GGUF's token types.
        return tokenizer, {"model": "llama", "tokens": tokens, "scores": scores, "token_type": kinds, "unknown_token_id": 0}
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def without_byte_tokens():
    """Unknown text, not fused, in a vocabulary of scalars."""
    vocabulary = {"<unk>": 0} | {c: i + 1 for i, c in enumerate(MARK + "abcdefghijklmnopqrstuvwxyz.,")}
    merges = [(MARK, "t"), ("t", "h"), ("th", "e"), (MARK, "a"), ("i", "n")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(MARK, prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(MARK, prepend_scheme="always", split=True)
    return tokenizer


def unigram(kind):
    fallback = kind != "t5"
    proto = sentencepiece_model("unigram", vocab_size=420, byte_fallback=fallback,
                                normalization_rule_name="nmt_nfkc" if kind == "t5" else "identity")
    pieces = [(p.piece, p.score) for p in proto.pieces]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, fallback))
    if kind == "t5":
        # nmt_nfkc's own map has 300 KB: a few rules in its form instead.
        tokenizer.normalizer = normalizers.Sequence([
            normalizers.Precompiled(small_character_map()), normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), MARK)])
        tokenizer.pre_tokenizer = sequence(
            pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(MARK, prepend_scheme="always"))
        tokenizer.decoder = decoders.Metaspace(MARK, prepend_scheme="always")
    elif kind == "unigram-gguf":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(MARK, prepend_scheme="always", split=True)
        tokenizer.decoder = decoders.Metaspace(MARK, prepend_scheme="always")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(MARK, prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(MARK, prepend_scheme="first")])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    if kind == "unigram-gguf":
        return tokenizer, {"model": "t5", "tokens": [p[0] for p in pieces], "scores": [p[1] for p in pieces],
                           "token_type": [p.type for p in proto.pieces], "unknown_token_id": 0}
    return tokenizer


def small_character_map():
    """SentencePiece's form of: ligatures apart, full-width to ASCII, white space to a space, soft hyphens away."""
    rules = {"\ufb01": "fi", "\ufb02": "fl", "\u00a0": " ", "\u3000": " ", "\u00ad": "", "\uff01": "!", "e\u0301": "\u00e9", "\u2460": "1"}
    buffer = io.BytesIO()
    path = pathlib.Path("/tmp/edgetune-rules.tsv")
    hexadecimal = lambda text: " ".join(f"{ord(c):X}" for c in text)
    path.write_text("".join(f"{hexadecimal(a)}\t{hexadecimal(b)}\n" for a, b in rules.items()))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=buffer, vocab_size=200, hard_vocab_limit=False, minloglevel=2,
        normalization_rule_tsv=str(path))
    return sentencepiece_model_pb2.ModelProto.FromString(buffer.getvalue()).normalizer_spec.precompiled_charsmap


FAMILIES = {family: (lambda family=family: byte_level(family)) for family in PRE_TOKENIZERS} | {
    "added tokens": added_token_semantics, "prefix space": prefix_space,
    "llama-2": lambda: pair_merges("llama-2"), "phi-3": lambda: pair_merges("phi-3"),
    "gemma": lambda: pair_merges("gemma"), "mistral": lambda: pair_merges("mistral"),
    "llama-2 in GGUF": lambda: pair_merges("llama-gguf"), "scalars without bytes": without_byte_tokens,
    "unigram": lambda: unigram("unigram"), "t5": lambda: unigram("t5"), "unigram in GGUF": lambda: unigram("unigram-gguf"),
}


def texts():
    rng = random.Random(SEED)
    added = SPECIAL + ["<left>", " <both> ", "<right> ", "word", "caf\u00e9", "cafe\u0301", "</s>", "<unk>", "<|end|>\n ", MARK * 2, "<unused>"]
    made = ["", " ", "  ", "Hello world", " two  spaces ", "word swords, word_ _word word", "a <left> b<right>  c  <both>  d", "1234567 890",
            "I'm you'LL 'ſ '", "x\r\n\r\n y\n", " gradientx gradientx", "\u4f60\u597d 12 \ud55c\uae00 e\u0301\u0323 \u1100\u1161\u11a8",
            " " * 40, "a" * 40, "\n" * 20, "\u00e9" * 20, "ab" * 20]
    while len(made) < TEXTS:
        made.append(goldens.line(rng, added)[:160])
    return made


def main():
    made = texts()
    rows = [json.dumps({"tokenizers": tokenizers.__version__, "transformers": transformers.__version__,
                        "sentencepiece": sentencepiece.__version__, "seed": SEED}),
            json.dumps(made, ensure_ascii=False, separators=(",", ":"))]
    for name, build in FAMILIES.items():
        built = build()
        tokenizer, metadata = built if isinstance(built, tuple) else (built, None)
        ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in made]
        back = [tokenizer.decode(row, skip_special_tokens=False) for row in ids]
        source = {"gguf": metadata} if metadata else {"tokenizer_json": tokenizer.to_str()}
        rows.append(json.dumps({
            "name": name, **source, "ids": "".join(goldens.fnv1a(row) for row in ids),
            "texts": "".join(goldens.fnv1a_bytes(text.encode()) for text in back), "first_ids": ids[:12]},
            ensure_ascii=False, separators=(",", ":")))
        print(name, tokenizer.get_vocab_size(), len(rows[-1].encode()))
    output = "\n".join(rows) + "\n"
    size = len(output.encode())
    assert size <= MAXIMUM_BYTES, size
    pathlib.Path(__file__).with_name("tokenizer_families.jsonl").write_text(output, encoding="utf-8", newline="\n")
    print(len(made), "texts,", size, "bytes")


if __name__ == "__main__":
    main()
