"""Few-shot prompts: examples of the training split that stand before what is asked."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from kosmos2_jax.data.benchmarks.records import Record
from kosmos2_jax.data.chance import chance
from kosmos2_jax.data.examples import Boxes, Example, Picture, Text
from kosmos2_jax.data.skips import DataError

R = TypeVar("R", bound=Record)


class Demonstrations(Generic[R]):
    """Examples with their answers, drawn anew for each question but always the same ones for it.

    How the papers parted demonstrations from one another is not published (spec sections 5.4 and
    5.6): here each begins with its picture, if it has one, and nothing but the space between words
    stands between them, as in the official reader of such prompts (spec section 5.1).
    """

    def __init__(
        self,
        read: Callable[[], Iterable[R]],
        build: Callable[[R], Example],
        count: int,
        seed: int,
        *,
        among_asked: bool = False,
    ) -> None:
        """Reads nothing yet.

        Args:
          read: gives the records to draw from.
          build: makes the example of a record, whose answer is text.
          count: of demonstrations before each question; 0 for none.
          seed: of the choice.
          among_asked: whether what is asked is among the records; it is never its own
            demonstration.
        """
        self._build, self._count, self._seed = build, count, seed
        self._among_asked = among_asked
        self._records = functools.cache(lambda: tuple(read()))

    def before(self, identity: str) -> tuple[Picture | Text | Boxes, ...]:
        """What stands before the question of this id.

        Raises:
          DataError: there are fewer records than demonstrations, or a picture cannot be read.
        """
        if not self._count:
            return ()
        examples = (self._build(self._records()[number]) for number in self._draw(identity))
        return tuple(_told(part) for example in examples for part in example.parts)

    def _draw(self, identity: str) -> list[int]:
        size = len(self._records())
        if size - self._among_asked < self._count:
            raise DataError(
                f"The training split has {size} examples, fewer than the {self._count} that are to "
                "be shown: get it again, or ask with fewer."
            )
        drawn: dict[int, None] = {}
        tries = 0
        while len(drawn) < self._count:
            number = int(size * chance(self._seed, "demonstration", identity, tries))
            if not (self._among_asked and self._records()[number].id == identity):
                drawn[number] = None
            tries += 1
        return list(drawn)


def _told(part: Picture | Text | Boxes) -> Picture | Text | Boxes:
    """The answer is there to be read, not to be given."""
    return dataclasses.replace(part, is_target=False) if isinstance(part, Text) else part
