"""Kosmos-2 over HTTP: OpenAI's chat completions with boxes, and plain grounding."""
