"""A file as text, in each form in which text can stand in it.

Bytes are read as UTF-8; where they are not UTF-8, also as Latin-1 and UTF-16. A text is read as it stands, without its
escapes (JSON, HTML, URL, Markdown), and with the characters that stand for bytes turned back: GPT-2's tokenizers write
a space as ``Ġ`` and ``é`` as ``Ã©``. What is in base64 or hexadecimal is decoded, what is compressed (gzip, zlib as in
PNG, zip) is unpacked, and both are read again, up to a depth and a number of bytes.

Not read: text that is encrypted, drawn, or compressed in other ways.
"""

from __future__ import annotations

import base64
import html
import re
import struct
import zlib
from collections.abc import Iterator
from urllib.parse import unquote

PIECE, OVERLAP = 1 << 20, 1 << 13  # bytes that are read at once, and how many of them are read again with the next
BINARY = 1 << 16
DEPTH = 3  # codes within codes
UNPACKED = 64 << 20  # bytes that one file may unpack to
BLOCK = 1 << 14  # bytes of compressed data that are unpacked at once

_BACKSLASH = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|([nrtbfv])|(.))")
_SURROGATE = re.compile("[\ud800-\udfff]")
# The first character of each is the first of its run: a search that began anew at each character would take long.
# 12 bytes in base64 are 16 characters; lines of it may be indented, or the strings of a list.
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{16,}+(?:[\s\"',\\]{1,20}[A-Za-z0-9+/_-]+)*+")
_HEX = re.compile(r"(?<![0-9a-fA-F])[0-9a-fA-F]{2}(?:[ :]?[0-9a-fA-F]{2}){11,}+")
_PACKED = re.compile(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]|PK\x03\x04")
# GPT-2's byte alphabet: bytes that are printable in Latin-1 stand for themselves, the others for U+0100 and following.
_SHIFTED = [b for b in range(256) if not (33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255)]
_GPT2 = {0x100 + i: byte for i, byte in enumerate(_SHIFTED)}


class TooMuchPackedError(Exception):
    """A file unpacks to more than :data:`UNPACKED` bytes."""


def readings(data: bytes) -> Iterator[str | bytes]:
    """Every text in ``data``, in pieces that overlap.

    Binary data of more than :data:`BINARY` bytes (the pixels of a picture) come as bytes: most of it is no text, so it
    is searched like weights. Raises TooMuchPackedError.
    """
    yield from _Reader().read(data, DEPTH)


class _Reader:
    """Reads one file, and counts what it unpacks."""

    def __init__(self) -> None:
        self._left = UNPACKED

    def read(self, data: bytes, depth: int) -> Iterator[str | bytes]:
        is_utf8 = _is_utf8(data)
        if is_utf8 or len(data) <= BINARY:
            for start in range(0, max(1, len(data) - OVERLAP), PIECE - OVERLAP):
                for text in _decoded(data[start : start + PIECE], is_utf8):
                    yield from self._texts(text, depth)
        else:
            yield data
        if depth:
            for place in _PACKED.finditer(data):
                if unpacked := self._unpacked(data, place):
                    yield from self.read(unpacked, depth - 1)

    def _texts(self, text: str, depth: int) -> Iterator[str | bytes]:
        for form in _forms(text):
            yield form
            if depth and (coded := _coded(form)):
                yield from self.read(coded, depth - 1)

    def _unpacked(self, data: bytes, place: re.Match[bytes]) -> bytes:
        """What is compressed at a place, as far as it can be unpacked."""
        start, stream = place.start(), zlib.decompressobj(47)  # a header of zlib or gzip
        if place[0] == b"PK\x03\x04" and len(data) >= start + 30:  # a zip's member, PKWARE's APPNOTE 4.3.7
            start += 30 + sum(struct.unpack_from("<HH", data, start + 26))
            stream = zlib.decompressobj(-15)
        parts = []
        for begin in range(start, len(data), BLOCK):
            try:
                parts.append(stream.decompress(data[begin : begin + BLOCK]))
            except zlib.error:
                break
            self._left -= len(parts[-1])
            if self._left < 0:
                raise TooMuchPackedError
            if stream.eof:
                break
        return b"".join(parts)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _decoded(piece: bytes, is_utf8: bool) -> Iterator[str]:
    yield piece.decode(errors="replace")
    if not is_utf8:
        yield piece.decode("latin-1")
    if not is_utf8 or b"\0" in piece:
        for order in ("utf-16-le", "utf-16-be"):
            yield from (piece[start:].decode(order, errors="ignore") for start in (0, 1))


def _forms(text: str) -> Iterator[str]:
    """A text as it stands, without its escapes, and read as bytes."""
    yield text
    plain = unescaped(text)
    if plain != text:
        yield plain
    if not plain.isascii():
        octets = plain.translate(_GPT2).encode("latin-1", errors="ignore").decode(errors="replace")
        if octets != plain:
            yield octets


def unescaped(text: str) -> str:
    """A text without its escapes (HTML, URL, JSON and Markdown), and without those that they hid."""
    for _ in range(DEPTH):
        before, text = text, unquote(html.unescape(text)) if "&" in text or "%" in text else text
        if "\\" in text:
            text = _BACKSLASH.sub(_character, text)
            if _SURROGATE.search(text):  # JSON writes characters beyond U+FFFF as two
                text = text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")
        if text == before:
            break
    return text


def _character(escape: re.Match[str]) -> str:
    number = escape[1] or escape[2]
    if number:
        return chr(int(number, 16))
    return "\n" if escape[3] else escape[4]


def _coded(text: str) -> bytes:
    """What is in base64 or hexadecimal, decoded from each place at which it may begin."""
    parts = []
    for run in _BASE64.findall(text):
        code = re.sub(r"[\s\"',\\]", "", run).translate({45: "+", 95: "/"})
        parts += [base64.b64decode(code[i:] + "A" * (-len(code[i:]) % 4)) for i in range(4)]
    for run in _HEX.findall(text):
        code = re.sub(r"[ :]", "", run)
        parts += [bytes.fromhex(code[i : len(code) - (len(code) - i) % 2]) for i in range(2)]
    return b"\n".join(parts)
