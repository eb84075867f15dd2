"""Both sides of a match
=====================

A similarity belongs to two images. The left map says what in the query the similarity comes from, the right map what in
the support, and the lines join the cells that bring most of it together.
"""

from captum_fam import SupportSet, create_model, explain
from captum_fam.demo import PlantedScenes

net = create_model("demo")
episode = PlantedScenes("novel").episode(way=5, shot=5, query=1)
support = SupportSet(net.normalize(episode.support_images), episode.support_labels)

# %%
# With ``sides="both"``, each query also gets the maps of its most similar supports.
queries = net.normalize(episode.query_images)
why = explain(net, queries, support, foil="others", target=episode.query_labels, sides="both", top=1)
pair = why.pairs[0][0]
print(f"similarity {pair.similarity:.3f}; {len(pair.matches)} matches are kept")
for match in pair.matches[:3]:
    print(f"cell {match.query} of the query and {match.support} of the support bring {match.share:.4f}")

figure = why.figure(0)
