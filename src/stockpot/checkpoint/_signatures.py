"""What a file is by its first bytes, where it is not what its name says: for messages alone."""

from __future__ import annotations

HEAD_BYTES = 512
_SIGNATURES = {
    b"GGUF": "GGUF",
    b"lmgg": "GGML",
    b"tjgg": "GGML",
    b"\x89HDF": "HDF5 (Keras)",
    b"\x93NUMPY": "a numpy array",
    b"PK\x03\x04": "a zip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x1f\x8b": "a gzip file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"\x7fELF": "a program",
    b"MZ": "a program",
    b"#!": "a script",
    b"version https://git-lfs": "a pointer of git LFS: its file was not downloaded",
    b"<": "a page of HTML: not what was to be downloaded",
}
_PLACED = {(257, b"ustar"): "a tar archive", (4, b"TFL3"): "TensorFlow Lite"}


def kind_of_file(head: bytes) -> str | None:
    """The kind of a file that begins like this; None where nothing tells.

    >>> kind_of_file(b"GGUF\\x03\\0\\0\\0"), kind_of_file(b"\\x80\\x02")
    ('GGUF', None)
    """
    for (place, signature), kind in _PLACED.items():
        if head[place : place + len(signature)] == signature:
            return kind
    return next((kind for signature, kind in _SIGNATURES.items() if head.lstrip().startswith(signature)), None)
