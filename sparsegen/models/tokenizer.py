"""A text in, the ids of its symbols out: CLIP's byte-pair encoding, as the text encoders of Stable Diffusion expect it.

A text is composed (NFC), its blanks collapse to one, its characters become lower case one by one. Words are a
contraction's end ('s, 't, 're, 've, 'm, 'll, 'd), letters, one digit, or a run of anything else. The UTF-8 bytes of a
word, the last one marked, are merged pair by pair, the pair of lowest rank first. `<|startoftext|>` and `<|endoftext|>`
in a text are the two ids of these names.

Sources: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", arXiv 1508.07909;
github.com/openai/CLIP (clip/simple_tokenizer.py); github.com/huggingface/transformers (the fast tokenizer of
models/clip), which leaves curly quotes as they are and decides where the two differ.

What a character is (letter, digit, its composition) is that of Python's version of Unicode. transformers has other
versions built in: the ids may differ for a newer character, and for combining marks younger than Unicode 9.
"""

from __future__ import annotations

import heapq
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .vocabulary import ALPHABET, END, LAST, START, Vocabulary, read_vocabulary, shipped_vocabulary

LENGTH = 77
"""Ids that CLIP's text encoders take."""

_SPECIAL = re.compile("(" + "|".join(map(re.escape, (START, END))) + ")")
_BLANKS = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
"""Unicode's White_Space. Python's \\s has four control characters more."""
_WORD = re.compile("'(?:s|t|re|ve|m|ll|d)|[a-z]+|[0-9]|[^ a-z0-9]+")
"""A word, in a text of which `_kind` has replaced each character."""
_BYTES = {character: byte for byte, character in enumerate(ALPHABET)}


@dataclass(frozen=True)
class Tokens:
    """A text as a text encoder takes it.

    Attributes
    ----------
    ids : int32 [length]
        The start, the text's symbols, the end, and padding up to `length`.
    count : int
        The ids before the padding: the text's symbols, its start and its end.
    cut : str
        The end of the text, in lower case, that did not fit; "" if all of it did. The end's name stands in it for a
        byte that the vocabulary has no symbol for.
    unknown : tuple of str
        The words with bytes that the vocabulary has no symbol for, each once. CLIP's vocabulary has all bytes.
    """

    ids: NDArray[np.int32]
    count: int
    cut: str
    unknown: tuple[str, ...]


class Tokenizer:
    """CLIP's tokenizer.

    Parameters
    ----------
    vocabulary : Vocabulary, optional
        Default: CLIP's, which is in the package.
    padding : int, optional
        The id that fills up the length: 0 for Stable Diffusion 2.x. Default: the end's, for 1.x. Id 0 belongs to `!`,
        which in a text stays a word (id 256), as in OpenCLIP's training; transformers makes it 0 where 0 pads.

    Raises
    ------
    InputError
        `padding` is not an id of the vocabulary.
    """

    def __init__(self, vocabulary: Vocabulary | None = None, *, padding: int | None = None) -> None:
        self.vocabulary = shipped_vocabulary() if vocabulary is None else vocabulary
        self.padding = self.vocabulary.end if padding is None else padding
        size = len(self.vocabulary.ids)
        if not 0 <= self.padding < size:
            raise InputError(f"padding is {padding}, expected an id of the vocabulary: 0 to {size - 1}")
        self._symbols = {i: symbol for symbol, i in self.vocabulary.ids.items()}

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str], *, padding: int | None = None) -> Tokenizer:
        """The tokenizer of a folder with `tokenizer.json`, or with `vocab.json` and `merges.txt`.

        Raises CheckpointError (see `read_vocabulary`), and InputError for a wrong `padding`.
        """
        return cls(read_vocabulary(folder), padding=padding)

    def encode(self, text: str, length: int = LENGTH) -> Tokens:
        """The ids of a text, cut or padded to `length`.

        Raises
        ------
        InputError
            `text` is not a string or holds half a surrogate pair, or `length` has no room for start and end.
        """
        if not isinstance(text, str):
            raise InputError(f"the text is of type {type(text).__name__}, expected str")
        if length < 2:
            raise InputError(f"length is {length}, expected at least 2: the start and the end")
        half = re.search("[\ud800-\udfff]", text)
        if half:
            raise InputError(
                f"character {half.start()} of the text is {half[0]!a}, half of a surrogate pair,"
                " expected Unicode text: decode it as UTF-8"
            )
        ids: list[int] = []
        unknown: dict[str, None] = {}
        for word in words(text):
            if word in (START, END):
                ids.append(self.vocabulary.ids[word])
                continue
            found = self._merged(word)
            ids += found
            if self.vocabulary.end in found:
                unknown[word] = None
        kept = [self.vocabulary.start, *ids[: length - 2], self.vocabulary.end]
        padded = np.full(length, self.padding, np.int32)
        padded[: len(kept)] = kept
        return Tokens(padded, len(kept), self.decode(ids[length - 2 :]), tuple(unknown))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some symbols, a blank between words; bytes that are no UTF-8 become U+FFFD."""
        raw = bytearray()
        for i in ids:
            symbol = self._symbols[i]
            if symbol in (START, END):
                raw += f"{symbol} ".encode()
                continue
            raw += bytes(_BYTES[character] for character in symbol.removesuffix(LAST))
            raw += b" " * symbol.endswith(LAST)
        return raw.decode("utf-8", "replace").strip(" ")

    def _merged(self, word: str) -> tuple[int, ...]:
        """The ids of one word.

        The pair of lowest rank is merged first, of several the leftmost. A heap of pairs and a chain of the symbols
        left make this n·log n for a word of n bytes.
        """
        *first, last = (ALPHABET[byte] for byte in word.encode("utf-8"))
        ids = [self.vocabulary.ids.get(each, self.vocabulary.end) for each in (*first, last + LAST)]
        before, after = list(range(-1, len(ids) - 1)), list(range(1, len(ids) + 1))
        heap: list[tuple[int, int, int, int]] = []

        def push(left: int) -> None:
            """Note the pair that begins at a place, if it can be merged."""
            if left >= 0 and after[left] < len(ids):
                pair = ids[left], ids[after[left]]
                merge = self.vocabulary.merges.get(pair)
                if merge is not None:
                    heapq.heappush(heap, (merge[0], left, *pair))

        for place in range(len(ids)):
            push(place)
        while heap:
            _, left, *pair = heapq.heappop(heap)
            right = after[left]
            if right == len(ids) or [ids[left], ids[right]] != pair:
                continue  # one of the two was merged with its other neighbour
            ids[left], ids[right] = self.vocabulary.merges[pair[0], pair[1]][1], -1
            after[left] = after[right]
            if after[left] < len(ids):
                before[after[left]] = left
            push(before[left])
            push(left)
        return tuple(i for i in ids if i >= 0)


def words(text: str) -> Iterator[str]:
    """The words of a text: composed, in lower case, without blanks; start and end by their names."""
    text = _BLANKS.sub(" ", unicodedata.normalize("NFC", text))
    # not text.lower(), which makes a final ς of a Σ at the end of a word
    text = "".join(map(str.lower, text))
    for piece in _SPECIAL.split(text):
        if piece in (START, END):
            yield piece
        else:
            for match in _WORD.finditer("".join(map(_kind, piece))):
                yield piece[match.start() : match.end()]


def _kind(character: str) -> str:
    """An ASCII character of the same kind: itself; a letter that ends no contraction; a digit; neither."""
    if character.isascii():
        return character
    return {"L": "a", "N": "0"}.get(unicodedata.category(character)[0], "!")
