"""Ends steps in children that multiprocessing makes in the way that the arguments name."""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

from application import end_step, provider


def main() -> None:
    """Two children, between two steps of the parent's."""
    method, kind = sys.argv[1:]
    multiprocessing.set_start_method(method)
    end_step("parent-0")
    provider.force_flush()
    if kind == "pool":
        with ProcessPoolExecutor(2) as pool:
            list(pool.map(end_step, ["child-0", "child-1"]))
    else:
        children = [multiprocessing.Process(target=end_step, args=(f"child-{number}",)) for number in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join()
            assert child.exitcode == 0
    end_step("parent-1")
    print("done", flush=True)


if __name__ == "__main__":
    main()
