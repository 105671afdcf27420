"""JSON from strangers: every value is checked when it is taken out."""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Callable
from typing import Any, TypeVar

from kosmos2_jax.errors import nearest
from kosmos2_jax.inference.sampling import SamplingConfig
from kosmos2_jax.serving.settings import RequestError, ServerSettings

T = TypeVar("T")

MAX_STOP_STRINGS = 4  # as OpenAI's
_NAMES = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}


def read_json(body: bytes) -> Any:
    """Raises `RequestError` where it is no JSON."""
    try:
        return json.loads(body)
    except RecursionError:
        raise RequestError("The body is JSON that is nested too deeply.") from None
    except ValueError as error:  # also of bytes that are not UTF-8, and numbers without end
        raise RequestError(f"The body is not JSON: {error}.") from None


class Fields:
    """A JSON object; null is taken for a field that is left out, as OpenAI does."""

    def __init__(self, data: Any, path: str = "") -> None:
        """Takes what `json` read; `path` says where in the request it stands."""
        self._path = path
        self._seen: list[str] = []
        if not isinstance(data, dict):
            raise RequestError(
                f"{path or 'The body'} must be an object, not {_kind(data)}.", param=path or None
            )
        self._data = data

    def path(self, name: str) -> str:
        """How a field is called in messages."""
        return f"{self._path}.{name}" if self._path else name

    def error(self, name: str, fault: str) -> RequestError:
        """An error that blames a field."""
        path = self.path(name)
        return RequestError(f"{path} {fault}.", param=path)

    def any(self, name: str) -> Any:
        """The value as it is, None if there is none."""
        self._seen.append(name)
        return self._data.get(name)

    def text(self, name: str, default: str | None = None) -> str | None:
        """A string that can be encoded."""
        value = self._checked(name, lambda value: isinstance(value, str), "a string", default)
        return None if value is None else self.clean(name, value)

    def clean(self, name: str, text: str) -> str:
        """The string itself; half characters, which JSON can spell, are refused."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise self.error(name, "holds half of a character (a lone surrogate)") from None
        return text

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        return self._checked(name, lambda value: isinstance(value, bool), "true or false", default)

    def whole(self, name: str, default: T, low: int, high: int) -> int | T:
        """A whole number from low to high."""
        return self._checked(
            name,
            lambda value: type(value) is int and low <= value <= high,
            f"a whole number from {low} to {high}",
            default,
        )

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number from low to high."""
        return self._checked(
            name,
            # Whole numbers of any length compare; only small ones become floats.
            lambda value: type(value) in (int, float) and low <= value <= high,
            f"a number from {low:g} to {high:g}",
            default,
        )

    def list(self, name: str) -> list[Any]:
        """A list, empty if there is none."""
        return self._checked(name, lambda value: isinstance(value, list), "a list", [])

    def ignore(self, *names: str) -> None:
        """Lets fields pass that change nothing about the answer."""
        self._seen += names

    def end(self) -> None:
        """Refuses fields that nobody asked for: a mistyped one would do nothing silently."""
        for name, value in self._data.items():
            if name not in self._seen and value is not None:
                raise RequestError(
                    f"There is no field {self.path(name)!r} here; {nearest(name, self._seen)}",
                    code="unknown_parameter",
                    param=self.path(name),
                )

    def _checked(self, name: str, good: Callable[[Any], bool], what: str, default: Any) -> Any:
        value = self.any(name)
        if value is None:
            return default
        if not good(value):
            raise self.error(name, f"must be {what}, not {_kind(value)}")
        return value


def _kind(value: Any) -> str:
    if type(value) in (int, float):
        # Also of "nan" and "inf", as which Python reads what is no JSON strictly.
        return "such a large number" if abs(value) > 1e15 else str(value)
    return "null" if value is None else _NAMES.get(type(value), type(value).__name__)


def read_sampling(
    fields: Fields, default: SamplingConfig, settings: ServerSettings, has_grammar: bool
) -> SamplingConfig:
    """How to write, from the fields that OpenAI's requests have and some more.

    Args:
      fields: of the request.
      default: of the model.
      settings: of the server.
      has_grammar: whether the model has location tokens: then `grammar` is on unless told.

    Raises:
      RequestError: a field has a wrong value.
    """
    longest = settings.max_new_tokens
    limit = min(default.max_new_tokens, longest)
    limit = fields.whole("max_tokens", limit, 1, longest)
    limit = fields.whole("max_completion_tokens", limit, 1, longest)
    for name in ("presence_penalty", "frequency_penalty"):
        if fields.number(name, 0, -2, 2):
            raise fields.error(name, "is not supported: use repetition_penalty")
    top_p = fields.number("top_p", 1.0, 0, 1)
    if not top_p:
        raise fields.error("top_p", "must be more than 0")
    return dataclasses.replace(
        default,
        max_new_tokens=limit,
        temperature=float(fields.number("temperature", 0.0, 0, 2)),
        top_p=float(top_p),
        top_k=fields.whole("top_k", 0, 0, 1_000_000),
        repetition_penalty=float(fields.number("repetition_penalty", 1.0, 0.01, 100)),
        seed=fields.whole("seed", secrets.randbits(32), 0, 2**32 - 1),
        num_outputs=fields.whole("n", 1, 1, settings.max_outputs),
        stop_strings=_stop_strings(fields),
        grammar=fields.flag("grammar", has_grammar),
    )


def _stop_strings(fields: Fields) -> tuple[str, ...]:
    stop = fields.any("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    if (
        not isinstance(stops, list)
        or len(stops) > MAX_STOP_STRINGS
        or not all(isinstance(value, str) and value for value in stops)
    ):
        raise fields.error(
            "stop", f"must be a string or at most {MAX_STOP_STRINGS} of them, none empty"
        )
    return tuple(fields.clean("stop", value) for value in stops)
