"""Helpers of the course: road scenes, a VGG16-BN U-Net, its training and its scores.

Three floors; a module imports only from floors below its own. Two exceptions:
`dataset1` uses `archives` and `synthetic`, `training` uses `evaluation`.

* `classes`, `runtime`
* `archives`, `synthetic`, `dataset1`, `unet`
* `evaluation`, `training`, `plots`, `explorer`
"""

__version__ = "0.1.0"
