"""A Jupyter kernel that starts up on one core while another imports what will talk to it.

papermill takes two seconds to import and a kernel one to start; one after the other, every lesson would pay for both.
"""

import os
from pathlib import Path


def start(folder: Path):
    """Start a Python kernel in `folder`; it sees TRTKIT_HEADLESS, so that a page keeps no moving bars.

    Returns:
        jupyter_client.AsyncKernelManager; the kernel's process, `manager.provisioner.pid`, leads a process group.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_core.utils import run_sync

    manager = AsyncKernelManager(kernel_name="python3")
    run_sync(manager.start_kernel)(
        cwd=str(folder), env={**os.environ, "TRTKIT_HEADLESS": "1"},
        extra_arguments=["--HistoryManager.hist_file=:memory:"],        # else parallel kernels share one file
    )
    return manager


def stop(manager) -> None:
    """End a kernel that nobody else has ended."""
    from jupyter_core.utils import run_sync

    if manager.has_kernel:
        run_sync(manager.shutdown_kernel)(now=True)
