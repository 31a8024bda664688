"""Pretrained networks that turn captions and pictures into vectors, for CLIPScore and BERTScore."""
