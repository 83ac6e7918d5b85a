"""Read-outs of token states beside the pooled vector."""
