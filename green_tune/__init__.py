"""green-tune: LoRA fine-tuning in which carbon is a result, tracked in MLflow.

The rooms of the house, from the ground up, are drawn in ARCHITECTURE.md.
"""

__version__ = "0.1.0"
