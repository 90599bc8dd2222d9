"""Trains until Ctrl-C, checks that all is well, and goes on; run by the tests of faults."""

from __future__ import annotations

import signal
import sys
import threading
import time

from local_blocks import adam, data, network

from bll_kernels.pipeline.executor import Executor


def tell_what_was_lost(lost: sys.UnraisableHookArgs) -> None:
    """Python drops an interrupt that meets it in the callback of a weak reference."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        print("lost", flush=True)
    else:
        sys.__unraisablehook__(lost)


def main(moments: int) -> None:
    """Both modes take turns."""
    # A shell's background processes begin with interrupts ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.unraisablehook = tell_what_was_lost
    executors = [
        Executor(network(0, 4, 32), adam, mode=mode) for mode in ("pipelined", "sequential")
    ]
    feed = data(0, 64, 32, 4)
    for moment in range(moments):
        executor = executors[moment % 2]
        try:
            print("running", flush=True)
            while True:
                executor.run(feed)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Python takes a moment to forget a thread that has ended.
        deadline = time.monotonic() + 1.0
        while threading.active_count() > 1 and time.monotonic() < deadline:
            time.sleep(0.001)
        workers = sum(thread.name.startswith("bll-worker") for thread in threading.enumerate())
        grads = [p.grad for block in executor.blocks for p in block.parameters()]
        result = executor.step(*feed[0])
        right = all(grad is None for grad in grads) and result.output.isfinite().all()
        print(f"interrupted, {workers} workers, next step {'right' if right else 'wrong'}")
        sys.stdout.flush()
        sys.stdin.readline()
        signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    main(int(sys.argv[1]))
