"""The exact map beside FAM
========================

A planted scene shares one object with its support, the outlined one. Everything else is clutter. Two maps of the same
layer and the same decision stand beside a map that knows nothing of the support.
"""

from captum_fam import SupportSet, create_model, explain
from captum_fam.demo import PlantedScenes
from captum_fam.visualization import visualize_match

net = create_model("demo")
episode = PlantedScenes("novel").episode(way=5, shot=5, query=1)
support = SupportSet(net.normalize(episode.support_images), episode.support_labels)
queries = net.normalize(episode.query_images)

# %%
# Why this class and not the other four? The exact map (``similarity-cam``) is signed, and adds up to the difference of
# the scores. FAM weighs the channels by their contributions. The mean activation is the floor: no support enters it.
exact = explain(net, queries, support, foil="others", target=episode.query_labels, method="similarity-cam")
fam = explain(net, queries, support, target=episode.query_labels, method="fam")
floor = explain(net, queries, support, target=episode.query_labels, method="mean-activation")
print(exact)

figure = visualize_match(
    episode.query_images[0],
    {"exact map, with foil": exact.maps[0], "FAM": fam.maps[0], "mean activation": floor.maps[0]},
    supports=episode.support_images[episode.support_labels == 0][:2],
    notes={"exact map, with foil": exact.account_text(0), "FAM": fam.account_text(0)},
    scale="own",
    mask=episode.query[0].mask,
)
