import io
import json
from dataclasses import replace

import numpy as np
import pytest

from tessy_jax.decode.response_state import ResponseState, TokenizedView
from tessy_jax.decode.state import ANSWER, RUNNING, LaneScalars
from tessy_jax.errors import DataError
from tessy_jax.synthesis.snapshot import InFlight, pack, unpack

SCALARS = LaneScalars(
    thinkers=3,
    answerer=1,
    sample=2**32 - 1,
    attempt=2,
    speaker=1,
    phase=ANSWER,
    thinking_bytes=4,
    generated=(7, 5),
    discarded=(2, 1),
    switches=3,
    status=RUNNING,
)
STATE = ResponseState(
    (TokenizedView([1, 2, 3], 1, [2, 5]), TokenizedView([4, 5], 1, [5])), SCALARS, b"hello", bytes([0, 0, 1, 1, 2])
)


def test_unfinished_responses_survive_a_snapshot():
    unfinished = [InFlight(("a", 0), 2, STATE, 1.5), InFlight(("b", 1), 1, None, 0.0)]
    assert unpack(pack(unfinished)) == unfinished


def of_another_version(change):
    """A blob with one unfinished response whose scalars `change` changes."""
    with np.load(io.BytesIO(pack([InFlight(("a", 0), 2, STATE, 1.5)]))) as data:
        arrays = dict(data)
    index = json.loads(arrays["index"].tobytes())
    change(index[0]["entry"])
    buffer = io.BytesIO()
    np.savez(buffer, **(arrays | {"index": np.frombuffer(json.dumps(index).encode(), np.uint8)}))
    return buffer.getvalue()


def test_a_scalar_that_an_older_version_did_not_store_has_its_default():
    (restored,) = unpack(of_another_version(lambda entry: entry.pop("switches")))
    assert restored.state == replace(STATE, scalars=replace(SCALARS, switches=0))


def test_a_scalar_under_an_unknown_name_is_refused_because_its_value_would_be_lost():
    with pytest.raises(DataError, match="the snapshot stores thought, so another version"):
        unpack(of_another_version(lambda entry: entry.update(thought=entry.pop("thinking_bytes"))))


def test_scalars_become_arrays_of_their_dtypes():
    arrays = SCALARS.arrays()
    assert arrays == SCALARS
    assert arrays.sample.dtype == np.uint32
    assert {x.dtype for x in (arrays.attempt, *arrays.generated, arrays.thinking_bytes)} == {np.dtype(np.int32)}
