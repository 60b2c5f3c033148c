"""Has callbacks of an event loop know which one it is, as tasks do.

What a callback calls may ask anyio, which knows of tasks by themselves, and else asks `sniffio`
where that is installed: it has a ContextVar, which `anyio.run` sets, and `asyncio.run` does not.
Neighbours: whoever has callbacks called in the present context, or begins tasks in them.
"""

try:
    from sniffio import current_async_library, current_async_library_cvar
except ImportError:
    current_async_library = current_async_library_cvar = None


def current_library() -> str | None:
    """Return the name of the present task's event loop, for `know_library`."""
    return None if current_async_library is None else current_async_library()


def know_library(name: str | None) -> None:
    """Have the present context, and all that are copied from it, know the event loop."""
    if current_async_library_cvar is not None:
        current_async_library_cvar.set(name)
