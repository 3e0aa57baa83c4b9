"""Protobuf's wire format, as much of it as sentencepiece models use, so that no protobuf runtime is needed.

A message is a row of fields: a tag (number and wire type), then a varint, 4 or 8 bytes, or a length and that many
bytes. Left out: groups, which nobody has written for a decade.
"""

from __future__ import annotations

from collections.abc import Iterator

from phial.errors import FormatError

_FIXED = {1: 8, 5: 4}  # bytes by wire type


def bytes_field(number: int, data: bytes) -> bytes:
    """A field of bytes, text or a message."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def varint_field(number: int, value: int) -> bytes:
    """A field of an unsigned integer, truth value or enumeration."""
    return _varint(number << 3) + _varint(value)


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of every field in order; four- and eight-byte fields as bytes. FormatError where it is none."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _read_varint(message, at)
            yield number, value
            continue
        if kind == 2:
            length, at = _read_varint(message, at)
        elif kind in _FIXED:
            length = _FIXED[kind]
        else:
            raise FormatError(f"field {number} has wire type {kind}", "this is no protobuf message")
        if at + length > len(message):
            raise FormatError(f"field {number} ends at byte {at + length} of {len(message)}", "it is cut short")
        yield number, message[at : at + length]
        at += length


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at == len(message):
            break
        value |= (message[at] & 0x7F) << shift
        at += 1
        if message[at - 1] < 0x80:
            return value, at
    raise FormatError(f"a number that ends at byte {at} is cut short or too long", "this is no protobuf message")
