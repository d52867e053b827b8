"""`python -m trials.wire ONE OTHER SECONDS LOSS`: two network interfaces, and a slow, lossy wire between them.

What netem does where the kernel has it, from outside the kernel: two TAP devices whose frames are passed on later, or
not at all, in both directions. Writes a line once they are there, and runs until it is killed.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import selectors
import struct
import sys
import time

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000  # linux/if_tun.h
FRAME_BYTES = 65536


def tap(name: str) -> int:
    """Make a TAP device in this process's namespace; what reads and writes its frames."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return file


def main(one: str, other: str, seconds: float, loss: float) -> None:
    """Pass frames on, each `seconds` after it came, in the order of their coming."""
    ends = [tap(one), tap(other)]
    draw = random.Random(0)
    due: list[tuple[float, int, int, bytes]] = []  # when, its number, where to, the frame
    count = 0
    selector = selectors.DefaultSelector()
    for end, other_end in zip(ends, reversed(ends), strict=True):
        selector.register(end, selectors.EVENT_READ, other_end)
    print("ready", flush=True)
    while True:
        pause = None if not due else max(0.0, due[0][0] - time.monotonic())
        for key, _ in selector.select(pause):
            try:
                frame = os.read(key.fd, FRAME_BYTES)
            except OSError:  # the interface is down
                continue
            if draw.random() >= loss:
                count += 1
                heapq.heappush(due, (time.monotonic() + seconds, count, key.data, frame))
        while due and due[0][0] <= time.monotonic():
            _, _, end, frame = heapq.heappop(due)
            try:
                os.write(end, frame)
            except OSError:  # the interface is down, or full: lost
                continue


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
