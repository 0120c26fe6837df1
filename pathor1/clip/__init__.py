"""PathoCLIP: contrastive training in two stages, zero-shot classification, retrieval, linear probing."""
