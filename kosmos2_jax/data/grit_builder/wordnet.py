"""From a phrase to one of a detector's classes, through WordNet's hypernyms: man -> person.

The format of the files is that of WordNet's manual, wndb(5WN), inflection follows morphy(7WN); both
are the same in 3.0 and 3.1. Of a noun's senses the first, most frequent one is meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from kosmos2_jax.data.grit_builder.detectors import DetectorError

# Endings of plural nouns and of their singular, morphy(7WN).
_ENDINGS = (
    ("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"),
    ("men", "man"), ("ies", "y"),
)  # fmt: skip
# Lexicographer files of what can be seen, lexnames(5WN): animal, artifact, body, food, object,
# person, plant, and the tops of their trees. A class of a detector is such a sense: "kite" is no
# bank cheque.
_VISIBLE = frozenset(("03", "05", "06", "08", "13", "17", "18", "20"))
# Words of the longest name that is looked up.
_LONGEST = 4

Synset = int  # offset of its line in data.noun


class WordNet:
    """Nouns of WordNet."""

    def __init__(self, folder: Path) -> None:
        """Reads index.noun, data.noun and noun.exc of a folder.

        Raises:
          DetectorError: a file is missing, or not of WordNet.
        """
        try:
            self._data = (folder / "data.noun").read_bytes()
            index = (folder / "index.noun").read_text("ascii").splitlines()
            exceptions = (folder / "noun.exc").read_text("ascii").splitlines()
            # Lines of the licence begin with blanks.
            entries = (line.split() for line in index if line and not line.startswith(" "))
            self._index = {entry[0]: _offsets(entry) for entry in entries}
            self._irregular = dict(line.split()[:2] for line in exceptions if line)
            self._line(next(iter(self._index.values()))[0])
        except (OSError, ValueError, IndexError, StopIteration) as error:
            raise DetectorError(
                f"{str(folder)!r} holds no WordNet ({error}): it must have index.noun, data.noun "
                "and noun.exc of one release."
            ) from None

    def bases(self, noun: str) -> Iterator[str]:
        """Yields what a noun in small letters may be an inflection of, the likeliest first.

        An irregular plural goes before a noun of the same form: "men" are not the work force.
        """
        if noun in self._irregular:
            yield self._irregular[noun]
        yield noun
        for ending, base in _ENDINGS:
            if noun.endswith(ending):
                yield noun.removesuffix(ending) + base

    def senses(self, base: str) -> list[Synset]:
        """Senses of a noun in its base form, without those that are one individual's name."""
        found = self._index.get(base.replace(" ", "_"), ())
        return [synset for synset in found if "@i" not in self._pointers(synset)[0::4]]

    def is_visible(self, synset: Synset) -> bool:
        """Whether it is an animal, a person, food or another thing that has a place."""
        return self._line(synset)[1] in _VISIBLE

    def closure(self, synset: Synset) -> Iterator[Synset]:
        """Yields a synset and its hypernyms, the nearest first."""
        seen, level = {synset}, [synset]
        while level:
            yield from level
            above = []
            for below in level:
                for parent in self._hypernyms(below):
                    if parent not in seen:
                        seen.add(parent)
                        above.append(parent)
            level = above

    def _hypernyms(self, synset: Synset) -> Iterator[Synset]:
        pointers = self._pointers(synset)
        for symbol, offset in zip(pointers[0::4], pointers[1::4], strict=True):
            if symbol == "@":
                yield int(offset)

    def _pointers(self, synset: Synset) -> list[str]:
        """Symbol, offset, part of speech and words of each pointer, one after the other."""
        fields = self._line(synset)
        count = 4 + 2 * int(fields[3], 16)  # words have two fields each
        return fields[count + 1 : count + 1 + 4 * int(fields[count])]

    def _line(self, synset: Synset) -> list[str]:
        line = self._data[synset : self._data.index(b"\n", synset)].decode("ascii")
        fields = line.partition(" | ")[0].split()
        if int(fields[0]) != synset:
            raise ValueError("data.noun is of another release than index.noun")
        return fields


def _offsets(entry: Sequence[str]) -> tuple[Synset, ...]:
    """Synsets of a line of index.noun: lemma, pos, their count, ..., then so many offsets."""
    return tuple(map(int, entry[-int(entry[2]) :]))


class Bridge:
    """Says which class a phrase names, if any."""

    def __init__(
        self, classes: Sequence[str], synonyms: Mapping[str, Iterable[str]], wordnet: WordNet
    ) -> None:
        """Looks the classes up.

        Args:
          classes: names. What WordNet does not know has only the phrases that say it literally.
          synonyms: other names of some classes, which phrases may say literally.
          wordnet: of both.
        """
        self._wordnet = wordnet
        self._names: dict[str, int] = {}
        self._synsets: dict[Synset, int] = {}
        for number, name in enumerate(classes):
            for word in (name, *synonyms.get(name, ())):
                self._names.setdefault(word.lower(), number)
            visible = filter(wordnet.is_visible, wordnet.senses(name.lower()))
            synset = next(visible, None)
            if synset is not None:
                self._synsets.setdefault(synset, number)

    def class_of(self, phrase: str) -> int | None:
        """Returns the class that a noun chunk names, by its number.

        A chunk ends with its noun, of which the longest known name counts: a hot dog is no dog. It
        is a class's own name, or a noun whose first sense is the class or below it, and then the
        nearest.

        Args:
          phrase: a noun chunk in any case and number.
        """
        words = re.findall(r"[^\W_]+(?:[-'][^\W_]+)*", phrase.lower())
        for length in range(min(_LONGEST, len(words)), 0, -1):
            noun = " ".join(words[-length:])
            for base in self._wordnet.bases(noun):
                if base in self._names:
                    return self._names[base]
                senses = self._wordnet.senses(base)
                if senses:
                    above = self._wordnet.closure(senses[0])
                    return next((self._synsets[s] for s in above if s in self._synsets), None)
        return None
