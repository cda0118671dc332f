"""The device mesh, and the only table from logical axes to mesh axes.

Models name the meaning of a dimension ("heads", "ffn"); only this module maps it to mesh axes. Lanes are sharded over data,
fsdp and expert: attention then repeats no work over the expert axis, and a mixture of experts gathers its tokens over that
axis (few bytes) instead of its weights (many).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

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
    """The axis sizes in a text: `"tensor=8,data=2"` gives {"tensor": 8, "data": 2}.

    Raises:
        ShardingError: another form, an unknown axis, a size below 1, or an axis given twice.
    """
    sizes: dict[str, int] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, size = (piece.strip() for piece in part.partition("="))
        if name not in MESH_AXES:
            raise ShardingError(f"mesh axis {name!r} is unknown; the axes are {', '.join(MESH_AXES)}")
        if not size.isdecimal() or int(size) < 1:
            raise ShardingError(f"mesh axis {name!r} has size {size!r}; write it as {name}=8")
        if name in sizes:
            raise ShardingError(f"mesh axis {name!r} is given twice; give each axis at most once")
        sizes[name] = int(size)
    return sizes


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with all four axes (size 1 if not named) over the first devices.

    Raises:
        ShardingError: the mesh needs more devices than are available.
    """
    devices = jax.devices() if devices is None else devices
    shape = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    need = math.prod(shape)
    if need > len(devices):
        named = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise ShardingError(
            f"mesh {named} needs {need} devices, {len(devices)} are available; make the product of the axes at most "
            f"{len(devices)} or use more devices"
        )
    return Mesh(np.asarray(devices[:need]).reshape(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def plan_mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    """The same mesh without devices, for planning."""
    shape = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    return AbstractMesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


@dataclass(frozen=True)
class Partitioner:
    """A mesh with its table of axes. `Partitioner()` is one device, on which every method is the identity.

    absent: the devices are not attached. Programs can be compiled for them, but no arrays can be placed on them: `put` and
    `zeros` return shapes.
    """

    mesh: Mesh | AbstractMesh | None = None
    absent: bool = False

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> Partitioner:
        """The partitioner of a mesh with these axis sizes; without sizes, one device.

        Raises:
            ShardingError: the mesh needs more devices than are available, or several processes have devices outside it.
        """
        available, needed = jax.device_count(), math.prod(sizes.values())
        if jax.process_count() > 1 and needed != available:
            raise ShardingError(
                f"the mesh has {needed} devices, the {jax.process_count()} processes have {available}; make the product of "
                f"its axes {available}, e.g. mesh={{data: {available}}}"
            )
        return cls(make_mesh(sizes)) if sizes else cls()

    @property
    def size(self) -> int:
        """The number of devices."""
        return 1 if self.mesh is None else self.mesh.size

    def num_shards(self, axis: str | None) -> int:
        """The number of shards of a logical axis."""
        if self.mesh is None or axis is None:
            return 1
        return math.prod(self.mesh.shape[name] for name in RULES.get(axis, ()))

    def spec(self, axes: Axes) -> PartitionSpec:
        """The mesh axes of an array with these logical axes."""
        return PartitionSpec(*(RULES.get(axis, ()) or None if axis else None for axis in axes))

    def sharding(self, axes: Axes) -> NamedSharding | None:
        """The sharding of an array with these logical axes; None on one device."""
        return None if self.mesh is None else NamedSharding(self.mesh, self.spec(axes))

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """x with the sharding of these logical axes, inside a traced function."""
        sharding = self.sharding(axes)
        return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)

    def shard_shape(self, shape: Sequence[int], axes: Axes) -> tuple[int, ...]:
        """The shape of one device's shard."""
        return tuple(size // self.num_shards(axis) for size, axis in zip(shape, axes, strict=True))

    def check(self, sizes: Mapping[str, tuple[int, str]]) -> None:
        """Checks that the mesh divides dimensions.

        sizes: logical axis → (size, name for the user).

        Raises:
            ShardingError: it does not; the message names the dimension, its size, the mesh axes and the possible sizes.
        """
        if self.mesh is None:
            return
        for axis, (size, name) in sizes.items():
            if size % self.num_shards(axis):
                over = " × ".join(f"{mesh_axis}={self.mesh.shape[mesh_axis]}" for mesh_axis in RULES[axis])
                fits = [n for n in range(1, min(size, 4096) + 1) if size % n == 0]
                raise ShardingError(
                    f"{name} is {size}, which {over} does not divide; use a mesh whose {'×'.join(RULES[axis])} "
                    f"is one of {', '.join(map(str, fits[:16]))}"
                )

    def by_shard(
        self,
        body: Callable[[dict[str, jax.Array]], tuple[jax.Array, ...]],
        arrays: dict[str, jax.Array],
        axes: dict[str, Axes],
        out_axes: tuple[Axes, ...],
    ) -> tuple[jax.Array, ...]:
        """Runs body(arrays) on each device with its shards, without communication. axes, out_axes: logical axes of the
        arrays and of the results."""
        if self.mesh is None:
            return body(arrays)
        specs = {name: self.spec(names) for name, names in axes.items()}
        out_specs = tuple(self.spec(names) for names in out_axes)
        return jax.shard_map(body, mesh=self.mesh, in_specs=(specs,), out_specs=out_specs, check_vma=False)(arrays)

    def over_experts(
        self,
        body: Callable[..., jax.Array],
        tokens: tuple[jax.Array, ...],
        params: dict[str, jax.Array],
        axes: dict[str, Axes],
    ) -> jax.Array:
        """Runs a mixture of experts on the devices that hold its weights.

        body(*tokens, params, first_expert, share) receives some tokens and the weights of the experts from first_expert on
        (and a slice of their ffn), and returns its contribution to the output [tokens, D]. `share` is 1.0 in exactly one of
        the slices of an expert and 0.0 in the others, for terms that are added once.
        tokens: arrays whose first dimension counts tokens, sharded like lanes. params, axes: weights and their logical axes.
        """
        if self.mesh is None:
            return body(*tokens, params, 0, jnp.float32(1.0))
        (expert,), (tensor,) = RULES["experts"], RULES["ffn"]
        # the embed dimension is complete here: fsdp gathers it, as everywhere
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
    """Places a host array, equal in every process, on the mesh. Returns a `ShapeDtypeStruct` if the devices are absent."""
    sharding = partitioner.sharding(axes)
    if partitioner.absent:
        return cast(jax.Array, jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.canonicalize_dtype(x.dtype), sharding=sharding))
    if sharding is None:
        return jnp.asarray(x)
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    values = np.asarray(x)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def zeros(shape: Sequence[int], dtype: Any, partitioner: Partitioner, axes: Axes) -> jax.Array:
    """An array of zeros, made on the mesh; a `ShapeDtypeStruct` if the devices are absent."""
    sharding = partitioner.sharding(axes)
    if partitioner.absent:
        return cast(jax.Array, jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=sharding))
    return jnp.zeros(shape, dtype, device=sharding)
