"""The device mesh, and the only table from logical axes to mesh axes.

Models name what a dimension means ("heads", "ffn"); this module alone knows over which mesh axis that is cut. Lanes are
cut over data, fsdp and expert: attention then never repeats work over the expert axis, and a mixture of experts gathers
its tokens over that axis (few bytes) instead of its weights (many).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from tessy_jax.errors import ShardingError

MESH_AXES = ("data", "fsdp", "tensor", "expert")

RULES: dict[str, tuple[str, ...]] = {
    "lanes": ("data", "fsdp", "expert"),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "ffn": ("tensor",),
    "experts": ("expert",),
}

Axes = tuple[str | None, ...]


def parse_mesh(text: str) -> dict[str, int]:
    """`"tensor=8,data=2"` as {"tensor": 8, "data": 2}.

    Raises:
        ShardingError: not of that form, an unknown axis, or a size below 1.
    """
    sizes: dict[str, int] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, size = (piece.strip() for piece in part.partition("="))
        if name not in MESH_AXES:
            raise ShardingError(f"mesh axis {name!r} is unknown; the axes are {', '.join(MESH_AXES)}")
        if not size.isdecimal() or int(size) < 1:
            raise ShardingError(f"mesh axis {name!r} has size {size!r}; write it as {name}=8")
        if name in sizes:
            raise ShardingError(f"mesh axis {name!r} is given twice")
        sizes[name] = int(size)
    return sizes


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all four axes (size 1 where not named) over the first devices.

    Raises:
        ShardingError: the mesh needs more devices than there are.
    """
    devices = jax.devices() if devices is None else devices
    shape = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    need = math.prod(shape)
    if need > len(devices):
        named = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise ShardingError(
            f"mesh {named} needs {need} devices, {len(devices)} are there; make the axes' product at most "
            f"{len(devices)} or start on more devices"
        )
    return Mesh(np.asarray(devices[:need]).reshape(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def plan_mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    """The same mesh without devices, to plan with."""
    shape = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    return AbstractMesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


@dataclass(frozen=True)
class Partitioner:
    """Where arrays live: a mesh and the table above. `Layout()` is one device, where every method is the identity."""

    mesh: Mesh | AbstractMesh | None = None

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> Partitioner:
        """The layout of a mesh of these sizes; without any, one device.

        Raises:
            ShardingError: the mesh needs more devices than there are, or leaves out some of those of several processes.
        """
        there, wanted = jax.device_count(), math.prod(sizes.values())
        if jax.process_count() > 1 and wanted != there:
            raise ShardingError(
                f"the mesh has {wanted} devices, the {jax.process_count()} processes have {there}; make the product of its "
                f"axes {there}, e.g. mesh={{data: {there}}}"
            )
        return cls(make_mesh(sizes)) if sizes else cls()

    @property
    def size(self) -> int:
        """How many devices it has."""
        return 1 if self.mesh is None else self.mesh.size

    def num_shards(self, axis: str | None) -> int:
        """Into how many pieces the logical axis is cut."""
        if self.mesh is None or axis is None:
            return 1
        return math.prod(self.mesh.shape[name] for name in RULES.get(axis, ()))

    def spec(self, axes: Axes) -> PartitionSpec:
        return PartitionSpec(*(RULES.get(axis, ()) or None if axis else None for axis in axes))

    def sharding(self, axes: Axes) -> NamedSharding | None:
        """The sharding of an array with these logical axes; None on one device."""
        return None if self.mesh is None else NamedSharding(self.mesh, self.spec(axes))

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        sharding = self.sharding(axes)
        return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)

    def shard_shape(self, shape: Sequence[int], axes: Axes) -> tuple[int, ...]:
        """The shape that one device holds."""
        return tuple(size // self.num_shards(axis) for size, axis in zip(shape, axes, strict=True))

    def check(self, sizes: Mapping[str, tuple[int, str]]) -> None:
        """Refuses dimensions that do not divide.

        sizes: logical axis → (size, the name a user knows it by).

        Raises:
            ShardingError: naming the dimension, its size, the mesh axes and the sizes that would do.
        """
        if self.mesh is None:
            return
        for axis, (size, name) in sizes.items():
            ways = self.num_shards(axis)
            if size % ways:
                over = " × ".join(f"{mesh_axis}={self.mesh.shape[mesh_axis]}" for mesh_axis in RULES[axis])
                fits = [n for n in range(1, min(size, 4096) + 1) if size % n == 0]
                raise ShardingError(
                    f"{name} is {size}, which {over} does not divide; use a mesh whose {'×'.join(RULES[axis])} "
                    f"is one of {', '.join(map(str, fits[:16]))}"
                )

    def over_experts(
        self,
        body: Callable[..., jax.Array],
        tokens: tuple[jax.Array, ...],
        params: dict[str, jax.Array],
        axes: dict[str, Axes],
    ) -> jax.Array:
        """Runs a mixture of experts where its weights are.

        body(*tokens, params, first_expert, share) gets some tokens, the weights of the experts from first_expert on (and
        a slice of their ffn), and returns its part of the output [tokens, D]; `share` is 1.0 in exactly one of the
        slices of an expert, for what must be added once, else 0.0.
        tokens: arrays whose first dimension counts tokens, cut like lanes. params, axes: weights and their logical axes.
        """
        if self.mesh is None:
            return body(*tokens, params, 0, jnp.float32(1.0))
        (expert,), (tensor,) = RULES["experts"], RULES["ffn"]
        # the embed dimension arrives whole: fsdp gathers it, as everywhere
        specs = {key: self.spec(tuple(a if a in ("experts", "ffn") else None for a in names)) for key, names in axes.items()}
        lanes = [PartitionSpec(RULES["lanes"], *(None,) * (x.ndim - 1)) for x in tokens]

        @partial(jax.shard_map, mesh=self.mesh, in_specs=(tuple(lanes), specs), out_specs=lanes[0])
        def run(tokens: tuple[jax.Array, ...], params: dict[str, jax.Array]) -> jax.Array:
            gathered = [jax.lax.all_gather(x, expert, axis=0, tiled=True) for x in tokens]
            local = next(params[key].shape[0] for key, names in axes.items() if names[0] == "experts")
            share = (jax.lax.axis_index(tensor) == 0).astype(jnp.float32)
            partial_sum = body(*gathered, params, jax.lax.axis_index(expert) * local, share)
            return jax.lax.psum(jax.lax.psum_scatter(partial_sum, expert, scatter_dimension=0, tiled=True), tensor)

        return run(tokens, params)


def put(x: Any, partitioner: Partitioner, axes: Axes) -> jax.Array:
    """A host array on the mesh, the same in every process."""
    sharding = partitioner.sharding(axes)
    if sharding is None:
        return jnp.asarray(x)
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    values = np.asarray(x)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])
