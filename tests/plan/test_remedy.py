"""Tests of remedies for programs that do not fit into memory."""

import pytest

from tessy_jax.plan.remedy import remedy
from tessy_jax.plan.targets import larger, parse_target

LANES = "synthesis.lanes"
PARTS = {"student's weights": 16_000_000_000, "caches": 60_000_000_000, "predictors' weights": 0}


def record(**changes):
    return {"program": "loop", "devices": 8, "rows": 32, "tokens": 8192, "parts": PARTS, "fits": False} | changes


def measured(**changes):
    return record(device_bytes=100_000_000_000, bytes={}, rows_that_fit={8192: 24}, **changes)


def test_a_remedy_names_the_parts_by_size_and_a_number_of_lanes_and_a_target_that_fit():
    assert remedy(measured(), parse_target("h100:8"), LANES) == (
        "needs 100.0 GB of 80.7 GB per device (caches 60.0 GB, temporaries 24.0 GB, student's weights 16.0 GB); "
        "set synthesis.lanes to 24, or use h100:16 with a larger mesh axis tensor"
    )


def test_the_remedy_of_a_training_step_is_more_shards_or_shorter_rows():
    text = remedy(measured(program="train") | {"device_bytes": 400_000_000_000}, parse_target("v5p:2x2x2"), "")
    assert text.endswith("; use v5p:4x4x4 with a larger mesh axis fsdp, or lower training.max_seq_len")
    text = remedy(measured(program="train") | {"device_bytes": 800_000_000_000}, parse_target("v5p:2x2x2"), "")
    assert "use v5p:4x4x8 " in text


def test_an_out_of_memory_error_of_the_compiler_gives_the_bytes_of_temporaries():
    error = "RESOURCE_EXHAUSTED: Ran out of memory: the total memory required for HLO temporaries (100.00G) exceeds 95.74G"
    text = remedy(record(error=error), parse_target("v5p:2x2x2"), LANES)
    assert text.startswith("needs 183.4 GB of 102.0 GB per device (temporaries 107.4 GB, caches 60.0 GB")
    assert text.endswith("; use v5p:2x2x4 with a larger mesh axis tensor")


@pytest.mark.parametrize(
    ("found", "target"),
    [
        (measured() | {"fits": True}, "h100:8"),
        (measured(), "cpu"),
        (record(error="INTERNAL: no tile sizes"), "h100:8"),
    ],
)
def test_a_program_that_fits_or_fails_for_another_reason_has_no_remedy(found, target):
    assert remedy(found, parse_target(target), LANES) is None


def test_a_mesh_smaller_than_its_target_grows_on_the_target_before_a_larger_target_is_advised():
    text = remedy(measured(devices=1), parse_target("h100:8"), LANES)
    assert text.endswith("set synthesis.lanes to 24, or use 2 of the 8 devices with a larger mesh axis tensor")
    text = remedy(measured(devices=8) | {"device_bytes": 300_000_000_000}, parse_target("v5e:4x8"), LANES)
    assert text.endswith("or use v5e:16x16 with a larger mesh axis tensor")


def test_a_remedy_names_the_key_of_the_lanes_of_its_program():
    text = remedy(measured(program="evaluate"), parse_target("h100:8"), "evaluation.synthesis.lanes")
    assert "; set evaluation.synthesis.lanes to 24, or " in text


def test_lanes_that_were_chosen_automatically_are_advised_with_the_size_of_their_caches():
    text = remedy(measured(), parse_target("h100:8"), LANES, "synthesis.cache_tokens")
    rows, tokens = measured()["rows_that_fit"][measured()["tokens"]], measured()["tokens"]
    assert f"set {LANES} to {rows} and synthesis.cache_tokens to {rows * tokens}, or" in text


@pytest.mark.parametrize("size", [85_000_000_000, 100_000_000_000])
def test_no_part_of_a_remedy_is_negative(size):
    """A program may drop unused arguments, so that it needs less than they have."""
    parts = {"student's weights": size, "caches": 20_000_000_000}
    found = record(program="fill student", device_bytes=90_000_000_000, bytes={}, parts=parts)
    text = remedy(found, parse_target("h100:8"), LANES)
    assert "-" not in text
    assert "temporaries" not in text
    assert text.endswith("; use h100:16 with a larger mesh axis tensor")


@pytest.mark.parametrize(
    ("target", "devices", "expected"),
    [
        ("h100:1", 2, "h100:2"),
        ("v5e:2x2", 8, "v5e:2x4"),
        ("v5e:2x2", 16, "v5e:4x4"),
        ("v5p:2x2x1", 8, "v5p:2x2x2"),
        ("2xv6e:2x4", 32, "2xv6e:4x4"),
        ("tpu7x:2x2x1", 16, "tpu7x:2x2x2"),
        ("v4:2x2x1", 16, "v4:2x2x2"),
        ("v6e:4x4", 256, "v6e:16x16"),
        ("v6e:4x4", 512, "2xv6e:16x16"),
        ("2xv5e:8x16", 1024, "4xv5e:16x16"),
        ("v5p:4x4x4", 4096, "2xv5p:8x16x16"),
    ],
)
def test_a_larger_target_has_the_same_kind_and_the_required_number_of_devices(target, devices, expected):
    assert larger(parse_target(target), devices) == expected
    assert parse_target(expected).devices == devices
