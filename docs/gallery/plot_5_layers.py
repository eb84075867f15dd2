"""One score at several layers
===========================

The exact map adds up to the same score at every layer of this network. An earlier layer has smaller cells, and features
that see less of the image; the mean of the maps of several layers is an account of the score as well.
"""

from captum_fam import SupportSet, create_model, explain
from captum_fam.demo.texture_mosaics import cut_texture_mosaics, read_textures
from captum_fam.metrics import cell_mask
from captum_fam.visualization import visualize_match

net = create_model("efficientnet_lite0")
task = cut_texture_mosaics(read_textures(), 3)
support = SupportSet(net.normalize(task.support_images), task.support_labels)
queries = net.normalize(task.images)

# %%
# The coverage is the sum of the map divided by the score: 1 is all of it.
layers = {"blocks.2": "cells of 8 pixels", "blocks.4": "16 pixels", net.layer: "32 pixels"}
maps = {}
for layer, cells in layers.items():
    why = explain(net, queries, support, foil="others", target=task.labels, layer=layer, method="similarity-cam")
    print(f"{layer:10} grid {tuple(why.attributions.shape[2:])}, coverage {float(why.coverage[0]):.3f}")
    maps[f"{layer}\n{cells}"] = why.maps[0]

figure = visualize_match(task.images[0], maps, scale="own", mask=cell_mask(task.cells[:1], (224, 224))[0])
