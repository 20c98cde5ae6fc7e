"""The families' tokenizer.json as huggingface/tokenizers' objects: what stands around a vocabulary.

Sources: the published tokenizer.json of each family; transformers, convert_slow_tokenizer.py, for those that are converted.
"""

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

MARK = "\u2581"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN35 = (CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
CASED1 = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
CASED2 = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
CASED_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT4O = f"{CASED1}{CONTRACTION}?|{CASED2}{CONTRACTION}?|\\p{{N}}{{1,3}}{CASED_REST}"
TEKKEN = f"{CASED1}|{CASED2}|\\p{{N}}{CASED_REST}"
DEEPSEEK = ("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
            "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+")


def byte_level(use_regex=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split(expression, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(expression), behavior, invert)


def sequence(*steps):
    return pre_tokenizers.Sequence(list(steps))


# What the families' tokenizer.json put before a byte-level model.
PRE_TOKENIZERS = {
    "gpt-2": lambda: byte_level(True),
    "smollm": lambda: sequence(pre_tokenizers.Digits(individual_digits=True), byte_level(True)),
    "llama-3": lambda: sequence(split(LLAMA3), byte_level()),
    "olmo-2": lambda: sequence(split(LLAMA3, "removed", True), byte_level()),
    "qwen-2": lambda: sequence(split(QWEN2), byte_level()),
    "qwen-3.5": lambda: sequence(split(QWEN35), byte_level()),
    "gpt-4o": lambda: sequence(split(GPT4O), byte_level()),
    "tekken": lambda: sequence(split(TEKKEN), byte_level()),
    "falcon": lambda: sequence(
        pre_tokenizers.Punctuation("contiguous"), byte_level(True), pre_tokenizers.Digits(individual_digits=False),
        split("[0-9][0-9][0-9]")),
    "deepseek-3": lambda: sequence(
        split(r"\p{N}{1,3}"), split("[一-龥\u3040-ゟ゠-ヿ]+"), split(DEEPSEEK), byte_level()),
}
IGNORES_MERGES = {"llama-3", "tekken", "llama-4"}

def mark_spaces(prefix=True):
    replace = normalizers.Replace(" ", MARK)
    return normalizers.Sequence([normalizers.Prepend(MARK), replace]) if prefix else replace


def byte_fallback_decoder(prefix=True):
    steps = [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if prefix else []))


def byte_level_tokenizer(family, vocabulary, merges):
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=family in IGNORES_MERGES))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[{"llama-4": "gpt-4o"}.get(family, family)]()
    if family.startswith("qwen"):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
