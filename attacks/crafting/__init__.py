"""Engines that attacks share: descent in the eps ball, matching of features, matching of training gradients."""
