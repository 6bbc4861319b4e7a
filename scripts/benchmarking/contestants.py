"""Who is measured: the original recipe, segmentation_models_pytorch, and ours."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from roadseg import dataset1, runtime, training, unet
from roadseg.classes import NUM_CLASSES, VOID
from roadseg.recipes import Recipe, Stage


def original_network(weights: unet.EncoderWeights) -> nn.Module:
    """Return the U-Net with VGG16's layers cut at 6, 13, 20, 27 and 34.

    These are the poolings of VGG13: the third and fourth skip are taken before
    their stage's last convolutions, and the fifth is the output of a pooling.
    """
    model = unet.UNet(encoder_weights=weights)
    last_pool, conv = model.bottleneck
    layers = [layer for stage in model.encoder for layer in stage] + [*last_pool]
    edges = [0, 6, 13, 20, 27, 34, len(layers)]
    pieces = [
        nn.Sequential(*layers[a:b]) for a, b in zip(edges[:-1], edges[1:], strict=True)
    ]
    model.encoder = nn.ModuleList(pieces[:-1])
    model.bottleneck = nn.Sequential(pieces[-1], conv)
    return model


def smp_network(weights: unet.EncoderWeights) -> nn.Module:
    """Return segmentation_models_pytorch's U-Net with the same encoder weights."""
    import segmentation_models_pytorch as smp

    model = smp.Unet("vgg16_bn", encoder_weights=None, classes=NUM_CLASSES)
    if weights.state is not None:
        model.encoder.features.load_state_dict(weights.state)
    return model


class Files(Dataset):
    """Training files, decoded and resized whenever they are asked for.

    Masks are resized like pictures, which invents labels between two classes;
    the recipe that the course descends from does that.
    """

    def __init__(self, folder: Path) -> None:
        pictures, masks = (folder / name for name in dataset1.folders("train"))
        self.pairs = [(p, masks / p.name) for p in sorted(pictures.glob("*.png"))]
        self.size = (224, 224)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        import cv2

        picture, mask = (str(path) for path in self.pairs[i])
        height, width = self.size
        rgb = cv2.cvtColor(cv2.imread(picture), cv2.COLOR_BGR2RGB)
        rgb = cv2.resize(rgb, (width, height))
        labels = cv2.resize(cv2.imread(mask, cv2.IMREAD_GRAYSCALE), (width, height))
        x = torch.from_numpy(rgb).permute(2, 0, 1)
        return unet.normalise(x), torch.from_numpy(labels).long()

    def subset(self, indices: Iterable[int]) -> "Files":
        """Return some of the files."""
        part = Files.__new__(Files)
        part.pairs, part.size = [self.pairs[i] for i in indices], self.size
        return part


def train_original(model, files: Files, recipe: Recipe, after: Callable) -> None:
    """Train as the original recipe does."""
    files.size = (recipe.stages[0].height, recipe.stages[0].width)
    loader = DataLoader(files, batch_size=recipe.batch_size, shuffle=True)
    optimiser = torch.optim.Adam(model.parameters(), lr=recipe.lr_decoder)
    _plain_loop(model, loader, recipe, optimiser, nn.CrossEntropyLoss(), after, True)


def train_smp(model, scenes, recipe: Recipe, after: Callable) -> None:
    """Train in a plain loop, on pictures that are in memory."""
    resize = v2.Resize((recipe.stages[0].height, recipe.stages[0].width))

    def prepare(image, mask):
        image, mask = resize(image, mask)
        return unet.normalise(image).as_subclass(Tensor), mask.as_subclass(Tensor)

    loader = DataLoader(
        scenes.with_transform(prepare), batch_size=recipe.batch_size, shuffle=True
    )
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr_decoder, weight_decay=recipe.weight_decay
    )
    loss_of = nn.CrossEntropyLoss(ignore_index=VOID)
    _plain_loop(model, loader, recipe, optimiser, loss_of, after, False)


def _plain_loop(model, loader, recipe, optimiser, loss_of, after, look: bool) -> None:
    device = runtime.device()
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        for images, masks in loader:
            images, masks = images.to(device), masks.to(device).long()
            optimiser.zero_grad()
            logits = model(images)
            loss = loss_of(logits, masks)
            loss.backward()
            optimiser.step()
            if look:  # each waits for the device
                loss.item()
                (logits.argmax(1) == masks).float().mean().item()
        after(epoch, model)


def train_ours(model, scenes, recipe: Recipe, after: Callable) -> None:
    """Train as the course does."""
    training.fit(model, scenes, recipe, on_epoch=after)


def read_scenes(folder: Path, split: str = "train") -> dataset1.RoadScenes:
    """Decode a split."""
    return dataset1.RoadScenes(folder, split, real=runtime.profile().real_data)


@dataclass(frozen=True)
class Contestant:
    """Who is measured.

    Attributes:
        network: Makes the network from encoder weights.
        read: Opens the training pictures in a folder.
        train: Called with network, pictures, recipe and what to call after an
            epoch with its number and the network.
        recipe: Makes what it trains by. Rates, sizes, batch and precision are
            taken from it, and for ours all the rest.
        learns_void: Whether void is a class for it, which `acc12` then credits.
    """

    network: Callable[[unet.EncoderWeights], nn.Module]
    read: Callable[[Path], Dataset]
    train: Callable[..., None]
    recipe: Callable[[], Recipe]
    learns_void: bool = False


def _plain_recipe(name: str, batch_size: int, rate: float) -> Recipe:
    quick = runtime.profile().name == "quick"
    stage = Stage(2, 64, 96) if quick else Stage(20, 224, 224)
    size = (stage.height, stage.width)
    return Recipe(name, (stage,), size, batch_size, rate, rate, precision="no")


CONTESTANTS = {
    "original": Contestant(
        original_network,
        Files,
        train_original,
        lambda: _plain_recipe("original", 4, 1e-3),
        learns_void=True,
    ),
    # 2e-4 is a usual rate for Adam on a pretrained encoder; it was not searched for
    "smp": Contestant(
        smp_network, read_scenes, train_smp, lambda: _plain_recipe("smp", 8, 2e-4)
    ),
    "ours": Contestant(
        lambda weights: unet.UNet(encoder_weights=weights),
        read_scenes,
        train_ours,
        Recipe.for_profile,
    ),
}
