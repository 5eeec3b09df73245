"""A notebook whose cell ends four steps: ``python -m notebook shutdown|restart|exit|terminate|interrupt``.

It waits for the test, and then ends or interrupts the kernel. It prints how each cell has ended.
"""

import os
import signal
import sys

from jupyter_client.manager import KernelManager

action = sys.argv[1]
kernels = KernelManager(shutdown_wait_time=60.0)  # seconds; after half of them the kernel gets SIGTERM
kernels.start_kernel()
client = kernels.blocking_client()
client.start_channels()
client.wait_for_ready(timeout=60)


def run(cell: str) -> None:
    """Run *cell* to its end."""
    print(client.execute_interactive(cell, timeout=60)["content"]["status"], flush=True)


def interrupt() -> None:
    """Interrupt a cell that flushes, and flush in another one."""
    cell = client.execute("print('flushing', flush=True)\nprovider.force_flush(60000)")
    while client.get_iopub_msg(timeout=60)["content"].get("text") != "flushing\n":
        pass
    kernels.interrupt_kernel()
    while (reply := client.get_shell_msg(timeout=60))["parent_header"]["msg_id"] != cell:
        pass
    print(reply["content"]["ename"], flush=True)
    run("assert provider.force_flush()")


run("from application import *\nend_steps('step', 4)")
os.read(0, 1)  # the test writes it
if action == "interrupt":
    interrupt()
elif action == "exit":
    run("exit()")
elif action == "terminate":
    os.kill(kernels.provisioner.pid, signal.SIGTERM)
elif action == "restart":
    kernels.restart_kernel()
if action in ("exit", "terminate"):
    while kernels.is_alive():
        pass
else:
    kernels.shutdown_kernel()
client.stop_channels()
