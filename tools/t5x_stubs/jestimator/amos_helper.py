"""See `amos`."""


def state_partition_rule(state: object, params_axes: object) -> None:
    raise NotImplementedError("the Amos optimiser needs the real jestimator")
