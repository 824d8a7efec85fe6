"""The public names are what they say, and cost nothing until they are used."""

import subprocess
import sys

import leakhunt


def test_every_public_name_resolves() -> None:
    """What __all__ lists can be had, and comes from where its module says."""
    assert set(leakhunt.__all__) == set(leakhunt._HOMES) | {"__version__"}
    for name in leakhunt.__all__:
        assert getattr(leakhunt, name) is not None
    assert leakhunt.Agent.__module__ == "leakhunt.agent.agent"
    assert dir(leakhunt) == sorted({*leakhunt.__all__, *leakhunt._MOUNTS})


def test_importing_the_package_loads_no_event_loop() -> None:
    """A fresh interpreter has no asyncio after `import leakhunt`."""
    code = "import sys, leakhunt; print('asyncio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
