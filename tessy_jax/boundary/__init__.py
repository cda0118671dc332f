"""Boundary predictors: segments of thinking, who annotates them, labels of tokens, and what a predictor is worth."""
