"""What one or two processes do for test_distributed.py; started alone or by torchrun.

python sharing.py gradients CRITERION ANSWER.pt
python sharing.py run CRITERION ANSWER.pt
python sharing.py averaged FOLDER
python sharing.py killed FOLDER
python sharing.py resumed FOLDER
"""

import os
import signal
import sys
from dataclasses import replace

import torch
from torch import nn
from torchvision.transforms import v2

from roadseg import distributed, recipes, training
from roadseg.classes import CAMVID
from roadseg.recipes import Phase, Recipe
from test_training import Scenes, Small

RECIPE = Recipe("test", (Phase(2, 32, 32), Phase(2, 32, 64)), None, batch_size=4)
CRITERIA = {
    "recipe": None,
    "mean": nn.CrossEntropyLoss(ignore_index=CAMVID.ignore_index),
    "dice": recipes.dice_loss,  # not a mean over pixels
}


class Still(Small):
    """A network whose normalization and dropout stand still.

    On a CPU, batch normalization takes mean and variance from the images that a
    process has, so halves of a batch cannot give what the whole gives; dropout draws
    random numbers, of which each process has its own.
    """

    def train(self, mode=True):
        super().train(mode)
        for layer in (self.encoder[1], self.head[0]):
            layer.eval()
        return self


def scenes():
    """Scenes with very different shares of ignored pixels, up to all of them."""
    made = Scenes(8)
    for i, mask in enumerate(made.masks):
        mask[:, : 7 * i] = CAMVID.ignore_index
    for mask in made.masks[-3:]:  # so that a part of a batch has no label
        mask[:] = CAMVID.ignore_index
    return made


def network(kind=Still):
    torch.manual_seed(0)
    return kind()


def resize(recipe, phase):
    """Random crops would differ: each process draws its own."""
    return v2.Resize((phase.height, phase.width))


def fit(model, recipe=RECIPE, **more):
    return training.fit(model, scenes(), recipe, transform=resize, **more)


def gradients(criterion, answer):
    """Save the gradients of the first step."""
    found, main = {}, distributed.distributed_state().is_main_process

    class Recording(torch.optim.SGD):
        def step(self, *args, **more):
            grads = [p.grad.clone() for p in self.param_groups[0]["params"]]
            found.setdefault("gradients", grads)
            return super().step(*args, **more)

    fit(
        network(),
        replace(RECIPE, phases=(Phase(1, 32, 32),)),
        criterion=CRITERIA[criterion],
        optimizer=lambda model, recipe: Recording(model.parameters(), lr=1e-3),
    )
    if main:
        torch.save(found, answer)


def run(criterion, answer):
    """Save the history and the weights of a whole short run."""
    done = fit(network(), criterion=CRITERIA[criterion])
    if distributed.distributed_state().is_main_process:
        history = [(r["train_loss"], r["train_acc"]) for r in done.history]
        torch.save({"history": history, "weights": done.model.state_dict()}, answer)


def averaged(folder):
    """Train in that folder; if it is done there, compare with a run of this process."""
    recipe = replace(RECIPE, ema_decay=0.9)
    again = fit(network(), recipe, folder=folder)
    if distributed.distributed_state().num_processes > 1:
        return
    whole = fit(network(), recipe)
    for (name, a), b in zip(
        again.averaged.state_dict().items(),
        whole.averaged.state_dict().values(),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4, msg=name)


def killed(folder):
    """Train until, in the third epoch, the second process is killed."""

    class Doomed(Still):
        steps = 0

        def forward(self, x):
            self.steps += 1
            if self.steps == 6 and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGKILL)
            return super().forward(x)

    distributed.handle_termination()
    try:
        fit(network(Doomed), folder=folder)
    except (training.TrainingError, KeyboardInterrupt) as error:
        sys.exit(f"error: {error}")


def resumed(folder):
    """Go on in that folder; compare with a run that nobody stopped."""
    again = fit(Still(), folder=folder)
    whole = fit(network())
    for (name, a), b in zip(
        again.model.state_dict().items(),
        whole.model.state_dict().values(),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4, msg=name)


if __name__ == "__main__":
    tasks = {f.__name__: f for f in (gradients, run, averaged, killed, resumed)}
    tasks[sys.argv[1]](*sys.argv[2:])
