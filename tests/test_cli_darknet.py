"""`trtkit darknet` and `trtkit fetch`."""

import sys
from pathlib import Path

import pytest

from trtkit import cli, darknet_cfg, darknet_layers, darknet_nets, darknet_weights, fetch

ORACLES = Path(__file__).parent / "oracles"


@pytest.mark.parametrize(
    ("name", "summary"),
    [("yolov3", "107 layers, 65.864 BFLOPs, 62,001,757 floats"),
     ("yolov3-spp", "114 layers, 66.218 BFLOPs, 63,052,381 floats"),
     ("yolov3-tiny", "24 layers, 5.565 BFLOPs, 8,858,734 floats")],
)  # fmt: skip
def test_the_table_is_darknets_with_a_line_below(capsys, name, summary):
    assert cli.main(["darknet", name]) == 0
    assert capsys.readouterr().out == (ORACLES / f"darknet_{name}.txt").read_text() + summary + "\n"


def test_a_cfg_and_weights_of_ones_own_are_read(capsys, tmp_path):
    text = darknet_nets.yolov3_tiny(2, 0.1, size=96)
    (tmp_path / "my.cfg").write_text(text)
    convolutions = darknet_weights.convolutions(darknet_layers.layers(darknet_cfg.parse(text)))
    content = bytes(4 * sum(c.floats for c in convolutions))
    weights = tmp_path / "my.weights"
    weights.write_bytes(darknet_weights.Header(0, 2, 0, 6400).packed + content)
    assert cli.main(["darknet", str(tmp_path / "my.cfg"), "--size", "64", "--weights", str(weights)]) == 0
    out = capsys.readouterr().out
    assert "   64 x  64 x   3   ->" in out
    assert out.endswith("my.weights: version 0.2, 6,400 images seen, comes out even\n")

    weights.write_bytes(weights.read_bytes()[:-4])
    assert cli.main(["darknet", str(tmp_path / "my.cfg"), "--weights", str(weights)]) == 2
    assert "1 too few" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "match"),
    [(["darknet", "none.cfg"], "got none.cfg, expected an existing .cfg file"),
     (["darknet", "yolov3", "--size", "100"], "expected multiples of 32"),
     (["fetch", "yolov9.weights"], "got 'yolov9.weights', expected one of")],
)  # fmt: skip
def test_mistakes_end_in_one_line(capsys, cache, arguments, match):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert match in error and error.count("\n") == 1


def test_a_fetched_file_is_named_with_its_licence(capsys, cache, monkeypatch):
    monkeypatch.setattr(fetch, "fetch", lambda name: fetch.folder() / name)
    assert cli.main(["fetch", "yolov3.weights"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{cache / 'fetched' / 'yolov3.weights'}\n") and "public domain" in out


def test_without_pooch_the_command_says_how_to_get_it(capsys, cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert cli.main(["fetch", "yolov3.weights"]) == 2
    assert "pip install --editable '.[fetch]'" in capsys.readouterr().err
