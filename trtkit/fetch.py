"""Files from the network for those who ask for them: pretrained weights and COCO. No lesson fetches anything by itself.

A file is kept only if its size and its SHA-256 are the ones written here, so what a lesson reads later is what others
measured. A download that broke off goes on where it was. A page in the file's place (a sign-in, "not found" with the
status of success) is refused. Without a network: get the file by other means, put it where the message says, and it is
checked and used.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import requests
from filelock import FileLock

from trtkit.cache import folder as cache_folder
from trtkit.progress import bar

ATTEMPTS = 3                        # at each address, when the connection fails
WAIT_S = 2.0                        # before the second; twice as long before the third
TIMEOUT_S = (10, 60)                # to connect, and between two blocks
BLOCK = 1 << 20
PAGE = (b"<!doctype", b"<html", b"<?xml", b"<head")


@dataclass(frozen=True)
class Source:
    """Where a file comes from and how to know it.

    Attributes:
        urls: addresses, tried in this order.
        sha256: of the whole file, hexadecimal.
        size_bytes: of the whole file.
        licence: of its contents.
    """

    urls: tuple[str, ...]
    sha256: str
    size_bytes: int
    licence: str


SOURCES = {
    "yolov3.weights": Source(
        ("https://data.pjreddie.com/files/yolov3.weights", "https://pjreddie.com/media/files/yolov3.weights"),
        "523e4e69e1d015393a1b0a441cef1d9c7659e3eb2d7e15f793f060a21b32f297", 248_007_048,
        "public domain, as darknet's LICENSE says; trained on COCO",
    ),
    # Two cats on a sofa, image 39769 of val2017: the sample that fits in a second.
    "coco_000000039769.jpg": Source(
        ("http://images.cocodataset.org/val2017/000000039769.jpg",),
        "dea9e7ef97386345f7cff32f9055da4982da5471c48d575146c796ab4563b04e", 173_131,
        "its photographer's, by COCO's terms of use; do not pass it on",
    ),
    "val2017.zip": Source(
        ("http://images.cocodataset.org/zips/val2017.zip",),
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05", 815_585_330,
        "their photographers', by COCO's terms of use; do not pass them on",
    ),
    "annotations_trainval2017.zip": Source(
        ("http://images.cocodataset.org/annotations/annotations_trainval2017.zip",),
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268", 252_907_541,
        "CC BY 4.0, COCO Consortium",
    ),
}  # fmt: skip


def folder() -> Path:
    """Where fetched files are kept: `fetched` in the folder of the plans."""
    return cache_folder() / "fetched"


def fetch(name: str, *, progress: bool = True) -> Path:
    """A file of `SOURCES`, downloaded unless it is there already. Its bytes are checked each time.

    Args:
        name: a key of `SOURCES`, for example "yolov3.weights" (237 MiB).
        progress: show a bar.

    Returns:
        Its path.

    Raises:
        ModuleNotFoundError: no pooch: pip install --editable '.[fetch]'.
        ValueError: an unknown name; or what came was a page, or had another size or SHA-256 (at every address).
        ConnectionError: no address answered, or the connection broke off; what has come is kept, call again.
    """
    if name not in SOURCES:
        raise ValueError(f"fetch: got {name!r}, expected one of {sorted(SOURCES)}")
    try:
        import pooch
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError("pooch is not installed, and fetching needs it: pip install --editable '.[fetch]'",
                                  name=e.name) from e
    source, target = SOURCES[name], folder() / name
    target.parent.mkdir(parents=True, exist_ok=True)
    download = _Download(source, target.with_name(f"{name}.part"), progress)

    def from_address(url: str) -> Path:
        return Path(pooch.retrieve(url, f"sha256:{source.sha256}", name, target.parent, downloader=download))

    with FileLock(f"{target}.lock"):
        return _first_that_works(name, source, target, from_address)


def _first_that_works(name: str, source: Source, target: Path, from_address: Callable[[str], Path]) -> Path:
    failures, refused = [], False
    for url in source.urls:
        for attempt in range(ATTEMPTS):
            try:
                return from_address(url)
            except requests.RequestException as e:
                failures.append(f"{url}: {e}")
                if isinstance(e, requests.HTTPError):
                    break                   # it answered, and will answer the same
            except ValueError as e:
                failures.append(f"{url}: {e}")
                refused = True
                break                       # another file is there
            if attempt + 1 < ATTEMPTS:
                time.sleep(WAIT_S * 2**attempt)
    error = ValueError if refused else ConnectionError
    raise error(f"fetch: {name}: got no file of {source.size_bytes:,} bytes with SHA-256 {source.sha256[:12]}. "
                f"{'; '.join(dict.fromkeys(failures))}. Get it by other means and put it at {target}")


@dataclass(frozen=True)
class _Download:
    """What pooch calls to write one address to a file; pooch then checks the hash and gives the file its name."""

    source: Source
    part: Path
    progress: bool

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        size = self.source.size_bytes
        done = self.part.stat().st_size if self.part.exists() else 0
        if done < size:
            # Compressed on the way, a rest would not fit what is there.
            headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={done}-"} if done else {})}
            with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as reply:
                done = self._receive(reply, done)
        if done < size:
            raise requests.ConnectionError(f"the connection ended after {done:,} of {size:,} bytes")
        self.part.replace(output_file)

    def _receive(self, reply: requests.Response, done: int) -> int:
        """Write what comes to the part; how many bytes that then has."""
        if reply.status_code == requests.codes.requested_range_not_satisfiable:
            self.part.unlink()              # longer than the file that is there now: the next attempt begins again
            raise requests.ConnectionError(f"nothing behind byte {done:,}")
        reply.raise_for_status()
        if reply.status_code != requests.codes.partial_content:
            done = 0                        # the address knows no ranges
        blocks = reply.iter_content(BLOCK)
        first = next(blocks, b"")
        if not done and ("text/html" in reply.headers.get("Content-Type", "") or _is_page(first)):
            raise ValueError(f"got a web page, expected the file; it begins with {first.strip()[:60]!r}")
        size, announced = self.source.size_bytes, reply.headers.get("Content-Length", "")
        if announced.isdecimal() and done + int(announced) != size:
            raise ValueError(f"got a file of {done + int(announced):,} bytes, expected {size:,}; another is there now")
        with (
            open(self.part, "ab" if done else "wb") as file,
            bar(None, self.part.stem, unit="B", total=size, initial=done, unit_scale=True, show=self.progress) as shown,
        ):
            for block in itertools.chain((first,), blocks):
                file.write(block[: size - done])        # without a length announced it might never end
                done += len(block)
                shown.update(len(block))
                if done > size:
                    break
        if done > size:
            self.part.unlink()
            raise ValueError(f"got more than {size:,} bytes, expected no more; another file is there now")
        return done


def _is_page(beginning: bytes) -> bool:
    return beginning.lstrip()[:16].lower().startswith(PAGE)
