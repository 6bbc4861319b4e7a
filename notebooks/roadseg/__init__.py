"""Semantic segmentation of road scenes: data, a VGG16-BN U-Net, training, scores.

The modules form layers. Each one imports only from those before it in this list:

* Ground: `classes`, `runtime`, `files`
* Data and networks: `synthetic`, `unet`, `images`, `pairs`, `scenes`, `weights`
* Methods: `recipes`, `metrics`, `inference`, `video`, `dataset1`
* Figures: `paint`, `charts`, `plots`
* Your own data: `report`, `measures`, `doctor`, `convert`, `prepare`
* Training: `checkpoints`, `distributed`, `loading`, `training`, `trained`
* Tools: `export`, `segment`, `commands`, `cli`; `explorer` depends on nothing
"""

__version__ = "0.2.0"
