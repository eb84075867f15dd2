"""Which point matches which
=========================

Two photographs of one scene, taken side by side. It is known where each point of the left one is in the right one, so
that matches of cells can be checked. Orange lines end within one cell of the truth, blue lines do not.
"""

from captum_fam import create_model
from captum_fam.demo.stereo_pair import best_matches, floors, read_stereo_pair, share_near
from captum_fam.demo.stereo_panel import StereoPanel
from captum_fam.visualization.layout import draw_panels

net = create_model("efficientnet_lite0")
pair = read_stereo_pair()

# %%
# ``best_matches`` asks :class:`~captum_fam.LayerCorrespondence` for the best partner of each cell of 8 x 8 pixels. The
# floors know the truth better than any method should: the best shift moves all cells alike, as far as fits best.
found = best_matches(net, pair, "blocks.2")
truth = pair.true_partners((found.shape[0], found.shape[1]))
print(f"within one cell of the truth: {share_near(found, truth):.0%}")
for name, share in floors(truth).items():
    print(f"{name}: {share:.0%}")

figure = draw_panels([StereoPanel(pair, found, truth, "matches of cells")], "EfficientNet-Lite0, layer blocks.2")
