"""Which map that adds up to the score finds the right cell of a mosaic best?"""
