"""A worker whose builder does not behave: `python fake_worker.py HOW JOBDIR`. Everything around the builder is real.

segv     the builder's process ends by SIGSEGV        hang     it never comes back, nor does what it has started
kill     it is killed                                 eat      it takes 64 MiB after 64 MiB
raise    our own code breaks                          garbage  result.json is no JSON
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from fp8graph.engines import worker

HOW, FOLDER = sys.argv[1], Path(sys.argv[2])


def misbehave(logger: object) -> None:
    logger.log("ERROR", "the builder's last words")
    worker_events("Optimizing")
    if HOW in ("segv", "kill"):
        os.kill(os.getpid(), signal.SIGSEGV if HOW == "segv" else signal.SIGKILL)
    if HOW == "hang":
        started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(os.environ["FAKE_WORKER_PIDS"]).write_text(f"{os.getpid()} {started.pid}")
        time.sleep(600)
    if HOW == "eat":
        held = []
        while True:
            held.append(bytearray(os.urandom(1 << 20) * 64))
    raise RuntimeError("a bug of ours")


def worker_events(name: str) -> None:
    EMIT[0]({"event": "phase", "name": name})


EMIT = []


class FakeBackend:
    NAME = "tensorrt-rtx"

    def load(self):
        return SimpleNamespace(
            __version__="1.7.1.116",
            ILogger=type("ILogger", (), {"Severity": SimpleNamespace(VERBOSE=4)}),
            Builder=misbehave,
        )

    def refuse(self, job, devices):
        return []

    def why_not_here(self, version, devices):
        return ""

    def chips(self, trt, job, devices):
        return ("sm89",)


def main() -> int:
    real = worker.build

    def build(backend, job, engine, cache, log, emit):
        EMIT.append(emit)
        return real(FakeBackend(), job, engine, cache, log, emit)

    if HOW == "garbage":
        (FOLDER / "result.json").write_text("{")
        return 0
    worker.build = build
    return worker.main([str(FOLDER)])


if __name__ == "__main__":
    sys.exit(main())
