"""Four photographs, and one that matches a quarter of them
========================================================

The query is made of four photographs, and the support is another crop of one of them, mirrored. The foil is what the
query also has, and the support lacks. All photographs come with scikit-image and are in the public domain or under CC0:
coffee by Rachel Michetti, the cat by Stéfan van der Walt, the astronaut by NASA, the rocket by SpaceX.
"""

import torch
from PIL import Image, ImageOps

from captum_fam import SupportSet, create_model, explain
from captum_fam.demo.skimage_files import skimage_file
from captum_fam.images import image_to_tensor
from captum_fam.metrics import mosaic_energy
from captum_fam.visualization import visualize_match


def crop(name, box):
    """A square of a photograph of scikit-image, (3, 224, 224)."""
    return Image.open(skimage_file(name)).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC, box=box)


coffee, cat, astronaut, rocket = (
    crop("coffee.png", (100, 0, 500, 400)),
    crop("chelsea.png", (80, 0, 380, 300)),
    crop("astronaut.png", (100, 0, 450, 350)),
    crop("rocket.jpg", (120, 20, 520, 420)),
)
rows = (coffee, cat), (astronaut, rocket)
mosaic = torch.cat([torch.cat([image_to_tensor(one) for one in row], dim=2) for row in rows], dim=1)

supports = (
    crop("chelsea.png", (30, 20, 310, 300)),
    crop("coffee.png", (60, 0, 460, 400)),
    crop("astronaut.png", (60, 20, 390, 350)),
    crop("rocket.jpg", (100, 0, 527, 427)),
)
images = torch.stack([image_to_tensor(ImageOps.mirror(one)) for one in supports])

# %%
# EfficientNet-Lite0, trained on ImageNet, is used without its classifier. A map with the foil is orange where the query
# speaks for the cat, and blue where it speaks for the other three. The shares are those of the positive part of each
# map inside the right quarter, where a constant map has 0.25. The foil brings either map there; the paper has none.
net = create_model("efficientnet_lite0")
support = SupportSet(net.normalize(images), torch.arange(4), ["cat", "coffee", "astronaut", "rocket"])
query = net.normalize(mosaic[None])

maps = {
    f"{name}{', with foil' if foil else ''}": explain(net, query, support, foil=foil, target=0, method=method).maps[0]
    for name, method in (("exact map", "similarity-cam"), ("FAM", "fam"))
    for foil in ("others", None)
}
for name, one in maps.items():
    print(f"{name:20} {mosaic_energy(one[None], torch.tensor([1]), (448, 448)).item():.2f}")

shown = {name: maps[name] for name in ("exact map, with foil", "FAM")}
figure = visualize_match(mosaic, shown, supports=images[:1], foils=images[1:], scale="own", titles={"foils": "foil"})
