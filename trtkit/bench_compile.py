"""torch.compile as a contender, in a process of its own: `python -m trtkit.bench_compile '{"width": 1.0, ...}'`.

torch.compile needs Triton and a C compiler, which the Python that has TensorRT may lack. So this runs under any Python
that has torch, with nothing else than this package's source on its path, and writes a line of JSON per case.
"""

import json
import sys
import time

import torch

from trtkit import bench_rounds, bench_torch, models

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


def network(classes: int, width: float) -> torch.nn.Module:
    """`models.YOLOv3` with random weights, in eval mode."""
    torch.manual_seed(0)
    return models.YOLOv3(classes, width).eval()


def case(request: dict, batch: int, mode: str) -> dict:
    """Compile and measure one case.

    Args:
        request: "width", "classes", "size", "dtype" ("fp16" in channels_last, or "fp32"), "rounds", "turn_s".
        batch: images per run.
        mode: of torch.compile.

    Returns:
        JSON object: "batch", "mode", "compile_s", "torch", "python", and "rounds_ms", one list per round.
    """
    torch.compiler.reset()
    torch.backends.cudnn.benchmark = True
    model = network(request["classes"], request["width"]).to("cuda", DTYPES[request["dtype"]])
    x = torch.rand(batch, 3, request["size"], request["size"], device="cuda", dtype=DTYPES[request["dtype"]])
    if request["dtype"] == "fp16":
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    compiled = torch.compile(model, mode=mode, dynamic=False)
    start = time.perf_counter()
    with torch.no_grad():
        for _ in range(bench_torch.GRAPH_WARM_UP):          # the first compiles, the second captures its CUDA graph
            compiled(x)
        torch.cuda.synchronize()
        compile_s = time.perf_counter() - start
        rounds_ms = bench_rounds.interleave(
            {"compiled": bench_torch.timed(lambda: compiled(x))}, rounds=request["rounds"], turn_s=request["turn_s"]
        )["compiled"]
    return {
        "batch": batch,
        "mode": mode,
        "compile_s": round(compile_s, 1),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "rounds_ms": [[round(ms, 4) for ms in r] for r in rounds_ms],
    }


def main() -> None:
    """All cases of a request, which is the one argument: JSON as for `case`, with lists "batches" and "modes"."""
    request = json.loads(sys.argv[1])
    for batch in request["batches"]:
        for mode in request["modes"]:
            sys.stdout.write(json.dumps(case(request, batch, mode)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
