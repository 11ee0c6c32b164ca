"""Work in a second thread that fails in the first. For the tests of `cuda`, with a GPU and with the fake."""

import threading


def in_thread(work) -> None:
    """Run in another thread, and raise here what it raised there."""
    failed = []

    def guarded():
        try:
            work()
        except BaseException as e:              # whatever it was belongs to the test
            failed.append(e)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
