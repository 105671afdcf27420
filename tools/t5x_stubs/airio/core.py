"""Names of airio that t5x compares types with; nothing here is an airio task or mixture."""

import types


class Task: ...


class Mixture: ...


class DatasetProviderBase: ...


class AirIODatasetIterator: ...


dataset_providers = types.SimpleNamespace(get_vocabularies=None)
