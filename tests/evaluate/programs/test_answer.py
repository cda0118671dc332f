"""The program of a response is its last fenced block."""

import pytest

from tessy_jax.evaluate.programs.answer import program


@pytest.mark.parametrize(
    ("answer", "source"),
    [
        ("no block at all", None),
        ("`print(1)`", None),
        ("```python\nprint(1)\n```", "print(1)\n"),
        ("a\n```python\nprint(1)\n```\nb\n```py\nprint(2)\n```\nafter", "print(2)\n"),
        ("```\nprint(1)\n```\n```\n\n```", "print(1)\n"),
        ("````md\n```python\nprint(1)\n```\n````", "```python\nprint(1)\n```\n"),
        ("~~~\nprint('```')\n~~~", "print('```')\n"),
        ("```python\nprint(1)\n``\nprint(2)", "print(1)\n``\nprint(2)\n"),
        ("```python\nprint('```python')\n```", "print('```python')\n"),
        ("  ```c++\r\nint main() {}\r\n  ```\r\n", "int main() {}\r\n"),
        ("```python\n    indented\n```", "    indented\n"),
        ("```print(1)```", None),
    ],
)
def test_the_last_fenced_block_that_is_not_blank_is_the_program(answer, source):
    assert program(answer) == source
