"""From the engine's thread to the server's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from kosmos2_jax.inference.requests import Handle, Output, Piece
from kosmos2_jax.serving.settings import RequestError


async def follow(handle: Handle, deadline: float) -> AsyncIterator[Piece]:
    """The pieces of a request as they are written; whoever stops listening cancels it.

    Args:
      handle: of the request.
      deadline: when to give up, by the clock of the loop.

    Raises:
      RequestError: the time is over.
      Exception: whatever stopped the engine.
    """
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[Piece | None] = asyncio.Queue()

    def deliver(piece: Piece | None) -> None:
        try:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)
        except RuntimeError:  # the loop has ended: nobody listens any more
            handle.cancel()

    handle.listen(deliver)
    try:
        while (piece := await asyncio.wait_for(pieces.get(), deadline - loop.time())) is not None:
            yield piece
    except TimeoutError:
        raise RequestError(
            "The answer took too long and was given up: ask for fewer tokens, or try again later.",
            status=504,
            code="timeout",
        ) from None
    finally:
        handle.cancel()
    handle.result()  # raises what stopped the engine


async def outputs_of(handle: Handle, deadline: float) -> tuple[Output, ...]:
    """Waits for all outputs; raises as `follow`."""
    async for _ in follow(handle, deadline):
        pass
    return handle.result()
