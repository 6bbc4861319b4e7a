"""Helpers of the course: road scenes, a VGG16-BN U-Net, its training and its scores.

Five floors; a module imports only from floors below its own. One exception:
`dataset1` uses `archives` and `synthetic`.

* `classes`, `runtime`
* `archives`, `synthetic`, `dataset1`, `unet`
* `evaluation`, `recipes`, `plots`, `explorer`
* `checkpoints`
* `training`
"""

__version__ = "0.1.0"
