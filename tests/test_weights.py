"""Weights on disk: encoder files, downloads, whole networks, 8-bit integers."""

import contextlib
import hashlib
import io
import json
import re
import socketserver
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from roadseg import files, runtime, unet, weights
from roadseg.classes import CAMVID, LabelSet
from roadseg.unet import UNet
from roadseg.weights import WeightsError
from samples import DAMAGE, damaged, generated

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


VARIANTS = {
    "full": lambda state: named(state) | {"classifier.0.weight": torch.zeros(2, 2)},
    "without batch counters": lambda state: {
        k: v for k, v in named(state).items() if not k.endswith("batches_tracked")
    },
    **{
        f"{prefix or 'bare'} in {nested}": lambda state, p=prefix, n=nested: (
            {n: named(state, p), "epoch": 3} if n else named(state, p)
        )
        for nested in (None, "state_dict", "model")
        for prefix in (
            *("", "module.", "module.features.", "_orig_mod.features."),
            *("encoder.features.", "module._orig_mod.encoder."),
        )
    },
}


def named(state, prefix="features.") -> dict:
    return {f"{prefix}{k}": v for k, v in state.items()}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_variants_of_a_state_dict_are_read(features, tmp_path, variant):
    torch.save(variant(features.state_dict()), tmp_path / "x.pth")
    check_same(read(tmp_path / "x.pth"), features)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types(features, tmp_path, dtype):
    state = {k: v.to(dtype) for k, v in features.state_dict().items()}
    torch.save(state, tmp_path / "x.pth")
    check_same(read(tmp_path / "x.pth"), features, dtype)


BAD = {
    "missing keys": (
        {"features.24.weight": None, "features.40.bias": None},
        r"lacks 2 of 78.*features\.24\.w",
    ),
    "channels": (
        {"features.0.weight": torch.zeros(64, 1, 3, 3)},
        r"features\.0\.weight has the shape",
    ),
    "text": ({"features.0.weight": "text"}, r"features\.0\.weight has the shape"),
    **{
        str(x): (
            {"features.3.bias": torch.full((64,), x)},
            r"is damaged: features\.3\.bias",
        )
        for x in (torch.nan, torch.inf)
    },
}


@pytest.mark.parametrize(("changes", "reason"), BAD.values(), ids=BAD)
def test_a_bad_entry_is_named(features, tmp_path, changes, reason):
    state = named(features.state_dict()) | changes
    state = {k: v for k, v in state.items() if v is not None}
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=rf"x\.pth .*{reason}"):
        read(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("thing", "reason"),
    [
        ({"epoch": 7, "best": 0.5}, "It has 2 entries: epoch, best$"),
        (make_layers(cfgs["B"], True).state_dict(), "is not a state dict of .*vgg16"),
        ([1, 2], "holds no state dict"),
        (torch.zeros(3), "holds no state dict"),
        ({1: torch.zeros(3)}, "holds no state dict"),
    ],
)
def test_what_is_in_another_file_is_told(tmp_path, thing, reason):
    torch.save(thing, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=rf"x\.pth.* {reason}"):
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


@pytest.mark.parametrize(
    ("name", "length"),
    [*(("x.pth", n) for n in (0, 10, 5000, -1000)), ("x.safetensors", 14)],
)
def test_truncated_files(file, tmp_path, name, length):
    (tmp_path / name).write_bytes(file.read_bytes()[:length])
    with pytest.raises(WeightsError, match=rf"{name} cannot be read"):
        read(tmp_path / name)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(WeightsError, match=f"there is no file .*{path.name}"):
            read(path)


# --- identity of encoder weights ----------------------------------------------


def test_encoder_weights_are_known_by_content(features, file, tmp_path):
    one = weights.read_encoder_weights(file)
    renamed = tmp_path / "renamed.safetensors"
    save_file(features.state_dict(), renamed)
    check_same(read(renamed), features)
    assert weights.read_encoder_weights(renamed).fingerprint == one.fingerprint
    replaced = dict(features.state_dict())
    replaced["0.bias"] = replaced["0.bias"] + 1e-3
    torch.save(replaced, tmp_path / "vgg.pth")  # the same name
    other = weights.read_encoder_weights(tmp_path / "vgg.pth")
    assert other.source == one.source
    assert other != one  # and no error about the truth value of a tensor
    assert other.fingerprint != one.fingerprint
    assert len(other.fingerprint) == 16
    assert int(other.fingerprint, 16) >= 0
    assert weights.RANDOM_INIT.fingerprint == "random"


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


def test_a_folder_that_cannot_be_written_ends_in_a_banner(folder, capsys):
    folder.write_text("a file where the folder should be")
    assert not weights.load_encoder_weights(CPU).pretrained
    assert "or set ROADSEG_DATA to another" in words(capsys.readouterr().out)


@pytest.fixture
def server(monkeypatch, no_proxy):
    """Serve the two sources from this machine: server(answer, answer) -> requests.

    An answer is the file's bytes, or a function of the connection.
    """
    requests = []

    def serve(*answers, digests=None):
        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                number = int(re.match(rb"GET /(\d)", self.request.recv(2**16))[1])
                requests.append(number)
                answer = answers[number]
                with contextlib.suppress(OSError):  # the client has hung up
                    if callable(answer):
                        answer(self.request)
                    else:
                        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(answer)}"
                        self.request.sendall(head.encode() + b"\r\n\r\n" + answer)

        tcp.RequestHandlerClass = Handler
        assert len(weights.IMAGENET) == 2
        sources = []
        for i, (answer, (name, url, _)) in enumerate(
            zip(answers, weights.IMAGENET, strict=False)
        ):
            digest = "" if callable(answer) else hashlib.sha256(answer).hexdigest()
            url = f"http://127.0.0.1:{tcp.server_address[1]}/{i}/{Path(url).name}"
            sources.append((name, url, digests[i] if digests else digest))
        monkeypatch.setattr(weights, "IMAGENET", tuple(sources))
        return requests

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), None) as tcp:
        tcp.daemon_threads, tcp.block_on_close = True, False
        threading.Thread(target=tcp.serve_forever, args=(0.02,), daemon=True).start()
        yield serve
        tcp.shutdown()


def timm_file(features, folder) -> bytes:
    """A file of the form of timm's: a classifier of convolutions after the features."""
    state = named(features.state_dict())
    state["pre_logits.fc1.weight"] = torch.zeros(4, 512, 7, 7)
    state["head.fc.weight"] = torch.zeros(5, 4)
    save_file(state, folder / "timm", metadata={"format": "pt"})
    return (folder / "timm").read_bytes()


def test_the_second_source_is_pinned():
    (_, first, digits), (_, second, digest) = weights.IMAGENET
    assert digits in first
    assert re.fullmatch(
        r"https://huggingface\.co/timm/vgg16_bn\.tv_in1k/resolve/[0-9a-f]{40}/"
        r"model\.safetensors",
        second,
    )
    assert re.fullmatch("[0-9a-f]{64}", digest)


@pytest.mark.parametrize("asked", [[0], [0, 1]])
def test_download_keeps_the_features_once(
    folder, server, file, features, capsys, tmp_path, asked
):
    first = file.read_bytes() if asked == [0] else b"a web page"
    requests = server(first, timm_file(features, tmp_path))
    folder.mkdir()
    kept = folder / "vgg16_bn_imagenet_features.safetensors"
    kept.write_bytes(b"damaged")  # so it is downloaded again
    for _ in range(2):
        found = weights.load_encoder_weights(CPU)
        assert found.pretrained
        assert found.source.startswith("ImageNet")
        check_same(found.state_dict, features)
    assert found.fingerprint == weights.read_encoder_weights(file).fingerprint
    assert requests == asked  # then from the data folder
    assert list(folder.iterdir()) == [kept]
    out, err = capsys.readouterr()
    assert err == ""
    assert ("weights from the Hugging Face hub" in out) == (asked == [0, 1])


def test_a_wrong_hash_is_refused(folder, server, file, features, tmp_path, capsys):
    good = file.read_bytes(), timm_file(features, tmp_path)
    requests = server(*good, digests=["01234567"] * 2)
    assert not weights.load_encoder_weights(CPU).pretrained
    assert requests == [0, 1]
    assert words(capsys.readouterr().out).count("SHA-256 is wrong") == 2
    assert list(folder.iterdir()) == []


def test_another_network_from_the_second_source_is_refused(folder, server, tmp_path):
    save_file(make_layers(cfgs["B"], True).state_dict(), tmp_path / "vgg13")
    server(b"", (tmp_path / "vgg13").read_bytes())
    with pytest.raises(WeightsError, match=r"hub: model\.safetensors is not a state"):
        weights.imagenet_weights()
    assert list(folder.iterdir()) == []


def stalled(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nfirst")
    time.sleep(2)


ANSWERS = {
    "stalled": stalled,
    "silent": lambda c: time.sleep(2),
    "no HTTP": lambda c: c.sendall(b"what?\r\n\r\n"),
    "nothing": lambda c: None,
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_a_bad_server_ends_in_a_banner(server, folder, monkeypatch, capsys, answer):
    requests = server(answer, answer)
    monkeypatch.setattr(files, "TIMEOUT", (0.2, 0.2))
    start = time.monotonic()
    assert not weights.load_encoder_weights(CPU).pretrained
    assert time.monotonic() - start < 1.9  # it does not wait for the server
    assert set(requests) == {0, 1}
    assert "RANDOM ENCODER" in capsys.readouterr().out
    assert list(folder.iterdir()) == []


def test_the_local_file_comes_before_the_download(folder, server, file, tmp_path):
    requests = server(b"", b"")
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


@pytest.mark.parametrize("content", [b"", b"nonsense", None, "truncated"])
def test_load_of_a_damaged_or_missing_file(tmp_path, content):
    path = tmp_path / "m.safetensors"
    if content == "truncated":
        weights.save_model(Other(), path, THREE)
        content = path.read_bytes()[:-100]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"m\.safetensors cannot be read"):
        weights.load_model(path, Other())


NO_NETWORK = "m.safetensors holds no network saved by"
KNOWN = {"labels": THREE.to_dict(), "architecture": "roadseg.UNet"}


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (None, NO_NETWORK),
        ([], NO_NETWORK),
        ({"encoder": "x"}, NO_NETWORK),
        (KNOWN | {"labels": {"names": 3}}, NO_NETWORK),
        (KNOWN, "m.safetensors, .* does not fit"),
    ],
)
def test_load_of_what_is_no_such_network(tmp_path, metadata, reason):
    stored = None if metadata is None else {"roadseg": json.dumps(metadata)}
    save_file({"x": torch.zeros(1)}, tmp_path / "m.safetensors", metadata=stored)
    with pytest.raises(WeightsError, match=reason):
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


def check_damaged_file(case, folder) -> None:
    """Damaged files, and those of another network, end in one sentence."""
    kind, damage = case
    readers = [weights.read_encoder_weights]
    if kind.endswith(".safetensors"):
        readers += [weights.load_model, lambda p: weights.load_model(p, Other())]
    path = folder / f"damaged {kind}"
    path.write_bytes(damaged(SMALL[kind], damage))
    for reader in readers:
        with pytest.raises(WeightsError, match=f"^damaged {kind}") as error:
            reader(path)
        assert "\n" not in str(error.value)


CHECKS = {
    "damaged files": (
        check_damaged_file,
        st.tuples(st.sampled_from(sorted(SMALL)), DAMAGE),
        300,
    )
}


@pytest.mark.parametrize("most", [20, pytest.param(999, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CHECKS)
def test_generated_weights(name, most):
    check, strategy, count = CHECKS[name]
    assert generated(check, strategy, min(most, count)) >= min(most, count)
