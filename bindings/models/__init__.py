"""ImageGPT, ViT and CLIP as functions of (parameters, input, op set)."""
