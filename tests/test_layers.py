"""Imports only go down the layers of the design, and heavy packages stay in the one module that may name them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "trtkit"
PLOTS = {p.stem for p in PACKAGE.glob("plots*.py")}
LAYERS = {
    0: {"quant", "granularity", "int8", "floats", "sqnr", "files", "progress",
        "yolo", "heads", "boxes", "suppress", "letterbox", "anchors",
        "roofline", "devices", "energy", "percentiles", "clocks",
        "calib", "calib_state", "calib_table", "estimators", "histogram", "nvidia_calib",
        "calib_cache", "eras",
        "machine", "nvidia", "recorded", "packages", "diagnose", "diagnose_gpu", "diagnose_packages",
        "pareto", "published",
        "darknet_cfg", "darknet_layers", "darknet_nets", "darknet_weights",
        "scenes", "scene_street", "scene_backdrop", "scene_houses", "scene_place", "scene_traffic", "scene_compose",
        "scene_lens", "scene_art", "scene_parts", "scene_vehicles", "scene_people", "scene_furniture"},
    1: {"pytorch", "meta", "coupling", "coupling_ids", "coupling_rules", "coupling_trace", "coupling_draw",
        "importance", "prune", "prune_order", "prune_cut",
        "models", "channels", "train", "distill", "fake_quant", "qat", "data", "weights", "costs",
        "export", "export_torch", "export_checks", "export_keras", "operators", "lowering", "surgery", "graph_summary",
        "graph_layout", "fusions", "simplify",
        "floors", "cost_torch", "cost_yolov3",
        "wiring", "placement", "precision", "weak_types", "qdq", "qdq_nodes", "half", "planted", "lint", "lint_rules",
        "stem",
        "darknet", "small_net", "decode_graph", "receptive", "masks", "digits", "channel_sensitivity"},
    2: {"engine", "cache", "backend_ort", "backend_trt", "runner_trt", "trt_plan", "trt_process", "cuda",
        "torch_runner", "calibrators_trt"},
    3: {"evaluate", "evaluate_errors", "agreement", "fetch", "coco",
        "sensitivity", "mixed_precision", "draw", "sources", "writer", "video",
        "profiling", "layer_times", "inspector",
        "transfers", "overlap", "launches", "leaks", "record_08"},
    4: {*PLOTS, "bounds", "check", "shape", "edition", "grade", "skeleton", "lessons", "executor", "kernel", "page",
        "worker", "job", "course", "causes", "report", "report_page", "doctor", "cli_lessons", "cli", "__main__",
        "cli_darknet",
        "bench", "bench_steps", "bench_graphs", "bench_rounds", "bench_torch", "bench_compile", "bench_speed",
        "bench_accuracy", "bench_runtime", "cli_bench", "staircase",
        "__init__", *(p.stem for kind in ("exercises", "record") for p in PACKAGE.glob(f"{kind}_*.py"))},
}
LAYER_OF = {module: layer for layer, modules in LAYERS.items() for module in modules}
ONLY_IN = {
    "tensorrt": {"backend_trt", "runner_trt", "trt_plan", "calibrators_trt"},
    "pycuda": {"cuda"},
    "onnxruntime": {"backend_ort"},
    "matplotlib": PLOTS,
    "ipywidgets": {"monitor"},
    "av": {"sources", "writer"},
}
NO_TORCH_OR_ONNX = LAYERS[0] | LAYERS[3]


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at any depth: "torch" for packages, "trtkit.x" for our own."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "trtkit":
            found |= {f"trtkit.{a.name}" for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {m if m.startswith("trtkit") else m.split(".")[0] for m in found}


FILES = sorted(PACKAGE.glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_module_imports_only_its_own_layer_and_those_below(path):
    assert path.stem in LAYER_OF, f"{path.name} is in no layer; add it to LAYERS where the design puts it"
    for name in imports(path):
        if name.startswith("trtkit."):
            module = name.split(".")[1]
            assert LAYER_OF[module] <= LAYER_OF[path.stem], f"{path.name} imports {name}, a layer above its own"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_heavy_packages_stay_where_the_design_puts_them(path):
    for package, allowed in ONLY_IN.items():
        if path.stem not in allowed:
            assert package not in imports(path), f"{path.name} imports {package}; only {sorted(allowed)} may"
    if path.stem in NO_TORCH_OR_ONNX:
        assert not imports(path) & {"torch", "onnx"}, f"{path.name} is NumPy only"


def test_importing_the_package_imports_nothing_heavy():
    heavy = "{'torch', 'onnx', 'onnxruntime', 'cv2', 'numpy', 'matplotlib', 'papermill'}"
    code = f"import sys, trtkit; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_check_sees_a_forbidden_import(tmp_path):
    (tmp_path / "x.py").write_text("def f():\n    from trtkit import engine\n    import torch.nn as nn\n")
    assert imports(tmp_path / "x.py") == {"trtkit.engine", "torch"}
