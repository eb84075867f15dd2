"""Looking at a model while it is trained: k-NN accuracy, and the maps of a fixed panel of images."""

from captum_fam.callbacks.lightning_callback import SimilarityExplanationCallback
from captum_fam.callbacks.log_explanations import log_similarity_explanations
from captum_fam.callbacks.panel import ExplanationPanel, PanelReading

__all__ = ["ExplanationPanel", "PanelReading", "SimilarityExplanationCallback", "log_similarity_explanations"]
