"""A slow, lossy link: `python -m trials.network.lossy_link INTERFACE OTHER_INTERFACE SECONDS LOSS`.

Does in user space what netem does in kernels that have it: makes two TAP devices and forwards frames between them, in
both directions, after SECONDS, dropping a share LOSS of them. Writes a line once the devices exist; runs until killed.
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
    """The file descriptor of a new TAP device in this process's namespace: reads and writes are frames."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return file


def main(interface: str, other_interface: str, seconds: float, loss: float) -> None:
    """Forward frames in order of arrival, each `seconds` after it arrived."""
    ends = [tap(interface), tap(other_interface)]
    rng = random.Random(0)
    due: list[tuple[float, int, int, bytes]] = []  # time, number (for order), device, frame
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
            if rng.random() >= loss:
                count += 1
                heapq.heappush(due, (time.monotonic() + seconds, count, key.data, frame))
        while due and due[0][0] <= time.monotonic():
            _, _, end, frame = heapq.heappop(due)
            try:
                os.write(end, frame)
            except OSError:  # the interface is down, or its queue is full: the frame is lost
                continue


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
