"""Measures of what models make, and baselines for their likelihoods."""

from .distances import Estimate, frechet_distance, inception_score, kernel_distance
from .neighbours import Overlap, expected_coverage, overlap
from .parzen import Parzen, parzen
from .speech import linear_predictor_nats, log_mel_distance, stoi, unigram_nats

__all__ = [
    "Estimate",
    "Overlap",
    "Parzen",
    "expected_coverage",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "linear_predictor_nats",
    "log_mel_distance",
    "overlap",
    "parzen",
    "stoi",
    "unigram_nats",
]
