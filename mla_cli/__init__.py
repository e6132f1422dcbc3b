"""mla: experiments with multimodal learning by alternating unimodal adaptation (MLA, CVPR 2024)."""

__version__ = "0.1.0"
