"""The frame header of JPEG files (ITU-T T.81, B.1 and B.2.2)."""

_START, _END = b"\xff\xd8", b"\xff\xd9"
_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_SEQUENTIAL = {0xC0, 0xC1}  # frames whose rows come one after the other; progressive ones end with the last byte only


def shortened(content: bytes, rows: int) -> bytearray | None:
    """Return a copy of a file whose header says that it has that many rows, so that a decoder stops there.

    A decoder finds bytes between the last row and the end marker then, about which libjpeg warns and goes on.

    Args:
        content: of the file.
        rows: at least 1 and less than the picture has. The last one is not as in the whole picture if its colours
            have fewer rows than its brightness, because they are interpolated between neighbours.

    Returns:
        None if the file is progressive or of another kind for which this cannot be done, or if it has no end: what is
        truncated is to be found so wherever in it one looks.
    """
    if not content.startswith(_START) or not content.endswith(_END):
        return None
    at, end = len(_START), len(content)
    while at + 7 <= end and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # any number of these may fill the space before a marker
            at += 1
        elif marker in _ALONE:
            at += 2
        elif marker in _SEQUENTIAL:
            made = bytearray(content)
            made[at + 5 : at + 7] = rows.to_bytes(2, "big")
            return made
        elif marker == 0xDA or (0xC2 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}):
            return None
        else:
            at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return None
