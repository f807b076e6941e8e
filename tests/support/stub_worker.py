"""A worker that is none: it speaks the link's language, and behaves as the setting top_up_url tells it to.

python stub_worker.py DESCRIPTOR

    None       serves, answers, and ends when it is told to, or when its supervisor is gone
    bad        ends with code 2 before it serves
    hung       never serves, and ignores SIGTERM
    mute       serves and answers nothing
    dies       serves, and ends with code 1 a moment later
    stubborn   serves, and ignores everything but SIGKILL and the end of the link
"""

import os
import select
import signal
import socket
import sys
import time
from typing import Any

import orjson

CALLS = 7


def main() -> None:
    link = socket.socket(fileno=int(sys.argv[1]))
    orders = receive(link)
    how = orders["settings"].get("top_up_url")
    if how == "bad":
        sys.exit(2)
    if how in ("hung", "stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if how == "hung":
        time.sleep(60)
    send(link, {"ready": True})
    if how == "dies":
        time.sleep(0.02)
        sys.exit(1)
    heard: list[str] = []
    while True:
        message = receive(link)
        heard += [f"{name} {value}" for name, value in message.items() if name in ("lead", "retire", "hurry")]
        if how != "stubborn" and ("hurry" in message or "retire" in message):
            sys.exit(0)
        if "ask" in message and how != "mute":
            fds = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
            counts = [["farebox_calls", "Help.", "counter", [["farebox_calls_total", {}, CALLS]]]]
            checks = [["heard", True, ", ".join(heard), False], ["descriptors", True, str(fds), False]]
            send(link, {"number": message["number"], "answer": checks, "snapshot": counts})


def send(link: socket.socket, message: object) -> None:
    data = orjson.dumps(message)
    link.sendall(len(data).to_bytes(4, "big") + data)


def receive(link: socket.socket) -> Any:
    length = int.from_bytes(exactly(link, 4), "big")
    return orjson.loads(exactly(link, length))


def exactly(link: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        select.select([link], [], [])
        try:
            more = link.recv(count - len(data))
        except BlockingIOError:
            continue
        if not more:
            sys.exit(0)
        data += more
    return data


if __name__ == "__main__":
    main()
