"""The page "Try it": photo in, mask out, in a browser, as in PyTorch."""

import base64
import io
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import build_book
from browsing import (
    WIDTHS,
    complaints,
    looks,
    packages,
    press,
    serious,
    show,
    stand_in,
    unavailable,
    until,
)
from roadseg import export, images, inference, synthetic, weights
from roadseg.classes import LabelSet

pytest_plugins = ("browsing",)

EQUAL = 0.9999
"""Share of pixels that get the same class in the browser as in PyTorch, at least.

The browser sums in another order, so a pixel may differ where two classes nearly tie.
"""
SECONDS = 15
"""What WebAssembly may take for a photo on an idle machine."""
PATIENCE = 300
"""Seconds that it may take where other work has the machine."""
GPU = "navigator.gpu.requestAdapter = async () => ({});\n"
"""Makes a browser believe that it has a GPU."""
FAILS_TO_RUN = """
export const env = {wasm: {}};
export class Tensor {}
const session = {inputNames: ["images"], release() {}};
session.run = () => Promise.reject(new Error("the GPU is lost"));
export const InferenceSession = {create: async () => session};
"""
"""A runtime for WebGPU that starts."""

# Without a browser --------------------------------------------------------------


def staged(tmp_path, runtime=True):
    """The source of the page as Sphinx would get it, and the folder of its files."""
    npm = stand_in(tmp_path / "npm")
    if runtime:
        (npm / "onnxruntime-web" / "dist").mkdir(parents=True)
        for name in build_book.RUNTIME:
            (npm / "onnxruntime-web" / "dist" / name).touch()
    source = tmp_path / "source"
    build_book.stage(source, npm)
    return (source / "try.md").read_text("utf-8"), source / "_static" / "try"


@pytest.mark.parametrize(
    ("missing", "reason"),
    [("runtime", "onnxruntime-web"), ("network", "gone"), ("packages", "pip install")],
)
def test_what_is_missing_is_said_on_the_page(
    missing, reason, tmp_path, monkeypatch, capsys
):
    if missing == "network":
        monkeypatch.setattr(weights, "PRETRAINED", tmp_path / "gone.safetensors")
    if missing == "packages":
        saved = weights.SavedModel(small(), THREE, (32, 32), {})
        monkeypatch.setattr(weights, "load_pretrained", lambda: saved)
        monkeypatch.setattr(export, "PACKAGES", ("onnx_is_not_here",))
    text, folder = staged(tmp_path, runtime=missing != "runtime")
    (sentence,) = re.findall(r"There is nothing to try .*", text)
    assert reason in sentence
    assert reason in capsys.readouterr().err
    assert "try-app" not in text
    assert "## Your own network" in text
    assert not folder.exists()


# In a browser -------------------------------------------------------------------

THREE = LabelSet(
    ("void", "free", "blocked"), ((0, 0, 0), (9, 200, 30), (255, 0, 80)), 0
)


def small():
    """A network that is no U-Net, with random weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 3, 2, stride=2),
    )


class Page:
    """The page as a reader uses it."""

    def __init__(self, browser, address, width=1280, theme="light"):
        self.browser = browser
        assert show(browser, f"{address}/try.html", width, theme) == []
        until(lambda: self.status().startswith("Nothing is downloaded"))

    def part(self, name):
        return self.browser.find_element("css selector", f'[data-try="{name}"]')

    def status(self):
        return self.part("status").get_attribute("textContent")

    def shows_problem(self):
        return "try-problem" in self.part("status").get_attribute("class")

    def ask(self, act):
        """Do something; return what the page says when it has finished."""
        script = "const s = arguments[0]; s.textContent = ''; s.className = '';"
        self.browser.execute_script(script, self.part("status"))
        act()
        until(
            lambda: self.status().startswith("Done") or self.shows_problem(), PATIENCE
        )
        return self.status()

    def segment(self, path):
        """Choose a photo; return its mask, after what the page says."""
        said = self.ask(lambda: self.part("choose").send_keys(str(path)))
        assert said.startswith("Done"), said
        return self.mask(), said

    def mask(self):
        """The mask that can be downloaded, as Pillow reads it."""
        data = self.browser.execute_async_script(
            "const [link, done] = arguments; const reader = new FileReader();"
            "reader.onload = () => done(reader.result);"
            "fetch(link.href).then(r => r.blob()).then(b => reader.readAsDataURL(b));",
            self.part("mask"),
        )
        return Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2])))


@pytest.fixture(scope="module")
def saved():
    """The network that ships."""
    if not weights.PRETRAINED.is_file():
        unavailable("the network that ships is missing")
    return weights.load_pretrained()


@pytest.fixture
def page(site, address, browser, saved, request):
    packages("onnxruntime-web")
    return Page(browser, address, *getattr(request, "param", ()))


def share_of_equal(mask, saved, path, size=None):
    """Compare with PyTorch, which reads the same file."""
    image = images.read_image(path)[None]
    expected = inference.predict(
        saved.model, image, size or saved.input_size, labels=saved.labels
    )
    return (np.asarray(mask) == expected[0].numpy()).mean()


def photo(path, size=(480, 360), **options):
    """Draw a street and save it at a size (width, height)."""
    scene = Image.fromarray(synthetic.draw_scene(1)[0])
    scene.resize(size).convert(options.pop("mode", "RGB")).save(path, **options)
    return path


def rotated():
    """EXIF data that say: turn this photo by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


PHOTOS = {
    "frame.png": {},
    "odd.jpg": {"size": (1001, 703), "quality": 85},
    "wide.png": {"size": (2000, 300)},
    "tiny.png": {"size": (70, 50)},
    "gray.jpg": {"mode": "L"},
    "phone.jpg": {"size": (4000, 3000), "exif": rotated()},
}


def test_masks_are_those_of_pytorch(page, saved, tmp_path):
    shares = {}
    for name, options in PHOTOS.items():
        path = photo(tmp_path / name, **options)
        mask, said = page.segment(path)
        assert mask.mode == "P"
        assert mask.getpalette() == saved.labels.palette().flatten().tolist()
        shares[name] = share_of_equal(mask, saved, path)
        print(f"{name}: {shares[name]:.7f} equal. {said}")
    assert mask.size == (3000, 4000)  # upright
    assert "4000 × 3000 pixels" in said
    assert min(shares.values()) >= EQUAL, shares
    assert complaints(page.browser) == []


@pytest.mark.parametrize(
    "page",
    [(width, theme) for width in WIDTHS for theme in ("light", "dark")],
    indirect=True,
    ids=str,
)
def test_the_page_works_with_keys_alone_and_axe_finds_no_fault(page, saved, request):
    from selenium.webdriver import Keys

    browser = page.browser
    width, theme = request.node.callspec.params["page"]
    script = "arguments[0].focus()"
    browser.execute_script(script, page.part("choose"))
    phone = bool(page.part("capture").is_displayed())
    press(browser, *[Keys.TAB] * (1 + phone))
    said = page.ask(lambda: press(browser, Keys.ENTER))  # the synthetic street
    assert said.startswith("Done in "), said

    names = [
        x.text.split("\n")[0]
        for x in page.part("legend").find_elements("tag name", "li")
    ]
    assert set(names) <= set(saved.labels.names)
    shares = re.findall(r"([\d.]+)%", page.part("legend").text)
    assert sum(map(float, shares)) == pytest.approx(100, abs=1)
    label = page.part("canvas").get_attribute("aria-label")
    assert f"{names[0]} {shares[0]}%" in label

    press(browser, Keys.TAB, Keys.HOME)  # the slider
    assert page.part("canvas").value_of_css_property("opacity") == "0"
    press(browser, *[Keys.ARROW_RIGHT] * 3)
    assert page.part("canvas").value_of_css_property("opacity") == "0.03"
    assert page.part("mask").get_attribute("download") == "example_mask.png"

    page.browser.execute_script(
        "arguments[0].open = true", browser.find_element("css selector", ".try-options")
    )
    assert serious(browser, theme) == {}
    assert looks(browser) == {}
    assert complaints(browser) == []


def test_the_overlay_is_the_photo_under_the_colors(page, saved, tmp_path):
    browser = page.browser
    path = photo(tmp_path / "street.jpg", (600, 450), quality=95)
    mask, _ = page.segment(path)
    browser.execute_script(
        "HTMLAnchorElement.prototype.click = function () {"
        "  fetch(this.href).then(r => r.blob()).then(blob => {"
        "    const reader = new FileReader();"
        "    reader.onload = () => { window.saved = [this.download, reader.result]; };"
        "    reader.readAsDataURL(blob); }); };"
    )
    page.part("overlay").click()
    name, data = until(lambda: browser.execute_script("return window.saved"))
    assert name == "street_overlay.jpg"
    overlay = Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2])))
    colors = saved.labels.palette()[np.asarray(mask)]
    expected = 0.45 * np.asarray(Image.open(path)) + 0.55 * colors
    difference = np.abs(np.asarray(overlay, float) - expected)
    assert difference.mean() < 4  # a JPEG


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_photo_can_be_dropped_and_pasted(page, event):
    script = (
        "const [event, target] = arguments; fetch('_static/try/example.png')"
        ".then(r => r.blob()).then(blob => { const data = new DataTransfer();"
        "data.items.add(new File([blob], 'given.png', {type: 'image/png'}));"
        "target.dispatchEvent(event === 'drop'"
        " ? new DragEvent('drop', {dataTransfer: data, bubbles: true})"
        " : new ClipboardEvent('paste', {clipboardData: data, bubbles: true})); });"
    )
    drop = page.part("drop")
    said = page.ask(lambda: page.browser.execute_script(script, event, drop))
    assert said.startswith("Done")
    assert page.part("mask").get_attribute("download") == "given_mask.png"


@pytest.mark.parametrize("kind", ["text", "huge", "cut"])
def test_what_is_no_photo_gets_a_sentence(page, kind, tmp_path):
    path = tmp_path / f"{kind}.png"
    if kind == "text":
        path.write_text("no image", "utf-8")
    if kind == "huge":
        Image.new("1", (10_000, 6_000)).save(path)
    if kind == "cut":
        path.write_bytes(photo(tmp_path / "a.png").read_bytes()[:40])
    said = page.ask(lambda: page.part("choose").send_keys(str(path)))
    assert page.shows_problem()
    expected = "has 60 megapixels" if kind == "huge" else "is not an image"
    assert said.startswith(f"{path.name} {expected}")
    page.segment(photo(tmp_path / "good.png"))  # the page goes on


def test_your_own_network_brings_its_classes(page, tmp_path):
    saved = weights.SavedModel(small().eval(), THREE, None, {})
    export.export_web(saved, tmp_path / "mine.onnx", (64, 96))
    state = saved.model.state_dict()
    rounded = weights.dequantize_state(weights.quantize_state(state))  # as the file is
    state = {k: rounded[k] if v.ndim > 1 else v for k, v in state.items()}
    saved.model.load_state_dict(state)

    page.browser.execute_script("document.querySelector('.try-options').open = true")
    page.part("network").send_keys(str(tmp_path / "mine.onnx"))
    until(lambda: "mine.onnx" in page.status())
    mask, _ = page.segment(path := photo(tmp_path / "a.png"))
    assert share_of_equal(mask, saved, path, (64, 96)) >= EQUAL
    assert set(np.unique(mask)) == {1, 2}  # never the ignored class
    assert "free" in page.part("legend").text

    (tmp_path / "other.onnx").write_bytes(b"\x08\x0a no network")
    said = page.ask(
        lambda: page.part("network").send_keys(str(tmp_path / "other.onnx"))
    )
    assert said.startswith("This file is not a network for this page")
    assert page.shows_problem()


def test_nothing_is_loaded_before_a_photo_or_on_other_pages(site, page):
    script = "return performance.getEntriesByType('resource').map(x => x.name)"
    loaded = page.browser.execute_script(script)
    assert any(x.endswith("/try.js") for x in loaded)
    assert not [x for x in loaded if re.search(r"ort|onnx|worker|_static/try/", x)]
    others = [p for p in site.glob("*.html") if p.name != "try.html"]
    assert not [p for p in others if "_static/try" in p.read_text("utf-8")]


def test_a_download_that_fails_is_said_and_repeated(site, page, tmp_path):
    model = site / "_static" / "try" / "model.onnx"
    model.rename(tmp_path / "model.onnx")
    page.browser.execute_cdp_cmd("Network.clearBrowserCache", {})
    path = photo(tmp_path / "a.png")
    try:
        said = page.ask(lambda: page.part("choose").send_keys(str(path)))
    finally:
        shutil.move(tmp_path / "model.onnx", model)
    assert "could not be downloaded" in said
    page.segment(path)


@pytest.mark.parametrize("when", ["start", "run"])
def test_where_webgpu_fails_webassembly_takes_over(
    when, site, address, browser, saved, tmp_path
):
    """No GPU could be had: the way back from it is tested, not the GPU's masks."""
    packages("onnxruntime-web")
    changes = {site / "_static" / "try-worker.js": lambda text: GPU + text}
    if when == "run":
        runtime = site / "_static" / "try" / "ort.webgpu.bundle.min.mjs"
        changes[runtime] = lambda text: FAILS_TO_RUN
    kept = {path: path.read_bytes() for path in changes}
    try:
        for path, change in changes.items():
            path.write_text(change(path.read_text("utf-8")), "utf-8")
        page = Page(browser, address)
        mask, said = page.segment(path := photo(tmp_path / "a.png"))
    finally:
        for changed, content in kept.items():
            changed.write_bytes(content)
    assert "with WebAssembly" in said
    assert share_of_equal(mask, saved, path) >= EQUAL


@pytest.mark.slow
def test_it_answers_in_time_at_the_largest_input_size(page, saved, tmp_path):
    """256 x 352, the size of recipe full; alone, because other work would count."""
    export.export_web(saved, tmp_path / "large.onnx", (256, 352))
    page.part("network").send_keys(str(tmp_path / "large.onnx"))
    path = photo(tmp_path / "phone.jpg", (4000, 3000))
    _, said = page.segment(path)
    assert float(re.search(r"Done in ([\d.]+) seconds", said)[1]) < SECONDS
