"""The floor: a Python program that only reads each lock file once."""

import os
import sys


def main() -> None:
    locks = 0
    agents = os.path.join(sys.argv[1], "agents")
    for agent in os.listdir(agents):
        folder = os.open(os.path.join(agents, agent, "sessions"), os.O_RDONLY)
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(".jsonl.lock")]
        for name in names:
            fd = os.open(name, os.O_RDONLY, dir_fd=folder)
            os.read(fd, 65536)
            os.fstat(fd)
            os.close(fd)
            locks += 1
        os.close(folder)
    print(locks)


main()
