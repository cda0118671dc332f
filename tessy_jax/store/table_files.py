"""Files of rows: the format of a file, by its name, and the opening of local, remote and compressed files."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from tessy_jax.errors import ConfigError, DataError, TessyError

Format = Literal["json", "csv", "tsv", "parquet"]
FORMATS: dict[str, Format] = {
    **dict.fromkeys(("jsonl", "json", "ndjson"), "json"),
    "csv": "csv",
    "tsv": "tsv",
    "parquet": "parquet",
}
"""Formats by the suffix of a name."""
COMPRESSIONS = ("gz", "bz2", "xz", "lzma", "zst", "lz4", "zip")
"""Suffixes of compression, which follow the suffix of the format."""
ARCHIVE = re.compile(r"\.(tar(\.\w+)?|tgz|tbz2|txz|7z|rar)$")
ADDRESS = re.compile(r"\w+://")
BOM = b"\xef\xbb\xbf"
GIVE = "give JSONL, JSON, CSV, TSV or Parquet, or a data set"
FOREIGN = {
    b"PAR1": "is a Parquet file; change its suffix to .parquet",
    b"ARROW1": "is an Arrow file; give the folder of the saved data set, or save it as Parquet",
    b"\xff\xff\xff\xff": "is an Arrow file; give the folder of the saved data set, or save it as Parquet",
    b"PK\x03\x04": "is a spreadsheet or a zip archive; save the sheet as CSV, or unpack the archive",
    b"\xd0\xcf\x11\xe0": "is a spreadsheet; save the sheet as CSV",
    b"\x1f\x8b": "is compressed; add the suffix .gz to its name",
    b"BZh": "is compressed; add the suffix .bz2 to its name",
    b"\xfd7zXZ": "is compressed; add the suffix .xz to its name",
    b"\x28\xb5\x2f\xfd": "is compressed; add the suffix .zst to its name",
    b"\x04\x22\x4d\x18": "is compressed; add the suffix .lz4 to its name",
    b"\xff\xfe": "is in UTF-16; save the file in UTF-8",
    b"\xfe\xff": "is in UTF-16; save the file in UTF-8",
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`",
    b"<": "is a web page or XML; download the file itself",
}
"""First bytes of files that hold no rows as text, and the message for each."""


def format_of(path: str) -> Format | None:
    """The format of a file or address, by its suffix, before a suffix of compression; None if the name has no known suffix.

    Raises:
        DataError: the name is that of an archive or of a compressed Parquet file.
    """
    name = _name(path)
    if ARCHIVE.search(name):
        raise DataError(f"{path}: is an archive of files; unpack it, and give one of its files")
    stem, _, end = name.rpartition(".")
    form = FORMATS.get(stem.rpartition(".")[2] if end in COMPRESSIONS else end)
    if form == "parquet" and end in COMPRESSIONS:
        raise DataError(f"{path}: is a compressed Parquet file; decompress it")
    return form


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """Opens a file or address, and decompresses it if its name has a suffix of compression.

    Raises:
        DataError: the file holds no rows as text, or cannot be read, here or inside the `with` block.
        ConfigError: the package that serves the address is missing.
    """
    try:
        with ExitStack() as stack:
            file = stack.enter_context(_file(path))
            for layer in _decompressed(path, file):
                file = stack.enter_context(layer)
            buffered = io.BufferedReader(file)
            refuse_foreign(path, buffered.peek(64))
            yield buffered
    except TessyError:
        raise
    except Exception as error:  # object stores and decompressors have errors of their own
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason}); {GIVE}") from None


def refuse_foreign(path: str, start: bytes) -> None:
    """Refuses a file by its first bytes.

    Raises:
        DataError: the file holds no rows as text.
    """
    start = start.removeprefix(BOM).lstrip(b" \t\r\n") or start
    reason = next((reason for magic, reason in FOREIGN.items() if start.startswith(magic)), None)
    if reason is not None:
        raise DataError(f"{path}: {reason}")


def _name(path: str) -> str:
    """The name in lower case, without the query of an address."""
    return (re.split(r"[?#]", path)[0] if ADDRESS.match(path) else path).rpartition("/")[2].lower()


def _file(path: str) -> Any:
    if not ADDRESS.match(path):
        return Path(path).open("rb")
    import fsspec  # type: ignore[import-untyped, import-not-found, unused-ignore]

    try:
        return fsspec.open(path, "rb")
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{path}: cannot be opened ({error}); install the package that serves this address, or give a local file"
        ) from None


def _decompressed(path: str, file: Any) -> Iterator[Any]:
    """The files to open in turn, the last of which gives the decompressed bytes; none without a suffix of compression.
    pyarrow decompresses zstd and lz4."""
    end = _name(path).rpartition(".")[2]
    if end == "gz":
        yield gzip.GzipFile(fileobj=file)
    elif end == "bz2":
        yield bz2.BZ2File(file)
    elif end in ("xz", "lzma"):
        yield lzma.LZMAFile(file)  # noqa: SIM115 (the caller closes it)
    elif end in ("zst", "lz4"):
        import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

        yield pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd" if end == "zst" else end)
    elif end == "zip":
        archive = zipfile.ZipFile(file)
        names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
        if len(names) != 1:
            shown = ", ".join(f"`{name}`" for name in names[:6]) + (", …" if len(names) > 6 else "")
            raise DataError(f"{path}: is an archive of {len(names)} files ({shown}); unpack it, and give one of its files")
        form = format_of(names[0])
        if form is not None and form != (format_of(path) or "json"):
            right = f"change its suffix to .{form}.zip"
            raise DataError(f"{path}: is an archive of `{names[0]}`, but its own name is that of another format; {right}")
        yield archive
        yield archive.open(names[0])
