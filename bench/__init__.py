"""A benchmark for clean-label data poisoning: attacks and defenses as plug-ins, one runner, tracked numbers."""

__version__ = "0.1.0"
