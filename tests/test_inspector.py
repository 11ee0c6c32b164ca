import json
from pathlib import Path

import pytest

from trtkit import inspector

REAL = json.loads((Path(__file__).parent / "oracles" / "inspector_861.json").read_text())

CONV_8 = {
    "Name": "/a/Conv + PWN(/a/LeakyRelu)",
    "LayerType": "CaskConvolution",
    "Inputs": [{"Name": "x", "Location": "Device", "Dimensions": [1, 3, 8, 8],
                "Format/Datatype": "Channel major FP16 format where channel % 4 == 0"}],
    "Outputs": [{"Name": "y", "Location": "Device", "Dimensions": [1, 8, 8, 8],
                 "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format."}],
    "ParameterType": "Convolution",
    "Weights": {"Type": "Half", "Count": 216},
    "Bias": {"Type": "Half", "Count": 8},
    "TacticName": "sm80_xmma_fprop_implicit_gemm",
    "TacticValue": "0x11bde0e1d9f2f35d",
    "StreamId": 0,
    "Metadata": "[ONNX Layer: /a/Conv]\x1f[ONNX Layer: /a/LeakyRelu | torch.ops: x]",
}
COPY_8 = {
    "Name": "Reformatting CopyNode for Input Tensor 0 to /a/Conv",
    "LayerType": "Reformat",
    "Inputs": [{"Name": "x", "Dimensions": [1, 3, 8, 8], "Format/Datatype": "Row major linear FP32"}],
    "Outputs": [{"Name": "z", "Dimensions": [1, 3, 8, 8], "Format/Datatype": "Row major linear FP16 format"}],
    "TacticValue": "0x00000000000003ea",
}
CONV_11 = CONV_8 | {
    "Inputs": [{"Name": "x", "Dimensions": [1, 3, 8, 8], "DataType": "Half",
                "Format": "Channel major format where channel % 4 == 0 (kCHW4)"}],
    "Outputs": [{"Name": "y", "Dimensions": [1, 8, 8, 8], "DataType": "Int8", "Format": "Row major (kLINEAR)"}],
}


def test_a_layer_of_tensorrt_8():
    row = inspector.frame([CONV_8]).iloc[0]
    assert list(row.index) == inspector.COLUMNS
    assert (row["name"], row["type"], row["precision"]) == (CONV_8["Name"], "CaskConvolution", "FP16")
    assert (row["in_dtypes"], row["out_dtypes"]) == (["FP16"], ["INT8"])
    assert row["in_formats"] == ["Channel major FP16 format where channel % 4 == 0"]
    assert (row["in_shapes"], row["out_shapes"]) == ([(1, 3, 8, 8)], [(1, 8, 8, 8)])
    assert row["tactic"] == "sm80_xmma_fprop_implicit_gemm"
    assert row["nodes"] == ["/a/Conv", "/a/LeakyRelu"]


def test_a_layer_of_tensorrt_11_says_the_same_in_other_words():
    eight, eleven = (inspector.frame([layer]).iloc[0] for layer in (CONV_8, CONV_11))
    same = [c for c in inspector.COLUMNS if "formats" not in c]
    assert eight[same].to_dict() == eleven[same].to_dict()
    assert eleven["out_formats"] == ["Row major (kLINEAR)"]


def test_real_layers_of_an_fp16_engine():
    table = inspector.frame(REAL["fp16"])
    rows = table.set_index("name")
    conv = rows.loc["/stem/stem.0/Conv"]
    assert (conv["type"], conv["precision"], conv["in_dtypes"], conv["out_dtypes"]) == (
        "CaskConvolution", "FP16", ["FP16"], ["FP16"])
    assert (conv["in_shapes"], conv["out_shapes"]) == ([(1, 3, 416, 416)], [(1, 32, 416, 416)])
    assert conv["tactic"].startswith("sm80_xmma_fprop_implicit_gemm") and "f16f16" in conv["tactic"]
    assert conv["nodes"] == ["/stem/stem.0/Conv"]
    add = rows.loc["PWN(PWN(/stages.0/stages.0.1/expand/expand.2/LeakyRelu), /stages.0/stages.0.1/Add)"]
    assert add["nodes"] == ["/stages.0/stages.0.1/expand/expand.2/LeakyRelu", "/stages.0/stages.0.1/Add"]
    assert (add["in_dtypes"], add["precision"]) == (["FP16", "FP16"], "FP16")
    cast = rows.loc["images_fp16_Cast"]
    assert (cast["in_dtypes"], cast["out_dtypes"], cast["origin"]) == (["FP32"], ["FP16"], "CAST")
    assert cast["nodes"] == ["images_fp16_Cast"]
    needless = table[table["type"] == "NoOp"].iloc[0]
    assert needless["nodes"] == [] and needless["name"].startswith("Reformatting CopyNode")
    assert inspector.reformats(table)["name"].tolist() == ["images_fp16_Cast", "head32_Cast"]
    assert inspector.counts(table).loc["CaskConvolution"].to_dict() == {"FP16": 1, "FP32": 0}


def test_real_layers_of_an_int8_engine():
    rows = inspector.frame(REAL["int8"]).set_index("name")
    conv = rows.loc["/stem/stem.0/Conv.weight_codes + /stem/stem.0/Conv"]
    assert (conv["precision"], conv["in_dtypes"], conv["out_dtypes"]) == ("INT8", ["INT8"], ["FP32"])
    assert conv["nodes"] == ["/stem/stem.0/Conv"]
    quantize = rows.loc["images_QuantizeLinear"]
    assert (quantize["in_dtypes"], quantize["out_dtypes"], quantize["origin"]) == (["FP32"], ["INT8"], "QDQ")
    copy = rows.loc["Reformatting CopyNode for Input Tensor 0 to PWN(/stem/stem.2/LeakyRelu)"]
    assert (copy["in_dtypes"], copy["out_dtypes"]) == (["FP32"], ["FP16"])
    assert (copy["origin"], copy["nodes"]) == ("REFORMAT", [])
    assert copy["out_formats"] == ["Thirty-two wide channel vectorized row major FP16 format"]
    constant = rows.loc["stages.2.0.0.bias"]
    assert (constant["in_dtypes"], constant["nodes"], constant["precision"]) == ([], [], "")


def test_dynamic_shapes_leave_the_types_of_the_weights_alone():
    """TensorRT 8.6.1 says so of every tensor of an engine with dynamic shapes."""
    unknown = [{"Name": "x", "Dimensions": [-1, 3, 8, 8], "Format/Datatype": "N/A due to dynamic shapes"}]
    conv, add = inspector.frame([CONV_8 | {"Inputs": unknown, "Outputs": unknown},
                                 {"Name": "/a/Add", "LayerType": "PointWise", "Inputs": unknown}]).to_dict("records")
    assert (conv["precision"], conv["in_dtypes"], conv["in_formats"]) == ("FP16", [""], ["N/A due to dynamic shapes"])
    assert (add["precision"], add["nodes"]) == ("", ["/a/Add"])


def test_a_layer_without_weights_has_the_narrowest_type_that_it_reads():
    add = {"Name": "/a/Add", "LayerType": "PointWise", "Outputs": [],
           "Inputs": [{"Format/Datatype": "Row major linear FP32"}, {"Format/Datatype": "Row major Int8 format"}]}
    assert inspector.frame([add])["precision"].tolist() == ["INT8"]
    shape = {"Name": "shape", "LayerType": "Shape", "Inputs": [{"Format/Datatype": "Row major linear INT32"}]}
    assert inspector.frame([shape])["precision"].tolist() == [""]


@pytest.mark.parametrize(("name", "nodes"), [
    ("/a/Conv", ["/a/Conv"]),
    ("/a/Conv + /a/Add", ["/a/Conv", "/a/Add"]),
    ("PWN(/a/LeakyRelu)", ["/a/LeakyRelu"]),
    ("PWN(PWN(/a/Sigmoid), /a/Mul)", ["/a/Sigmoid", "/a/Mul"]),
    ("/a/Conv || /b/Conv", ["/a/Conv", "/b/Conv"]),
    ("/a/Conv + PWN(PWN(/a/LeakyRelu), /b/Add)", ["/a/Conv", "/a/LeakyRelu", "/b/Add"]),
    ("Reformatting CopyNode for Input Tensor 0 to /a/Conv", []),
])
def test_names_are_taken_apart_where_there_are_no_metadata(name, nodes):
    assert inspector.nodes({"Name": name, "LayerType": "X"}) == nodes


def test_summaries():
    table = inspector.frame([COPY_8, CONV_8, CONV_11, CONV_8 | {"Weights": {"Type": "Int8", "Count": 1}}])
    counts = inspector.counts(table)
    assert counts.loc["CaskConvolution"].to_dict() == {"FP16": 2, "FP32": 0, "INT8": 1}
    assert list(counts.index) == ["CaskConvolution", "Reformat"]
    assert inspector.reformats(table)["name"].tolist() == [COPY_8["Name"]]
    assert inspector.reformats(table)["tactic"].tolist() == ["0x00000000000003ea"]


def test_engines_without_details_are_refused():
    with pytest.raises(ValueError, match=r"layers\[1\]: got '/a/Conv', expected an object .*detailed=True"):
        inspector.frame([CONV_8, "/a/Conv"])
    with pytest.raises(ValueError, match=r"got none, expected the inspector's"):
        inspector.frame([])
