"""Weights on disk: encoder files, downloads, whole networks, 8-bit integers."""

import contextlib
import hashlib
import io
import json
import socketserver
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from roadseg import files, runtime, unet, weights
from roadseg.classes import CAMVID, LabelSet
from roadseg.unet import UNet
from roadseg.weights import EncoderWeights, WeightsError

THREE = LabelSet(("road", "sky", "other"), ignore_index=255)
CPU, QUICK = runtime.PROFILES["cpu"], runtime.PROFILES["quick"]


@pytest.fixture(scope="module")
def features() -> nn.Sequential:
    torch.manual_seed(0)
    return unet.vgg16_bn_features()


@pytest.fixture(scope="module")
def model() -> UNet:
    torch.manual_seed(1)
    return UNet().eval()


@pytest.fixture(scope="module")
def file(features, tmp_path_factory):
    """A file like torchvision's, its features only."""
    path = tmp_path_factory.mktemp("weights") / "vgg.pth"
    torch.save({f"features.{k}": v for k, v in features.state_dict().items()}, path)
    return path


class Other(nn.Module):
    """A network of another architecture, for three classes, with tied weights."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


# --- files of encoder weights -------------------------------------------------


def check_same(state: dict, features: nn.Sequential, dtype=torch.float32) -> None:
    """The features, as they are after a conversion to some type."""
    wanted = features.state_dict()
    assert list(state) == list(wanted)
    for k, v in wanted.items():
        assert state[k].dtype == v.dtype
        assert torch.equal(state[k], v.to(dtype).to(v.dtype)), k


def prefixed(features, prefix: str) -> dict:
    return {f"{prefix}{k}": v for k, v in features.state_dict().items()}


def read(path) -> dict:
    return weights.read_encoder_weights(path).state_dict


def test_a_file_of_features_reaches_the_encoder(features, file):
    encoder = weights.read_encoder_weights(str(file))
    assert encoder.source == "the local file vgg.pth"
    assert encoder.pretrained
    model = UNet(encoder_weights=encoder.state_dict)
    # "0.0.weight" -> "0.weight": torchvision's name, behind the stage's number
    state = model.encoder.state_dict().items()
    check_same({k.split(".", 1)[1]: v for k, v in state}, features)


def test_a_full_checkpoint(features, tmp_path):
    state = prefixed(features, "features.")
    state["classifier.0.weight"] = torch.zeros(2, 2)  # ignored
    torch.save(state, tmp_path / "full.pth")
    check_same(read(tmp_path / "full.pth"), features)


@pytest.mark.parametrize(
    "prefix",
    [
        *("", "module.", "module.features.", "_orig_mod.features."),
        *("encoder.features.", "module._orig_mod.encoder."),
    ],
)
@pytest.mark.parametrize("nested", [None, "state_dict", "model"])
def test_prefixes_and_nesting(features, tmp_path, prefix, nested):
    state = prefixed(features, prefix)
    state = {nested: state, "epoch": 3} if nested else state
    torch.save(state, tmp_path / "x.pth")
    check_same(read(tmp_path / "x.pth"), features)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types(features, tmp_path, dtype):
    state = {k: v.to(dtype) for k, v in prefixed(features, "features.").items()}
    torch.save(state, tmp_path / "x.pth")
    check_same(read(tmp_path / "x.pth"), features, dtype)


def test_safetensors(features, tmp_path):
    save_file(features.state_dict(), tmp_path / "x.safetensors")
    check_same(read(tmp_path / "x.safetensors"), features)


def test_a_file_without_batch_counters(features, tmp_path):
    state = prefixed(features, "features.")
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    check_same(read(tmp_path / "old.pth"), features)


def test_missing_keys_are_named_and_what_is_there(features, tmp_path):
    state = prefixed(features, "features.")
    del state["features.24.weight"], state["features.40.bias"]
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"x\.pth .*lacks 2 of 78.*features\.24\.w"):
        read(tmp_path / "x.pth")
    torch.save({"epoch": 7, "best": 0.5}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"It has 2 entries: epoch, best$"):
        read(tmp_path / "x.pth")


def test_another_vgg_is_refused(tmp_path):
    torch.save(make_layers(cfgs["B"], True).state_dict(), tmp_path / "vgg13.pth")
    with pytest.raises(WeightsError, match=r"vgg13\.pth is not"):
        read(tmp_path / "vgg13.pth")


@pytest.mark.parametrize("wrong", [torch.zeros(64, 1, 3, 3), "text"])
def test_wrong_shapes(features, tmp_path, wrong):
    state = prefixed(features, "features.")
    state["features.0.weight"] = wrong
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"features\.0\.weight has the shape"):
        read(tmp_path / "x.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights(features, tmp_path, value):
    state = prefixed(features, "features.")
    state["features.3.bias"] = torch.full((64,), value)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"x\.pth is damaged: features\.3\.bias"):
        read(tmp_path / "x.pth")


class Code:
    """What a malicious pickle holds: reading it would create a file."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (self.trace.touch, ())


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path):
    torch.save({"features.0.weight": Code(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"evil\.pth cannot be read as plain"):
        read(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("length", [0, 10, 5000, -1000])
def test_truncated_files(file, tmp_path, length):
    (tmp_path / "cut.pth").write_bytes(file.read_bytes()[:length])
    with pytest.raises(WeightsError, match=r"cut\.pth cannot be read"):
        read(tmp_path / "cut.pth")


def test_a_damaged_safetensors_file(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(WeightsError, match=r"x\.safetensors cannot be read"):
        read(tmp_path / "x.safetensors")


@pytest.mark.parametrize("thing", [[1, 2], torch.zeros(3), {1: torch.zeros(3)}])
def test_no_state_dict(tmp_path, thing):
    torch.save(thing, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"x\.pth holds no state dict"):
        read(tmp_path / "x.pth")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(WeightsError, match=r"there is no file .*none\.pth"):
        read(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="there is no file"):
        read(tmp_path)


# --- identity of encoder weights ----------------------------------------------


def test_encoder_weights_are_known_by_content(features, file, tmp_path):
    one = weights.read_encoder_weights(file)
    renamed = tmp_path / "renamed.safetensors"
    save_file(features.state_dict(), renamed)
    assert weights.read_encoder_weights(renamed).fingerprint == one.fingerprint
    replaced = dict(features.state_dict())
    replaced["0.bias"] = replaced["0.bias"] + 1e-3
    torch.save(replaced, tmp_path / "vgg.pth")  # the same name
    assert weights.read_encoder_weights(tmp_path / "vgg.pth").source == one.source
    assert read(tmp_path / "vgg.pth")["0.bias"][0] != read(file)["0.bias"][0]
    other = weights.read_encoder_weights(tmp_path / "vgg.pth").fingerprint
    assert other != one.fingerprint
    assert len(other) == 16
    assert int(other, 16) >= 0
    assert weights.RANDOM_INIT.fingerprint == "random"


def test_encoder_weights_can_be_compared(features):
    one = EncoderWeights(dict(features.state_dict()), "x", True)
    two = EncoderWeights(dict(features.state_dict()), "x", True)
    assert one == one
    assert one != two  # and no error about the truth value of a tensor


# --- where encoder weights are looked for -------------------------------------


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """The data folder: empty, and no local file is set."""
    monkeypatch.setenv("ROADSEG_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(files, "PAUSE", 0)
    runtime.reset()
    return tmp_path / "data"


def words(banner: str) -> str:
    return " ".join(banner.replace("!", "").split())


def test_quick_takes_random_weights_at_once(folder, file, capsys):
    runtime.configure(vgg16_bn=file)
    found = weights.load_encoder_weights(QUICK)
    assert (found.state_dict, found.pretrained) == (None, False)
    assert "random" in found.source
    assert capsys.readouterr().out == ""


def test_without_a_profile_the_settings_decide(folder, file):
    runtime.configure(vgg16_bn=file)
    assert not weights.load_encoder_weights().pretrained
    runtime.configure(profile="cpu")
    assert weights.load_encoder_weights().pretrained


def test_without_a_network_a_banner_says_random(folder, no_proxy, capsys):
    found = weights.load_encoder_weights(CPU)
    out, err = capsys.readouterr()
    assert (found.state_dict, found.pretrained) == (None, False)
    assert "RANDOM ENCODER" in out
    assert "cannot be reached" in words(out)
    assert "ROADSEG_VGG16_BN" in out
    assert err == ""
    assert list(folder.iterdir()) == []  # nothing half-written
    with pytest.raises(WeightsError, match="cannot be reached"):
        weights.imagenet_weights()


@pytest.fixture
def server(monkeypatch, no_proxy):
    """Serve the download from this machine: server(answer, digest) -> requests."""
    requests = []

    def serve(answer, digest="00000000"):
        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                requests.append(self.request.recv(2**16))
                with contextlib.suppress(OSError):  # the client has hung up
                    answer(self.request)

        tcp.RequestHandlerClass = Handler
        url = f"http://127.0.0.1:{tcp.server_address[1]}/vgg16_bn-{digest}.pth"
        fake = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url=url))
        monkeypatch.setattr(weights, "VGG16_BN_Weights", fake)
        return requests

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), None) as tcp:
        tcp.daemon_threads, tcp.block_on_close = True, False
        threading.Thread(target=tcp.serve_forever, args=(0.02,), daemon=True).start()
        yield serve
        tcp.shutdown()


def whole(data: bytes):
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    return lambda connection: connection.sendall(head + data)


def test_download_keeps_the_features_once(folder, server, file, features, capsys):
    data = file.read_bytes()
    requests = server(whole(data), hashlib.sha256(data).hexdigest()[:8])
    for _ in range(2):
        found = weights.load_encoder_weights(CPU)
        assert found.pretrained
        assert found.source.startswith("ImageNet")
        check_same(found.state_dict, features)
    assert found.fingerprint == weights.read_encoder_weights(file).fingerprint
    assert len(requests) == 1  # then from the data folder
    kept = [p.name for p in folder.iterdir()]
    assert kept == ["vgg16_bn_imagenet_features.safetensors"]
    assert capsys.readouterr().err == ""


def test_a_damaged_copy_is_downloaded_again(folder, server, file, features):
    data = file.read_bytes()
    requests = server(whole(data), hashlib.sha256(data).hexdigest()[:8])
    folder.mkdir()
    (folder / "vgg16_bn_imagenet_features.safetensors").write_bytes(b"damaged")
    check_same(weights.load_encoder_weights(CPU).state_dict, features)
    assert len(requests) == 1


def test_a_wrong_hash_is_refused(folder, server, file, capsys):
    server(whole(file.read_bytes()), "01234567")
    assert not weights.load_encoder_weights(CPU).pretrained
    assert "SHA-256 is wrong" in words(capsys.readouterr().out)
    assert list(folder.iterdir()) == []


def stalled(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nfirst")
    time.sleep(2)


def silent(connection):
    time.sleep(2)


ANSWERS = {
    "stalled": stalled,
    "silent": silent,
    "no HTTP": lambda c: c.sendall(b"what?\r\n\r\n"),
    "nothing": lambda c: None,
    "cut": lambda c: c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nfirst"),
    "length in letters": lambda c: c.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\nfirst"
    ),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_a_bad_server_ends_in_a_banner(server, folder, monkeypatch, capsys, answer):
    server(answer)
    monkeypatch.setattr(files, "TIMEOUT", (0.2, 0.2))
    start = time.monotonic()
    assert not weights.load_encoder_weights(CPU).pretrained
    assert time.monotonic() - start < 1.9  # it does not wait for the server
    assert "RANDOM ENCODER" in capsys.readouterr().out
    assert list(folder.iterdir()) == []


def test_the_local_file_comes_before_the_download(folder, server, file, tmp_path):
    requests = server(whole(b""))
    runtime.configure(vgg16_bn=file)
    assert weights.load_encoder_weights(CPU).source == "the local file vgg.pth"
    assert requests == []
    runtime.configure(vgg16_bn=tmp_path / "none.pth")
    with pytest.raises(WeightsError, match=r"none\.pth"):  # no silent replacement
        weights.load_encoder_weights(CPU)


# --- whole networks on disk ---------------------------------------------------


def outputs_equal(a: nn.Module, b: nn.Module) -> bool:
    x = torch.randn(1, 3, 32, 64)
    with torch.inference_mode():
        return torch.equal(a.eval()(x), b.eval()(x))


def test_save_and_load(model, tmp_path):
    path = tmp_path / "model.safetensors"
    known = {"miou": 0.5, "input_size": [160, 224], "encoder": "random"}
    weights.save_model(model, path, CAMVID, known)
    saved = weights.load_model(path)
    assert known.items() <= saved.metadata.items()
    assert saved.metadata["architecture"] == "roadseg.UNet"
    assert (saved.labels, saved.input_size) == (CAMVID, (160, 224))
    assert not saved.model.training
    assert outputs_equal(saved.model, model)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert saved != weights.load_model(path)  # and no error


def test_classes_survive(tmp_path):
    path = tmp_path / "m.safetensors"
    weights.save_model(UNet(3), path, THREE)
    saved = weights.load_model(path)
    assert saved.model.head.out_channels == 3
    assert (saved.labels, saved.input_size) == (THREE, None)


def test_another_architecture_needs_its_network(tmp_path):
    path = tmp_path / "other.safetensors"
    torch.manual_seed(0)
    model = Other()
    weights.save_model(model, path, THREE)
    with pytest.raises(
        WeightsError, match=r"other\.safetensors holds a Other, .*model="
    ):
        weights.load_model(path)
    saved = weights.load_model(path, Other())
    assert outputs_equal(saved.model, model)
    assert saved.labels == THREE
    with pytest.raises(WeightsError, match="does not fit"):
        weights.load_model(path, UNet(3))


def test_a_subclass_of_the_unet_is_another_architecture(tmp_path):
    class Wider(UNet):
        pass

    weights.save_model(Wider(3), tmp_path / "w.safetensors", THREE)
    with pytest.raises(WeightsError, match="Wider"):
        weights.load_model(tmp_path / "w.safetensors")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"the old one")

    def fail_with(error):
        def save(state, draft, metadata):
            Path(draft).write_bytes(b"half")
            raise error

        monkeypatch.setattr(weights, "save_file", save)

    fail_with(OSError("disk full"))
    with pytest.raises(OSError, match="disk full"):
        weights.save_model(Other(), path, THREE)
    fail_with(SafetensorError("Error while serializing: I/O error: disk full"))
    with pytest.raises(OSError, match=r"m\.safetensors cannot be written: .*disk full"):
        weights.save_model(Other(), path, THREE)
    assert path.read_bytes() == b"the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_load_of_a_damaged_or_missing_file(tmp_path, content):
    path = tmp_path / "m.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"m\.safetensors cannot be read"):
        weights.load_model(path)


def test_load_of_a_truncated_network(tmp_path):
    path = tmp_path / "m.safetensors"
    weights.save_model(Other(), path, THREE)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"m\.safetensors cannot be read"):
        weights.load_model(path, Other())


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"roadseg": "[]"},
        {"roadseg": '{"encoder": "x"}'},
        {"roadseg": '{"labels": {"names": 3}, "architecture": "roadseg.UNet"}'},
    ],
)
def test_load_of_a_file_without_classes(tmp_path, metadata):
    save_file({"x": torch.zeros(1)}, tmp_path / "m.safetensors", metadata=metadata)
    with pytest.raises(WeightsError, match=r"m\.safetensors holds no network saved by"):
        weights.load_model(tmp_path / "m.safetensors")


def test_load_of_a_network_that_does_not_fit(tmp_path):
    known = {"labels": THREE.to_dict(), "architecture": "roadseg.UNet"}
    save_file(
        {"x": torch.zeros(1)},
        tmp_path / "m.safetensors",
        metadata={"roadseg": json.dumps(known)},
    )
    with pytest.raises(WeightsError, match=r"m\.safetensors, .* does not fit"):
        weights.load_model(tmp_path / "m.safetensors")


# --- 8-bit integers, and the network that ships -------------------------------


def test_quantized_weights_are_within_half_a_step(model):
    state = model.state_dict()
    back = weights.dequantize_state(weights.quantize_state(state))
    assert list(back) == list(state)
    for k, v in state.items():
        assert back[k].dtype == v.dtype
        if v.ndim < 2:
            torch.testing.assert_close(back[k], v, rtol=1e-3, atol=1e-7)
            continue
        largest = v.abs().amax(tuple(range(1, v.ndim)), keepdim=True)
        assert ((back[k] - v).abs() <= largest / 254 * 1.001).all(), k
        assert back[k].flatten(1)[0].unique().numel() <= 255


def test_quantized_by_hand():
    state = {
        "conv": torch.tensor([[1.0, -0.5], [0.0, 0.0], [200.0, 127.0]]),
        "var": torch.tensor([1e6, 0.25]),  # more than float16 can hold
    }
    small = weights.quantize_state(state)
    assert small["conv"].dtype == torch.int8
    assert small["conv"].tolist() == [[127, -64], [0, 0], [127, 81]]
    back = weights.dequantize_state(small)
    assert back["conv"][1].tolist() == [0, 0]
    assert back["conv"][0, 0] == 1
    assert back["var"].tolist() == [1e6, 0.25]


def test_a_name_that_ends_in_scale_is_kept():
    state = {"layer.scale": torch.ones(2), "count": torch.tensor(3)}
    back = weights.dequantize_state(weights.quantize_state(state))
    assert back["layer.scale"].tolist() == [1, 1]
    assert back["count"].dtype == torch.int64


def test_a_network_as_integers_predicts_almost_the_same(model, tmp_path):
    path, small = tmp_path / "m.safetensors", tmp_path / "small.safetensors"
    weights.save_model(model, path, CAMVID)
    weights.save_model(model, small, CAMVID, {"data": "none"}, int8=True)
    assert small.stat().st_size < 0.27 * path.stat().st_size
    assert all(v.dtype != torch.float64 for v in load_file(small).values())
    saved = weights.load_model(small)
    assert saved.metadata["data"] == "none"
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        a, b = model(x), saved.model(x)
    assert (a - b).abs().mean() < 0.05 * a.std()


def test_the_network_that_ships(monkeypatch, tmp_path, model):
    monkeypatch.setattr(weights, "PRETRAINED", tmp_path / "unet_camvid.safetensors")
    with pytest.raises(WeightsError, match=r"lacks its network.*roadseg train"):
        weights.load_pretrained()
    weights.save_model(model, weights.PRETRAINED, CAMVID, int8=True)
    assert weights.load_pretrained().labels == CAMVID


# --- damaged files, generated -------------------------------------------------

DAMAGE = st.tuples(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    st.floats(0, 1) | st.just(1.0),
)


def damaged(data: bytes, damage) -> bytes:
    """Change some bytes, at these shares of the length, and cut off the rest."""
    changed = bytearray(data)
    changes, length = damage
    for where, value in changes:
        changed[min(int(where * len(changed)), len(changed) - 1)] = value
    return bytes(changed[: int(length * len(changed))])


def small_files() -> dict[str, bytes]:
    state = {"features.0.weight": torch.ones(4, 3, 3, 3), "head.bias": torch.ones(3)}
    found = {}
    for kind, new in (("zip.pth", True), ("old.pth", False)):
        buffer = io.BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=new)
        found[kind] = buffer.getvalue()
    known = {"labels": THREE.to_dict(), "architecture": "Other"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a")
        save_file(state, path, metadata={"roadseg": json.dumps(known)})
        found["tensors.safetensors"] = path.read_bytes()
    return found


SMALL = small_files()


def check_damaged_file(case) -> None:
    """Damaged files, and those of another network, end in one sentence."""
    kind, damage = case
    readers = [weights.read_encoder_weights]
    if kind.endswith(".safetensors"):
        readers += [weights.load_model, lambda p: weights.load_model(p, Other())]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"damaged {kind}"
        path.write_bytes(damaged(SMALL[kind], damage))
        for reader in readers:
            with pytest.raises(WeightsError, match=f"^damaged {kind}") as error:
                reader(path)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("count", [30, pytest.param(150, marks=pytest.mark.slow)])
def test_damaged_files(count):
    settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )(given(st.tuples(st.sampled_from(sorted(SMALL)), DAMAGE))(check_damaged_file))()
