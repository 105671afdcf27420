"""GRIT's construction: from captioned pictures to captions whose phrases have boxes (spec 6).

Each step is a plain function: `phrases` parses captions, a detector (`detectors`) finds boxes of
their noun chunks, `selection` chooses among them, `stage` puts it together for
`kosmos2_jax.data.prepare`, and `schema` writes and counts what is published of it.
"""
