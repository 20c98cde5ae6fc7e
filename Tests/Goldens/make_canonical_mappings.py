"""Writes Sources/EdgeFormats/Tokenizer/CanonicalMappings.swift: Unicode's canonical decompositions.

Deterministic; the version is Python's (`unicodedata.unidata_version`), which is also what the comparison with
huggingface/tokenizers has been run against.

usage: make_canonical_mappings.py
"""

import pathlib
import textwrap
import unicodedata

TARGET = pathlib.Path(__file__).parents[2] / "Sources/EdgeFormats/Tokenizer/CanonicalMappings.swift"


def mappings():
    for code in range(0x110000):
        text = unicodedata.decomposition(chr(code))
        if text and not text.startswith("<"):
            yield code, text.split(" ")


def literal(words):
    lines = textwrap.wrap(" ".join(words), 109)
    return "\n".join("        " + line + (" \\" if line is not lines[-1] else "") for line in lines)


pairs, singletons, previous = [], [], None
for code, parts in mappings():
    if len(parts) == 2:
        composes = unicodedata.normalize("NFC", chr(code)) == chr(code)
        pairs.append(f"{code:X}{'=' if composes else '>'}{'+'.join(part.lstrip('0') for part in parts)}")
    else:
        # Consecutive code points follow each other without being named.
        if previous != code - 1:
            singletons.append(f"{code:X}>")
        singletons.append(parts[0].lstrip("0"))
        previous = code

TARGET.write_text(f'''\
// Unicode {unicodedata.unidata_version}'s canonical decompositions, written by Tests/Goldens/make_canonical_mappings.py.
// `CanonicalComposition` reads them once.

enum CanonicalMappings {{
    /// Hexadecimal code points: `C0=41+300` decomposes and composes, `958>915+93C` only decomposes.
    static let pairs = """
{literal(pairs)}
        """

    /// Hexadecimal code points: `340> 300 301` maps U+0340 to U+0300 and U+0341, the next one, to U+0301.
    static let singletons = """
{literal(singletons)}
        """
}}
''')
