"""A mosaic of textures, with a foil
=================================

Four crops of photographed textures make one image. The supports have the texture of one cell, the outlined one. With
the foil ``others`` the map says why this texture and not the other two; without a foil, it says where any similarity
comes from.
"""

from captum_fam import SupportSet, create_model, explain
from captum_fam.demo.texture_mosaics import TEXTURE_NAMES, cut_texture_mosaics, read_textures
from captum_fam.metrics import cell_mask, mosaic_energy
from captum_fam.visualization import visualize_match

net = create_model("efficientnet_lite0")
task = cut_texture_mosaics(read_textures(), 3)
support = SupportSet(net.normalize(task.support_images), task.support_labels, list(TEXTURE_NAMES))
queries = net.normalize(task.images)

# %%
# The share of the positive part of each map that lies inside the right cell. A constant map has a quarter there.
with_foil = explain(net, queries, support, foil="others", target=task.labels, method="similarity-cam")
without = explain(net, queries, support, target=task.labels, method="similarity-cam")
fam = explain(net, queries, support, target=task.labels, method="fam")
for name, why in (("with foil", with_foil), ("without", without), ("FAM", fam)):
    inside = mosaic_energy(why.maps, task.cells, (224, 224))
    print(f"{name:10}", " ".join(f"{share:.2f}" for share in inside.tolist()))

figure = visualize_match(
    task.images[0],
    {"exact map, with foil": with_foil.maps[0], "exact map": without.maps[0], "FAM": fam.maps[0]},
    supports=task.support_images[task.support_labels == task.labels[0]][:1],
    foils=task.support_images[task.support_labels != task.labels[0]][::3],
    scale="own",
    mask=cell_mask(task.cells[:1], (224, 224))[0],
    titles={"supports": f"support\n{TEXTURE_NAMES[int(task.labels[0])]}", "foils": "foil"},
)
