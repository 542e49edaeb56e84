"""Many answers in flight at once, delivered as they come: the asyncio side of the vLLM and server back ends.

The event loop lives in its own thread for as long as the back end does (an engine's queues and a client's connections
belong to one loop), so `generate` is an ordinary blocking call, also inside a notebook whose own loop is running.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from queue import SimpleQueue
from typing import Any, TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")
_END = object()


class BackgroundLoop:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="generation", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run one coroutine to its end and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def each_as_finished(
        self, items: Iterable[Item], answer: Callable[[Item], Awaitable[Result]], in_flight: int
    ) -> Iterator[Result]:
        """Results in the order they finish, at most `in_flight` at work.

        The first exception of an `answer` cancels the others and is raised, after the results that came before it.
        Leaving the iterator early (Ctrl-C) cancels what is at work.
        """
        finished: SimpleQueue = SimpleQueue()
        source = iter(items)

        async def worker() -> None:
            for item in source:
                finished.put(await answer(item))

        async def all_workers() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(in_flight):
                        group.create_task(worker())
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None

        async def start() -> asyncio.Task:
            task = asyncio.create_task(all_workers())
            task.add_done_callback(lambda _: finished.put(_END))
            return task

        task = self.run(start())
        try:
            while (result := finished.get()) is not _END:
                yield result
            task.result()
        finally:
            if not task.done():
                self._loop.call_soon_threadsafe(task.cancel)
                while finished.get() is not _END:
                    pass

    def close(self) -> None:
        """Cancel what is left and end the thread."""
        if self._loop.is_closed():
            return

        async def cancel_rest() -> None:
            rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        self.run(cancel_rest())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
