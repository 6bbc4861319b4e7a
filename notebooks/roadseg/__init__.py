"""Helpers of the course: road scenes, a VGG16-BN U-Net, its training and its scores.

Three floors; a module imports only from floors below its own, or, on the second,
the modules named before it:

* `classes`, `runtime`
* `synthetic`, `dataset1`, `unet`
* `evaluation`, `training`, `plots`
"""

__version__ = "0.1.0"
