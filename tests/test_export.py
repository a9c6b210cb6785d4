"""An exported hasher is the hasher: parity with PyTorch, int8, no torch at run time, and what is refused."""

import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch

import distilhash.deploy.export as exporting
from distilhash import cli
from distilhash.checkpoint import save_tensors
from distilhash.codes import CodeTable, pack, unpack
from distilhash.data.folders import FolderSource
from distilhash.data.loading import open_readable, split_of
from distilhash.data.sources import ArraySource, GivenSource
from distilhash.data.splits import Split, holdout_split
from distilhash.data.transforms import Preprocess
from distilhash.deploy.export import verdict
from distilhash.deploy.quantize import ExportNetwork
from distilhash.deploy.runtime import INT8, ExportedHasher
from distilhash.errors import DistilhashError
from distilhash.evaluation import mean_average_precision
from distilhash.hasher import Hasher
from exported import hasher

RNG = np.random.default_rng(0)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def outputs_of(network, images):
    with torch.no_grad():
        return network(Preprocess(network.input)(images)).numpy()


def test_float32_is_the_hasher(built):
    root, network, report, _ = built
    images = RNG.integers(0, 256, (300, 36, 32, 3), dtype=np.uint8)
    expected = outputs_of(network, images)
    found = np.concatenate(list(ExportedHasher.open(root / "exported").outputs(ArraySource(images), np.arange(300))))
    largest = np.abs(expected).max()
    assert np.abs(found - expected).max() < 1e-4 * largest
    clear = np.abs(expected) > 1e-4 * largest
    assert clear.mean() > 0.99
    assert ((found > 0) == (expected > 0))[clear].all()
    assert report["agreement"]["fp32"]["largest_difference"] < 1e-4


@pytest.mark.parametrize(("size", "stem"), [(32, "small"), (64, "small"), (33, "tiny"), (96, "published")])
def test_small_maps_become_the_same_matrices(size, stem):
    network = hasher(size, stem)
    images = torch.randn(3, 3, size, size)
    with torch.no_grad():
        expected, found = network(images), ExportNetwork(network)(images)
    assert (expected - found).abs().max() < 1e-4 * expected.abs().max()


def test_a_batch_may_have_any_size(built):
    exported = ExportedHasher.open(built[0] / "exported", threads=1)
    images = RNG.normal(size=(17, 3, 32, 32)).astype(np.float32)
    alone = np.concatenate([exported.run(images[i : i + 1]) for i in range(17)])
    for size in (2, 5, 17):
        np.testing.assert_allclose(exported.run(images[:size]), alone[:size], rtol=0, atol=1e-5 * np.abs(alone).max())


def test_int8_keeps_most_bits(built):
    root, _, report, _ = built
    images = list(RNG.integers(0, 256, (40, 5, 5, 3), dtype=np.uint8).repeat(8, 1).repeat(9, 2))
    tables = [Hasher.open(root / "exported", int8=int8).table(GivenSource(images)) for int8 in (False, True)]
    bits = [unpack(table.packed, 24) for table in tables]
    assert np.mean(bits[0] == bits[1]) > 0.9
    assert report["agreement"]["int8"]["bits_equal"] > 0.9
    assert tables[0].provenance["hasher"] != tables[1].provenance["hasher"]
    assert (root / "exported" / INT8).stat().st_size < 0.4 * (root / "exported" / "model.onnx").stat().st_size


def test_no_query_calibrates_and_the_report_says_what_was_measured(built):
    root, network, report, calibration = built
    source = open_readable(root / "photos", labelled=True)
    split = split_of(source, root / "photos", "", 0, None, needed=True)
    pixels = Preprocess(network.input)
    queries = pixels.planes(pixels.read(source, split.query))
    assert len(calibration) == report["calibration_images"] == 24
    assert not {image.tobytes() for image in queries} & {image.tobytes() for image in calibration}
    database = source.read(split.database)
    expected = mean_average_precision(
        pack(outputs_of(network, source.read(split.query))), pack(outputs_of(network, database)),
        source.labels[split.query], source.labels[split.database], num_bits=24,
    )  # fmt: skip
    assert report["map_at_all"]["torch"] == pytest.approx(expected, abs=1e-3)
    assert set(report["speed"]) == {"1", "32"}
    config = json.loads((root / "exported" / "config.json").read_text())
    for name, about in config["files"].items():
        assert about["sha256"] == hashlib.sha256((root / "exported" / name).read_bytes()).hexdigest()
    assert report["verdict"] in (root / "exported" / "README.md").read_text()


def test_encoding_does_not_import_torch(built, tmp_path):
    root, network, _, _ = built
    words = ["encode", root / "exported", root / "photos", "--part", "database", "--output", tmp_path / "codes"]
    code = f"import sys; from distilhash import cli; assert cli.main({[str(w) for w in words]}) == 0\n"
    done = subprocess.run([sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"], check=False)
    assert done.returncode == 0
    assert cli.main(["encode", str(root / "hasher"), *map(str, words[2:-1]), str(tmp_path / "plain")]) == 0
    found, plain = CodeTable.load(tmp_path / "codes"), CodeTable.load(tmp_path / "plain")
    assert found.names == plain.names and found.labels.tolist() == plain.labels.tolist()
    assert found.provenance["hasher"] == plain.provenance["hasher"]
    seen = [table.provenance["images_seen_in_training"] for table in (found, plain)]
    assert seen == [sum(name in FolderSource(root / "photos").names[:40] for name in found.names)] * 2
    assert np.mean(unpack(found.packed, 24) == unpack(plain.packed, 24)) > 0.999
    images = [open_readable(root / "photos", labelled=False).read([i])[0] for i in range(5)]
    exported = ExportedHasher.open(root / "exported")
    pixels = Preprocess(network.input)
    encoded = Hasher.open(root / "exported").encode(images)
    assert np.array_equal(encoded, pack(exported.run(pixels.planes(pixels.crop(images)))))


def test_the_command_refuses_and_replaces(built, tmp_path, capsys, monkeypatch):
    root = built[0]
    words = ["export", str(root / "hasher"), str(root / "photos"), "--output", str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("mine")
    for more in ([], ["--overwrite"]):  # a directory that is no exported hasher is never replaced
        assert cli.main([*words, *more]) == 2
        assert "the output exists" in capsys.readouterr().err
    assert (tmp_path / "out" / "diary.txt").read_text() == "mine"
    (tmp_path / "out" / "diary.txt").rename(tmp_path / "out" / "model.onnx")

    def broken(*given):
        raise DistilhashError("no power")

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "to_int8", broken)
        assert cli.main([*words, "--overwrite"]) == 2
    assert names_in(tmp_path) == ["out"] and (tmp_path / "out" / "model.onnx").read_text() == "mine"
    for function, name in (("to_onnx", "model.onnx"), ("to_int8", INT8)):  # which take seconds and were tested above
        content = (root / "exported" / name).read_bytes()
        monkeypatch.setattr(exporting, function, lambda *given, content=content: content)
    small = ["--calibration-images", "4", "--compared-images", "4", "--database-images", "9", "--seconds", "0.01"]
    shutil.copytree(root / "hasher", tmp_path / "own")
    split = holdout_split(np.arange(90) % 3)
    split.save(tmp_path / "own" / "split.json")  # of it nobody knows which images it is of
    words[1] = str(tmp_path / "own")
    capsys.readouterr()
    assert cli.main([*words, *small, "--overwrite"]) == 2  # another split would ask for what it was trained on
    assert "split.json" in capsys.readouterr().err
    (tmp_path / "own" / "split.json").unlink()
    assert cli.main([*words, *small, "--overwrite", "--json"]) == 0
    shutil.rmtree(tmp_path / "own")
    report = json.loads(capsys.readouterr().out)
    split = Split.load(tmp_path / "out" / "split.json")
    assert report["map_at_all"]["database"] == 9
    assert report["queries_seen_in_training"] == sum(i < 40 for i in split.query) > 0
    assert f"{report['queries_seen_in_training']} of these queries" in (tmp_path / "out" / "README.md").read_text()
    assert names_in(tmp_path) == ["out"]
    assert ExportedHasher.open(tmp_path / "out").num_bits == 24
    spoilt = hasher()
    torch.nn.init.constant_(spoilt.head.bias, torch.nan)
    description = {"kind": "hasher", "architecture": spoilt.backbone.architecture, "bits": 24}
    save_tensors(tmp_path / "spoilt" / "model.safetensors", dict(spoilt.state_dict()), description)
    words[1:3] = str(tmp_path / "spoilt"), str(root / "photos" / "class0")
    assert cli.main([*words, *small, "--overwrite"]) == 2
    assert "head.bias" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "spoilt")
    assert names_in(tmp_path) == ["out"]
    assert cli.main(["encode", str(root / "hasher"), str(root / "photos"), "--int8"]) == 2
    assert "exported hasher" in capsys.readouterr().err


def copied(built, folder, model=None, config=None):
    """A copy of the exported hasher with another model, which its config vouches for, or with another config."""
    folder.mkdir()
    content = (built[0] / "exported" / "model.onnx").read_bytes()
    if model is not None:
        content = model if isinstance(model, bytes) else model.SerializeToString()
    (folder / "model.onnx").write_bytes(content)
    data = json.loads((built[0] / "exported" / "config.json").read_text())
    data["files"]["model.onnx"]["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "config.json").write_text(json.dumps(data | (config or {})))
    return folder


def _external(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def _external_constant(model):
    node = model.graph.node.add(op_type="Constant", output=["unused"])
    tensor = onnx.TensorProto(name="c", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    node.attribute.append(onnx.helper.make_attribute("value", tensor))


def _subgraph(model):
    graph = onnx.helper.make_graph([], "inner", [], [])
    model.graph.node.append(onnx.helper.make_node("Loop", ["", ""], ["unused"], body=graph))


def _library(model):
    model.graph.node.append(onnx.helper.make_node("Anything", ["images"], ["unused"], domain="elsewhere"))


def _function(model):
    model.functions.add(name="f", domain="elsewhere")


def _second_input(model):
    model.graph.input.append(onnx.helper.make_tensor_value_info("more", 1, [1]))


def _other_side(model):
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 33


def _fixed_batch(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def _other_bits(model):
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 25


def _unknown_operator(model):
    model.graph.node[0].op_type = "NoSuchOperator"


@pytest.mark.parametrize(("change", "said"), [
    (_external, "other files"), (_external_constant, "other files"), (_subgraph, "subgraphs"),
    (_library, "operators of its own"), (_function, "operators of its own"), (_second_input, "input is not"),
    (_other_side, "another shape"), (_fixed_batch, "not a batch"), (_other_bits, "another shape"),
    (_unknown_operator, "Runtime refuses"),
])  # fmt: skip
def test_hostile_models_are_refused(built, tmp_path, change, said):
    model = onnx.load_model(built[0] / "exported" / "model.onnx")
    change(model)
    with pytest.raises(DistilhashError, match=said):
        ExportedHasher.open(copied(built, tmp_path / "copy", model))


def test_files_that_are_no_model_are_refused(built, tmp_path, monkeypatch):
    with pytest.raises(DistilhashError, match="not ONNX"):
        ExportedHasher.open(copied(built, tmp_path / "text", b"this is no model"))
    with pytest.raises(DistilhashError, match="lacks a model"):
        ExportedHasher.open(copied(built, tmp_path / "lacking"), int8=True)
    place = copied(built, tmp_path / "bent")
    content = bytearray((place / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (place / "model.onnx").write_bytes(content)
    with pytest.raises(DistilhashError, match="not the one that its config names"):
        ExportedHasher.open(place)
    monkeypatch.setattr("distilhash.deploy.runtime.MAX_BYTES", 1000)
    with pytest.raises(DistilhashError, match="too large"):
        ExportedHasher.open(copied(built, tmp_path / "large"))


@pytest.mark.parametrize("config", [
    {"format": "distilhash.export/2"}, {"bits": 0}, {"bits": True}, {"bits": "24"}, {"bits": 10**9}, {"files": []},
    {"input": None}, {"input": {"size": 10**6}}, {"input": {"size": 32.0}}, {"input": {"mean": [0, 0]}},
    {"input": {"std": [1, 0, 1]}}, {"input": {"std": [1, float("nan"), 1]}}, {"input": {"margin": "0.1"}},
    {"input": {"crop_mode": ["pad"]}}, {"input": {"interpolation": "nearest"}}, {"input": {"colour": 1}},
    {"input": {"margin": None}}, {"input": {"crop_mode": None}},
])  # fmt: skip
def test_damaged_configs_are_refused(built, tmp_path, config):
    with pytest.raises(DistilhashError, match="config of an exported hasher is damaged"):
        ExportedHasher.open(copied(built, tmp_path / "copy", config=config))


def test_the_verdict_hides_nothing():
    def report(ratios, before=0.5, after=0.5):
        speed = {batch: {"fp32_over_int8": ratio} for batch, ratio in zip(("1", "32"), ratios, strict=True)}
        return {"speed": speed, "map_at_all": {"fp32": before, "int8": after}}

    assert verdict(report((2, 1.5))).startswith("On this machine int8 is 2.00 times as fast at batch 1 and 1.50")
    assert "not faster at batch 32" in verdict(report((2, 0.9)))
    assert "worse: mAP falls by 0.0200" in verdict(report((2, 2), after=0.48))
    assert "worse" not in verdict(report((2, 2), after=0.4901))
    assert "not measured" in verdict(report((2, 2)) | {"map_at_all": None})
