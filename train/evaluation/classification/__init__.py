"""Classes told from pooled features: k-NN, linear probes, logistic regression."""
