"""Fine-tuning: the whole network trained through the pooling and the whitening."""
