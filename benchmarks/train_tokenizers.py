"""Trains vocabularies for the families whose own cannot be had from a package, for compare_tokenizers.py.

    train_tokenizers.py DIRECTORY [TEXT FILE…]

Writes gemma.model, unigram.model and unigram-bytes.model (SentencePiece), stablelm-2.json, phi-4.json, falcon-3.json and
tekken.json (byte-level, with the family's normalizer and pre-tokenizer). Text: the files, and lines of the goldens' generator.
"""

import pathlib
import random
import sys

import sentencepiece
from tokenizers import AddedToken, pre_tokenizers, trainers

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "Tests/Goldens"))
import make_tokenizer_goldens as goldens  # noqa: E402
from tokenizer_families import MARK, byte_level_tokenizer  # noqa: E402

# The row of PRE_TOKENIZERS that the family's tokenizer.json has.
BYTE_LEVEL = {"stablelm-2": "qwen-2", "phi-4": "olmo-2", "falcon-3": "llama-3", "tekken": "tekken"}
SIZE = 8000


def corpus(files):
    rng = random.Random(1)
    lines = [line for file in files for line in pathlib.Path(file).read_text(errors="replace").split("\n")]
    return lines[:40_000] + [goldens.line(rng, ["x"]).replace("\0", "") for _ in range(8000)]


def train_sentencepiece(file, lines, **options):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(file.with_suffix("")), vocab_size=SIZE, hard_vocab_limit=False,
        minloglevel=2, num_threads=2, character_coverage=0.995, max_sentence_length=20000, **options)


def main():
    directory = pathlib.Path(sys.argv[1])
    lines = corpus(sys.argv[2:])
    runs = [MARK * n for n in range(2, 9)] + ["\n" * n for n in range(1, 5)]
    train_sentencepiece(
        directory / "gemma.model", lines, model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
        add_dummy_prefix=False, remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        user_defined_symbols=runs + ["<start_of_turn>", "<end_of_turn>"])
    train_sentencepiece(directory / "unigram.model", lines, model_type="unigram", normalization_rule_name="nmt_nfkc")
    train_sentencepiece(
        directory / "unigram-bytes.model", lines, model_type="unigram", byte_fallback=True,
        normalization_rule_name="nmt_nfkc")
    for name, row in BYTE_LEVEL.items():
        tokenizer = byte_level_tokenizer(row, {}, [])
        if name == "stablelm-2":
            tokenizer.normalizer = None  # only Qwen composes
        tokenizer.train_from_iterator(lines, trainers.BpeTrainer(
            vocab_size=SIZE, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
            special_tokens=[AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]))
        tokenizer.save(str(directory / f"{name}.json"))


if __name__ == "__main__":
    main()
