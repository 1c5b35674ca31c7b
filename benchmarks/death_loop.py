"""The least that frees locks at a death: wait for each holder by a pidfd, unlink its locks.

Arguments: STATE_DIR. Writes "ready" once it waits for the holders of all locks that are there.
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
