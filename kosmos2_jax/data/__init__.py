"""From pictures and text to batches: examples, features, readers, and the drawn scenes.

Only `features`, `document_tasks`, `packing_converter`, `streams` and `packed_pipeline` need
TensorFlow.
"""
