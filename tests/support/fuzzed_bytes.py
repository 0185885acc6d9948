"""Mistakes in the bytes of a file."""

import gzip
import random


def truncate(raw: bytes, rng: random.Random) -> bytes:
    """Return the beginning of a file."""
    return raw[: rng.randrange(len(raw) + 1)]


def insert_bytes(raw: bytes, rng: random.Random) -> bytes:
    """Insert bytes that mean something to a parser, or nothing to any."""
    at = rng.randrange(len(raw) + 1)
    pieces = (b"\0", b"\t", b"\r", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x1b", "\u2028".encode(), b"\x85", b'"', b"'",
              b"{", b"]", b": ", b"- ", b"#", b"&a ", b"*a", b"!!int ", b"!!python/object:os.system ", b"|", b"%", b"@",
              b"`", b"? ", b"\n---\n", b"\n...\n", b"\x7f" * 3, b"\xef\xbb\xbf", b"\n\n", b"\\", b",")  # fmt: skip
    return raw[:at] + rng.choice(pieces) + raw[at:]


def reencode(raw: bytes, rng: random.Random) -> bytes:
    """Return a file in another encoding, or compressed."""
    text = raw.decode("utf-8", "replace") + "# \u00fc\n"
    way = rng.choice(("utf-16", "utf-16-le", "utf-32", "latin-1", "utf-8-sig", "cp037", "gzip"))
    return gzip.compress(raw, mtime=0) if way == "gzip" else text.encode(way, "replace")


def change_line(raw: bytes, rng: random.Random) -> bytes:
    """Repeat, remove or change a line."""
    lines = raw.splitlines(keepends=True) or [b"\n"]
    at = rng.randrange(len(lines))
    line = lines[at]
    ways = (line * 2, b"", b"\t" + line, b" " + line, line.lstrip(), line.replace(b":", b" "),
            line.replace(b": ", b":"),
            line.replace(b":", b": &x", 1), line.replace(b":", b": *x #", 1), line.upper(), b"# " + line,
            line.rstrip() + b"," + b"\n", line[: len(line) // 2] + b"\n")  # fmt: skip
    lines[at] = rng.choice(ways)
    return b"".join(lines)


def flip_bit(raw: bytes, rng: random.Random) -> bytes:
    """Flip a bit."""
    if not raw:
        return raw
    at = rng.randrange(len(raw))
    return raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :]


def change_footer(raw: bytes, rng: random.Random) -> bytes:
    """Change the end of a file, where Parquet and Arrow have their tables of contents."""
    ways = (raw[:-4], raw[:-8] + b"\xff\xff\xff\x7f" + raw[-4:], raw + b"\n", raw + raw, raw[4:], raw[: len(raw) // 2])
    return rng.choice(ways)


def replace_all(raw: bytes, rng: random.Random) -> bytes:
    """Return another kind of file."""
    ways = (b"", b"\n", b" \n\t\n", b"\xef\xbb\xbf", b"PAR1", b"ARROW1\0\0", b"PK\x03\x04" + raw,
            gzip.compress(raw[:999], mtime=0),
            b"\x1f\x8b\x08", raw[:1], raw.replace(b"\n", b"\r"), raw.replace(b"\n", b"\n\n"), raw.replace(b'"', b"'"),
            b"\xef\xbb\xbf" + raw, raw + b"\0" * 4096,
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", b"<!DOCTYPE html>\n<html></html>\n",
            rng.randbytes(2000))  # fmt: skip
    return rng.choice(ways)
