"""Chapter 0: objects, boxes, ids, uploads and scores are what the text says."""

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

import chapter
from roadseg import inference, plots, runtime, synthetic, weights
from roadseg.classes import CAMVID, RoadsegError

CELLS = chapter.code_cells("00_segment_a_street.ipynb")


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    cells = [*CELLS, "pass"]  # for the state after the last one
    return chapter.names_before_each_cell(cells, tmp_path_factory.mktemp("data"))


def after(states, text):
    """Return the names that exist after the only cell with a text."""
    return states[CELLS.index(chapter.cell_with(CELLS, text)) + 1]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        # the label mask is not changed, and objects are not lost
        ("panoptic[region] = CAMVID", "panoptic[~region] = CAMVID"),
        ("r.sum() > 0.003 *", "r.sum() > 3 *"),
        # confidence is that of the predicted class
        ("confidence, predicted = p.max(0)", "confidence, predicted = p.min(0)"),
        # what is compared is the prediction
        ("compute_scores([mask], [predicted])", "compute_scores([mask], [mask * 0])"),
    ],
)
def test_a_bug_is_caught(states, right, wrong):
    chapter.assert_noticed(CELLS, states, right, wrong, within=9)


def test_touching_objects_are_one_and_specks_are_dropped():
    mask = torch.zeros(40, 60, dtype=torch.uint8)
    mask[0:10, 5:15] = mask[10:20, 15:25] = CAMVID.class_id("Car")  # at a corner
    mask[10:20, 40:50] = CAMVID.class_id("Car")
    mask[0, 0] = CAMVID.class_id("Pedestrian")
    imports = "import numpy as np\nfrom scipy import ndimage\n"
    imports += "from roadseg.classes import CAMVID, LabelSet"
    names = {"mask": mask}
    for source in (
        imports,
        chapter.cell_with(CELLS, "objects += ["),
        chapter.cell_with(CELLS, "def box("),
    ):
        exec(compile(source, "cell", "exec"), names)
    boxes = {name: names["box"](region) for name, region in names["objects"]}
    assert sorted(boxes.values()) == [(0, 19, 5, 24), (10, 19, 40, 49)]
    assert sorted(boxes) == ["Car 1", "Car 2"]
    assert [names["labels"].names[i] for i in np.unique(names["panoptic"])][2:] == [
        "Car 1",
        "Car 2",
    ]


def test_the_patch_shows_the_mask_with_void(states):
    names = after(states, "windows = mask.unfold")
    patch, (rows, columns) = names["patch"], names["inside"]
    assert torch.equal(patch, names["mask"][rows, columns])
    assert (patch == CAMVID.ignore_index).any()
    assert patch.unique().numel() > 2


def choose(monkeypatch, states, **changes):
    """Run the cell that chooses an image, with other settings; return the image."""
    source = chapter.cell_with(CELLS, "upload = False")
    for name, value in changes.items():
        line = next(x for x in source.splitlines() if x.startswith(f"{name} = "))
        source = source.replace(line, f"{name} = {value!r}")
    names = dict(states[CELLS.index(chapter.cell_with(CELLS, "upload = False"))])
    exec(compile(source, "cell", "exec"), names)
    return names["own"]


@pytest.fixture
def photo(tmp_path):
    image = Image.fromarray(synthetic.draw_scene(3, (90, 60))[0])
    image.save(tmp_path / "street.jpg")
    return tmp_path / "street.jpg"


def colab(monkeypatch, uploaded):
    """Pretend to be in Colab, where a reader uploads these files."""
    files = types.SimpleNamespace(upload=lambda: dict.fromkeys(uploaded, b""))
    module = types.ModuleType("google.colab")
    module.files = files
    monkeypatch.setitem(sys.modules, "google.colab", module)
    monkeypatch.setattr(runtime, "in_colab", lambda: True)


def test_an_upload_in_colab_is_segmented(monkeypatch, states, photo):
    colab(monkeypatch, [photo.name])
    monkeypatch.chdir(photo.parent)  # where Colab puts what is uploaded
    assert choose(monkeypatch, states, upload=True).shape == (3, 90, 60)


def test_a_canceled_upload_takes_a_test_frame(monkeypatch, states):
    colab(monkeypatch, [])
    frame = choose(monkeypatch, states, upload=True)
    assert frame.shape == states[-1]["image"].shape


def test_a_path_is_read_anywhere_and_a_wrong_one_is_one_sentence(
    monkeypatch, states, photo
):
    own = choose(monkeypatch, states, path=str(photo))
    assert own.shape == (3, 90, 60)
    with pytest.raises(RoadsegError, match="nowhere.jpg"):
        choose(monkeypatch, states, path=str(photo.with_name("nowhere.jpg")))


def test_a_portrait_is_segmented_and_drawn(monkeypatch, states, photo):
    monkeypatch.setattr(plots, "show", lambda fig, alt, **_: plots.plt.close(fig))
    source = chapter.cell_with(CELLS, "found = inference.predict(")
    names = dict(states[CELLS.index(source)])
    names["own"] = choose(monkeypatch, states, path=str(photo))
    exec(compile(source, "cell", "exec"), names)
    assert names["found"].shape == (90, 60)


def test_without_the_network_the_first_figure_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "PRETRAINED", tmp_path / "unet_camvid.safetensors")
    runtime.configure(profile="quick", device="cpu", data_dir=tmp_path)
    _, imports, hook = CELLS[:3]
    with pytest.raises(RoadsegError, match="lacks its network.*checkout"):
        chapter.run([imports, hook])


def test_what_was_turned_or_mirrored_is_turned_back(states):
    names = after(states, "turned = image.flip(1)")
    net, turned = names["net"], names["image"].flip(1)
    expected = inference.predict(net.model, turned[None], net.input_size)[0]
    assert torch.equal(names["down"].argmax(0).flip(0), expected.long())
    mirrored = after(states, "mirrored = inference.predict(")["mirrored"]
    expected = inference.predict(
        net.model, names["image"].flip(2)[None], net.input_size
    )[0]
    assert torch.equal(mirrored.flip(1), expected)


def test_the_scenes_are_test_scenes(states):
    """The network that ships has seen all training frames."""
    frames = states[-1]["test"]
    assert frames.split == "test"
    shown = states[-1]["image"]
    assert any(torch.equal(shown, image) for image in frames.images)
