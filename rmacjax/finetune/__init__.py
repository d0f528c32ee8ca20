"""Fine-tuning: the whole network is trained through the pooling and the whitening."""
