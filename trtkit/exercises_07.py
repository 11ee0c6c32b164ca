"""Exercises of lesson 07, engine build: what a right answer is, and what to say to those who are stuck."""

import statistics

from trtkit import eras
from trtkit.check import Exercise


def _choose(tactics: dict[str, tuple[list[float], float]], workspace_mib: float) -> str:
    """The tactic with the smallest median time among those whose workspace fits; the first of equals."""
    fitting = [name for name, (_, needed_mib) in tactics.items() if needed_mib <= workspace_mib]
    return min(fitting, key=lambda name: statistics.median(tactics[name][0]))


def _network_flags(trt: object) -> int:
    """Bits for `create_network`: strongly typed where that exists, else explicit batch."""
    flags = trt.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED if hasattr(flags, "STRONGLY_TYPED") else flags.EXPLICIT_BATCH)


def _silently_wide(asked: dict[str, str], reads: dict[str, str]) -> list[str]:
    """Names of layers that read a wider type than the graph asks for, sorted; one that is not there is none."""
    bits = {"INT8": 8, "FP16": 16, "FP32": 32}
    return sorted(name for name, kind in asked.items() if name in reads and bits[reads[name]] > bits[kind])


EXERCISES = {
    "07_choose": Exercise(
        _choose,
        [({"direct": ([0.9, 1.0, 1.1], 0.0), "winograd": ([0.5, 0.6, 0.5], 256.0)}, 1024.0),
         ({"direct": ([0.9, 1.0, 1.1], 0.0), "winograd": ([0.5, 0.6, 0.5], 256.0)}, 128.0),
         ({"a": ([0.2, 3.0, 3.1], 1.0), "b": ([1.0, 1.1, 1.2], 1.0)}, 1.0),
         ({"a": ([1.0, 1.0, 9.0], 8.0), "b": ([2.0, 2.0, 2.0], 8.0), "c": ([0.1, 0.1, 0.1], 8.1)}, 8.0)],
        (
            "first drop the tactics that need more workspace than there is, then compare one number of each",
            "one number: the median of the times; a single lucky or unlucky run must not decide",
            "fits = {n: t for n, (t, mib) in tactics.items() if mib <= workspace_mib}; "
            "return min(fits, key=lambda n: np.median(fits[n]))",
        ),
    ),
    "07_network_flags": Exercise(
        _network_flags,
        [(eras.StandIn(era),) for era in eras.ERAS],
        (
            "ask hasattr(trt.NetworkDefinitionCreationFlag, ...) for the flag that you would rather have",
            "the two flags are STRONGLY_TYPED and EXPLICIT_BATCH; each is the number of a bit, which int(flag) tells, "
            "and another one in each era",
            "f = trt.NetworkDefinitionCreationFlag; return 1 << int(f.STRONGLY_TYPED if hasattr(f, 'STRONGLY_TYPED') "
            "else f.EXPLICIT_BATCH)",
        ),
    ),
    "07_silently_wide": Exercise(
        _silently_wide,
        [({"conv1": "INT8", "conv2": "INT8", "head": "FP32"}, {"conv1": "INT8", "conv2": "FP32", "head": "FP32"}),
         ({"b": "FP16", "a": "INT8", "c": "FP16"}, {"c": "INT8", "b": "FP32", "a": "FP16"}),
         ({"x": "INT8", "gone": "INT8"}, {"x": "INT8", "new": "FP32"})],
        (
            "wider means more bits than asked for; fewer bits are a gift, not a fault",
            "some layers of the graph are fused into others and not in `reads`: pass over them; sort the names",
            "bits = {'INT8': 8, 'FP16': 16, 'FP32': 32}; return sorted(n for n, kind in asked.items() "
            "if n in reads and bits[reads[n]] > bits[kind])",
        ),
    ),
}
