"""What takes long to load: importing it loads it."""

import os

DATA = bytearray(b"x") * (int(os.environ["STARTS_MIB"]) << 20)


def total():
    return sum(DATA[::4096])
