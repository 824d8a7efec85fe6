"""Mounts leakhunt in the servers that this interpreter imports; put in place by ``leakhunt run``.

Python imports a module of this name when it starts (see the documentation of ``site``). The
directory of this one stands in ``PYTHONPATH``, which worker processes inherit. It imports nothing
that is not there already: a process that never imports a server pays for this file and for one
more finder in ``sys.meta_path``, which looks each new name up in :data:`MOUNTS`.

The interpreter is the command's, not ours: this file keeps to what old ones understand.
"""
# mypy: allow-untyped-defs, allow-untyped-calls

import os
import sys

MOUNTS = {
    "aiohttp.web": "aiohttp",
    "channels.layers": "channels",
    "daphne.server": "daphne",
    "granian.asgi": "granian",
    "hypercorn.app_wrappers": "hypercorn",
    "sanic.app": "sanic",
    "socketio.async_server": "socketio",
    "tornado.web": "tornado",
    "uvicorn.config": "uvicorn",
    "websockets.asyncio.server": "websockets",
    "websockets.sync.server": "websockets_sync",
}
"""The module that makes a framework's servers, and the adapter whose ``auto_mount`` takes it."""

HERE = os.path.dirname(__file__)
PACKAGE = os.path.dirname(HERE)


class Finder:
    """Finds nothing itself: it asks the others, and has their loader come back when it has run."""

    warned = False

    def find_spec(self, name, path=None, target=None):
        """The others' spec of a module of :data:`MOUNTS` and of ``leakhunt``; else ``None``."""
        if name in MOUNTS:
            spec = self._others(name, path, target)
            if spec is not None:
                try:
                    mount_after(spec.loader, name)
                except Exception as error:
                    warn(error)
            return spec
        if name == "leakhunt":
            # Where it is not installed (the command is pipx's, say): the package that this file
            # belongs to, and nothing else from there.
            return self._others(name, path, target) or own_package()
        return None

    def _others(self, name, path, target):
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    return spec
        return None


def own_package():
    """The spec of the package that this file belongs to."""
    from importlib.util import spec_from_file_location

    return spec_from_file_location(
        "leakhunt", os.path.join(PACKAGE, "__init__.py"), submodule_search_locations=[PACKAGE]
    )


def mount_after(loader, name):
    """Have ``loader`` mount when it has run the module ``name``.

    It stays the loader that it was, as the framework's resources and tracebacks need it.
    """
    if sys.version_info < (3, 11):  # noqa: UP036 (the command's interpreter, not ours)
        raise RuntimeError("it needs Python 3.11, this is {}.{}".format(*sys.version_info))
    if isinstance(loader, type):
        # What is set here would be set for everything that it loads.
        raise TypeError(loader.__name__ + " cannot be hooked")
    run = loader.exec_module

    def exec_module(module):
        run(module)
        if module.__name__ == name:  # a loader of archives has many modules
            mount(module)

    # A framework that cannot be imported shall print its own traceback with no frame of ours;
    # these are what Python leaves out.
    exec_module.__code__ = exec_module.__code__.replace(
        co_filename="<frozen importlib._bootstrap>", co_name="_call_with_frames_removed"
    )
    loader.exec_module = exec_module


def mount(module):
    """Mount in a framework that has just been imported. Whatever fails, it goes on without us."""
    try:
        from importlib import import_module

        import_module("leakhunt.adapters." + MOUNTS[module.__name__]).auto_mount(module)
    except Exception as error:
        warn(error)


def warn(error):
    """One line for the process, whatever else it imports."""
    if Finder.warned:
        return
    Finder.warned = True
    try:
        what = " ".join(str(error).split())
        line = "leakhunt: not mounted, the server runs without it: {}: {}\n"
        sys.stderr.write(line.format(type(error).__name__, what))
    except Exception:  # noqa: S110
        pass  # no stderr


if __name__ == "sitecustomize":
    if sys.version_info >= (3, 4):  # noqa: UP036 (finders of older ones speak otherwise)
        sys.meta_path.insert(0, Finder())
    # The command gets the path that it would have had, and the sitecustomize that would have been
    # imported is. Without one this import fails as it would have failed; `site` expects that.
    while HERE in sys.path:
        sys.path.remove(HERE)
    sys.path_importer_cache.pop(HERE, None)
    del sys.modules["sitecustomize"]
    import sitecustomize  # type: ignore[import-not-found] # noqa: F401
