"""What one or two processes do for test_sharing.py; started alone or by torchrun.

python sharing.py gradients ANSWER.pt
python sharing.py run ANSWER.pt
python sharing.py killed FOLDER
python sharing.py resumed FOLDER
"""

import os
import signal
import sys

import torch
from torchvision.transforms import v2

from roadseg import training
from roadseg.classes import VOID
from roadseg.recipes import Recipe, Stage
from test_training import Scenes, Small

RECIPE = Recipe("test", (Stage(2, 32, 32), Stage(2, 32, 64)), None, batch_size=4)


class Still(Small):
    """A network whose normalisation and dropout stand still.

    Batch normalisation takes mean and spread from the pictures that a process has,
    on a CPU, so halves of a batch can not give what the whole gives; dropout draws
    random numbers, of which each process has its own.
    """

    def train(self, mode=True):
        super().train(mode)
        for layer in (self.encoder[1], self.head[0]):
            layer.eval()
        return self


def scenes():
    """Scenes of which the pictures have very different shares of void, up to all."""
    made = Scenes(8)
    for i, mask in enumerate(made.masks):
        mask[:, : 7 * i] = VOID
    for mask in made.masks[-3:]:  # so that a part of a batch is all void
        mask[:] = VOID
    return made


def network():
    torch.manual_seed(0)
    return Still()


def gradients(answer):
    """Save the gradients of the first step."""
    trainer = training._Trainer(network(), scenes(), RECIPE, None, None)
    found = {}

    def take():
        for name, p in trainer.plain.named_parameters():
            found[name] = p.grad.clone()

    trainer.optimiser.step = take
    trainer.loaders[0].set_epoch(1)
    trainer.model.train()
    images, masks, numbers = next(iter(trainer.loaders[0]))
    trainer._step(images, masks)
    pictures = trainer.accelerator.gather(numbers)
    if trainer.main:
        torch.save({"gradients": found, "pictures": sorted(pictures.tolist())}, answer)


def run(answer):
    """Save the history and the weights of a whole short run."""
    trained = training.fit(network(), scenes(), RECIPE)
    if training.processes().is_main_process:
        history = [(r["train_loss"], r["train_acc"]) for r in trained.history]
        torch.save({"history": history, "weights": trained.model.state_dict()}, answer)


def killed(folder):
    """Train until, in the third epoch, the second process is killed."""

    class Doomed(Still):
        steps = 0

        def forward(self, x):
            self.steps += 1
            if self.steps == 6 and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGKILL)
            return super().forward(x)

    training.end_in_words()
    torch.manual_seed(0)
    try:
        training.fit(Doomed(), scenes(), RECIPE, folder)
    except (training.TrainingError, KeyboardInterrupt) as error:
        sys.exit(f"error: {error}")


def resumed(folder):
    """Go on in that folder; compare with a run that nobody stopped."""
    resumed = training.fit(Still(), scenes(), RECIPE, folder)
    whole = training.fit(network(), scenes(), RECIPE)
    for (name, a), b in zip(
        resumed.model.state_dict().items(),
        whole.model.state_dict().values(),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4, msg=name)


def main():
    training.train_transform = lambda recipe, stage: v2.Resize(
        (stage.height, stage.width)
    )
    tasks = {f.__name__: f for f in (gradients, run, killed, resumed)}
    tasks[sys.argv[1]](sys.argv[2])


if __name__ == "__main__":
    main()
