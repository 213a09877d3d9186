"""A program that creates objects which others create as well: `python -m tests.support.creating ADDRESS COUNT NAME`.

It waits for a line on standard input, so that all begin at once, and prints the keys that it won, a line each. What it
writes are its NAME and a number that nothing else has.
"""

from __future__ import annotations

import secrets
import sys

from storage.objects.opening import opened


def contents(name: str) -> bytes:
    return f"{name} {secrets.token_hex(8)}".encode()


def main(address: str, count: str, name: str) -> None:
    objects = opened(address)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    for number in range(int(count)):
        key, data = f"race/{number:04d}.json", contents(name)
        if objects.create(key, data):
            sys.stdout.write(f"{key} {data.decode()}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
