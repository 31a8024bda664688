"""The RNN: features and previous words -> next word."""
