"""The class names of the support that the tests of explanations share."""

NAMES = ("wren", "jay", "crow")
