"""Files of rows: the format that a file's name gives, and the opening of local, remote and compressed files."""

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
"""Formats by the end of a name."""
COMPRESSIONS = ("gz", "bz2", "xz", "lzma", "zst", "lz4", "zip")
"""Ends of a name that follow that of the format."""
ARCHIVE = re.compile(r"\.(tar(\.\w+)?|tgz|tbz2|txz|7z|rar)$")
ADDRESS = re.compile(r"\w+://")
BOM = b"\xef\xbb\xbf"
GIVE = "give JSONL, JSON, CSV, TSV or Parquet, or a data set"
FOREIGN = {
    b"PAR1": "is a Parquet file; let its name end in .parquet",
    b"ARROW1": "is an Arrow file; name the folder of a saved data set, or save it as Parquet",
    b"\xff\xff\xff\xff": "is an Arrow file; name the folder of a saved data set, or save it as Parquet",
    b"PK\x03\x04": "is a spreadsheet or a zip archive; save the sheet as CSV, or unpack the archive",
    b"\xd0\xcf\x11\xe0": "is a spreadsheet; save the sheet as CSV",
    b"\x1f\x8b": "is compressed; let its name end in .gz",
    b"BZh": "is compressed; let its name end in .bz2",
    b"\xfd7zXZ": "is compressed; let its name end in .xz",
    b"\x28\xb5\x2f\xfd": "is compressed; let its name end in .zst",
    b"\x04\x22\x4d\x18": "is compressed; let its name end in .lz4",
    b"\xff\xfe": "is in UTF-16; save the file in UTF-8",
    b"\xfe\xff": "is in UTF-16; save the file in UTF-8",
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself; run git lfs pull",
    b"<": "is a web page or XML; download the file itself",
}
"""First bytes of files that hold no rows of text, and what to do with them."""


def format_of(path: str) -> Format | None:
    """The format that the name of a file or address gives, whether it is compressed or not; None if it gives none.

    Raises:
        DataError: the name is that of an archive of files, or of a Parquet file that is compressed as a whole.
    """
    name = _name(path)
    if ARCHIVE.search(name):
        raise DataError(f"{path}: is an archive of files; unpack it, and name one of them")
    stem, _, end = name.rpartition(".")
    form = FORMATS.get(stem.rpartition(".")[2] if end in COMPRESSIONS else end)
    if form == "parquet" and end in COMPRESSIONS:
        raise DataError(f"{path}: is a Parquet file within a compressed one; decompress it")
    return form


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """Opens a file or address and decompresses it as its name says.

    Raises:
        DataError: it cannot be read, also in the block of the `with`, or is a file of another kind.
        ConfigError: a package that serves the address is missing.
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
        DataError: it is of a kind that holds no rows as text.
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
        raise ConfigError(f"{path}: cannot be opened ({error}); install what serves it, or give a local file") from None


def _decompressed(path: str, file: Any) -> Iterator[Any]:
    """The decompressing file; nothing where the name names no compression. zstd and lz4 come from pyarrow, which reads
    Parquet, too."""
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
            raise DataError(f"{path}: is an archive of {len(names)} files ({shown}); unpack it, and name one of them")
        held = format_of(names[0])
        if held is not None and held != (format_of(path) or "json"):
            right = f"let the name of the archive end in .{held}.zip"
            raise DataError(f"{path}: is an archive of `{names[0]}`, and its own name is that of another format; {right}")
        yield archive
        yield archive.open(names[0])
