"""A tokenizer's folder in, or nothing; the symbols, their ids and their merges out.

A folder holds `tokenizer.json`, or `vocab.json` and `merges.txt`. Without a folder the vocabulary is CLIP's, which
Stable Diffusion 1.x and 2.x share: `merges.txt.gz`, the first line and the 48,894 merges that count of OpenAI's file,
whose MIT licence is beside it. It was made by

    pip download --no-deps clip-anytorch==2.6.0
    unzip -p clip_anytorch-2.6.0-*.whl clip/bpe_simple_vocab_16e6.txt.gz |
        gunzip | head -n 48895 | gzip -9n > merges.txt.gz

Sources: github.com/openai/CLIP (clip/simple_tokenizer.py) for the order of ids; github.com/huggingface/transformers
(models/clip) and github.com/huggingface/tokenizers (models/bpe) for the files.
"""

from __future__ import annotations

import gzip
import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sparsegen.weights import CheckpointError, listed, shown

START, END = "<|startoftext|>", "<|endoftext|>"
LAST = "</w>"
"""What a symbol at the end of a word ends with."""
SHIPPED = Path(__file__).parent / "merges.txt.gz"

_HEADER = "#version"
_LONGEST_FILE = 8 << 20
"""Bytes. CLIP's tokenizer.json has 3.6 million, its vocab.json 0.9, its merges.txt 0.5."""
_AGAIN = "Download or copy the folder again"
_OMIT = "Omit the folder to use CLIP's vocabulary, which is in the package"
_NORMALIZERS, _SPLITTERS = ["NFC", "Replace", "Lowercase"], ["Split", "ByteLevel"]
"""The steps of CLIP's tokenizer.json before its merges."""
_MODEL = {
    "type": ("BPE",),
    "end_of_word_suffix": (LAST,),
    "continuing_subword_prefix": ("", None),
    "dropout": (None, 0),
    "byte_fallback": (False, None),
    "ignore_merges": (False, None),
    "fuse_unk": (False, None),
    "unk_token": (END, None),
}
"""Options of tokenizer.json's model -> the values of CLIP's; None: also where it is absent."""


def _alphabet() -> tuple[str, ...]:
    """The character for each of the 256 bytes: itself if it is printable Latin-1, else the next one from U+0100."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return tuple(chr(byte if byte in plain else 0x100 + others.index(byte)) for byte in range(256))


ALPHABET = _alphabet()
"""Byte -> the character that stands for it in symbols."""


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of a byte-pair encoding.

    Attributes
    ----------
    ids : dict of str to int
        Symbol -> its id; the ids are 0, 1, … without a gap. A symbol's characters stand for bytes (`ALPHABET`); at the
        end of a word it ends with `</w>`.
    merges : dict of (int, int) to (int, int)
        Ids of two neighbouring symbols -> the merge's rank (the lowest is done first), and the id that replaces both.
    """

    ids: dict[str, int]
    merges: dict[tuple[int, int], tuple[int, int]]

    @property
    def start(self) -> int:
        """The id that every text begins with."""
        return self.ids[START]

    @property
    def end(self) -> int:
        """The id after a text, which also stands for a character without a symbol."""
        return self.ids[END]


@lru_cache(maxsize=1)
def shipped_vocabulary() -> Vocabulary:
    """CLIP's 49,408 symbols: 256 bytes, the same at the end of a word, one for each merge, start and end."""
    pairs = _pairs(gzip.decompress(SHIPPED.read_bytes()).decode("utf-8"), SHIPPED)
    # the printable bytes come before the others
    letters = sorted(ALPHABET)
    symbols = [*letters, *(letter + LAST for letter in letters), *map("".join, pairs), START, END]
    return _vocabulary({symbol: i for i, symbol in enumerate(symbols)}, pairs, SHIPPED, SHIPPED)


def read_vocabulary(folder: str | os.PathLike[str]) -> Vocabulary:
    """Read the vocabulary in a folder: `tokenizer.json` if it exists, else `vocab.json` and `merges.txt`.

    Only CLIP's kind is read: its steps, its start and end. Symbols and merges may be others, as in a small vocabulary.

    Raises
    ------
    CheckpointError
        The folder holds neither, a file is damaged, too large or of another kind of tokenizer, the merges do not make
        the symbols (a truncated file), or there are added tokens that the vocabulary does not have.
    """
    top = Path(folder)
    whole, vocab, merges = top / "tokenizer.json", top / "vocab.json", top / "merges.txt"
    if os.path.lexists(whole):
        return _of_tokenizer_json(_json(whole), whole)
    missing = [path.name for path in (vocab, merges) if not os.path.lexists(path)]
    if missing:
        raise CheckpointError(
            f"has no {' and no '.join(missing)}, expected tokenizer.json, or vocab.json and merges.txt",
            path=str(top),
            advice=_AGAIN if len(missing) == 1 else f"Give a tokenizer's folder. {_OMIT}",
        )
    found = _vocabulary(_json(vocab), _pairs(_text(merges), merges), vocab, merges)
    added = top / "added_tokens.json"
    if os.path.lexists(added):
        _refuse_added(_json(added), found, added)
    return found


def packed(vocabulary: Vocabulary) -> bytes:
    """A vocabulary as JSON in UTF-8: its symbols in the order of their ids, its merges in the order of their ranks."""
    symbols = sorted(vocabulary.ids, key=vocabulary.ids.__getitem__)
    pairs = sorted(vocabulary.merges, key=vocabulary.merges.__getitem__)
    merges = [[symbols[left], symbols[right]] for left, right in pairs]
    return json.dumps({"symbols": symbols, "merges": merges}, ensure_ascii=False).encode()


def unpacked(raw: bytes, path: str | os.PathLike[str]) -> Vocabulary:
    """The vocabulary that `packed` made; `path` is its file, for messages. Raises CheckpointError: it did not."""
    place = Path(path)
    found = _parsed(raw, place)
    symbols, merges = _items(found.get("symbols")), _items(found.get("merges"))
    pairs = [tuple(_items(pair)) for pair in merges]
    texts = [*symbols, *(each for pair in pairs for each in pair)]
    if not all(isinstance(each, str) for each in texts) or any(len(pair) != 2 for pair in pairs):
        raise _damaged("its vocabulary is not a list of symbols and a list of pairs of them", place)
    ids = {symbol: i for i, symbol in enumerate(symbols)}
    return _vocabulary(ids, [(left, right) for left, right in pairs], place, place)


def _of_tokenizer_json(parsed: dict[str, Any], path: Path) -> Vocabulary:
    """The vocabulary in a tokenizer.json, which must do what CLIP's does."""
    model = parsed.get("model")
    if not isinstance(model, dict):
        raise _damaged("has no table `model`", path)
    for option, allowed in _MODEL.items():
        value = model.get(option)
        if isinstance(value, (list, dict)) or value not in allowed:
            raise _another(f"its model has {option} {shown(value)}, expected {shown(allowed[0])}", path)
    for step, inner, expected in (
        ("normalizer", "normalizers", _NORMALIZERS),
        ("pre_tokenizer", "pretokenizers", _SPLITTERS),
    ):
        sequence = parsed.get(step)
        steps = sequence.get(inner) if isinstance(sequence, dict) else None
        kinds = [each.get("type") if isinstance(each, dict) else None for each in _items(steps)]
        if kinds != expected:
            raise _another(f"its {step} is not CLIP's: {', '.join(expected)}", path)
    vocab = model.get("vocab")
    if not isinstance(vocab, dict):
        raise _damaged("has no table `vocab` in its model", path)
    pairs: list[tuple[str, str]] = []
    for merge in _items(model.get("merges")):
        pair: Sequence[Any] = merge.split(" ") if isinstance(merge, str) else _items(merge)
        if len(pair) != 2 or not all(isinstance(each, str) and each for each in pair):
            raise _damaged(f"its merge {len(pairs)} is not two symbols", path)
        pairs.append((pair[0], pair[1]))
    found = _vocabulary(vocab, pairs, path, path)
    added = [each if isinstance(each, dict) else {} for each in _items(parsed.get("added_tokens"))]
    _refuse_added({str(each.get("content")): each.get("id") for each in added}, found, path)
    return found


def _vocabulary(
    ids: dict[str, Any], pairs: Sequence[tuple[str, str]], vocab: Path, merges: Path
) -> Vocabulary:
    """Symbols and merges that fit each other. Raises CheckpointError for the file whose fault it is."""
    numbers = list(ids.values())
    if not all(type(each) is int for each in numbers) or sorted(numbers) != list(range(len(numbers))):
        raise _damaged(
            f"its {len(numbers)} symbols do not have the ids 0 to {len(numbers) - 1}, each once", vocab
        )
    missing = [each for each in (START, END) if each not in ids]
    if missing:
        raise _another(f"its vocabulary lacks {' and '.join(missing)}", vocab)
    table: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, (left, right) in enumerate(pairs):
        unknown = [each for each in (left, right, left + right) if each not in ids]
        if unknown:
            raise _damaged(
                f"merge {rank} ({shown(left)} {shown(right)}) uses symbols that the vocabulary lacks:"
                f" {listed([shown(each) for each in unknown])}",
                merges,
            )
        table[ids[left], ids[right]] = rank, ids[left + right]
    made = {START, END, *ALPHABET, *(letter + LAST for letter in ALPHABET)}
    made.update(left + right for left, right in pairs)
    orphans = [symbol for symbol in ids if symbol not in made]
    if orphans:
        raise _damaged(
            f"its {len(pairs)} merges do not make {len(orphans)} of the vocabulary's {len(ids)} symbols:"
            f" {listed([shown(each) for each in orphans], 4)}",
            merges,
        )
    return Vocabulary(ids, table)


def _refuse_added(added: dict[str, Any], vocabulary: Vocabulary, path: Path) -> None:
    """Raise CheckpointError for tokens beside the vocabulary, such as those of textual inversion."""
    beside = [token for token, i in added.items() if vocabulary.ids.get(token, -1) != i]
    if beside:
        raise CheckpointError(
            f"adds {len(beside)} tokens to the vocabulary, which is not supported:"
            f" {listed([shown(each) for each in beside], 4)}",
            path=str(path),
            advice=_OMIT,
        )


def _pairs(text: str, path: Path) -> list[tuple[str, str]]:
    """The merges in a merges.txt: after its first line, two symbols in each."""
    first, *lines = text.rstrip("\n").split("\n")
    if _HEADER not in first:
        raise _damaged(f"begins with {shown(first)}, expected {_HEADER}: 0.2", path)
    pairs = []
    for number, line in enumerate(lines, 2):
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2 or not all(pair):
            raise _damaged(
                f"line {number} is {shown(line)}, expected two symbols and a blank between them", path
            )
        pairs.append((pair[0], pair[1]))
    return pairs


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _json(path: Path) -> dict[str, Any]:
    return _parsed(_text(path), path)


def _parsed(text: str | bytes, path: Path) -> dict[str, Any]:
    """The object in a file's JSON. Raises CheckpointError."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _damaged("is not a JSON object", path)
    return found


def _text(path: Path) -> str:
    """A regular file's text. Raises CheckpointError."""
    try:
        # Checked before opening: opening a pipe would wait for its writer for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise _damaged("is not a regular file", path)
        with open(path, "rb") as file:
            raw = file.read(_LONGEST_FILE + 1)
    except OSError as error:
        raise CheckpointError(
            f"cannot be opened: {error.strerror or error}", path=str(path), advice=_AGAIN
        ) from error
    if len(raw) > _LONGEST_FILE:
        raise _another(f"has more than {_LONGEST_FILE >> 20} MiB, the most that is read", path)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(f"is not UTF-8 text (byte {error.start})", path) from error


def _damaged(problem: str, path: Path) -> CheckpointError:
    return CheckpointError(problem, path=str(path), advice=_AGAIN)


def _another(problem: str, path: Path) -> CheckpointError:
    return CheckpointError(
        problem, path=str(path), advice=f"Give the folder of a Stable Diffusion tokenizer. {_OMIT}"
    )
