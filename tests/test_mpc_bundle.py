"""A bundle survives the disk; a hostile, damaged or foreign one is refused with a reason."""

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from mpc_nets import EVERYTHING, RESIDUAL, make_net

from autorep.mpc.bundle.files import load_graph, load_images, load_samples, load_weights, samples_file, save_bundle
from autorep.mpc.bundle.graph import BundleError, fingerprint
from autorep.mpc.bundle.interpreter import logits_float


@pytest.fixture
def bundle(tmp_path):
    graph, weights, samples = make_net(RESIDUAL)
    save_bundle(tmp_path, graph, weights, samples)
    return tmp_path


@pytest.mark.parametrize("ops", [RESIDUAL, EVERYTHING], ids=["residual", "everything"])
def test_round_trip(tmp_path, ops):
    graph, weights, samples = make_net(ops)
    save_bundle(tmp_path, graph, weights, samples)
    again = load_graph(tmp_path)
    assert fingerprint(again) == fingerprint(graph)
    loaded = load_samples(tmp_path, again)
    np.testing.assert_array_equal(loaded.images, samples.images)
    np.testing.assert_array_equal(logits_float(again, load_weights(tmp_path, again), loaded.images), samples.logits)


def edit(bundle, change):
    document = json.loads((bundle / "graph.json").read_text())
    document.pop("sha256")  # as in a bundle of an older version
    change(document)
    (bundle / "graph.json").write_text(json.dumps(document))


@pytest.mark.parametrize(("change", "reason"), [
    (lambda d: d.update(version=2), "of version 2: expected version 1"),
    (lambda d: d.update(format="other"), "not a bundle of this toolkit"),
    (lambda d: d["ops"][0].update(kind="exec"), "unknown kind"),
    (lambda d: d["ops"][0].update(inputs=["relu2"]), "not computed before it"),
    (lambda d: d["ops"][1].update(name="conv1"), "name is taken"),
    (lambda d: d["ops"][0].update(name="../../etc/passwd"), "invalid tensor name"),
    (lambda d: d["ops"][0]["attrs"].update(stride=[0, 1]), "must be positive"),
    (lambda d: d["ops"][0]["attrs"].update(groups=[-1]), "whole numbers"),
    (lambda d: d["ops"][0]["attrs"].update(kernel=[3, 2**30]), "whole numbers"),
    (lambda d: d["ops"][0]["attrs"].update(extra=[1]), "attributes"),
    (lambda d: d["ops"][0]["attrs"].update(kernel="33"), "whole numbers"),
    (lambda d: d["ops"][0]["attrs"].update(out_channels=[8]), "operands differ in shape"),
    (lambda d: d["input"].update(shape=[2, 6]), "expected \\[C, H, W\\]"),
    (lambda d: d["input"].update(shape=None), "damaged"),
    (lambda d: d.update(ops=[]), "holds no operation"),
    (lambda d: d.pop("ranges"), "damaged"),
    (lambda d: d["ranges"].update(conv1=[1, float("nan")]), "not finite"),
    (lambda d: d["ranges"].update(conv1=[0, 10**400]), "damaged"),
    (lambda d: d["ranges"].pop("conv1"), "other tensors"),
    (lambda d: d["ops"].pop(), "expected \\[classes\\]|other tensors"),
])
def test_bad_graphs_are_refused(bundle, change, reason):
    edit(bundle, change)
    with pytest.raises(BundleError, match=reason):
        load_graph(bundle)


def test_damaged_files_are_refused(bundle):
    graph = load_graph(bundle)
    whole = (bundle / "model.npz").read_bytes()
    (bundle / "model.npz").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(BundleError, match="model.npz is damaged"):
        load_weights(bundle, graph)
    (bundle / "graph.json").write_text("{")
    with pytest.raises(BundleError, match="not readable JSON"):
        load_graph(bundle)
    (bundle / "graph.json").unlink()
    with pytest.raises(BundleError, match="graph.json is missing.*export"):
        load_graph(bundle)


def replace_entry(path, name, data, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path) as archive:
        entries = {key: archive.read(key) for key in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for key, value in {**entries, name: data or entries[name]}.items():
            archive.writestr(key, value)


def test_a_header_that_asks_for_more_memory_than_there_is_is_refused(bundle):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**30, 3)})
    replace_entry(bundle / "public.npz", "relu1/coefficients.npy", header.getvalue())
    with pytest.raises(BundleError, match="public.npz is damaged"):
        load_graph(bundle)


def test_bytes_that_do_not_decompress_are_refused(bundle):
    replace_entry(bundle / "public.npz", "relu1/mask.npy", None, zipfile.ZIP_DEFLATED)
    data = bytearray((bundle / "public.npz").read_bytes())
    data[60:90] = b"\xff" * 30
    (bundle / "public.npz").write_bytes(data)
    with pytest.raises(BundleError, match="public.npz is damaged"):
        load_graph(bundle)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_json_nested_too_deep_is_refused(bundle, text):
    (bundle / "graph.json").write_text(text)
    with pytest.raises(BundleError, match="not readable JSON"):
        load_graph(bundle)


def test_samples_without_dimensions_are_refused(bundle):
    samples = load_samples(bundle, graph := load_graph(bundle))
    np.savez(bundle / "samples.npz", images=np.float32(3), labels=samples.labels, logits=samples.logits,
             export=graph.export)
    with pytest.raises(BundleError, match="samples.npz: images is"):
        load_samples(bundle, graph)


def test_images_come_from_either_kind_of_file(bundle, tmp_path):
    graph = load_graph(bundle)
    samples = load_samples(bundle, graph)
    np.save(tmp_path / "images.npy", samples.images[:2])
    images, logits = load_images(tmp_path / "images.npy", graph)
    assert np.array_equal(images, samples.images[:2]) and logits is None
    images, logits = load_images(samples_file(bundle), graph)
    assert np.array_equal(images, samples.images) and np.array_equal(logits, samples.logits)


@pytest.mark.parametrize(("images", "reason"), [
    (np.zeros((2, 6, 6), np.float32), "expected floating"), (np.zeros((1, 2, 6, 6), np.uint8), "images is uint8"),
    (np.full((1, 2, 6, 6), np.inf), "NaN or infinity"), (np.zeros((0, 2, 6, 6)), "holds no image"),
    (np.array([{}], dtype=object), "no plain array"), (None, "no images at .*--images")])
def test_bad_images_are_refused(bundle, tmp_path, images, reason):
    graph, path = load_graph(bundle), tmp_path / "images.npy"
    if images is not None:
        np.save(path, images)
    with pytest.raises(BundleError, match=reason):
        load_images(path, graph)


def test_other_logits_than_one_row_an_image_are_refused(bundle, tmp_path):
    np.savez(tmp_path / "few.npz", images=np.zeros((2, 2, 6, 6)), logits=np.zeros((3, 3)))
    with pytest.raises(BundleError, match=r"logits is float64\[3, 3\], expected floating\[2, 3\]"):
        load_images(tmp_path / "few.npz", load_graph(bundle))


def test_what_holds_no_arrays_is_refused(bundle, tmp_path):
    graph = load_graph(bundle)
    np.savez(tmp_path / "images.npz", images=np.zeros((1, 2, 6, 6)))
    (tmp_path / "images.npz").rename(tmp_path / "images.npy")
    with pytest.raises(BundleError, match="no plain array"):
        load_images(tmp_path / "images.npy", graph)
    for path, load in ((tmp_path / "other.npz", load_images), (bundle / "model.npz", lambda path, graph:
                       load_weights(path.parent, graph))):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images", b"bytes")
        with pytest.raises(BundleError, match="images is no array"):
            load(path, graph)


def test_an_archive_without_images_is_refused(bundle, tmp_path):
    np.savez(tmp_path / "other.npz", pictures=np.zeros(1))
    with pytest.raises(BundleError, match="holds \\['pictures'\\], expected images"):
        load_images(tmp_path / "other.npz", load_graph(bundle))


def test_a_file_in_the_way_of_the_folder_is_named(bundle):
    with pytest.raises(ValueError, match="invalid out='.*graph.json': expected a folder"):
        save_bundle(bundle / "graph.json", *make_net(RESIDUAL))


def test_pickles_are_refused(bundle):
    graph = load_graph(bundle)
    np.savez(bundle / "samples.npz", images=np.array([{"a": 1}], dtype=object), labels=np.zeros(1), logits=np.zeros(1))
    with pytest.raises(BundleError, match="not plain arrays"):
        load_samples(bundle, graph)


def test_a_file_that_would_fill_the_memory_is_refused(bundle, monkeypatch):
    monkeypatch.setattr("autorep.mpc.bundle.files.MAX_BYTES", 1000)
    with zipfile.ZipFile(bundle / "public.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("relu1/mask.npy", b"\0" * 5000)
    with pytest.raises(BundleError, match="would unpack to 5000 bytes"):
        load_graph(bundle)


@pytest.mark.parametrize(("key", "value", "reason"), [
    ("conv1/weight", np.zeros((4, 2, 3, 4)), "expected"),
    ("conv1/weight", np.full((4, 2, 3, 3), np.nan), "NaN"),
    ("conv1/weight", np.zeros((4, 2, 3, 3), np.int64), "int64"),
    ("surprise", np.zeros(1), "unexpected \\['surprise'\\]"),
])
def test_bad_weights_are_refused(bundle, key, value, reason):
    graph = load_graph(bundle)
    weights = {**load_weights(bundle, graph), key: value}
    np.savez(bundle / "model.npz", **weights, export=graph.export)
    with pytest.raises(BundleError, match=reason):
        load_weights(bundle, graph)


def test_a_killed_export_leaves_nothing_that_loads(bundle, monkeypatch):
    graph, weights, samples = make_net(RESIDUAL, seed=1)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("autorep.mpc.bundle.files._write_npz", killed)
    with pytest.raises(KeyboardInterrupt):
        save_bundle(bundle, graph, weights, samples)
    with pytest.raises(BundleError, match="missing"):
        load_graph(bundle)


def test_a_refused_bundle_leaves_the_one_that_is_there(bundle):
    graph, weights, samples = make_net(RESIDUAL)
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    for parts in [(replace(graph, ops=()), weights, samples), (graph, {}, samples),
                  (graph, weights, replace(samples, images=samples.images[:0]))]:
        with pytest.raises(BundleError):
            save_bundle(bundle, *parts)
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before


@pytest.mark.parametrize("name", ["graph.json", "public.npz", "model.npz", "samples.npz"])
def test_a_flipped_byte_is_never_loaded(bundle, name):
    def content():
        graph = load_graph(bundle)
        samples = load_samples(bundle, graph)
        return [fingerprint(graph).encode(), *(array.tobytes() for array in load_weights(bundle, graph).values()),
                samples.images.tobytes(), samples.labels.tobytes(), samples.logits.tobytes()]

    whole, expected = (bundle / name).read_bytes(), content()
    for place in range(0, len(whole), max(1, len(whole) // 200)):
        (bundle / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:])
        try:
            assert content() == expected  # the byte was a space, or a date
        except BundleError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(("name", "load"), [
    ("public.npz", load_graph),
    ("model.npz", lambda folder: load_weights(folder, load_graph(folder))),
    ("samples.npz", lambda folder: load_samples(folder, load_graph(folder))),
    ("samples.npz", lambda folder: load_images(samples_file(folder), load_graph(folder))),
])
def test_a_file_of_another_export_is_refused(bundle, tmp_path_factory, name, load):
    other = tmp_path_factory.mktemp("other")
    save_bundle(other, *make_net(RESIDUAL, seed=1))
    load(bundle)
    (bundle / name).write_bytes((other / name).read_bytes())
    with pytest.raises(BundleError, match=f"{name} .*another export|{name} and graph.json are of two exports"):
        load(bundle)


def test_a_bundle_of_an_older_version_needs_no_export(bundle):
    edit(bundle, lambda document: document.pop("export"))
    with pytest.raises(BundleError, match="two exports"):  # its other files are newer
        load_graph(bundle)
    for name in ("public.npz", "model.npz", "samples.npz"):
        with np.load(bundle / name) as arrays:
            older = {key: arrays[key] for key in arrays.files if key != "export"}
        np.savez(bundle / name, **older)
    graph = load_graph(bundle)
    assert load_weights(bundle, graph) and len(load_samples(bundle, graph).images)
