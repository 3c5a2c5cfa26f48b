"""Models that only sample: what they learn comes from a discriminator."""
