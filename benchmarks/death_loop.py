"""The simplest program that removes locks of dead holders: wait on pidfds, unlink the locks.

Arguments: STATE_DIR. Prints "ready" when it waits for the holders of all locks.
"""

import json
import os
import resource
import select
import sys


def main() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    poll = select.poll()
    fd_of: dict[int, int] = {}
    paths: dict[int, list[str]] = {}
    agents = os.path.join(sys.argv[1], "agents")
    for agent in os.listdir(agents):
        folder = os.path.join(agents, agent, "sessions")
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            with open(path, "rb") as lock:
                pid = json.load(lock)["pid"]
            if pid not in fd_of:
                fd_of[pid] = os.pidfd_open(pid)
                poll.register(fd_of[pid], select.POLLIN)
            paths.setdefault(fd_of[pid], []).append(path)
    print("ready", flush=True)
    while paths:
        for fd, _ in poll.poll():
            for path in paths.pop(fd):
                os.unlink(path)
            poll.unregister(fd)
            os.close(fd)


main()
