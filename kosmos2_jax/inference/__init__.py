"""Generation and prediction, from the inside outwards.

`prompt_batch` makes rows of texts and pictures; `sampling`, `ngram` and `grammar` choose tokens;
`decoding` is the compiled loop over a fixed batch, `rows` and `engine` run its parts over a queue
of `requests`; `beam_search` and `scoring` hold several continuations in one row of the cache;
`reading` makes grounded text of outputs. `questions` says what can be asked, and `predictor` puts
everything together.
"""
