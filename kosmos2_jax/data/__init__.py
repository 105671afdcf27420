"""From pictures and text to batches: examples, features, readers, and the drawn scenes.

Only `features`, `preprocessing`, `converter` and `pipeline` need TensorFlow.
"""
