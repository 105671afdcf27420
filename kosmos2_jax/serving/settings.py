"""What the operator of a server decides, and how a request is refused."""

from __future__ import annotations

import dataclasses

from kosmos2_jax.errors import ConfigError, Kosmos2Error
from kosmos2_jax.ranges import COUNT, Range, check_ranges

_MEBIBYTE = 2**20


class RequestError(Kosmos2Error):
    """A request that is answered by an error.

    Attributes:
      status: of HTTP.
      code: a word for programs, as in OpenAI's errors.
      param: the field that is to blame, if one is.
    """

    def __init__(
        self, message: str, status: int = 400, code: str = "invalid_value", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """Limits and rights of a server. Defaults are our choice, for a machine that is shared.

    Attributes:
      model: name by which clients ask for the model.
      api_keys: one of them must come with each request; empty for no such rule.
      max_body_bytes: of a request, and of a remote picture.
      max_pixels: of a picture, refused before one of them is decoded.
      max_images: of a request.
      max_outputs: of a request: outputs, times phrases where several are looked for.
      max_new_tokens: of an output.
      max_requests: that are worked on or wait at the same time; further ones get 503.
      timeout: seconds for sending a request, and then for its answer.
      allow_remote_images: whether pictures may be given by http and https addresses.
    """

    model: str = "kosmos-2"
    api_keys: tuple[str, ...] = ()
    max_body_bytes: int = 16 * _MEBIBYTE
    max_pixels: int = 40_000_000
    max_images: int = 8
    max_outputs: int = 16
    max_new_tokens: int = 512
    max_requests: int = 128
    timeout: float = 120.0
    allow_remote_images: bool = False

    def __post_init__(self) -> None:
        limits = [f.name for f in dataclasses.fields(self) if f.name.startswith("max_")]
        check_ranges({**dict.fromkeys(limits, COUNT), "timeout": Range(above=0)}, vars(self))
        if not all(key.isascii() and key.strip() == key and key for key in self.api_keys):
            raise ConfigError("an API key is empty, or has blanks or letters that are not ASCII")
