"""minids: build and train a small DeepSeek-V3/R1, and understand every part of it. Start at
notebooks/00_start.ipynb."""

__version__ = "0.1.0"
