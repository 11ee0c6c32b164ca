"""Plans on disk: built once, whole or not there, and never trusted blindly. Lesson 14.

A plan's name holds a hash of all that it depends on, so a changed graph or another GPU never meets an old plan. Who
builds holds a file lock; others wait and find the plan. The bytes are written under another name, synced, and renamed.

A TensorRT plan is executable code: whoever can write one can run what he likes as the user who loads it. So before one
is loaded, its file must be ours, writable by nobody else, made on this machine as it is now, and have the hash that its
sidecar (the .json beside it) tells. Source: TensorRT documentation, "Security": never deserialize an engine from
others.
"""

import errno
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from trtkit.files import replacing, sha256

WAIT_S = 3600               # for another process that builds the same plan
WRITABLE_BY_OTHERS = 0o022
FROM_KEY = ("backend", "graph_sha256", "config", "environment")


def folder() -> Path:
    """Where plans are kept: $TRTKIT_CACHE, else .cache/trtkit in the home folder."""
    return Path(os.environ.get("TRTKIT_CACHE") or Path.home() / ".cache" / "trtkit")


def graph_sha256(graph: Path) -> str:
    """Hash of an ONNX file and of the external data that it names; of the bytes alone where it is no ONNX file."""
    import onnx
    from google.protobuf.message import DecodeError

    digest = hashlib.sha256(Path(graph).read_bytes())
    try:
        model = onnx.load(graph, load_external_data=False)
    except DecodeError:                     # the backend will say what is wrong with it
        return digest.hexdigest()
    external = {entry.value for tensor in model.graph.initializer for entry in tensor.external_data
                if entry.key == "location"}
    for name in sorted(external):
        file = Path(graph).parent / name
        digest.update(f"\n{name} {sha256(file) if file.is_file() else 'missing'}".encode())
    return digest.hexdigest()


def sidecar_path(plan: Path) -> Path:
    """The .json that says what a plan was made from."""
    return plan.with_name(plan.name + ".json")


def sidecar(plan: Path) -> dict:
    """What a plan was made from; {} where the file is missing or damaged."""
    try:
        read = json.loads(sidecar_path(plan).read_text())
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def find_or_make(stem: str, suffix: str, facts: Mapping, make: Callable[[Path], Mapping]) -> Path:
    """The plan that these facts name, made now unless an earlier call made it.

    Args:
        stem: how the plan's name begins, for people.
        suffix: how it ends.
        facts: all that the plan depends on; the keys are `FROM_KEY`.
        make: writes the plan to the path that it gets, and returns what else the sidecar shall tell.

    Returns:
        Path of the plan.

    Raises:
        OSError: the folder cannot be written.
        TimeoutError: another process has been building this plan for an hour.
    """
    key = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()[:16]
    plan = folder() / f"{stem}.{key}{suffix}"
    if not problem(plan, facts["environment"]):
        return plan
    with locked(plan.name):
        reason = problem(plan, facts["environment"])        # somebody may have built it while we waited
        if not reason:
            return plan
        if plan.exists():
            warnings.warn(f"{plan.name}: {reason}; built again", stacklevel=3)
        for orphan in plan.parent.glob(f"{plan.name}.*.tmp"):        # of a process that was killed while it wrote
            orphan.unlink(missing_ok=True)
        sidecar_path(plan).unlink(missing_ok=True)          # an interrupted build must not leave a plan that is trusted
        with replacing(plan) as temporary:
            more = make(temporary)
            temporary.chmod(0o600)                          # whatever the umask grants to others
            made = {**facts, "plan_sha256": sha256(temporary), **more}
        with replacing(sidecar_path(plan)) as temporary:
            temporary.write_text(json.dumps(made, indent=1) + "\n")
            temporary.chmod(0o600)
    return plan


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock of that name, against other processes and threads; it ends with the process that holds it.

    Raises:
        OSError: the folder cannot be written.
        TimeoutError: somebody has held it for an hour.
    """
    locks = folder() / "locks"
    lock = FileLock(locks / f"{name}.lock", timeout=WAIT_S)
    try:
        folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        locks.mkdir(exist_ok=True)
        lock.acquire()
    except Timeout as e:
        raise TimeoutError(f"cache: another process has held {e.lock_file} for {WAIT_S // 60} minutes; see what it "
                           "does, or end it") from e
    except OSError as e:
        if e.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise PermissionError(f"cache: got {folder()}, which cannot be written ({e.strerror}), expected a folder of "
                              "yours; export TRTKIT_CACHE=FOLDER") from e
    try:
        yield
    finally:
        lock.release()


def problem(plan: Path, environment: str | None) -> str:
    """Why a plan must not be loaded; "" if it may.

    Args:
        plan: the file; its sidecar lies beside it.
        environment: what it must have been made on; None to leave that out.
    """
    plan = Path(plan)
    if not plan.is_file():
        return "no such plan"
    facts = sidecar(plan)
    if not facts:
        return "its .json is missing or damaged"
    for file in (plan, sidecar_path(plan)):
        state = file.stat()
        if state.st_uid != os.getuid():
            return f"{file.name} belongs to user {state.st_uid}, not to you ({os.getuid()})"
        if state.st_mode & WRITABLE_BY_OTHERS:
            return f"{file.name} can be written by others (mode {state.st_mode & 0o777:o})"
    if missing := [key for key in (*FROM_KEY, "plan_sha256") if key not in facts]:
        return f"its .json lacks {missing[0]}"
    if environment is not None and facts["environment"] != environment:
        return f"it was made on {facts['environment']}, this is {environment}"
    if facts["plan_sha256"] != sha256(plan):
        return "it has changed since it was built"
    return ""
