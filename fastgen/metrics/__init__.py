"""Measures of what models make, and baselines for their likelihoods."""

from .speech import linear_predictor_nats, log_mel_distance, stoi, unigram_nats

__all__ = ["linear_predictor_nats", "log_mel_distance", "stoi", "unigram_nats"]
