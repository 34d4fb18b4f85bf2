"""LoRA files: merged into a checkpoint at the export, or into a bundle later, without torch."""
