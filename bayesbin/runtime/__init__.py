"""Prediction with numpy and the compiled kernels alone: programs, model files, predictors."""
