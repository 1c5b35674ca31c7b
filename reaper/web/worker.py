"""A thread for work that would block the event loop."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class Worker:
    """Does one job at a time, in the order in which they arrive.

    Its thread starts with the first job. It is a daemon, because a job may take minutes (bcrypt
    with a high cost) and must not delay the end of the program.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._started = False
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()

    async def run(self, job: Callable[[], _Result]) -> _Result:
        """Return the job's result or raise its exception. If the caller is cancelled before the
        job starts, the job is dropped.
        """
        if not self._started:
            threading.Thread(target=self._work, daemon=True, name=self._name).start()
            self._started = True
        result: Future[_Result] = Future()
        self._jobs.put((result, job))
        return await asyncio.wrap_future(result)

    def waiting(self) -> int:
        """Return how many jobs wait."""
        return self._jobs.qsize()

    def _work(self) -> None:
        while True:
            result, job = self._jobs.get()
            if result.set_running_or_notify_cancel():
                try:
                    value = job()
                except BaseException as error:  # noqa: BLE001  # passed on to the caller
                    result.set_exception(error)
                else:
                    result.set_result(value)
                    del value
            del result, job  # keep nothing in memory while waiting
