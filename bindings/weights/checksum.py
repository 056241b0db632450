"""CRC-32C (Castagnoli), by which TensorFlow's checkpoints are checked: eight bytes at a time, from eight tables."""

import numpy as np

from saccade.kernels.numba.compilation import jit

POLYNOMIAL = 0x82F63B78


def _tables():
    tables = np.zeros((8, 256), np.uint32)
    rest = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        rest = np.where(rest & 1, (rest >> 1) ^ POLYNOMIAL, rest >> 1).astype(np.uint32)
    tables[0] = rest
    for i in range(1, 8):
        tables[i] = tables[0][tables[i - 1] & 255] ^ (tables[i - 1] >> 8)
    return tables


TABLES = _tables()


@jit
def _advance(words, rest, tables):
    crc = np.uint32(0xFFFFFFFF)
    for word in words:
        x = word ^ np.uint64(crc)
        crc = np.uint32(0)
        for i in range(8):
            crc ^= tables[7 - i, (x >> np.uint64(8 * i)) & np.uint64(255)]
    for byte in rest:
        crc = tables[0, (crc ^ byte) & np.uint32(255)] ^ (crc >> np.uint32(8))
    return crc ^ np.uint32(0xFFFFFFFF)


def crc32c(data):
    """The checksum of bytes, or of a contiguous array's."""
    x = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data.reshape(-1).view(np.uint8)
    whole = len(x) // 8 * 8
    words = np.frombuffer(x[:whole].tobytes(), "<u8") if x.ctypes.data % 8 else x[:whole].view("<u8")
    return int(_advance(words, x[whole:], TABLES))


def masked(crc):
    """As TensorFlow and LevelDB store it, so that a checksum of checksums is no trivial one."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
