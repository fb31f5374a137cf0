"""The operator: turns custom resources into pods and keeps them true; local mode reads its `render.py` too."""
