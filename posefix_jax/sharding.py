"""The only builder of a Mesh: data parallelism, the batch split over every device, the state on each."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def data_mesh() -> Mesh:
    """All devices of all processes along one axis, `data`."""
    return Mesh(np.asarray(jax.devices()), ("data",), axis_types=(AxisType.Auto,))


def split(mesh: Mesh) -> NamedSharding:
    """First axis over the devices: batches."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device: the state."""
    return NamedSharding(mesh, PartitionSpec())


def place_batch(mesh: Mesh, local):
    """This process's rows of a global batch (a pytree of NumPy arrays), as global arrays on the devices."""
    sharding = split(mesh)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array), local)
