"""The network, its encoder weights, and what happens to files that are wrong."""

import contextlib
import socket
import socketserver
import threading
import time
import urllib.error
import urllib.request

import pytest
import torch
from safetensors import SafetensorError
from torch import nn
from torchvision.models import VGG16_BN_Weights, vgg16_bn
from torchvision.models.vgg import cfgs, make_layers

from roadseg import runtime, unet
from roadseg.unet import UNet, WeightsError

POOLS = [6, 13, 23, 33, 43]
DOWNLOAD = torch.hub.download_url_to_file


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
    """A file as torchvision's, its features only."""
    path = tmp_path_factory.mktemp("weights") / "vgg.pth"
    torch.save({f"features.{k}": v for k, v in features.state_dict().items()}, path)
    return path


# --- normalisation ------------------------------------------------------------


def test_normalise_is_the_formula_and_denormalise_its_inverse():
    x = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    y = unet.normalise(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, (x / 255 - mean) / std)
    torch.testing.assert_close(unet.normalise(x / 255), y)
    torch.testing.assert_close(unet.denormalise(y), x / 255)


def test_normalise_is_what_torchvision_does_for_these_weights():
    preset = VGG16_BN_Weights.IMAGENET1K_V1.transforms()
    assert tuple(preset.mean) == unet.IMAGENET_MEAN
    assert tuple(preset.std) == unet.IMAGENET_STD


# --- stages -------------------------------------------------------------------


def test_features_are_torchvisions(features):
    with torch.device("meta"):
        theirs = vgg16_bn().features
    shapes = {k: v.shape for k, v in theirs.state_dict().items()}
    assert shapes == {k: v.shape for k, v in features.state_dict().items()}
    assert [type(x) for x in features] == [type(x) for x in theirs]
    assert str(features) == str(theirs)  # kernel sizes, padding, strides


def cut(features: nn.Sequential, edges: list[int]) -> list[nn.Sequential]:
    edges = [0, *edges, len(features)]
    return [features[a:b] for a, b in zip(edges[:-1], edges[1:], strict=True)]


def check_stages(stages: list[nn.Sequential]) -> None:
    """Each stage but the first begins with its only pooling, and ends in a ReLU."""
    kinds = [[type(layer) for layer in stage] for stage in stages]
    assert nn.MaxPool2d not in kinds[0]
    for stage in kinds[1:]:
        assert stage[0] is nn.MaxPool2d
        assert stage.count(nn.MaxPool2d) == 1
    assert all(stage[-1] is nn.ReLU for stage in kinds[:-1])


def test_stages_are_cut_at_the_pools(features):
    stages = unet.vgg_stages(features)
    check_stages(stages)
    for mine, theirs in zip(stages, cut(features, POOLS), strict=True):
        assert list(mine.named_children()) == list(theirs.named_children())


@pytest.mark.parametrize(
    "edges", [[6, 13, 20, 27, 34], [6, 13, 21, 33, 43], [7, 14, 24, 34, 44]]
)
def test_a_wrong_cut_is_caught(features, edges):
    with pytest.raises(AssertionError):
        check_stages(cut(features, edges))


def test_stages_of_another_vgg():
    features = make_layers(cfgs["B"], batch_norm=True)
    stages = unet.vgg_stages(features)
    check_stages(stages)
    starts = [int(next(iter(dict(s.named_children())))) for s in stages]
    assert starts == [0, 6, 13, 20, 27, 34]


def test_no_pool_to_cut_at():
    with pytest.raises(ValueError, match="no MaxPool2d"):
        unet.vgg_stages(nn.Sequential(nn.ReLU()))


# --- the network --------------------------------------------------------------


def test_blocks():
    x = torch.randn(2, 3, 4, 6)
    assert unet.conv_block(3, 8)(x).shape == (2, 8, 4, 6)
    assert unet.up_block(3, 8)(x).shape == (2, 8, 8, 12)
    assert unet.conv_block(3, 8)(x).min() == 0
    assert unet.up_block(3, 8)(x).min() == 0


def test_shapes(model):
    with torch.inference_mode():
        assert model(torch.rand(2, 3, 64, 96)).shape == (2, 12, 64, 96)
        assert model(torch.rand(1, 3, 32, 32)).shape == (1, 12, 32, 32)
    assert len(model.encoder) == len(model.ups) == len(model.convs) == 5


def test_number_of_classes():
    assert UNet(21).head.out_channels == 21


def test_each_parameter_is_registered_once(model):
    tensors = list(model.state_dict().values())
    assert len({x.data_ptr() for x in tensors}) == len(tensors)
    named = dict(model.named_parameters(remove_duplicate=False))
    assert sum(p.numel() for p in named.values()) == 29_311_308
    assert sum(p.numel() for p in model.parameters()) == 29_311_308


def test_the_encoder_gives_vggs_own_maps_before_each_pool(features, file):
    model = UNet(encoder_weights=file).eval()
    features.eval()
    x = torch.rand(1, 3, 64, 64)
    theirs, y = [], x
    with torch.inference_mode():
        for i, layer in enumerate(features):
            if i in POOLS:
                theirs.append(y.clone())
            y = layer(y)
        mine, y = [], x
        for stage in model.encoder:
            y = stage(y)
            mine.append(y)
    features.train()
    assert len(mine) == len(theirs) == 5
    for a, b in zip(mine, theirs, strict=True):
        assert torch.equal(a, b)


def test_every_skip_and_the_bottleneck_reach_the_output(model):
    """Mute each concatenated half in turn: the logits change."""
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        whole = model(x)
        for conv, up in zip(model.convs, model.ups, strict=True):
            below = up[0].out_channels
            for half in (slice(0, below), slice(below, None)):

                def mute(module, args, half=half):
                    args[0][:, half] = 0

                hook = conv.register_forward_pre_hook(mute)
                assert not torch.allclose(model(x), whole)
                hook.remove()


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    model = UNet()
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    without = [
        k for k, p in model.named_parameters() if p.grad is None or not p.grad.any()
    ]
    # batch normalisation subtracts what a bias in front of it adds: only rounding
    assert all(k.endswith("bias") for k in without)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((3, 32, 32), r"\(N, 3, H, W\), not \(3, 32, 32\)"),
        ((1, 4, 32, 32), r"not \(1, 4, 32, 32\)"),
        ((1, 32, 32, 3), r"not \(1, 32, 32, 3\)"),
        ((1, 3, 360, 32), "multiples of 32; 360 x 32 is not"),
        ((1, 3, 32, 40), "multiples of 32; 32 x 40 is not"),
        ((1, 3, 0, 32), "0 x 32"),
    ],
)
def test_wrong_inputs(model, shape, words):
    with pytest.raises(ValueError, match=words):
        model(torch.zeros(shape))


class Probe(nn.Module):
    """Remembers its input, and gives back its first channel as logits."""

    def forward(self, x):
        unet.check_input(x)
        self.seen = x
        return x[:, :1]


@pytest.mark.parametrize(("height", "width"), [(45, 70), (64, 33), (31, 64), (64, 96)])
def test_predict_logits_pads_and_crops_right(height, width):
    probe = Probe()
    x = torch.rand(2, 3, height, width)
    y = unet.predict_logits(probe, x)
    assert torch.equal(y, x[:, :1])  # each pixel still in its place
    padded = probe.seen
    assert padded.shape[-2:] == (-(-height // 32) * 32, -(-width // 32) * 32)
    assert torch.equal(padded[..., :height, :width], x)
    last_row = x[..., -1:, :].expand(-1, -1, padded.shape[-2] - height, -1)
    assert torch.equal(padded[..., height:, :width], last_row)
    last_column = x[..., -1:].expand(-1, -1, -1, padded.shape[-1] - width)
    assert torch.equal(padded[..., :height, width:], last_column)


def test_predict_logits_equals_the_model_where_sizes_fit(model):
    x = torch.rand(1, 3, 32, 64)
    with torch.inference_mode():
        assert torch.equal(unet.predict_logits(model, x), model(x))


# --- files of encoder weights -------------------------------------------------


def same(state: dict, features: nn.Sequential, dtype=torch.float32) -> None:
    """Equal to what is left of the features once they were of some type."""
    wanted = features.state_dict()
    assert list(state) == list(wanted)
    for k, v in wanted.items():
        assert state[k].dtype == v.dtype
        assert torch.equal(state[k], v.to(dtype).to(v.dtype)), k


def prefixed(features, prefix: str) -> dict:
    return {f"{prefix}{k}": v for k, v in features.state_dict().items()}


def read(path) -> dict:
    return unet.read_encoder_weights(path).state


def test_a_file_of_features_reaches_the_encoder(features, file):
    model = UNet(encoder_weights=str(file))
    # "0.0.weight" -> "0.weight": torchvision's name, behind the stage's number
    state = model.encoder.state_dict().items()
    same({k.split(".", 1)[1]: v for k, v in state}, features)
    assert model.origin == "the local file vgg.pth"


def test_a_full_checkpoint(features, tmp_path):
    state = prefixed(features, "features.")
    state["classifier.0.weight"] = torch.zeros(2, 2)  # not looked at
    torch.save(state, tmp_path / "full.pth")
    same(read(tmp_path / "full.pth"), features)


@pytest.mark.parametrize("prefix", ["", "module.", "module.features."])
def test_prefixes(features, tmp_path, prefix):
    torch.save(prefixed(features, prefix), tmp_path / "x.pth")
    same(read(tmp_path / "x.pth"), features)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types(features, tmp_path, dtype):
    state = {k: v.to(dtype) for k, v in prefixed(features, "features.").items()}
    torch.save(state, tmp_path / "x.pth")
    same(read(tmp_path / "x.pth"), features, dtype)


def test_safetensors(features, tmp_path):
    unet._write_safetensors(tmp_path / "x.safetensors", features.state_dict(), {})
    same(read(tmp_path / "x.safetensors"), features)


def test_a_file_without_batch_counters(features, tmp_path):
    state = prefixed(features, "features.")
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    same(read(tmp_path / "old.pth"), features)


def test_missing_keys_are_named(features, tmp_path):
    state = prefixed(features, "features.")
    del state["features.24.weight"], state["features.40.bias"]
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"x\.pth .*lacks 2 of 78.*features\.24\.w"):
        unet.read_encoder_weights(tmp_path / "x.pth")


def test_another_vgg_is_refused(tmp_path):
    torch.save(make_layers(cfgs["B"], True).state_dict(), tmp_path / "vgg13.pth")
    with pytest.raises(WeightsError, match=r"vgg13\.pth is not"):
        unet.read_encoder_weights(tmp_path / "vgg13.pth")


@pytest.mark.parametrize("wrong", [torch.zeros(64, 1, 3, 3), "text"])
def test_wrong_shapes(features, tmp_path, wrong):
    state = prefixed(features, "features.")
    state["features.0.weight"] = wrong
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"features\.0\.weight has the shape"):
        unet.read_encoder_weights(tmp_path / "x.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights(features, tmp_path, value):
    state = prefixed(features, "features.")
    state["features.3.bias"] = torch.full((64,), value)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"x\.pth is damaged: features\.3\.bias"):
        unet.read_encoder_weights(tmp_path / "x.pth")


class Code:
    """What a malicious pickle holds: reading it would make a file."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (self.trace.touch, ())


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path):
    torch.save({"features.0.weight": Code(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"evil\.pth cannot be read as plain"):
        unet.read_encoder_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("length", [0, 10, 5000, -1000])
def test_truncated_files(file, tmp_path, length):
    (tmp_path / "cut.pth").write_bytes(file.read_bytes()[:length])
    with pytest.raises(WeightsError, match=r"cut\.pth cannot be read"):
        unet.read_encoder_weights(tmp_path / "cut.pth")


def test_a_damaged_safetensors_file(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(WeightsError, match=r"x\.safetensors cannot be read"):
        unet.read_encoder_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize("thing", [[1, 2], torch.zeros(3), {1: torch.zeros(3)}])
def test_no_state_dict(tmp_path, thing):
    torch.save(thing, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"x\.pth holds no state dict"):
        unet.read_encoder_weights(tmp_path / "x.pth")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(WeightsError, match="there is no file .*none.pth"):
        unet.read_encoder_weights(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="there is no file"):
        unet.read_encoder_weights(tmp_path)


# --- where encoder weights are looked for -------------------------------------


@pytest.fixture
def away(monkeypatch, tmp_path):
    """Nothing kept, nothing set, no network. Returns the folder of data."""
    monkeypatch.delenv("ROADSEG_VGG16_BN", raising=False)
    monkeypatch.setenv("ROADSEG_DATA", str(tmp_path / "data"))

    def refuse(*args, **options):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path / "data"


def words(banner: str) -> str:
    return " ".join(banner.replace("!", "").split())


CPU, QUICK = runtime.PROFILES["cpu"], runtime.PROFILES["quick"]


def test_quick_takes_random_weights_at_once(away, monkeypatch, file, capsys):
    monkeypatch.setenv("ROADSEG_VGG16_BN", str(file))
    found = unet.find_encoder_weights(QUICK)
    assert (found.state, found.pretrained) == (None, False)
    assert "random" in found.origin
    assert capsys.readouterr().out == ""


def test_without_a_profile_the_environment_decides(away, monkeypatch, file):
    monkeypatch.setenv("ROADSEG_VGG16_BN", str(file))
    monkeypatch.setenv("ROADSEG_PROFILE", "quick")
    assert not unet.find_encoder_weights().pretrained
    monkeypatch.setenv("ROADSEG_PROFILE", "cpu")
    assert unet.find_encoder_weights().pretrained


def test_without_a_network_a_banner_says_random(away, capsys):
    found = unet.find_encoder_weights(CPU)
    out, err = capsys.readouterr()
    assert (found.state, found.pretrained) == (None, False)
    assert "RANDOM ENCODER" in out
    assert "no network here" in words(out)
    assert "ROADSEG_VGG16_BN" in out
    assert err == ""
    assert list(away.iterdir()) == []  # nothing half-written


def test_imagenet_by_name_needs_the_network(away):
    with pytest.raises(OSError, match="no network here"):
        UNet(encoder_weights="imagenet")


def serve(monkeypatch, file):
    """Let torchvision's download give the file, whatever its hash; count calls."""
    calls = []

    def give(url, target, hash_prefix=None, progress=True):
        calls.append((url, hash_prefix))
        with open(target, "wb") as copy:
            copy.write(file.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", give)
    return calls


def test_download_keeps_the_features_once(away, monkeypatch, file, features, capsys):
    calls = serve(monkeypatch, file)
    for _ in range(2):
        found = unet.find_encoder_weights(CPU)
        assert found.pretrained
        assert found.origin.startswith("ImageNet")
        same(found.state, features)
    assert UNet(encoder_weights="imagenet").origin == found.origin
    assert len(calls) == 1  # then from the folder of data
    assert calls[0][0] == VGG16_BN_Weights.IMAGENET1K_V1.url
    assert calls[0][1], "the download is checked against its hash"
    kept = [p.name for p in away.iterdir()]
    assert kept == ["vgg16_bn_imagenet_features.safetensors"]
    assert capsys.readouterr().err == ""


def test_a_damaged_copy_is_fetched_again(away, monkeypatch, file, features):
    calls = serve(monkeypatch, file)
    away.mkdir()
    (away / "vgg16_bn_imagenet_features.safetensors").write_bytes(b"damaged")
    same(unet.find_encoder_weights(CPU).state, features)
    assert len(calls) == 1


def test_a_wrong_hash_is_no_success(away, monkeypatch, capsys):
    def mismatch(*args, **options):
        raise RuntimeError("invalid hash value")

    monkeypatch.setattr(torch.hub, "download_url_to_file", mismatch)
    assert not unet.find_encoder_weights(CPU).pretrained
    assert "invalid hash value" in words(capsys.readouterr().out)


def stalled(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nfirst")
    time.sleep(2)


def silent(connection):
    time.sleep(2)


CLOSING = {
    "no HTTP": b"what?\r\n\r\n",
    "nothing": b"",
    "cut": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nfirst",
    "cut in a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nx",
    "length in letters": b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\nfirst",
}


@pytest.fixture
def web(monkeypatch, no_proxy):
    """Let torch's own download ask a server on this machine: web(answer)."""

    def answer_with(answer):
        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                self.request.recv(2**16)
                with contextlib.suppress(OSError):  # the client has hung up
                    answer(self.request)

        server.RequestHandlerClass = Handler
        address = f"http://127.0.0.1:{server.server_address[1]}/vgg.pth"
        monkeypatch.setattr(
            torch.hub,
            "download_url_to_file",
            lambda url, *args, **options: DOWNLOAD(address, *args, **options),
        )

    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers proxies
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), None) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield answer_with
        server.shutdown()


@pytest.mark.parametrize("answer", [stalled, silent])
def test_a_server_that_stalls_is_not_waited_for(web, away, monkeypatch, capsys, answer):
    web(answer)
    monkeypatch.setattr(unet, "TIMEOUT", 0.2)
    assert not unet.find_encoder_weights(CPU).pretrained
    told = words(capsys.readouterr().out)
    assert "RANDOM ENCODER" in told
    assert "timed out" in told
    assert list(away.iterdir()) == []
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("answer", CLOSING.values(), ids=CLOSING)
def test_a_server_that_closes_early_is_no_success(web, away, capsys, answer):
    web(lambda connection: connection.sendall(answer))
    assert not unet.find_encoder_weights(CPU).pretrained
    assert "RANDOM ENCODER" in capsys.readouterr().out
    assert list(away.iterdir()) == []


def test_the_named_file_comes_before_the_kept_one(away, monkeypatch, file, tmp_path):
    calls = serve(monkeypatch, file)
    monkeypatch.setenv("ROADSEG_VGG16_BN", str(file))
    assert unet.find_encoder_weights(CPU).origin == "the local file vgg.pth"
    assert calls == []
    monkeypatch.setenv("ROADSEG_VGG16_BN", str(tmp_path / "none.pth"))
    with pytest.raises(WeightsError, match=r"none\.pth"):  # not replaced in silence
        unet.find_encoder_weights(CPU)


# --- whole networks on disk ---------------------------------------------------


def test_save_and_load(model, tmp_path):
    path = tmp_path / "model.safetensors"
    unet.save(model, path, {"miou": 0.5})
    back, facts = unet.load(path)
    assert facts == {"encoder": model.origin, "miou": 0.5}
    assert back.origin == model.origin
    assert not back.training
    x = torch.randn(1, 3, 32, 64)
    with torch.inference_mode():
        assert torch.equal(back(x), model(x))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_number_of_classes_survives(tmp_path):
    unet.save(UNet(3), tmp_path / "m.safetensors")
    assert unet.load(tmp_path / "m.safetensors")[0].head.out_channels == 3


def test_a_failed_save_leaves_the_old_file(model, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"the old one")

    def half(state, draft, metadata):
        draft.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(unet, "save_file", half)
    with pytest.raises(OSError, match="disk full"):
        unet.save(model, path)

    def of_its_own(state, draft, metadata):
        draft.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: disk full")

    monkeypatch.setattr(unet, "save_file", of_its_own)
    with pytest.raises(OSError, match=r"m\.safetensors cannot be written: .*disk full"):
        unet.save(model, path)
    assert path.read_bytes() == b"the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_load_of_a_damaged_or_missing_file(tmp_path, content):
    path = tmp_path / "m.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"m\.safetensors cannot be read"):
        unet.load(path)


def test_load_of_a_truncated_network(model, tmp_path):
    path = tmp_path / "m.safetensors"
    unet.save(model, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=r"m\.safetensors cannot be read"):
        unet.load(path)


def test_load_of_another_network(model, tmp_path):
    path = tmp_path / "m.safetensors"
    unet._write_safetensors(path, {"x": torch.zeros(1)}, {})
    with pytest.raises(WeightsError, match="no head.bias"):
        unet.load(path)
    state = {"head.bias": torch.zeros(12), "x": torch.zeros(1)}
    unet._write_safetensors(path, state, {})
    with pytest.raises(WeightsError, match=r"m\.safetensors does not fit the U-Net"):
        unet.load(path)
